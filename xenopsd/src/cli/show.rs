//! `list` and `show`: VMs for people, and as JSON for programs.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::api::value::{Text, ToValue as _, Value};
use crate::api::{Action, Boot, BuilderInfo, ConsoleProtocol, FirmwareType, Vbd, Vif, Vm, VmList, VmState};

use super::device::Device as _;
use super::error::CliError;
use super::table::{Align, printable, table};
use super::vm::{find, has_domain, stat};
use super::{Session, agent};

/// Bytes of a MiB, in the contract's integers.
pub(super) const MIB: i64 = 1 << 20;

pub(super) fn list(session: &mut Session<'_, '_>) -> Result<(), CliError> {
    let vms = session.client.call(&VmList { debug_info: session.dbg(), unit: () })?;
    if session.json {
        return session.print_json(&vms);
    }
    let text = render_list(vms);
    session.print(&text)
}

pub(super) fn show(session: &mut Session<'_, '_>, wanted: &str) -> Result<(), CliError> {
    let known = find(session, wanted)?;
    let (vm, state) = stat(session, &known.id)?;
    let vbds = Vbd::all(session, &known.id)?;
    let vifs = Vif::all(session, &known.id)?;
    if session.json {
        let members = [
            ("vm", vm.to_value()),
            ("state", state.to_value()),
            ("vbds", vbds.to_value()),
            ("vifs", vifs.to_value()),
        ];
        let value = Value::Dict(members.into_iter().map(|(key, value)| (Text::from(key), value)).collect());
        return session.print_json(&value);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64());
    let mut text = render_vm(&vm, &state, now);
    for table in [Vbd::render(&vbds), Vif::render(&vifs)] {
        if !table.is_empty() {
            text.push('\n');
            text.push_str(&table);
        }
    }
    session.print(&text)
}

fn render_list(mut vms: Vec<(Vm, VmState)>) -> String {
    vms.sort_by(|(left, _), (right, _)| (&left.name, &left.id).cmp(&(&right.name, &right.id)));
    let columns = [
        ("NAME", Align::Left),
        ("UUID", Align::Left),
        ("STATE", Align::Left),
        ("DOMID", Align::Right),
        ("TYPE", Align::Left),
        ("MEM/MIB", Align::Right),
        ("VCPUS", Align::Right),
    ];
    let rows: Vec<Vec<String>> = vms
        .iter()
        .map(|(vm, state)| {
            // What it has when it runs, what it will have when it does not.
            let (memory, vcpus) = if has_domain(state) {
                (state.memory_actual, state.vcpu_target)
            } else {
                (vm.memory_dynamic_max, vm.vcpus)
            };
            vec![
                vm.name.clone(),
                vm.id.clone(),
                format!("{:?}", state.power_state),
                domid(state),
                kind(&vm.ty).to_owned(),
                (memory / MIB).to_string(),
                vcpus.to_string(),
            ]
        })
        .collect();
    table(&columns, &rows)
}

fn domid(state: &VmState) -> String {
    state.domids.last().map_or("-".to_owned(), ToString::to_string)
}

fn kind(ty: &BuilderInfo) -> &'static str {
    match ty {
        BuilderInfo::Hvm(_) => "HVM",
        BuilderInfo::Pv(_) => "PV",
        BuilderInfo::PvInPvh(_) => "PVinPVH",
        BuilderInfo::Pvh(_) => "PVH",
    }
}

fn render_vm(vm: &Vm, state: &VmState, now: f64) -> String {
    let mut lines: Vec<(&str, String)> = vec![
        ("name", vm.name.clone()),
        ("uuid", vm.id.clone()),
        ("state", format!("{:?}", state.power_state)),
    ];
    if has_domain(state) {
        lines.push(("domid", domid(state)));
        if state.last_start_time > 0.0 {
            lines.push(("up for", duration(now - state.last_start_time)));
        }
    }
    lines.push(("type", kind(&vm.ty).to_owned()));
    lines.extend(boot(&vm.ty));
    let range = if vm.memory_dynamic_min == vm.memory_dynamic_max {
        mib(vm.memory_dynamic_max)
    } else {
        format!("{} to {}", mib(vm.memory_dynamic_min), mib(vm.memory_dynamic_max))
    };
    lines.push(("memory", format!("{range}, at most {}", mib(vm.memory_static_max))));
    if has_domain(state) {
        lines.push(("has now", format!("{}, target {}", mib(state.memory_actual), mib(state.memory_target))));
    }
    lines.push(("vcpus", format!("{} of {}", vm.vcpus, vm.vcpu_max)));
    for (label, list) in
        [("on shutdown", &vm.on_shutdown), ("on reboot", &vm.on_reboot), ("on crash", &vm.on_crash)]
    {
        lines.push((label, actions(list)));
    }
    for console in &state.consoles {
        let protocol = match console.protocol {
            ConsoleProtocol::Rfb => "VNC",
            ConsoleProtocol::Vt100 => "text",
        };
        let place =
            if console.path.is_empty() { format!("port {}", console.port) } else { console.path.clone() };
        lines.push(("console", format!("{protocol} on {place}")));
    }
    lines.extend(agent::lines(state));
    let lines: Vec<String> =
        lines.iter().map(|(label, text)| format!("{label:<12} {}\n", printable(text))).collect();
    lines.concat()
}

fn boot(ty: &BuilderInfo) -> Vec<(&'static str, String)> {
    match ty {
        BuilderInfo::Hvm(hvm) => {
            let firmware = match hvm.firmware {
                FirmwareType::Bios => "BIOS",
                FirmwareType::Uefi(_) => "UEFI",
            };
            vec![("firmware", firmware.to_owned())]
        }
        BuilderInfo::Pv(info) | BuilderInfo::PvInPvh(info) | BuilderInfo::Pvh(info) => match &info.boot {
            Boot::Direct(direct) => {
                let mut lines = vec![("kernel", direct.kernel.clone())];
                lines.extend(direct.ramdisk.clone().map(|path| ("ramdisk", path)));
                if !direct.cmdline.is_empty() {
                    lines.push(("cmdline", direct.cmdline.clone()));
                }
                lines
            }
            Boot::Indirect(indirect) => vec![("bootloader", indirect.bootloader.clone())],
        },
    }
}

fn actions(list: &[Action]) -> String {
    let words: Vec<String> = list.iter().map(|action| format!("{action:?}").to_lowercase()).collect();
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}

fn mib(bytes: i64) -> String {
    format!("{} MiB", bytes / MIB)
}

/// Whole days, hours, minutes and seconds; nothing negative, whatever the clocks say.
fn duration(seconds: f64) -> String {
    let whole =
        std::time::Duration::try_from_secs_f64(seconds.max(0.0)).map_or(0, |duration| duration.as_secs());
    let (days, rest) = (whole / 86_400, whole % 86_400);
    let clock = format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    if days > 0 { format!("{days} d {clock}") } else { clock }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{halted, sample};
    use super::*;
    use crate::api::{Network, PowerState, VbdState};

    #[test]
    fn the_list_is_sorted_and_aligned() {
        let (web, vbds, _) = sample("web");
        let (mut db, _, _) = sample("db");
        // Other clients of the daemon may give any name.
        db.name.push_str("\u{1b}[2J");
        db.id = "00000000-0000-4000-8000-000000000002".to_owned();
        let mut running = halted();
        running.power_state = PowerState::Running;
        running.domids = vec![7];
        (running.memory_actual, running.vcpu_target) = (256 * MIB, 1);
        assert_eq!(vbds.len(), 1);
        let expected = "\
NAME         UUID                                  STATE    DOMID  TYPE  MEM/MIB  VCPUS
db\\u{1b}[2J  00000000-0000-4000-8000-000000000002  Running      7  PVH       256      1
web          00000000-0000-4000-8000-000000000001  Halted       -  PVH       512      2
";
        assert_eq!(render_list(vec![(web, halted()), (db, running)]), expected);
    }

    #[test]
    fn a_vm_shows_what_it_is_and_what_it_does() {
        let (vm, vbds, vifs) = sample("web");
        let mut state = halted();
        state.power_state = PowerState::Running;
        state.domids = vec![3];
        state.last_start_time = 1000.0;
        (state.memory_actual, state.memory_target) = (510 * MIB, 512 * MIB);
        state.guest_agent.insert("data/os_name", "Debian\u{1b}[2J\n\u{202e}".to_owned());
        let expected = "\
name         web
uuid         00000000-0000-4000-8000-000000000001
state        Running
domid        3
up for       1 d 00:01:05
type         PVH
kernel       /boot/vmlinuz
cmdline      root=/dev/xvda
memory       512 MiB, at most 1024 MiB
has now      510 MiB, target 512 MiB
vcpus        2 of 2
on shutdown  shutdown
on reboot    start
on crash     shutdown
guest OS     Debian\\u{1b}[2J\\n\\u{202e}
";
        assert_eq!(render_vm(&vm, &state, 1000.0 + 86_465.0), expected);
        let vbd_state = VbdState { active: true, plugged: true, qos_target: None, backend_present: None };
        let vbds: Vec<_> = vbds.into_iter().map(|vbd| (vbd, vbd_state.clone())).collect();
        assert_eq!(
            Vbd::render(&vbds),
            "DISK  MODE  KIND  PLUGGED  CONTENT\nxvda  rw    disk  yes      /dev/vg/web\n"
        );
        assert_eq!(vifs[0].backend, Network::Local("xenbr0".to_owned()));
        assert_eq!(Vif::render(&[]), "");
    }

    #[test]
    fn durations_survive_any_clock() {
        assert_eq!(duration(-5.0), "00:00:00");
        assert_eq!(duration(f64::NAN), "00:00:00");
        assert_eq!(duration(3661.9), "01:01:01");
        assert_eq!(duration(f64::INFINITY), "00:00:00");
    }
}
