//! `vnc` and `screenshot` against a daemon that says where a screen is, and servers of that.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use super::tests::{Host, ID};
use crate::api::{BuilderInfo, Console, ConsoleProtocol, HvmInfo, Int, PowerState};
use crate::rfb::tests::plain_screen;
use crate::rpc::json;

fn running(host: &Host, port: Int, path: &str) {
    host.change(|_, state| {
        (state.power_state, state.domids) = (PowerState::Running, vec![5]);
        let text = Console { protocol: ConsoleProtocol::Vt100, port: 9501, path: String::new() };
        let screen = Console { protocol: ConsoleProtocol::Rfb, port, path: path.to_owned() };
        state.consoles = vec![text, screen];
    });
}

/// A server for one viewer; its port.
fn server(script: Vec<u8>) -> Int {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // The viewer may leave before it has everything; what it says is not read beyond its end.
        let _ = stream.write_all(&script);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    Int::try_from(port).unwrap()
}

#[test]
fn a_screen_s_address_is_printed() {
    let host = Host::with_vm();
    running(&host, 5901, "");
    assert_eq!(host.xenops("vnc web"), (0, "127.0.0.1:5901\n".to_owned(), String::new()));
    let (code, out, _) = host.xenops("vnc web --json");
    let value = json::parse(out.trim_end().as_bytes()).unwrap();
    let member = |name: &str| value.get(name).cloned().map(|value| json::print(&value));
    assert_eq!(
        (code, member("port"), member("protocol")),
        (0, Some(b"5901".to_vec()), Some(b"\"Rfb\"".to_vec()))
    );
    running(&host, 0, "/run/screen");
    assert_eq!(host.xenops("vnc web").1, "/run/screen\n");
}

#[test]
fn a_vm_without_a_screen_is_told_why() {
    let host = Host::with_vm();
    let failed = |words: &str, part: &str| {
        let (code, out, err) = host.xenops(words);
        assert!(code == 1 && out.is_empty() && err.contains(part), "{words}: {code} {err}");
    };
    let all = |part: &str| {
        for words in ["vnc web", "vnc web --json", "screenshot web /nonexistent/x.png"] {
            failed(words, part);
        }
    };
    all("is halted: it has a screen when it runs; start it with `xenops start web`");
    running(&host, 0, "");
    failed("vnc web", "cannot be at port 0");
    running(&host, 65_536, "");
    failed("screenshot web x.png", "cannot be at port 65536");
    host.change(|_, state| state.consoles.clear());
    all("its terminal server is not running");
    host.change(|vm, _| {
        if let BuilderInfo::Pvh(info) = &mut vm.ty {
            info.vncterm = false;
        }
    });
    all("it is a text guest");
    host.change(|vm, _| vm.ty = BuilderInfo::Hvm(HvmInfo::default()));
    all("its device model is not running");
    assert_eq!(host.xenops("vnc mail").0, 4);
}

#[test]
fn a_console_s_log_is_printed() {
    let host = Host::with_vm();
    let port = server(b"Linux version 6.1\r\nlogin: ".to_vec());
    host.change(|_, state| {
        (state.power_state, state.domids) = (PowerState::Running, vec![5]);
        state.consoles = vec![Console { protocol: ConsoleProtocol::Vt100, port, path: String::new() }];
    });
    assert_eq!(
        host.xenops("console web --log"),
        (0, "Linux version 6.1\r\nlogin: ".to_owned(), String::new())
    );
    let pty = nix::pty::openpty(None, None).unwrap();
    let path = nix::unistd::ttyname(&pty.slave).unwrap().display().to_string();
    host.change(|_, state| {
        state.consoles = vec![Console { protocol: ConsoleProtocol::Vt100, port: 0, path }];
    });
    let (code, _, err) = host.xenops("console web --log");
    assert!(code == 1 && err.contains("nothing is kept of what VM web prints"), "{err}");
}

#[test]
fn a_picture_is_written() {
    let host = Host::with_vm();
    let file = host.path().join("x.png");
    running(&host, server(plain_screen(6, 4, [1, 2, 3, 0])), "");
    let (code, out, err) = host.xenops(&format!("screenshot {ID} {}", file.display()));
    assert_eq!((code, out.as_str(), err.as_str()), (0, "", ""));
    let reader = png::Decoder::new(std::io::Cursor::new(std::fs::read(&file).unwrap())).read_info().unwrap();
    assert_eq!((reader.info().width, reader.info().height), (6, 4));
    // On a Unix socket, too.
    let path = host.path().join("screen");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&plain_screen(1, 1, [0; 4])).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    running(&host, 0, &path.display().to_string());
    assert_eq!(host.xenops(&format!("screenshot web {}", file.display())).0, 0);
    thread.join().unwrap();
}

#[test]
fn a_server_that_is_none_leaves_no_file() {
    let host = Host::with_vm();
    let file = host.path().join("x.png");
    for (script, part) in [
        (b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), "no VNC server"),
        (b"RFB 003.008\n\x01\x02".to_vec(), "password"),
        (plain_screen(2, 2, [0; 4])[..60].to_vec(), "closed"),
    ] {
        let port = server(script);
        running(&host, port, "");
        let (code, _, err) = host.xenops(&format!("screenshot web {}", file.display()));
        assert!(code == 1 && err.contains(part) && err.contains(&format!("127.0.0.1:{port}")), "{err}");
        assert!(!file.exists());
    }
    running(&host, server(plain_screen(2, 2, [0; 4])), "");
    let (code, _, err) = host.xenops(&format!("screenshot web {}/absent/x.png", host.path().display()));
    assert!(code == 1 && err.contains("cannot write"), "{err}");
}
