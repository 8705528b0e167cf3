//! HVM guests' serial ports, which have a terminal server beside the device model's screen; and which screen a client of the
//! daemon's own sockets is connected to.

use super::*;
use crate::api::{ConsoleProtocol, HvmInfo};
use crate::rpc::console::{ConsoleCall, ConsoleRequest};
use crate::rpc::server::Service as _;
use crate::service::Service;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use xenstore::Operations;

/// An HVM guest with a screen on a port, and with a serial port if that is asked for.
fn hvm(rig: &Rig, serial: Option<&str>) -> String {
    rig.add(1, &[("device-model", "work")], |vm| {
        vm.ty = BuilderInfo::Hvm(HvmInfo {
            serial: serial.map(str::to_owned),
            vnc_ip: Some("127.0.0.1".to_owned()),
            ..HvmInfo::default()
        });
    })
}

fn consoles(rig: &Rig, vm: &str) -> Vec<crate::api::Console> {
    observe::state(&rig.core, &rig.core.records.vm(vm).unwrap()).unwrap().consoles
}

fn node(rig: &Rig, vm: &str, name: &str) -> Option<String> {
    let path = xenstore::Path::new(&format!("/local/domain/{}/{name}", rig.domid(vm).unwrap())).unwrap();
    rig.machine.store.client(xenstore::DomId::DOM0).read_str(&path).unwrap()
}

/// The ports of the screen and of the text.
fn ports(rig: &Rig, vm: &str) -> Option<(Int, Int)> {
    let consoles = consoles(rig, vm);
    let port = |protocol| consoles.iter().find(|c| c.protocol == protocol && c.port > 0).map(|c| c.port);
    port(ConsoleProtocol::Rfb).zip(port(ConsoleProtocol::Vt100))
}

#[test]
fn an_hvm_guest_s_serial_port_has_a_terminal_server_that_serves_text_only() {
    let rig = Rig::new(&quick());
    let vm = hvm(&rig, Some("pty"));
    rig.run(&vm, Operation::Start).unwrap();
    rig.run(&vm, Operation::Unpause).unwrap();
    let (screen, text) = ports(&rig, &vm).expect("both");
    assert_eq!(node(&rig, &vm, "console/vnc-port"), Some(screen.to_string()));
    assert_eq!(node(&rig, &vm, "console/tc-port"), Some(text.to_string()));
    // The serial port's own terminal is offered to nobody: who read from it would take from what is kept.
    let serial = node(&rig, &vm, "serial/0/tty").expect("a terminal");
    assert!(consoles(&rig, &vm).iter().all(|console| console.path != serial));

    // Another comes when it ends; the device model's screen stays where it was.
    let first = rig.machine.processes();
    assert_eq!((first.len(), node(&rig, &vm, "vncterm-pid")), (1, Some(first[0].to_string())));
    rig.machine.end_process(first[0]);
    rig.until("there is another", || {
        rig.machine.processes().iter().any(|p| !first.contains(p)) && ports(&rig, &vm) == Some((screen, text))
    });
    rig.settle(&vm);
    assert_eq!(node(&rig, &vm, "console/vnc-port"), Some(screen.to_string()));

    // The next daemon takes both over.
    let process = rig.machine.processes();
    let rig = rig.restart();
    rig.until("both are found", || ports(&rig, &vm).is_some_and(|(_, now)| now == text));
    assert_eq!(rig.machine.processes(), process);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!(rig.machine.processes().is_empty() && rig.core.journal.of(&vm).is_empty());
}

#[test]
fn one_without_a_serial_port_has_none() {
    for serial in [None, Some("none")] {
        let rig = Rig::new(&quick());
        let vm = hvm(&rig, serial);
        rig.run(&vm, Operation::Start).unwrap();
        assert!(rig.machine.processes().is_empty());
        assert_eq!(node(&rig, &vm, "console/tc-port"), None);
    }
}

/// The terminal goes with the device model, and its number may be another guest's before anything is noticed.
#[test]
fn no_terminal_server_is_started_on_the_terminal_of_a_device_model_that_has_ended() {
    let rig = Rig::new(&quick());
    let vm = hvm(&rig, Some("pty"));
    rig.run(&vm, Operation::Start).unwrap();
    rig.run(&vm, Operation::Unpause).unwrap();
    let first = rig.machine.processes();
    rig.machine.faults.record();
    assert!(rig.machine.end_device_model(rig.domid(&vm).unwrap()));
    rig.machine.end_process(first[0]);
    rig.until("it is halted", || rig.state(&vm) == PowerState::Halted);
    rig.settle(&vm);
    let calls = rig.machine.faults.recorded();
    assert!(!calls.iter().any(|call| call == "host.go"), "one was given its word: {calls:?}");
    assert!(rig.machine.processes().is_empty() && rig.core.journal.of(&vm).is_empty());
}

/// Asks the daemon for a VM's console, over a socket as a client does; what is answered, up to `length` bytes.
fn ask(service: &Service, vm: &str, length: usize) -> String {
    let (stream, mut client) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    let request = ConsoleRequest { length: 0, vm: vm.to_owned(), websocket: None };
    service.console(ConsoleCall { request, stream, first: Vec::new() });
    let mut answer = vec![0; length];
    let mut count = 0;
    while count < length {
        match client.read(&mut answer[count..]).unwrap() {
            0 => break,
            more => count += more,
        }
    }
    client.write_all(b"RFB 003.008\n").ok();
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

#[test]
fn a_client_of_the_daemon_s_socket_reaches_the_screen_of_the_vm_that_it_names() {
    let rig = Rig::new(&quick());
    let service = Service::start(Arc::clone(&rig.core)).unwrap();
    let vm = hvm(&rig, Some("pty"));
    let greeting = "HTTP/1.1 200 OK\r\n\r\nRFB 003.008\n";
    let refused = "HTTP/1.1 404 Not Found\r\n";
    assert!(ask(&service, &vm, 1024).starts_with(refused), "it does not run");
    rig.run(&vm, Operation::Start).unwrap();
    assert_eq!(ask(&service, &vm, greeting.len()), greeting);
    assert!(ask(&service, "no such VM", 1024).starts_with(refused));
    // A text guest whose terminal server is not there: nobody listens at that port.
    let text = rig.add(2, &[], |_| ());
    rig.start(&text).unwrap();
    assert!(ask(&service, &text, 1024).starts_with(refused));
    // A guest with text only has no screen.
    let plain = rig.add(3, &[], |vm| {
        let BuilderInfo::Pv(pv) = &mut vm.ty else { unreachable!() };
        pv.vncterm = false;
    });
    rig.start(&plain).unwrap();
    assert!(ask(&service, &plain, 1024).starts_with(refused));
    // A machine that does not answer is not the client's fault.
    rig.machine.faults.arm(Fault::From { nth: 0 });
    assert!(ask(&service, &vm, 1024).starts_with("HTTP/1.1 500 "));
    rig.machine.faults.disarm();
    assert_eq!(ask(&service, &vm, greeting.len()), greeting);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!(ask(&service, &vm, 1024).starts_with(refused), "it has gone");
}
