//! Encrypted disks, made by `cryptsetup`, are refused by name.

mod common;

use common::*;
use guest_installer::{error::Error, fs::Mounted, volumes::Volumes};
use std::{
    io::Write as _,
    process::{Command, Stdio},
};

/// In a partition of a disk, the error of the whole disk names it.
#[test]
fn encrypted_disks() {
    for (kind, options) in [("luks1", &[][..]), ("luks2", &["--pbkdf", "pbkdf2"])] {
        let scratch = Scratch::new();
        let image = scratch.empty("luks", 32 << 20);
        let mut cryptsetup = Command::new("/usr/sbin/cryptsetup");
        cryptsetup.args([
            "luksFormat",
            "--batch-mode",
            "--type",
            kind,
            "--pbkdf-force-iterations",
            "1000",
            "--key-file",
            "-",
        ]);
        let mut child = cryptsetup.args(options).arg(&image).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"pass").unwrap();
        assert!(child.wait().unwrap().success(), "cryptsetup makes {kind}");
        let refused = Mounted::open(&open(&image));
        assert!(
            matches!(&refused, Err(Error::Unsupported(what)) if what == "LUKS encryption"),
            "{refused:?}"
        );

        let disk = scratch.empty("disk", 40 << 20);
        partition(&disk, "label: dos\nstart=2048, size=65536, type=83\n");
        place(&image, &disk, 1 << 20);
        let error = Volumes::open(&open(&disk)).unwrap_err();
        assert!(error.to_string().contains("LUKS encryption is not supported"), "{error}");
    }
}
