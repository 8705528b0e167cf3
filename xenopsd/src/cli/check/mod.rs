//! `xenops check`: is this a working dom0, and if not, what is missing and what to do.
//!
//! ```text
//!  host ──facts──► Facts ──judge──► one verdict per line ──► table or JSON, exit code
//! ```

mod facts;

use std::path::Path;

use crate::api::value::{Text, ToValue as _, Value};
use crate::xlcfg::DEFAULT_BRIDGE;

use super::error::CliError;
use super::table::{Align, printable, table};
use super::{Streams, print_json};
use facts::{Facts, Module, Node};

/// Memory below which no guest of use can be started, MiB.
const LITTLE_MEMORY_MIB: u64 = 64;

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Ok,
    /// Something does not work; ordinary VMs start.
    Optional,
    /// No VM starts.
    Missing,
}

impl Standing {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Optional => "optional",
            Self::Missing => "MISSING",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    what: String,
    standing: Standing,
    found: String,
    /// What to do; empty when all is well.
    remedy: String,
}

pub(super) fn run(socket: &Path, json: bool, streams: &mut Streams<'_>) -> Result<(), CliError> {
    let verdicts = judge(&Facts::gather(Path::new("/"), socket));
    let missing = verdicts.iter().filter(|verdict| verdict.standing == Standing::Missing).count();
    if json {
        print_json(streams, &Value::Array(verdicts.iter().map(to_value).collect()))?;
    } else {
        streams.out.write_all(render(&verdicts).as_bytes())?;
    }
    if missing == 0 { Ok(()) } else { Err(CliError::NotReady { missing }) }
}

fn to_value(verdict: &Verdict) -> Value {
    let members = [
        ("what", verdict.what.to_value()),
        ("standing", verdict.standing.word().to_lowercase().to_value()),
        ("found", verdict.found.to_value()),
        ("remedy", verdict.remedy.to_value()),
    ];
    Value::Dict(members.into_iter().map(|(key, value)| (Text::from(key), value)).collect())
}

fn render(verdicts: &[Verdict]) -> String {
    let columns = [("WHAT", Align::Left), ("STATE", Align::Left), ("FOUND", Align::Left)];
    let rows: Vec<Vec<String>> = verdicts
        .iter()
        .map(|verdict| vec![verdict.what.clone(), verdict.standing.word().to_owned(), verdict.found.clone()])
        .collect();
    let mut text = table(&columns, &rows);
    let remedies: Vec<&Verdict> = verdicts.iter().filter(|verdict| !verdict.remedy.is_empty()).collect();
    if remedies.is_empty() {
        text.push_str("\nThis is a working dom0.\n");
    } else {
        text.push_str("\nWhat to do:\n");
        let lines: Vec<String> = remedies
            .iter()
            .map(|verdict| format!("  {}: {}\n", verdict.what, printable(&verdict.remedy)))
            .collect();
        text.push_str(&lines.concat());
    }
    text
}

/// The verdicts, in the order in which the things depend on each other.
fn judge(facts: &Facts) -> Vec<Verdict> {
    let mut verdicts = vec![user(facts), xen(facts), dom0(facts)];
    verdicts.extend(facts.nodes.iter().map(|(name, node)| device_node(name, *node, facts)));
    verdicts.push(xenstored(facts));
    verdicts.push(xenconsoled(facts));
    verdicts.extend(facts.modules.iter().map(|(name, module)| kernel_module(name, *module)));
    verdicts.push(bridge(facts));
    verdicts.push(memory(facts));
    verdicts.push(daemon(facts));
    verdicts
}

fn ok(what: &str, found: impl Into<String>) -> Verdict {
    Verdict { what: what.to_owned(), standing: Standing::Ok, found: found.into(), remedy: String::new() }
}

fn missing(what: &str, found: impl Into<String>, remedy: impl Into<String>) -> Verdict {
    Verdict { what: what.to_owned(), standing: Standing::Missing, found: found.into(), remedy: remedy.into() }
}

fn optional(what: &str, found: impl Into<String>, remedy: impl Into<String>) -> Verdict {
    Verdict { standing: Standing::Optional, ..missing(what, found, remedy) }
}

fn user(facts: &Facts) -> Verdict {
    if facts.root {
        ok("user", "root")
    } else {
        missing(
            "user",
            "not root",
            "run xenops as root: hypercalls and the daemon's socket are for root only",
        )
    }
}

fn xen(facts: &Facts) -> Verdict {
    match facts.hypervisor.as_deref() {
        Some("xen") => ok("hypervisor", "Xen"),
        other => missing(
            "hypervisor",
            other.map_or("none".to_owned(), |other| format!("{other}, not Xen")),
            "install Xen (Debian: apt install xen-system-amd64) and choose its entry in the boot menu",
        ),
    }
}

fn dom0(facts: &Facts) -> Verdict {
    match facts.capabilities.as_deref() {
        Some(text) if text.contains("control_d") => ok("dom0", "this is the control domain"),
        Some(_) => missing("dom0", "this domain controls nothing", "run xenops in dom0, not in a guest"),
        None => missing(
            "dom0",
            "/proc/xen/capabilities is not there",
            "under Xen: `modprobe xenfs && mount -t xenfs xenfs /proc/xen`",
        ),
    }
}

fn device_node(name: &str, node: Node, facts: &Facts) -> Verdict {
    let what = format!("/dev/xen/{name}");
    let load = match name {
        "xenbus" => "modprobe xenfs".to_owned(),
        name => format!("modprobe xen-{name}"),
    };
    match node {
        Node::Device => ok(&what, "there"),
        // The socket does the same.
        Node::Missing if name == "xenbus" && facts.xenstore.is_ok() => {
            optional(&what, "not there; xenstored's socket answers", format!("`{load}`"))
        }
        Node::Missing => missing(&what, "not there", format!("`{load}`")),
        Node::NotADevice => missing(
            &what,
            "not a character device",
            format!("remove it, then `{load}` and `udevadm trigger`"),
        ),
    }
}

fn xenstored(facts: &Facts) -> Verdict {
    match &facts.xenstore {
        Ok(()) => ok("xenstored", "answers"),
        Err(error) => missing("xenstored", error, "`systemctl start xenstored`, or /etc/init.d/xen start"),
    }
}

fn xenconsoled(facts: &Facts) -> Verdict {
    if facts.xenconsoled {
        ok("xenconsoled", "runs")
    } else {
        let found = "does not run: guests have no text console, and may wait for it";
        optional("xenconsoled", found, "`systemctl start xenconsoled`, or /etc/init.d/xen start")
    }
}

fn kernel_module(name: &str, module: Module) -> Verdict {
    let what = format!("module {name}");
    let load = match name {
        // dom0's kernel has no business in what is in guests' disks.
        "nbd" => "`modprobe nbd max_part=0`, with `options nbd max_part=0` in /etc/modprobe.d".to_owned(),
        name => format!("`modprobe {name}`, and add it to /etc/modules"),
    };
    let needed_for = match name {
        "nbd" => "disks in qcow2 and VHD images",
        "loop" => "disks that are files",
        "xen-netback" => "network interfaces",
        _ => "disks",
    };
    let absent = match module {
        Module::Present => return ok(&what, "in the kernel"),
        Module::Loadable => (format!("not loaded; needed for {needed_for}"), load),
        Module::Absent => (
            format!("not part of this kernel; needed for {needed_for}"),
            "install a kernel with Xen backends (Debian: linux-image-amd64)".to_owned(),
        ),
    };
    if matches!(name, "loop" | "nbd") {
        optional(&what, absent.0, absent.1)
    } else {
        missing(&what, absent.0, absent.1)
    }
}

fn bridge(facts: &Facts) -> Verdict {
    let make = format!(
        "`ip link add {DEFAULT_BRIDGE} type bridge && ip link set {DEFAULT_BRIDGE} up`, and put the network card into it"
    );
    match &facts.bridges {
        Ok(bridges) if bridges.iter().any(|bridge| bridge == DEFAULT_BRIDGE) => {
            ok("bridge", bridges.join(", "))
        }
        Ok(bridges) if bridges.is_empty() => optional("bridge", "none: guests have no network", make),
        Ok(bridges) => {
            let found =
                format!("{}; not {DEFAULT_BRIDGE}, the one of interfaces that name none", bridges.join(", "));
            optional("bridge", found, format!("name one of them with bridge= in configurations, or {make}"))
        }
        Err(error) => optional("bridge", error, make),
    }
}

fn memory(facts: &Facts) -> Verdict {
    match &facts.free_memory_mib {
        Ok(mib) if *mib >= LITTLE_MEMORY_MIB => ok("memory", format!("{mib} MiB free")),
        Ok(mib) => missing(
            "memory",
            format!("{mib} MiB free"),
            "shut a VM down, or boot Xen with dom0_mem=2G,max:2G so that dom0 leaves memory to others",
        ),
        Err(error) => missing("memory", "unknown: Xen does not answer", error),
    }
}

fn daemon(facts: &Facts) -> Verdict {
    match &facts.daemon {
        Ok(version) => ok("xenopsd", version),
        Err(error) => {
            missing("xenopsd", error, "when the rest is there: `systemctl start xenopsd`, or run `xenopsd`")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn working() -> Facts {
        Facts {
            root: true,
            hypervisor: Some("xen".to_owned()),
            capabilities: Some("control_d\n".to_owned()),
            nodes: facts::NODES.iter().map(|name| (*name, Node::Device)).collect(),
            xenstore: Ok(()),
            xenconsoled: true,
            modules: facts::MODULES.iter().map(|name| (*name, Module::Present)).collect(),
            bridges: Ok(vec!["br1".to_owned(), "xenbr0".to_owned()]),
            free_memory_mib: Ok(2048),
            daemon: Ok("0.1".to_owned()),
        }
    }

    fn standing(facts: &Facts, what: &str) -> Standing {
        judge(facts).into_iter().find(|verdict| verdict.what == what).expect(what).standing
    }

    #[test]
    fn a_working_dom0_has_nothing_to_do() {
        let verdicts = judge(&working());
        assert!(verdicts.iter().all(|verdict| verdict.standing == Standing::Ok && verdict.remedy.is_empty()));
        assert!(render(&verdicts).ends_with("This is a working dom0.\n"));
    }

    #[test]
    fn each_thing_that_is_missing_is_named_with_what_to_do() {
        type Break = fn(&mut Facts);
        let cases: [(&str, Standing, Break); 16] = [
            ("user", Standing::Missing, |facts| facts.root = false),
            ("hypervisor", Standing::Missing, |facts| facts.hypervisor = Some("kvm".to_owned())),
            ("dom0", Standing::Missing, |facts| facts.capabilities = Some(String::new())),
            ("dom0", Standing::Missing, |facts| facts.capabilities = None),
            ("/dev/xen/privcmd", Standing::Missing, |facts| facts.nodes[0].1 = Node::NotADevice),
            ("/dev/xen/xenbus", Standing::Optional, |facts| facts.nodes[3].1 = Node::Missing),
            ("xenstored", Standing::Missing, |facts| facts.xenstore = Err("refused".to_owned())),
            ("xenconsoled", Standing::Optional, |facts| facts.xenconsoled = false),
            ("module xen-blkback", Standing::Missing, |facts| facts.modules[0].1 = Module::Loadable),
            ("module loop", Standing::Optional, |facts| facts.modules[2].1 = Module::Absent),
            ("module nbd", Standing::Optional, |facts| facts.modules[3].1 = Module::Loadable),
            ("bridge", Standing::Optional, |facts| facts.bridges = Ok(Vec::new())),
            ("bridge", Standing::Optional, |facts| facts.bridges = Ok(vec!["br0".to_owned()])),
            ("memory", Standing::Missing, |facts| facts.free_memory_mib = Ok(3)),
            ("memory", Standing::Missing, |facts| facts.free_memory_mib = Err("no".to_owned())),
            ("xenopsd", Standing::Missing, |facts| facts.daemon = Err("refused".to_owned())),
        ];
        for (what, expected, spoil) in cases {
            let mut facts = working();
            spoil(&mut facts);
            assert_eq!(standing(&facts, what), expected, "{what}");
            let verdicts = judge(&facts);
            let others = verdicts.iter().filter(|verdict| verdict.standing != Standing::Ok);
            assert!(
                others.clone().all(|verdict| verdict.what == what && !verdict.remedy.is_empty()),
                "{what}"
            );
            assert!(render(&verdicts).contains("What to do:"));
        }
    }
}
