//! What can be seen of a VM: its power state and the rest of `Vm.state`.

use std::sync::Arc;

use crate::api::{
    BuilderInfo, Console, ConsoleProtocol, Dict, DomainType, Error, Int, PowerState, Vm, VmState,
};
use crate::core::Core;
use crate::domain::{clock, guest_data, terminal};
use crate::edge::{DomId, DomainInfo, ScreenAddress, TerminalPorts};
use crate::state::VmExtra;

/// Bytes of a page, the hypervisor's unit of memory.
const PAGE: i64 = 4096;

/// Running, paused, or not there: then it may have an image to resume from. A guest that has shut down and awaits its
/// end is still `Running` to clients, as its domain exists.
pub fn power_state(domain: Option<&DomainInfo>, extra: &VmExtra) -> PowerState {
    match domain {
        None if extra.is_suspended() => PowerState::Suspended,
        None => PowerState::Halted,
        Some(domain) if domain.paused => PowerState::Paused,
        Some(_) => PowerState::Running,
    }
}

/// Whether it has been given memory. One that was only made has none, and nothing to run (the model's criterion, too).
pub fn is_built(domain: &DomainInfo) -> bool {
    domain.tot_pages > 0
}

/// The whole state of one VM.
///
/// # Errors
/// When the hypervisor or xenstored does not answer.
pub fn state(core: &Core, vm: &Vm) -> Result<VmState, Error> {
    state_with(core, vm, &core.records.extra(&vm.id)?, core.domain_of(&vm.id)?.as_ref())
}

/// As [`state`], with what is remembered of the VM read and the domain looked up by the caller (one hypercall serves a
/// list of VMs).
///
/// # Errors
/// When xenstored does not answer.
pub fn state_with(
    core: &Core,
    vm: &Vm,
    extra: &VmExtra,
    domain: Option<&DomainInfo>,
) -> Result<VmState, Error> {
    let rebooting = core.runtimes.with(&vm.id, |r| r.rebooting);
    let mut state = halted(vm);
    state.last_start_time = extra.last_start_time;
    if let Some(domain) = domain {
        let pages = i64::try_from(domain.tot_pages).unwrap_or(i64::MAX / PAGE);
        let limit = i64::try_from(domain.max_pages).unwrap_or(i64::MAX / PAGE);
        state.domids = vec![domain_number(domain.domid)];
        state.memory_actual = pages.saturating_mul(PAGE);
        state.memory_limit = limit.saturating_mul(PAGE);
        state.hvm = domain.hvm;
        state.domain_type = domain_type(vm);
        read_store(core, vm, domain.domid, &mut state)?;
    }
    state.power_state = if rebooting { PowerState::Running } else { power_state(domain, extra) };
    Ok(state)
}

fn halted(vm: &Vm) -> VmState {
    VmState {
        power_state: PowerState::Halted,
        domids: Vec::new(),
        consoles: Vec::new(),
        memory_target: 0,
        memory_actual: 0,
        memory_limit: 0,
        vcpu_target: vm.vcpus,
        shadow_multiplier_target: match &vm.ty {
            BuilderInfo::Hvm(hvm) => hvm.shadow_multiplier,
            _ => 1.0,
        },
        rtc_timeoffset: String::new(),
        uncooperative_balloon_driver: false,
        guest_agent: Dict::new(),
        xsdata_state: Dict::new(),
        pv_drivers_detected: false,
        last_start_time: 0.0,
        hvm: false,
        nomigrate: false,
        nested_virt: false,
        domain_type: DomainType::Undefined,
        featureset: platform(vm, "featureset").unwrap_or_default(),
        numa_optimised: false,
        numa_nodes: 0,
        numa_node_memory: Vec::new(),
    }
}

fn platform(vm: &Vm, key: &str) -> Option<String> {
    vm.platformdata.iter().find(|(k, _)| *k == key).map(|(_, v)| v.clone())
}

fn domain_type(vm: &Vm) -> DomainType {
    match vm.ty {
        BuilderInfo::Hvm(_) => DomainType::Hvm,
        BuilderInfo::Pv(_) => DomainType::Pv,
        BuilderInfo::PvInPvh(_) => DomainType::PvInPvh,
        BuilderInfo::Pvh(_) => DomainType::Pvh,
    }
}

fn domain_number(domid: DomId) -> Int {
    Int::try_from(domid.get()).unwrap_or_default()
}

fn read_store(core: &Core, record: &Vm, domid: DomId, state: &mut VmState) -> Result<(), Error> {
    let (mut store, vm) = (core.edges.store()?, record.id.as_str());
    if let Some(offset) = clock::offset(&mut *store, record)? {
        state.rtc_timeoffset = offset.to_string();
    }
    let own = guest_data::own(&mut store, domid)?;
    state.memory_target = own.target_kib.saturating_mul(1024);
    state.uncooperative_balloon_driver = own.uncooperative;
    state.consoles = consoles(core, vm, own.terminals);
    let seen = core.runtimes.with(vm, |r| r.guest_data.clone()).filter(|(of, _)| *of == domid);
    // One that is new has not been looked at yet.
    let data =
        seen.map_or_else(|| guest_data::read(&mut store, domid, false).map(Arc::new), |(_, data)| Ok(data))?;
    state.pv_drivers_detected = data.pv_drivers;
    state.guest_agent = data.agent.clone();
    state.xsdata_state = data.xsdata.clone();
    Ok(())
}

/// Screens first, then text: an HVM guest's serial port before its PV console, as `xl console` has it.
fn consoles(core: &Core, vm: &str, ttys: [Option<String>; 2]) -> Vec<Console> {
    let on_port = |protocol, port: u16| Console {
        protocol,
        port: Int::try_from(port).unwrap_or_default(),
        path: String::new(),
    };
    let on_path = |protocol, path: String| Console { protocol, port: 0, path };
    let [serial, console] = ttys.map(|tty| tty.map(|tty| on_path(ConsoleProtocol::Vt100, tty)));
    // Who reads from a terminal that has a server takes from it what it should have.
    let (serial, console) = match terminal::ports(core, vm) {
        Some(TerminalPorts { vnc: Some(vnc), text }) => {
            return vec![on_port(ConsoleProtocol::Rfb, vnc), on_port(ConsoleProtocol::Vt100, text)];
        }
        // Of a guest with a screen of its own: the text of its serial port, or of its console when it has none.
        Some(TerminalPorts { vnc: None, text }) => {
            (Some(on_port(ConsoleProtocol::Vt100, text)), serial.and(console))
        }
        None => (serial, console),
    };
    let frame_buffer = core.runtimes.with(vm, |r| r.frame_buffer.server.as_ref().map(|server| server.port));
    let frame_buffer = frame_buffer.map(|port| on_port(ConsoleProtocol::Rfb, port));
    let screen = core.runtimes.with(vm, |r| r.screen.clone()).map(|address| match address {
        ScreenAddress::Port(port) => on_port(ConsoleProtocol::Rfb, port),
        ScreenAddress::Socket(path) => on_path(ConsoleProtocol::Rfb, path.display().to_string()),
    });
    frame_buffer.into_iter().chain(screen).chain(serial).chain(console).collect()
}
