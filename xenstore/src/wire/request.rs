//! Requests and their payloads.

use super::{Header, Kind, MAX_PAYLOAD, TxId, strings};
use crate::path::{Path, PathError};
use crate::perms::{DomId, Perms, PermsError};

/// A request, with everything it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// Names of a node's children.
    Directory(Path),
    /// The same in parts, for lists that fit no message. oxenstored up to 4.17 does not know it.
    DirectoryPart {
        /// The node.
        path: Path,
        /// Bytes of the list that earlier parts gave.
        offset: u32,
    },
    /// A node's value.
    Read(Path),
    /// Sets a value, and creates the node and its missing parents.
    Write {
        /// The node.
        path: Path,
        /// Its new value.
        value: Vec<u8>,
    },
    /// Creates a node with an empty value; one that is there is left alone.
    Mkdir(Path),
    /// Removes a node and all below it.
    Rm(Path),
    /// A node's permissions.
    GetPerms(Path),
    /// Replaces a node's permissions.
    SetPerms {
        /// The node.
        path: Path,
        /// Its new permissions.
        perms: Perms,
    },
    /// Asks for an event whenever `path` or something below it changes; one comes at once.
    Watch {
        /// The node, which need not exist, or a special watch.
        path: Path,
        /// Repeated in every event. No NUL.
        token: Vec<u8>,
    },
    /// Ends the watch with this path and token.
    Unwatch {
        /// As registered.
        path: Path,
        /// As registered.
        token: Vec<u8>,
    },
    /// Opens a transaction; the reply is its number.
    TransactionStart,
    /// Ends a transaction.
    TransactionEnd {
        /// Make its changes effective, or forget them.
        commit: bool,
    },
    /// Tells the daemon of a domain's ring; only dom0 may.
    Introduce {
        /// The domain.
        domid: DomId,
        /// Guest frame number of the ring's page.
        gfn: u64,
        /// The domain's unbound event channel port.
        port: u32,
    },
    /// Tells the daemon that the domain's ring is no more.
    Release(DomId),
    /// The home directory of a domain.
    GetDomainPath(DomId),
    /// Whether the daemon serves the domain (`T` or `F`).
    IsDomainIntroduced(DomId),
    /// The domain runs on after a suspend that was cancelled: report its next shutdown again.
    Resume(DomId),
    /// Lets `domid` act with the rights of `target` as well.
    SetTarget {
        /// The serving domain (a stub domain).
        domid: DomId,
        /// The served domain.
        target: DomId,
    },
    /// Drops all watches and transactions of this connection.
    ResetWatches,
    /// Talks to the daemon itself.
    Control(Vec<Vec<u8>>),
}

/// A request that must not be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The daemon would drop the connection.
    #[error("{op} of {target:?} needs a payload of {len} bytes and a message holds {max}")]
    TooLong {
        /// The request's name.
        op: &'static str,
        /// What it is about.
        target: String,
        /// Bytes needed.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A NUL would end the argument early and forge a further one.
    #[error("{op} of {target:?} has an argument with a NUL in it")]
    Nul {
        /// The request's name.
        op: &'static str,
        /// What it is about.
        target: String,
    },
}

/// A payload that is not a request of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// This kind is not sent by clients.
    #[error("{0:?} is not a request")]
    NotARequest(Kind),
    /// An argument is missing, or there is one too many.
    #[error("{0:?} has the wrong number of arguments")]
    Arguments(Kind),
    /// An argument that should be a number is not.
    #[error("{0:?} has an argument that is not a decimal number in range")]
    Number(Kind),
    /// The path is malformed.
    #[error("{kind:?}: {source}")]
    Path {
        /// The request.
        kind: Kind,
        /// What is wrong with it.
        source: PathError,
    },
    /// The permissions are malformed.
    #[error("{kind:?}: {source}")]
    Perms {
        /// The request.
        kind: Kind,
        /// What is wrong with them.
        source: PermsError,
    },
}

impl Request {
    /// The message kind it is sent as.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Directory(_) => Kind::Directory,
            Self::DirectoryPart { .. } => Kind::DirectoryPart,
            Self::Read(_) => Kind::Read,
            Self::Write { .. } => Kind::Write,
            Self::Mkdir(_) => Kind::Mkdir,
            Self::Rm(_) => Kind::Rm,
            Self::GetPerms(_) => Kind::GetPerms,
            Self::SetPerms { .. } => Kind::SetPerms,
            Self::Watch { .. } => Kind::Watch,
            Self::Unwatch { .. } => Kind::Unwatch,
            Self::TransactionStart => Kind::TransactionStart,
            Self::TransactionEnd { .. } => Kind::TransactionEnd,
            Self::Introduce { .. } => Kind::Introduce,
            Self::Release(_) => Kind::Release,
            Self::GetDomainPath(_) => Kind::GetDomainPath,
            Self::IsDomainIntroduced(_) => Kind::IsDomainIntroduced,
            Self::Resume(_) => Kind::Resume,
            Self::SetTarget { .. } => Kind::SetTarget,
            Self::ResetWatches => Kind::ResetWatches,
            Self::Control(_) => Kind::Control,
        }
    }

    /// Its name for people.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Directory(_) => "directory",
            Self::DirectoryPart { .. } => "directory-part",
            Self::Read(_) => "read",
            Self::Write { .. } => "write",
            Self::Mkdir(_) => "mkdir",
            Self::Rm(_) => "rm",
            Self::GetPerms(_) => "get-perms",
            Self::SetPerms { .. } => "set-perms",
            Self::Watch { .. } => "watch",
            Self::Unwatch { .. } => "unwatch",
            Self::TransactionStart => "transaction-start",
            Self::TransactionEnd { .. } => "transaction-end",
            Self::Introduce { .. } => "introduce",
            Self::Release(_) => "release",
            Self::GetDomainPath(_) => "get-domain-path",
            Self::IsDomainIntroduced(_) => "is-domain-introduced",
            Self::Resume(_) => "resume",
            Self::SetTarget { .. } => "set-target",
            Self::ResetWatches => "reset-watches",
            Self::Control(_) => "control",
        }
    }

    /// The node it is about.
    pub const fn path(&self) -> Option<&Path> {
        match self {
            Self::Directory(path)
            | Self::DirectoryPart { path, .. }
            | Self::Read(path)
            | Self::Write { path, .. }
            | Self::Mkdir(path)
            | Self::Rm(path)
            | Self::GetPerms(path)
            | Self::SetPerms { path, .. }
            | Self::Watch { path, .. }
            | Self::Unwatch { path, .. } => Some(path),
            _ => None,
        }
    }

    /// What it is about, for people: a path, a domain, or nothing.
    pub fn target(&self) -> String {
        match self {
            Self::Introduce { domid, .. }
            | Self::Release(domid)
            | Self::GetDomainPath(domid)
            | Self::IsDomainIntroduced(domid)
            | Self::Resume(domid)
            | Self::SetTarget { domid, .. } => format!("domain {domid}"),
            other => other.path().map(Path::to_string).unwrap_or_default(),
        }
    }

    /// The payload. It is not checked; see [`Request::append`].
    pub fn payload(&self) -> Vec<u8> {
        let text =
            |parts: &[&str]| parts.iter().flat_map(|p| [p.as_bytes(), b"\0"]).flatten().copied().collect();
        let domain = |domid: &DomId| text(&[&domid.to_string()]);
        match self {
            Self::Directory(path)
            | Self::Read(path)
            | Self::Mkdir(path)
            | Self::Rm(path)
            | Self::GetPerms(path) => text(&[path.as_str()]),
            Self::DirectoryPart { path, offset } => text(&[path.as_str(), &offset.to_string()]),
            Self::Write { path, value } => [path.as_str().as_bytes(), b"\0", value].concat(),
            Self::SetPerms { path, perms } => [path.as_str().as_bytes(), b"\0", &perms.to_wire()].concat(),
            Self::Watch { path, token } | Self::Unwatch { path, token } => {
                [path.as_str().as_bytes(), b"\0", token, b"\0"].concat()
            }
            Self::TransactionStart | Self::ResetWatches => text(&[""]),
            Self::TransactionEnd { commit } => text(&[if *commit { "T" } else { "F" }]),
            Self::Introduce { domid, gfn, port } => {
                text(&[&domid.to_string(), &gfn.to_string(), &port.to_string()])
            }
            Self::Release(domid)
            | Self::GetDomainPath(domid)
            | Self::IsDomainIntroduced(domid)
            | Self::Resume(domid) => domain(domid),
            Self::SetTarget { domid, target } => text(&[&domid.to_string(), &target.to_string()]),
            Self::Control(args) => args.iter().flat_map(|a| [&a[..], b"\0"]).flatten().copied().collect(),
        }
    }

    /// Appends the whole message to `out`, or nothing when it must not be sent.
    ///
    /// # Errors
    /// [`EncodeError`] when the payload is too long or an argument holds a NUL. (Paths were checked when made.)
    pub fn append(&self, tx_id: TxId, req_id: u32, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let has_nul = match self {
            Self::Watch { token, .. } | Self::Unwatch { token, .. } => token.contains(&0),
            Self::Control(args) => args.iter().any(|a| a.contains(&0)),
            _ => false,
        };
        if has_nul {
            return Err(EncodeError::Nul { op: self.name(), target: self.target() });
        }
        let payload = self.payload();
        if payload.len() > MAX_PAYLOAD {
            let (op, target, len) = (self.name(), self.target(), payload.len());
            return Err(EncodeError::TooLong { op, target, len, max: MAX_PAYLOAD });
        }
        Header { kind: self.kind(), req_id, tx_id }.append_message(&payload, out);
        Ok(())
    }

    /// Reads the payload of a request of this kind: the serving side's half of the codec.
    ///
    /// # Errors
    /// [`ParseError`] when it is malformed; a daemon answers EINVAL.
    pub fn parse(kind: Kind, payload: &[u8]) -> Result<Self, ParseError> {
        let args = Args { kind, payload };
        Ok(match kind {
            Kind::Directory => Self::Directory(args.only_path()?),
            Kind::Read => Self::Read(args.only_path()?),
            Kind::Mkdir => Self::Mkdir(args.only_path()?),
            Kind::Rm => Self::Rm(args.only_path()?),
            Kind::GetPerms => Self::GetPerms(args.only_path()?),
            Kind::DirectoryPart => {
                let [path, offset] = args.fixed()?;
                Self::DirectoryPart { path: args.path(path)?, offset: args.number(offset)? }
            }
            Kind::Write => {
                let (path, value) = args.path_and_rest()?;
                Self::Write { path, value: value.to_vec() }
            }
            Kind::SetPerms => {
                let (path, rest) = args.path_and_rest()?;
                let perms = Perms::from_wire(rest).map_err(|source| ParseError::Perms { kind, source })?;
                Self::SetPerms { path, perms }
            }
            Kind::Watch | Kind::Unwatch => {
                let [path, token] = args.fixed()?;
                let (path, token) = (args.path(path)?, token.to_vec());
                if kind == Kind::Watch { Self::Watch { path, token } } else { Self::Unwatch { path, token } }
            }
            Kind::TransactionStart => Self::TransactionStart,
            Kind::ResetWatches => Self::ResetWatches,
            Kind::TransactionEnd => match args.fixed()? {
                [b"T"] => Self::TransactionEnd { commit: true },
                [b"F"] => Self::TransactionEnd { commit: false },
                _ => return Err(ParseError::Arguments(kind)),
            },
            Kind::Introduce => {
                let [domid, gfn, port] = args.fixed()?;
                Self::Introduce {
                    domid: DomId(args.number(domid)?),
                    gfn: args.number(gfn)?,
                    port: args.number(port)?,
                }
            }
            Kind::Release => Self::Release(args.only_domain()?),
            Kind::GetDomainPath => Self::GetDomainPath(args.only_domain()?),
            Kind::IsDomainIntroduced => Self::IsDomainIntroduced(args.only_domain()?),
            Kind::Resume => Self::Resume(args.only_domain()?),
            Kind::SetTarget => {
                let [domid, target] = args.fixed()?;
                Self::SetTarget { domid: DomId(args.number(domid)?), target: DomId(args.number(target)?) }
            }
            Kind::Control => Self::Control(strings(payload).map(<[u8]>::to_vec).collect()),
            Kind::WatchEvent | Kind::Error => return Err(ParseError::NotARequest(kind)),
        })
    }
}

/// The arguments of one payload.
#[derive(Clone, Copy)]
struct Args<'a> {
    kind: Kind,
    payload: &'a [u8],
}

impl<'a> Args<'a> {
    fn fixed<const N: usize>(self) -> Result<[&'a [u8]; N], ParseError> {
        // One more than needed is enough to see that there are too many.
        let parts: Vec<_> = strings(self.payload).take(N + 1).collect();
        parts.try_into().map_err(|_| ParseError::Arguments(self.kind))
    }

    fn path(self, bytes: &[u8]) -> Result<Path, ParseError> {
        Path::from_bytes(bytes).map_err(|source| ParseError::Path { kind: self.kind, source })
    }

    fn only_path(self) -> Result<Path, ParseError> {
        let [path] = self.fixed()?;
        self.path(path)
    }

    fn path_and_rest(self) -> Result<(Path, &'a [u8]), ParseError> {
        let cut = self.payload.iter().position(|&b| b == 0).ok_or(ParseError::Arguments(self.kind))?;
        Ok((self.path(&self.payload[..cut])?, &self.payload[cut + 1..]))
    }

    fn number<T: std::str::FromStr>(self, digits: &[u8]) -> Result<T, ParseError> {
        let plain = Some(digits).filter(|d| d.iter().all(u8::is_ascii_digit));
        let parsed = plain.and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| d.parse().ok());
        parsed.ok_or(ParseError::Number(self.kind))
    }

    fn only_domain(self) -> Result<DomId, ParseError> {
        let [domid] = self.fixed()?;
        self.number(domid).map(DomId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn payloads_as_the_protocol_lays_them_out() {
        let path = Path::known("/a");
        let of = |r: Request| r.payload();
        assert_eq!(of(Request::Write { path: path.clone(), value: b"v".to_vec() }), b"/a\0v");
        assert_eq!(of(Request::Read(path.clone())), b"/a\0");
        assert_eq!(of(Request::SetPerms { path: path.clone(), perms: Perms::ro(DomId(5)) }), b"/a\0n0\0r5\0");
        assert_eq!(of(Request::Unwatch { path: path.clone(), token: b"t".to_vec() }), b"/a\0t\0");
        assert_eq!(of(Request::TransactionStart), b"\0");
        assert_eq!(of(Request::TransactionEnd { commit: true }), b"T\0");
        assert_eq!(
            of(Request::Introduce { domid: DomId(3), gfn: 1_044_476, port: 2 }),
            b"3\x001044476\x002\0"
        );
        assert_eq!(of(Request::Control(vec![b"help".to_vec()])), b"help\0");
        let mut out = Vec::new();
        Request::DirectoryPart { path, offset: 7 }.append(TxId(9), 8, &mut out).unwrap();
        assert_eq!(out, b"\x16\0\0\0\x08\0\0\0\x09\0\0\0\x05\0\0\0/a\x007\0");
    }

    #[test]
    fn what_would_harm_is_not_sent() {
        let mut out = Vec::new();
        let path = Path::known("/a");
        let long = Request::Write { path: path.clone(), value: vec![b'x'; MAX_PAYLOAD - 2] };
        assert!(matches!(long.append(TxId::NONE, 0, &mut out), Err(EncodeError::TooLong { len: 4097, .. })));
        let forged = Request::Watch { path, token: b"t\0forged".to_vec() };
        assert!(matches!(forged.append(TxId::NONE, 0, &mut out), Err(EncodeError::Nul { .. })));
        assert!(out.is_empty());
    }

    fn any_path() -> impl Strategy<Value = Path> {
        "(/[a-zA-Z0-9@_-]{1,8}){1,4}".prop_map(|p| Path::new(&p).unwrap())
    }

    fn any_token() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(1u8.., 1..20)
    }

    fn any_request() -> impl Strategy<Value = Request> {
        let domid = || any::<u16>().prop_map(DomId);
        prop_oneof![
            any_path().prop_map(Request::Directory),
            (any_path(), any::<u32>()).prop_map(|(path, offset)| Request::DirectoryPart { path, offset }),
            any_path().prop_map(Request::Read),
            (any_path(), any::<Vec<u8>>()).prop_map(|(path, value)| Request::Write { path, value }),
            any_path().prop_map(Request::Mkdir),
            any_path().prop_map(Request::Rm),
            any_path().prop_map(Request::GetPerms),
            (any_path(), domid(), domid())
                .prop_map(|(path, d, b)| Request::SetPerms { path, perms: Perms::fe(d, b) }),
            (any_path(), any_token()).prop_map(|(path, token)| Request::Watch { path, token }),
            (any_path(), any_token()).prop_map(|(path, token)| Request::Unwatch { path, token }),
            Just(Request::TransactionStart),
            any::<bool>().prop_map(|commit| Request::TransactionEnd { commit }),
            (domid(), any::<u64>(), any::<u32>()).prop_map(|(domid, gfn, port)| Request::Introduce {
                domid,
                gfn,
                port
            }),
            domid().prop_map(Request::Release),
            domid().prop_map(Request::GetDomainPath),
            domid().prop_map(Request::IsDomainIntroduced),
            domid().prop_map(Request::Resume),
            (domid(), domid()).prop_map(|(domid, target)| Request::SetTarget { domid, target }),
            Just(Request::ResetWatches),
            proptest::collection::vec(any_token(), 1..4).prop_map(Request::Control),
        ]
    }

    proptest! {
        #[test]
        fn requests_round_trip(request in any_request()) {
            prop_assert_eq!(Request::parse(request.kind(), &request.payload()), Ok(request));
        }

        #[test]
        fn arbitrary_payloads_never_panic(kind in 0u32..24, payload: Vec<u8>) {
            if let Some(kind) = Kind::from_wire(kind) {
                let _ = Request::parse(kind, &payload);
            }
        }
    }
}
