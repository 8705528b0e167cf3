//! noVNC in headless Chromium, on a guest's screen through the daemon's own WebSocket.
//!
//! ```text
//!   Chromium: noVNC ──WebSocket over a TCP port──► this test ──► the daemon's Unix socket: rpc::console ──► vncterm
//!      └── what its canvas shows, what it was sent ──HTTP──► this test: what to do next
//! ```
//!
//! The test stands where a management layer's proxy does: it passes the WebSocket's bytes on to the daemon's socket, which
//! no browser can reach, and hands out noVNC's own files and the page `novnc/page.html`.

mod common;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use common::{Other, Program};
use xenopsd::api::Call;
use xenopsd::rfb::{Address, Picture};
use xenopsd::rpc::Codec;
use xenopsd::rpc::console::{ConsoleCall, Consoles};
use xenopsd::rpc::server::{Responder, Server, Service, StopHandle};
use xenopsd::rpc::socket::BoundSocket;

/// Where Debian's package has it.
const NOVNC: &str = "/usr/share/novnc";

/// Longest wait for anything of the browser, whose start is slow on a busy machine.
const BROWSER: std::time::Duration = std::time::Duration::from_secs(50);

/// The daemon's sockets, with one VM.
struct OneScreen {
    consoles: Consoles,
    port: u16,
}

impl Service for OneScreen {
    fn call(&self, _: Call, reply: Responder) {
        drop(reply);
    }

    fn console(&self, call: ConsoleCall) {
        self.consoles.start(call, Address::Port(self.port));
    }
}

struct Daemon {
    path: PathBuf,
    stop: StopHandle,
    thread: Option<JoinHandle<()>>,
    _socket: BoundSocket,
    _directory: tempfile::TempDir,
}

impl Daemon {
    fn serving(port: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("xml");
        let socket = BoundSocket::bind(&path).unwrap();
        let service = Arc::new(OneScreen { consoles: Consoles::default(), port });
        let server = Server::bind(vec![(socket.try_clone_listener().unwrap(), Codec::Xml)], service).unwrap();
        let stop = server.stop_handle();
        let thread = Some(std::thread::spawn(move || server.run().unwrap()));
        Self { path, stop, thread, _socket: socket, _directory: directory }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.stop();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the server panicked");
    }
}

/// What the page said, and where it waits for what to do.
struct Said {
    what: String,
    body: Vec<u8>,
    answer: TcpStream,
}

/// The site that the browser sees.
struct Site {
    port: u16,
    said: Receiver<Said>,
}

impl Site {
    fn new(daemon: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, said) = sync_channel(1);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, daemon, tell) = (stream.unwrap(), daemon.clone(), tell.clone());
                // A browser that closes a connection early is no failure.
                std::thread::spawn(move || serve(stream, &daemon, &tell));
            }
        });
        Self { port, said }
    }

    /// What the page says next.
    fn next(&self, deadline: Instant) -> Said {
        let left = deadline.saturating_duration_since(Instant::now());
        self.said.recv_timeout(left).expect("the browser says something")
    }

    /// Waits until the browser's canvas shows `picture`, and has the page do something then.
    fn shows(&self, picture: &Picture, script: &str) {
        let deadline = Instant::now() + BROWSER;
        loop {
            let said = self.next(deadline);
            assert_eq!(said.what, "picture", "{}", String::from_utf8_lossy(&said.body));
            if pixels(&said.body, picture).is_some_and(|pixels| pixels == picture.rgb()) {
                return answer(said.answer, "text/plain", script.as_bytes()).unwrap();
            }
            answer(said.answer, "text/plain", b"").unwrap();
        }
    }

    /// Waits until the page says something else than what its canvas shows.
    fn says(&self, what: &str) -> String {
        let deadline = Instant::now() + BROWSER;
        loop {
            let said = self.next(deadline);
            answer(said.answer, "text/plain", b"").unwrap();
            if said.what != "picture" {
                assert_eq!(said.what, what);
                return String::from_utf8(said.body).unwrap();
            }
        }
    }
}

/// Red, green and blue of a PNG picture of the same size.
fn pixels(png: &[u8], like: &Picture) -> Option<Vec<u8>> {
    let mut reader = png::Decoder::new(io::Cursor::new(png)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!(info.color_type, png::ColorType::Rgba);
    let same = (info.width, info.height) == (u32::from(like.width()), u32::from(like.height()));
    same.then(|| pixels.chunks_exact(4).flat_map(|rgba| rgba[..3].to_vec()).collect())
}

fn answer(mut stream: TcpStream, kind: &str, body: &[u8]) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

fn serve(mut stream: TcpStream, daemon: &Path, tell: &SyncSender<Said>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let text = String::from_utf8(head.clone()).ok()?;
    let mut words = text.split_whitespace();
    let (method, path) = (words.next()?, words.next()?);
    if path.starts_with("/console") {
        return pass_on(&stream, daemon, &head);
    }
    if method == "POST" {
        let length = text
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        let mut body = vec![0; length?];
        stream.read_exact(&mut body).ok()?;
        return tell.send(Said { what: path.trim_start_matches('/').to_owned(), body, answer: stream }).ok();
    }
    if path == "/" {
        return answer(stream, "text/html", include_bytes!("novnc/page.html")).ok();
    }
    let file = Path::new(path.trim_start_matches('/'));
    let inside = file.components().all(|part| matches!(part, Component::Normal(_)));
    let mut script = Vec::new();
    File::open(Path::new(NOVNC).join(file)).ok().filter(|_| inside)?.read_to_end(&mut script).ok()?;
    answer(stream, "text/javascript", &script).ok()
}

/// The request and all that follows, in both directions, as a proxy does.
fn pass_on(stream: &TcpStream, daemon: &Path, head: &[u8]) -> Option<()> {
    let mut upstream = UnixStream::connect(daemon).ok()?;
    upstream.write_all(head).ok()?;
    let (mut from, mut to) = (stream.try_clone().ok()?, upstream.try_clone().ok()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut upstream, &mut &*stream);
    stream.shutdown(Shutdown::Both).ok()
}

fn shown(text: &str, until: &str) -> Picture {
    let command = format!("stty -echo; printf '\\033[?25l\\033[2J\\033[H{text}'; read rest");
    Program::showing(&["-c", &command], until).picture()
}

#[test]
fn novnc_in_chromium_logs_in_through_the_daemon_s_web_socket() {
    let directory = tempfile::tempdir().unwrap();
    let password = directory.path().join("password");
    std::fs::write(&password, "s3cret").unwrap();
    let login = "printf '\\033[?25l\\033[2J\\033[Hlogin: '; read name; printf \"Welcome, $name.\"; read rest";
    let options = ["-c", login, "--password-file", password.to_str().unwrap()];
    let screen = Program::showing(&options, "login: ");
    let daemon = Daemon::serving(screen.vnc);
    let site = Site::new(daemon.path.clone());
    let log = File::create(directory.path().join("log")).unwrap();
    let browser = Other::start("chromium-headless-shell", |chromium| {
        // Tests run as root, which Chromium's own sandbox is not for.
        chromium.args([
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-port=0",
        ]);
        chromium.arg(format!("--user-data-dir={}", directory.path().join("profile").display()));
        chromium.arg(format!("http://127.0.0.1:{}/", site.port));
        chromium.stdout(Stdio::null()).stderr(log);
    });
    site.shows(&shown("login: ", "login: "), "type('Alice_7\\r')");
    let welcome = "login: Alice_7\\r\\nWelcome, Alice_7.";
    site.shows(&shown(welcome, "Welcome, Alice_7."), "paste(' café')");
    let pasted = format!("{welcome} caf\\303\\251");
    site.shows(&shown(&pasted, "café"), "mark([1, 9], [1, 20])");
    assert_eq!(site.says("clipboard"), "Alice_7. caf");
    // The guest's end is the page's.
    drop(screen);
    assert_eq!(site.says("disconnect"), "true");
    drop(browser);
}
