//! Disks plugged into a running nested host, beside the one it is started with: its snapshot knows nothing of them.

use crate::{
    error::{Error, Result},
    host::Host,
    qmp::Qmp,
    ssh::quote,
    vm,
};
use serde_json::json;
use std::{path::Path, time::Duration};

/// Longest wait for an answer of QEMU's monitor.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Most letters of a disk's serial number: what virtio has room for.
const SERIAL: usize = 20;

/// Prints the name of the disk with this serial number as soon as there is one. Its node in `/dev` tells; what came before
/// that is watched, and a disk whose number could not be read yet, is looked for once a second.
const APPEARS: &str = r#"exec 3< <(exec busybox inotifyd - /dev:n)
for _ in {1..60}; do
    for disk in /sys/block/vd*; do
        if [ "$(cat $disk/serial)" = SERIAL ] && [ -b /dev/${disk##*/} ]; then kill $!; echo ${disk##*/}; exit; fi
    done
    read -r -t 1 -u 3 _
done
echo no disk SERIAL has come up >&2; kill $!; exit 1"#;

impl Host {
    /// Plugs a disk and returns its device in dom0, such as `/dev/vdb`. What is written to it is this host's own: the file
    /// stays as it is, and any number of hosts may have it.
    ///
    /// # Errors
    /// When QEMU refuses the file, or dom0 does not see the disk.
    pub fn plug_disk(&self, name: &str, image: &Path) -> Result<String> {
        let good = |c: char| c.is_ascii_alphanumeric();
        if name.is_empty() || name.len() > SERIAL || !name.chars().all(good) {
            return Err(Error::BadName { name: name.to_owned() });
        }
        let refused = |source| Error::Monitor { source, console: self.console_tail() };
        // Commas separate options; one in a value is written twice.
        let file = image.display().to_string().replace(',', ",,");
        let drive = format!("drive_add 0 file={file},format=raw,if=none,id={name},snapshot=on");
        let device = json!({ "driver": "virtio-blk-pci", "drive": name, "id": format!("{name}-disk"), "serial": name });
        let stream = vm::monitor(self.dir()).map_err(|source| {
            refused(crate::QmpError::Connection { what: "the monitor".to_owned(), source })
        })?;
        let mut qmp = Qmp::new(stream, ANSWER_LIMIT).map_err(refused)?;
        let said = qmp
            .execute("human-monitor-command", &json!({ "command-line": drive }), ANSWER_LIMIT)
            .map_err(refused)?;
        let said = said.as_str().unwrap_or_default().trim();
        if said != "OK" {
            return Err(refused(crate::QmpError::Malformed(said.to_owned())));
        }
        qmp.execute("device_add", &device, ANSWER_LIMIT).map_err(refused)?;
        let found = self.check_shell(&APPEARS.replace("SERIAL", &quote(name)))?;
        Ok(format!("/dev/{}", found.trim()))
    }
}
