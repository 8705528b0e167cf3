//! HTTP/1.1: one file by `GET`, direct or through a proxy, with TLS.
//!
//! ```text
//!   http, direct      connect host      GET /path
//!   http, proxy       connect proxy     GET http://host/path
//!   https, direct     connect host      TLS { GET /path }
//!   https, proxy      connect proxy     CONNECT host:443, TLS { GET /path }
//! ```

mod body;
mod head;

use super::{Address, Connect, Error, REDIRECTS, Result, Sink, Target, broken, url::Scheme};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use head::Head;
pub use head::fuzz;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, pki_types::ServerName};
use std::{
    io::{BufReader, Read, Write},
    net::TcpStream,
    sync::Arc,
};

/// How the network is reached, beside addresses.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// A proxy for HTTP and HTTPS.
    pub proxy: Option<Proxy>,
    /// Certificates of authorities, PEM: who may vouch for a server. HTTPS needs them.
    pub roots: Vec<u8>,
}

/// A proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy(Address);

impl Proxy {
    /// Reads `http://[user:password@]host:port`; the scheme may be absent.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let address = Address::parse(&text)?;
        match (address.scheme, &*address.path) {
            (Scheme::Http, "/") => Ok(Self(address)),
            _ => Err("a proxy is http://HOST:PORT".to_owned()),
        }
    }

    /// Its address.
    pub fn address(&self) -> &Address {
        &self.0
    }

    fn target(&self) -> Target {
        Target { host: self.0.host.clone(), port: self.0.port, privileged: false }
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Gets a file, from where the sink is if the server can.
///
/// # Errors
/// [`Error`].
pub fn get(address: &Address, network: &Network, connect: &dyn Connect, sink: &mut Sink<'_>) -> Result<()> {
    let mut at = address.clone();
    for _ in 0..=REDIRECTS {
        let mut stream = BufReader::new(open(&at, network, connect)?);
        let resume = sink.validator.clone().filter(|_| sink.at() > 0);
        if resume.is_none() {
            sink.restart()?;
        }
        let request = request(&at, network, sink.at(), resume.as_deref());
        stream.get_mut().write_all(request.as_bytes()).map_err(|e| broken(&e))?;
        stream.get_mut().flush().map_err(|e| broken(&e))?;
        let head = Head::read(&mut stream)?;
        match head.status {
            200 => {
                if head.encoded {
                    return Err(Error::refused("the server packs the file, which was not asked for"));
                }
                sink.begin(0, head.length)?;
                sink.validator.clone_from(&head.validator);
                return body::copy(&mut stream, &head, sink);
            }
            206 => {
                let (from, total) = head.range.ok_or_else(|| Error::refused("a part without a range"))?;
                if head.encoded || (head.validator.is_some() && head.validator != sink.validator) {
                    sink.restart()?;
                    return Err(Error::Broken("the file has changed meanwhile".to_owned()));
                }
                sink.begin(from, total)?;
                return body::copy(&mut stream, &head, sink);
            }
            301 | 302 | 303 | 307 | 308 => {
                let location = head.location.as_deref().unwrap_or_default();
                at = at.redirected(location).map_err(Error::Refused)?;
            }
            404 | 410 => return Err(Error::NotFound),
            // Nothing is there from here on: it has become shorter.
            416 if sink.at() > 0 => {
                sink.restart()?;
                return Err(Error::Broken("the file has changed meanwhile".to_owned()));
            }
            status @ (500 | 502..=504) => return Err(Error::Broken(format!("the server answers {status}"))),
            status => return Err(Error::refused(format_args!("the server answers {status}"))),
        }
    }
    Err(Error::refused(format_args!("more than {REDIRECTS} redirects")))
}

/// What is sent. Its parts were checked when they were parsed: none has a blank or a line break.
fn request(address: &Address, network: &Network, from: u64, resume: Option<&str>) -> String {
    let place = address.place();
    let proxy = network.proxy.as_ref().filter(|_| address.scheme == Scheme::Http);
    let target = match proxy {
        Some(_) => format!("http://{place}{}", address.path),
        None => address.path.clone(),
    };
    let field =
        |name: &str, value: Option<String>| value.map_or_else(String::new, |v| format!("{name}: {v}\r\n"));
    let fields = [
        field("Authorization", address.user.as_ref().map(basic)),
        field("Proxy-Authorization", proxy.and_then(|proxy| proxy.0.user.as_ref()).map(basic)),
        field("Range", resume.map(|_| format!("bytes={from}-"))),
        field("If-Range", resume.map(str::to_owned)),
    ];
    format!(
        "GET {target} HTTP/1.1\r\nHost: {place}\r\nUser-Agent: xenopsd-eliloader\r\nAccept: */*\r\n\
         Accept-Encoding: identity\r\nConnection: close\r\n{}\r\n",
        fields.concat()
    )
}

fn basic((user, password): &(String, String)) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn open(address: &Address, network: &Network, connect: &dyn Connect) -> Result<Box<dyn Stream>> {
    let direct = Target { host: address.host.clone(), port: address.port, privileged: false };
    let target = network.proxy.as_ref().map_or_else(|| direct.clone(), Proxy::target);
    let stream = connect.connect(&target)?;
    if address.scheme != Scheme::Https {
        return Ok(Box::new(stream));
    }
    if let Some(proxy) = &network.proxy {
        tunnel(&stream, proxy, &direct)?;
    }
    Ok(Box::new(tls(stream, address, &network.roots)?))
}

/// Asks a proxy for a connection of its own.
fn tunnel(mut stream: &TcpStream, proxy: &Proxy, to: &Target) -> Result<()> {
    let host = if to.host.contains(':') { format!("[{}]", to.host) } else { to.host.clone() };
    let place = format!("{host}:{}", to.port);
    let user = proxy.0.user.as_ref().map(|user| format!("Proxy-Authorization: {}\r\n", basic(user)));
    let request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{}\r\n", user.unwrap_or_default());
    stream.write_all(request.as_bytes()).map_err(|e| broken(&e))?;
    // Byte by byte, as what follows the head is TLS'.
    let mut reader = BufReader::with_capacity(1, stream);
    match Head::read(&mut reader)?.status {
        200..=299 => Ok(()),
        status => Err(Error::refused(format_args!("the proxy answers {status}"))),
    }
}

fn tls(stream: TcpStream, address: &Address, roots: &[u8]) -> Result<impl Stream + use<>> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let mut store = RootCertStore::empty();
    store
        .add_parsable_certificates(CertificateDer::pem_slice_iter(roots).filter_map(std::result::Result::ok));
    if store.is_empty() {
        return Err(Error::refused(
            "this host has no certificates of authorities to check the server's against (package \
             ca-certificates)",
        ));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::refused)?
        .with_root_certificates(store)
        .with_no_client_auth();
    let name = ServerName::try_from(address.host.clone()).map_err(Error::refused)?;
    let connection = ClientConnection::new(Arc::new(config), name).map_err(Error::refused)?;
    Ok(StreamOwned::new(connection, stream))
}
