//! Small servers in this process, good and hostile: each connection is answered by a function of the test's.

#![allow(dead_code, reason = "each test program uses a part of this")]

use guest_installer::fetch::{Connect, Error, Network, Result, Sink, Target, broker, download, url::Address};
use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Seek, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

pub(crate) mod nfs;
pub(crate) mod tls;

/// Long enough for a loaded machine, short enough to wait for.
const STALL: Duration = Duration::from_millis(400);

/// Answers connections one after the other, for as long as the test program runs.
pub(crate) fn serve(mut answer: impl FnMut(usize, TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            answer(number, stream.unwrap());
        }
    });
    address
}

/// The head of a request; empty when the client has gone.
pub(crate) fn head(stream: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).unwrap_or(0) == 0 {
            return String::new();
        }
    }
    head
}

/// A server of HTTP, and what it was asked.
pub(crate) struct Http {
    pub(crate) address: SocketAddr,
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
}

impl Http {
    /// Each request is answered with bytes, and the connection closed.
    pub(crate) fn new(answer: impl Fn(usize, &str) -> Vec<u8> + Send + 'static) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let record = asked.clone();
        let address = serve(move |number, stream| {
            let mut stream = BufReader::new(stream);
            let head = head(&mut stream);
            record.lock().unwrap().push(head.clone());
            let _ = stream.get_mut().write_all(&answer(number, &head));
        });
        Self { address, asked }
    }

    pub(crate) fn url(&self, path: &str) -> Address {
        Address::parse(&format!("http://{}{path}", self.address)).unwrap()
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// An answer with fields and a body.
pub(crate) fn answer(status: u16, fields: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 {status} x\r\n{fields}\r\n").as_bytes(), body].concat()
}

/// A whole file.
pub(crate) fn ok(body: &[u8]) -> Vec<u8> {
    answer(200, &format!("Content-Length: {}\r\n", body.len()), body)
}

/// Connects without a jail; ports can be led to others.
#[derive(Default)]
pub(crate) struct Direct(pub(crate) Vec<(u16, SocketAddr)>);

impl Connect for Direct {
    fn connect(&self, target: &Target) -> Result<TcpStream> {
        let to = self.0.iter().find(|(port, _)| *port == target.port);
        let stream = match to {
            Some((_, to)) => TcpStream::connect(to).map_err(|e| Error::Refused(e.to_string()))?,
            None => broker::open(&Target { privileged: false, ..target.clone() }, true)?,
        };
        stream.set_read_timeout(Some(STALL)).unwrap();
        stream.set_write_timeout(Some(STALL)).unwrap();
        Ok(stream)
    }
}

pub(crate) const LIMIT: u64 = 1 << 20;

/// A file from a server: its bytes, and the last progress told.
pub(crate) fn got(address: &Address, network: &Network, direct: &Direct) -> Result<Vec<u8>> {
    let mut file = tempfile::tempfile().unwrap();
    let mut told = (0, None);
    let mut progress = |done, total| told = (done, total);
    download(address, network, direct, &mut Sink::new(&mut file, LIMIT, &mut progress))?;
    let bytes = content(&mut file);
    assert_eq!(told.0, u64::try_from(bytes.len()).unwrap(), "the last progress is the whole");
    Ok(bytes)
}

pub(crate) fn content(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Some bytes that differ.
pub(crate) fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| u8::try_from(n * 31 % 251).unwrap()).collect()
}
