//! Addresses of repositories and of files in them.

use super::ADDRESS_BYTES;
use std::fmt;

/// How a repository is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP.
    Http,
    /// HTTP over TLS.
    Https,
    /// FTP, passive.
    Ftp,
    /// NFS version 3 over TCP.
    Nfs,
}

impl Scheme {
    /// Its name in an address and among install methods.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Ftp => "ftp",
            Self::Nfs => "nfs",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
            Self::Ftp => 21,
            Self::Nfs => 2049,
        }
    }
}

/// An address, checked: its parts hold printable ASCII characters and no blanks.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// How.
    pub scheme: Scheme,
    /// User and password, decoded.
    pub user: Option<(String, String)>,
    /// A name or a number, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The path with its slash, and a query: as it was written.
    pub path: String,
}

impl Address {
    /// Reads `http://`, `https://`, `ftp://` and `nfs:` addresses; the last also as `nfs:server:/path`.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > ADDRESS_BYTES || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("an address is at most 2048 printable ASCII characters".to_owned());
        }
        let (name, rest) = text.split_once(':').ok_or("it has no scheme (http:, https:, ftp:, nfs:)")?;
        let scheme = match name.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "ftp" => Scheme::Ftp,
            "nfs" => Scheme::Nfs,
            other => return Err(format!("{other} is none of http, https, ftp, nfs")),
        };
        let slashed = rest.strip_prefix("//");
        let rest = match (scheme, slashed) {
            (_, Some(rest)) => rest,
            (Scheme::Nfs, None) => rest,
            (_, None) => return Err(format!("{name}: is not followed by //")),
        };
        let (authority, path) = rest.find(['/', '?', '#']).map_or((rest, ""), |at| rest.split_at(at));
        let path = path.split('#').next().unwrap_or_default();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(credentials(user)?), place),
            None => (None, authority),
        };
        // nfs:server:/path: the colon belongs to the path.
        let place = if scheme == Scheme::Nfs { place.strip_suffix(':').unwrap_or(place) } else { place };
        let (host, port) = host_and_port(place)?;
        Ok(Self { scheme, user, host, port: port.unwrap_or(scheme.port()), path })
    }

    /// A file below it. `relative` is trusted.
    #[must_use]
    pub fn join(&self, relative: &str) -> Self {
        let base = self.path.split('?').next().unwrap_or_default().trim_end_matches('/');
        Self { path: format!("{base}/{}", relative.trim_start_matches('/')), ..self.clone() }
    }

    /// Where a server's `Location` leads. Only to HTTP, never from HTTPS down to it, and without the credentials unless
    /// the host is the same.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn redirected(&self, location: &str) -> Result<Self, String> {
        let absolute = location.split_once(':').is_some_and(|(scheme, _)| !scheme.contains(['/', '?', '#']));
        let mut to = if let Some(rest) = location.strip_prefix("//") {
            Self::parse(&format!("{}://{rest}", self.scheme.name()))?
        } else if absolute {
            Self::parse(location)?
        } else {
            let path = self.path.split('?').next().unwrap_or_default();
            let directory = &path[..=path.rfind('/').unwrap_or(0)];
            let path = match location.chars().next() {
                None => return Err("a redirect to nowhere".to_owned()),
                Some('/') => location.to_owned(),
                Some('?') => format!("{path}{location}"),
                Some(_) => format!("{directory}{location}"),
            };
            let origin = format!("{}://{}", self.scheme.name(), self.place());
            Self::parse(&format!("{origin}{path}"))?
        };
        match (self.scheme, to.scheme) {
            (Scheme::Http, Scheme::Http | Scheme::Https) | (Scheme::Https, Scheme::Https) => {}
            (from, to) => return Err(format!("a redirect from {} to {}", from.name(), to.name())),
        }
        if to.user.is_none() && (&to.host, to.port) == (&self.host, self.port) {
            to.user.clone_from(&self.user);
        }
        Ok(to)
    }

    /// Host and port as the `Host` of a request has them.
    pub fn place(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == self.scheme.port() { host } else { format!("{host}:{}", self.port) }
    }

    /// All of it, its password as well: for whoever has to log in.
    pub fn whole(&self) -> String {
        let user = self.user.as_ref().map(|(user, password)| match password.as_str() {
            "" => format!("{}@", encode(user)),
            password => format!("{}:{}@", encode(user), encode(password)),
        });
        format!("{}://{}{}{}", self.scheme.name(), user.unwrap_or_default(), self.place(), self.path)
    }

    /// The path with its `%XX` decoded, for protocols that have no such thing.
    ///
    /// # Errors
    /// When that would put a control character into it.
    pub fn decoded_path(&self) -> Result<String, String> {
        decode(&self.path)
    }
}

/// Without what nobody needs to see.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.name(), self.place(), self.path)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn credentials(text: &str) -> Result<(String, String), String> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    Ok((decode(user)?, decode(password)?))
}

/// A host, with its port if there is one.
///
/// # Errors
/// What is wrong.
pub fn host_and_port(text: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match text.strip_prefix('[').and_then(|inside| inside.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or("no : after ]")?)),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if !is_host(host) {
        return Err(format!("{host:?} is no host"));
    }
    let port = port.map(|port| port.parse().ok().filter(|&port: &u16| port > 0).ok_or(port)).transpose();
    Ok((host.to_owned(), port.map_err(|port| format!("{port:?} is no port"))?))
}

/// Whether a name can be looked up: letters, digits, and what numbers of hosts have in them.
pub fn is_host(text: &str) -> bool {
    /// Of a name in DNS.
    const LONGEST: usize = 253;
    (1..=LONGEST).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:".contains(&b))
        && !text.starts_with('-')
}

fn encode(text: &str) -> String {
    let byte =
        |b: u8| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") };
    text.bytes().map(byte).collect()
}

fn decode(text: &str) -> Result<String, String> {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        if byte != b'%' {
            out.push(byte);
            at += 1;
            continue;
        }
        let digits = text.get(at + 1..at + 3).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let decoded = digits.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(
            decoded
                .filter(|b| *b >= b' ' && *b != 0x7f)
                .ok_or(format!("{text:?}: a % that means nothing"))?,
        );
        at += 3;
    }
    String::from_utf8(out).map_err(|_| format!("{text:?} is no UTF-8"))
}

/// An address, a proxy's or a server's redirect from one (on the second line) is refused, or is printed as what is read as
/// the same, in one line and without its password; for fuzzing.
pub fn fuzz(text: &str) {
    let (text, location) = text.split_once('\n').unwrap_or((text, ""));
    let check = |address: &Address| {
        assert!(is_host(&address.host) && address.port > 0 && address.path.starts_with('/'));
        let whole = address.whole();
        assert!(whole.bytes().all(|b| b.is_ascii_graphic()));
        // What a longer spelling of it makes too long is refused, too.
        if whole.len() <= ADDRESS_BYTES {
            assert_eq!(Address::parse(&whole).as_ref().map(Address::whole), Ok(whole));
        }
        let below = address.join("images/vmlinuz");
        assert_eq!((below.scheme, &below.host, below.port), (address.scheme, &address.host, address.port));
        if let Ok(path) = address.decoded_path() {
            assert!(!path.contains(|c: char| c.is_ascii_control()));
        }
    };
    if let Ok(address) = Address::parse(text) {
        check(&address);
        if let Ok(to) = address.redirected(location) {
            check(&to);
            assert!(to.scheme == address.scheme || to.scheme == Scheme::Https);
            let same = (&to.host, to.port) == (&address.host, address.port);
            assert!(same || address.user.is_none() || to.user != address.user || location.contains('@'));
        }
    }
    if let Ok(proxy) = super::http::Proxy::parse(text) {
        check(proxy.address());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Address {
        Address::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn every_form_is_read() {
        let a = parse("http://u:p%40w@Deb.example:8080/debian/?x#frag");
        assert_eq!((a.scheme, &*a.host, a.port, &*a.path), (Scheme::Http, "Deb.example", 8080, "/debian/?x"));
        assert_eq!(a.user, Some(("u".to_owned(), "p@w".to_owned())));
        assert_eq!(a.to_string(), "http://Deb.example:8080/debian/?x", "without the password");
        assert_eq!(parse(&a.whole()), a);
        assert_eq!(parse("https://[::1]").to_string(), "https://[::1]/");
        for nfs in ["nfs:server:/srv/x", "nfs://server/srv/x", "nfs://server:/srv/x", "nfs:server/srv/x"] {
            let a = parse(nfs);
            assert_eq!((&*a.host, &*a.path, a.port), ("server", "/srv/x", 2049), "{nfs}");
        }
        assert_eq!(parse("ftp://h/a%20b").decoded_path().unwrap(), "/a b");
        assert!(
            parse("ftp://h/a%0ab").decoded_path().is_err() && parse("ftp://h/a%4").decoded_path().is_err()
        );
    }

    #[test]
    fn nonsense_is_refused() {
        let bad = [
            "",
            "x",
            "http:",
            "http:/x",
            "http://",
            "file:///etc",
            "http://a b/",
            "http://h:0/",
            "http://h:x/",
            "http://h:99999/",
            "http://[::1/",
            "http://-h/",
            "http://h\r\nx/",
            "http://h/\u{e4}",
            "http://a/%\n",
        ];
        for text in bad {
            assert!(Address::parse(text).is_err(), "{text}");
        }
        assert!(Address::parse(&format!("http://h/{}", "x".repeat(ADDRESS_BYTES))).is_err());
    }

    #[test]
    fn files_are_below_it() {
        for base in ["http://h/a", "http://h/a/", "http://h/a/?q"] {
            assert_eq!(parse(base).join("b/c").to_string(), "http://h/a/b/c", "{base}");
        }
    }

    #[test]
    fn redirects_lead_where_they_may() {
        let from = parse("http://u:p@h/a/b?q");
        for (location, to) in [
            ("http://other/x", "http://other/x"),
            ("https://other/x", "https://other/x"),
            ("//other/x", "http://other/x"),
            ("/x", "http://h/x"),
            ("x?y=http://z", "http://h/a/x?y=http://z"),
            ("?z", "http://h/a/b?z"),
        ] {
            assert_eq!(from.redirected(location).unwrap().to_string(), to, "{location}");
        }
        assert!(from.redirected("http://other/").unwrap().user.is_none(), "they are not for others");
        assert_eq!(from.redirected("/").unwrap().user, from.user);
        for bad in ["ftp://h/", "nfs:h:/x", "file:///etc/passwd", "", "http://", "/a b"] {
            assert!(from.redirected(bad).is_err(), "{bad}");
        }
        assert!(parse("https://h/").redirected("http://h/").is_err(), "never down to HTTP");
    }
}
