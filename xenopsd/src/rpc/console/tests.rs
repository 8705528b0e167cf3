//! Consoles over the daemon's sockets: clients that are raw, WebSockets, or neither; screens that are scripted.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;

use tungstenite::client::IntoClientRequest as _;
use tungstenite::{Message, WebSocket};

use super::*;
use crate::api::Call;
use crate::rpc::Codec;
use crate::rpc::server::{Responder, Server, Service, StopHandle};
use crate::rpc::socket::BoundSocket;

/// Long enough for a loaded machine, short enough for a test that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Every VM but `none` has the same screen.
struct Screens {
    consoles: Consoles,
    port: u16,
}

impl Service for Screens {
    fn call(&self, _: Call, reply: Responder) {
        drop(reply);
    }

    fn console(&self, call: ConsoleCall) {
        if call.request.vm == "none" {
            return call.refuse("404 Not Found");
        }
        self.consoles.start(call, Address::Port(self.port));
    }
}

struct Running {
    socket: BoundSocket,
    screens: Arc<Screens>,
    listener: TcpListener,
    stop: StopHandle,
    thread: Option<JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Running {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = BoundSocket::bind(&directory.path().join("xml")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let screens = Arc::new(Screens { consoles: Consoles::default(), port });
        let sockets = vec![(socket.try_clone_listener().unwrap(), Codec::Xml)];
        let server = Server::bind(sockets, Arc::clone(&screens)).unwrap();
        let stop = server.stop_handle();
        let thread = std::thread::spawn(move || server.run().unwrap());
        Self { socket, screens, listener, stop, thread: Some(thread), _directory: directory }
    }

    fn open(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket.path()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// What comes back until the server closes.
    fn answer(&self, request: &str) -> String {
        let mut stream = self.open();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A client that was let through, and the screen that it is connected to.
    fn connect(&self, request: &[u8]) -> (UnixStream, TcpStream) {
        let mut client = self.open();
        client.write_all(request).unwrap();
        let (screen, _) = self.listener.accept().unwrap();
        screen.set_read_timeout(Some(PATIENCE)).unwrap();
        expect(&mut client, b"HTTP/1.1 200 OK\r\n\r\n");
        (client, screen)
    }

    fn websocket(&self) -> (WebSocket<UnixStream>, TcpStream) {
        let mut request = "ws://localhost/console?ref=vm-1".into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "chat, binary".parse().unwrap());
        let (client, response) = tungstenite::client(request, self.open()).unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], "binary");
        let (screen, _) = self.listener.accept().unwrap();
        screen.set_read_timeout(Some(PATIENCE)).unwrap();
        (client, screen)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the server panicked");
    }
}

fn expect(stream: &mut impl std::io::Read, bytes: &[u8]) {
    let mut read = vec![0; bytes.len()];
    stream.read_exact(&mut read).unwrap();
    assert_eq!(String::from_utf8_lossy(&read), String::from_utf8_lossy(bytes));
}

const CONNECT: &[u8] = b"CONNECT /console?ref=vm-1 HTTP/1.0\r\nHost: x\r\n\r\n";

#[test]
fn a_connection_becomes_the_screen_s() {
    let running = Running::new();
    // What follows the request is the screen's, and so is what comes later.
    let (mut client, mut screen) = running.connect(&[CONNECT, b"RFB 003.008\n"].concat());
    expect(&mut screen, b"RFB 003.008\n");
    client.write_all(b"\x01").unwrap();
    expect(&mut screen, b"\x01");
    // The screen's last words come through.
    let picture = vec![7; 1 << 20];
    let painter = std::thread::spawn({
        let picture = picture.clone();
        move || screen.write_all(&picture).unwrap()
    });
    let mut seen = Vec::new();
    client.read_to_end(&mut seen).unwrap();
    assert!(seen == picture);
    painter.join().unwrap();
    // And the client's end is the screen's.
    let (client, mut screen) = running.connect(CONNECT);
    drop(client);
    assert_eq!(screen.read(&mut [0]).unwrap(), 0);
    let (client, mut screen) = running.connect(CONNECT);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(screen.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_websocket_carries_the_screen_in_binary_messages() {
    let running = Running::new();
    let (mut client, mut screen) = running.websocket();
    screen.write_all(b"RFB 003.008\n").unwrap();
    assert_eq!(client.read().unwrap(), Message::binary(&b"RFB 003.008\n"[..]));
    for part in [&b"RFB 003"[..], b"", b".008\n"] {
        client.send(Message::binary(part.to_vec())).unwrap();
    }
    expect(&mut screen, b"RFB 003.008\n");
    client.send(Message::Ping("there?".into())).unwrap();
    assert_eq!(client.read().unwrap(), Message::Pong("there?".into()));
    // More than any buffer on the way, in both directions at once.
    let picture = vec![7; 1 << 20];
    let painter = std::thread::spawn({
        let picture = picture.clone();
        move || {
            screen.write_all(&picture).unwrap();
            expect(&mut screen, &vec![b'k'; 300_000]);
            screen
        }
    });
    let mut seen = Vec::new();
    client.send(Message::binary(vec![b'k'; 300_000])).unwrap();
    while seen.len() < picture.len() {
        let Message::Binary(bytes) = client.read().unwrap() else { panic!("a binary message") };
        seen.extend_from_slice(&bytes);
    }
    assert!(seen == picture);
    // The screen's end is said as a WebSocket says it.
    drop(painter.join().unwrap());
    assert!(matches!(client.read().unwrap(), Message::Close(_)));
}

#[test]
fn a_websocket_that_misbehaves_loses_its_screen() {
    let running = Running::new();
    // Text, a frame that is not masked, one of a gigabyte, a reserved bit.
    let bad: [&[u8]; 4] =
        [b"\x81\x82\0\0\0\0hi", b"\x82\x02hi", b"\x82\xff\0\0\0\0\x40\0\0\0\0\0\0\0", b"\xf2\x80\0\0\0\0"];
    for bytes in bad {
        let (mut client, mut screen) = running.websocket();
        client.get_mut().write_all(bytes).unwrap();
        assert_eq!(screen.read(&mut [0]).unwrap(), 0, "{bytes:x?}");
        let mut rest = Vec::new();
        // Whether unread bytes made it a reset does not matter.
        let _ = client.get_mut().read_to_end(&mut rest);
        assert!(rest.is_empty() || rest[0] == 0x88, "{rest:x?}");
    }
    let (mut client, mut screen) = running.websocket();
    client.close(None).unwrap();
    assert_eq!(screen.read(&mut [0]).unwrap(), 0);
    assert!(matches!(client.read(), Ok(Message::Close(_))));
}

#[test]
fn requests_that_are_none_are_refused() {
    let running = Running::new();
    let upgrade = "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n";
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (request, status) in [
        ("CONNECT /console?ref=none HTTP/1.1\r\n\r\n".to_owned(), "404 Not Found"),
        ("CONNECT /console HTTP/1.1\r\n\r\n".to_owned(), "404 Not Found"),
        ("CONNECT example.com:443 HTTP/1.1\r\n\r\n".to_owned(), "404 Not Found"),
        ("CONNECT /other?ref=vm HTTP/1.1\r\n\r\n".to_owned(), "404 Not Found"),
        ("PUT /console?ref=vm HTTP/1.1\r\n\r\n".to_owned(), "404 Not Found"),
        ("CONNECT /console?vm=x HTTP/1.1\r\n\r\n".to_owned(), "400 Bad Request"),
        ("CONNECT /console?ref=../etc HTTP/1.1\r\n\r\n".to_owned(), "400 Bad Request"),
        (format!("CONNECT /console?ref={} HTTP/1.1\r\n\r\n", "a".repeat(65)), "400 Bad Request"),
        ("GET /console?ref=vm HTTP/1.1\r\n\r\n".to_owned(), "400 Bad Request"),
        (format!("GET /console?ref=vm HTTP/1.1\r\n{upgrade}\r\n"), "400 Bad Request"),
        (
            format!("GET /console?ref=vm HTTP/1.1\r\n{upgrade}Sec-WebSocket-Key: short\r\n\r\n"),
            "400 Bad Request",
        ),
        (
            format!("GET /console?ref=vm HTTP/1.1\r\n{}{key}\r\n", upgrade.replace("13", "8")),
            "400 Bad Request",
        ),
    ] {
        let answer = running.answer(&request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {answer}");
    }
    // The example of RFC 6455, 1.3.
    let mut client = running.open();
    client.write_all(format!("GET /console?x=y&uuid=vm HTTP/1.1\r\n{upgrade}{key}\r\n").as_bytes()).unwrap();
    let screen = running.listener.accept().unwrap();
    drop(screen);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(answer.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{answer}");
    assert!(!answer.contains("protocol"), "{answer}");
}

#[test]
fn sessions_are_bounded_and_given_back() {
    let running = Running::new();
    let mut sessions: Vec<_> = (0..MAX_SESSIONS).map(|_| running.connect(CONNECT)).collect();
    assert_eq!(running.screens.consoles.running(), MAX_SESSIONS);
    let request = String::from_utf8_lossy(CONNECT).into_owned();
    assert!(running.answer(&request).starts_with("HTTP/1.1 503 "));
    let (client, mut screen) = sessions.pop().unwrap();
    drop(client);
    // Its place is free before the screen hears of its end.
    assert_eq!(screen.read(&mut [0]).unwrap(), 0);
    sessions.push(running.connect(CONNECT));
    assert!(running.answer(&request).starts_with("HTTP/1.1 503 "));
}

#[test]
fn a_screen_that_does_not_answer_is_not_there() {
    let mut running = Running::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    // Nobody listens any more; the port is not given to anybody else while it is so fresh.
    let port = free.local_addr().unwrap().port();
    drop(free);
    let screens = Screens { consoles: Consoles::default(), port };
    let sockets = vec![(running.socket.try_clone_listener().unwrap(), Codec::Xml)];
    running.stop.stop();
    running.thread.take().unwrap().join().unwrap();
    let server = Server::bind(sockets, screens).unwrap();
    running.stop = server.stop_handle();
    running.thread = Some(std::thread::spawn(move || server.run().unwrap()));
    assert!(running.answer(&String::from_utf8_lossy(CONNECT)).starts_with("HTTP/1.1 404 "));
}

/// A session between two pairs of sockets, with a limit that is soon over.
fn session(websocket: Option<WebSocketOffer>) -> (UnixStream, UnixStream, JoinHandle<relay::End>) {
    let ((client, stream), (screen, server)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    let request = ConsoleRequest { length: 0, vm: "vm".to_owned(), websocket };
    let call = ConsoleCall { request, stream, first: Vec::new() };
    let run = move || relay::run(call, server, Duration::from_millis(100), None).unwrap();
    (client, screen, std::thread::spawn(run))
}

#[test]
fn who_takes_nothing_is_dropped() {
    let offer = || WebSocketOffer { key: "dGhlIHNhbXBsZSBub25jZQ==".to_owned(), binary: false };
    for websocket in [None, Some(offer())] {
        // The screen paints without end, the client reads nothing.
        let (client, mut screen, ended) = session(websocket);
        let painter = std::thread::spawn(move || while screen.write_all(&[7; 4096]).is_ok() {});
        assert_eq!(ended.join().unwrap(), relay::End::Stalled);
        painter.join().unwrap();
        drop(client);
    }
    // The client types without end, the screen reads nothing.
    let (mut client, screen, ended) = session(None);
    let typist = std::thread::spawn(move || while client.write_all(&[7; 4096]).is_ok() {});
    assert_eq!(ended.join().unwrap(), relay::End::Stalled);
    typist.join().unwrap();
    drop(screen);
}

#[test]
fn who_is_merely_idle_is_not() {
    let (mut client, mut screen, ended) = session(None);
    expect(&mut client, b"HTTP/1.1 200 OK\r\n\r\n");
    client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    // Three times the limit without a byte.
    assert!(client.read(&mut [0]).is_err());
    screen.write_all(b"x").unwrap();
    expect(&mut client, b"x");
    drop(client);
    assert_eq!(ended.join().unwrap(), relay::End::Client);
}
