//! What can be seen of this host. Nothing is judged and nothing is changed.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use xenstore::Operations as _;

use crate::api::QueryService;
use crate::edge::linux::netlink::Netlink;
use crate::rpc::Client;
use crate::rpc::codec::Codec;

/// Devices of `/dev/xen` that a toolstack opens.
pub(super) const NODES: [&str; 4] = ["privcmd", "evtchn", "gntdev", "xenbus"];

/// Backends, and what makes block devices of files.
pub(super) const MODULES: [&str; 4] = ["xen-blkback", "xen-netback", "loop", "nbd"];

/// How long a daemon may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(5);

/// The daemon's program.
const DAEMON: &str = "xenopsd";

/// A name in a directory of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Device,
    NotADevice,
    Missing,
}

/// A driver of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Module {
    /// Loaded or built in.
    Present,
    /// `modprobe` would find it.
    Loadable,
    Absent,
}

/// The findings; errors are for people.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) root: bool,
    /// What the kernel says it runs on.
    pub(super) hypervisor: Option<String>,
    /// What Xen lets this domain do.
    pub(super) capabilities: Option<String>,
    pub(super) nodes: Vec<(&'static str, Node)>,
    pub(super) xenstore: Result<(), String>,
    pub(super) xenconsoled: bool,
    pub(super) modules: Vec<(&'static str, Module)>,
    /// Names.
    pub(super) bridges: Result<Vec<String>, String>,
    pub(super) free_memory_mib: Result<u64, String>,
    /// Who answers on the daemon's socket.
    pub(super) daemon: Result<String, String>,
}

impl Facts {
    /// Looks at the files below `host`, and asks the kernel, Xen and the daemons.
    pub(super) fn gather(host: &Path, socket: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(host.join(path)).ok();
        Self {
            root: nix::unistd::geteuid().is_root(),
            hypervisor: read("sys/hypervisor/type").map(|text| text.trim().to_owned()),
            capabilities: read("proc/xen/capabilities"),
            nodes: NODES.map(|name| (name, node(&host.join("dev/xen").join(name)))).to_vec(),
            xenstore: xenstore_answers(),
            xenconsoled: process_runs(&host.join("proc"), "xenconsoled"),
            modules: MODULES.map(|name| (name, module(host, name))).to_vec(),
            bridges: bridges(),
            free_memory_mib: free_memory_mib(),
            daemon: daemon(socket),
        }
    }
}

fn node(path: &Path) -> Node {
    match fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_char_device() => Node::Device,
        Ok(_) => Node::NotADevice,
        Err(_) => Node::Missing,
    }
}

fn xenstore_answers() -> Result<(), String> {
    let mut client = xenstore::Client::connect().map_err(|error| error.to_string())?;
    client.set_timeout(PATIENCE);
    client.exists(&xenstore::Path::root()).map(drop).map_err(|error| error.to_string())
}

/// Whether a process of that name runs, by its 15-byte `comm`.
fn process_runs(proc: &Path, name: &str) -> bool {
    let Ok(entries) = fs::read_dir(proc) else { return false };
    entries.flatten().any(|entry| {
        let process = entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
        process && fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    })
}

fn module(host: &Path, name: &str) -> Module {
    // sysfs lists loaded modules, and built-in ones that have parameters; modprobe knows the other built-in ones,
    // for which it succeeds without naming a file.
    if host.join("sys/module").join(name.replace('-', "_")).exists() {
        return Module::Present;
    }
    let answer = Command::new("modprobe")
        .args(["--dry-run", "--show-depends", "--quiet", name])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    match answer {
        Ok(answer) if answer.status.success() && answer.stdout.starts_with(b"builtin") => Module::Present,
        Ok(answer) if answer.status.success() => Module::Loadable,
        _ => Module::Absent,
    }
}

fn bridges() -> Result<Vec<String>, String> {
    let mut netlink = Netlink::open().map_err(|error| error.to_string())?;
    let bridges = netlink.bridges().map_err(|error| error.to_string())?;
    Ok(bridges.into_iter().map(|bridge| bridge.name).collect())
}

/// As the daemon's program says, which is beside this one: no library of Xen's is loaded into this one, for which every
/// command would wait.
fn free_memory_mib() -> Result<u64, String> {
    let beside = std::env::current_exe().map(|this| this.with_file_name(DAEMON));
    let program = beside.ok().filter(|path| path.is_file()).unwrap_or_else(|| DAEMON.into());
    let answer = Command::new(&program).args(["--print", "free-memory"]).stdin(Stdio::null()).output();
    let answer = answer.map_err(|error| format!("{}: {error}", program.display()))?;
    if !answer.status.success() {
        return Err(String::from_utf8_lossy(&answer.stderr).trim().to_owned());
    }
    let text = String::from_utf8_lossy(&answer.stdout);
    text.trim().parse().map_err(|_| format!("{}: it says {text:?}", program.display()))
}

fn daemon(socket: &Path) -> Result<String, String> {
    let codec = if socket.extension().is_some_and(|extension| extension == "json") {
        Codec::Json
    } else {
        Codec::Xml
    };
    let client = Client::new(socket, codec).with_timeout(Some(PATIENCE));
    let call = QueryService { debug_info: "xenops check".to_owned(), unit: () };
    let answer = client.call(&call).map_err(|error| error.to_string())?;
    Ok(format!("{} {} by {} answers on {}", answer.name, answer.version, answer.vendor, socket.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_below_another_root_are_read() {
        let host = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = host.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("sys/hypervisor/type", "xen\n");
        put("proc/xen/capabilities", "control_d\n");
        put("proc/17/comm", "xenconsoled\n");
        put("proc/self/comm", "other\n");
        put("dev/xen/privcmd", "");
        put("sys/module/xen_blkback/refcnt", "0\n");
        let facts = Facts::gather(host.path(), Path::new("/nonexistent/socket"));
        assert_eq!(facts.hypervisor.as_deref(), Some("xen"));
        assert_eq!(facts.capabilities.as_deref(), Some("control_d\n"));
        assert!(facts.xenconsoled);
        assert_eq!(facts.nodes[0], ("privcmd", Node::NotADevice));
        assert_eq!(facts.nodes[1], ("evtchn", Node::Missing));
        assert_eq!(facts.modules[0], ("xen-blkback", Module::Present));
        assert!(facts.daemon.is_err());
    }

    #[test]
    fn device_nodes_and_processes_are_recognised() {
        assert_eq!(node(Path::new("/dev/null")), Node::Device);
        assert!(!process_runs(Path::new("/nonexistent"), "x"));
        assert!(!process_runs(Path::new("/proc"), "no-such-process"));
    }
}
