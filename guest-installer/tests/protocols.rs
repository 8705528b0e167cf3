//! Files over HTTP, HTTPS, FTP and NFS, from servers that behave and from servers that do not.

mod servers;

use guest_installer::fetch::{Address, Error, Network, http::Proxy};
use servers::{Direct, Http, LIMIT, answer, bytes, got, head, nfs, ok, serve, tls};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

/// An answer about a file.
type Answer = fn(&[u8]) -> Vec<u8>;

fn plain(address: &Address) -> Result<Vec<u8>, Error> {
    let started = Instant::now();
    let outcome = got(address, &Network::default(), &Direct::default());
    assert!(started.elapsed() < Duration::from_secs(20), "in bounded time");
    outcome
}

/// Why a file does not come.
fn refused(server: &Http) -> String {
    plain(&server.url("/x")).unwrap_err().to_string()
}

#[test]
fn http_has_three_ways_to_end() {
    let body = bytes(300_000);
    let chunked = |body: &[u8]| {
        let chunks = body
            .chunks(70_000)
            .flat_map(|c| [format!("{:x};x\r\n", c.len()).as_bytes(), c, b"\r\n"].concat());
        chunks.chain(*b"0\r\nTrailer: x\r\n\r\n").collect::<Vec<u8>>()
    };
    let answers =
        [ok(&body), answer(200, "Transfer-Encoding: chunked\r\n", &chunked(&body)), answer(200, "", &body)];
    for bytes in answers {
        let server = Http::new(move |_, _| bytes.clone());
        assert!(plain(&server.url("/a/b?c")).unwrap() == body);
        let asked = server.asked();
        assert!(asked[0].starts_with("GET /a/b?c HTTP/1.1\r\nHost: 127.0.0.1:"), "{asked:?}");
    }
}

#[test]
fn http_goes_on_where_it_was() {
    let body = bytes(100_000);
    let whole = body.clone();
    let server = Http::new(move |number, _| match number {
        0 => answer(200, "Content-Length: 100000\r\nETag: \"v1\"\r\n", &whole[..60_000]),
        _ => answer(
            206,
            "Content-Length: 40000\r\nETag: \"v1\"\r\nContent-Range: bytes 60000-99999/100000\r\n",
            &whole[60_000..],
        ),
    });
    assert!(plain(&server.url("/")).unwrap() == body);
    let asked = server.asked();
    assert!(!asked[0].contains("Range") && asked[1].contains("Range: bytes=60000-\r\nIf-Range: \"v1\"\r\n"));
    assert_eq!(asked.len(), 2);
}

#[test]
fn http_starts_over_when_the_file_is_another() {
    let body = bytes(50_000);
    let new = body.clone();
    // A server without ranges, one whose file has changed, and one that goes on somewhere else.
    let seconds: [Answer; 3] = [
        ok,
        |new| {
            answer(
                206,
                "Content-Length: 5\r\nETag: \"v2\"\r\nContent-Range: bytes 10-14/50000\r\n",
                &new[10..15],
            )
        },
        |new| {
            answer(
                206,
                "Content-Length: 5\r\nETag: \"v1\"\r\nContent-Range: bytes 11-15/50000\r\n",
                &new[11..16],
            )
        },
    ];
    for second in seconds {
        let new = new.clone();
        let server = Http::new(move |number, _| match number {
            0 => answer(200, "Content-Length: 50000\r\nETag: \"v1\"\r\n", b"old file..."[..10].as_ref()),
            1 => second(&new),
            _ => ok(&new),
        });
        assert!(plain(&server.url("/")).unwrap() == body);
    }
}

#[test]
fn servers_of_http_that_lie_stall_or_loop_end_in_an_error() {
    let short = Http::new(|_, _| answer(200, "Content-Length: 100\r\n", b"x"));
    assert!(refused(&short).contains("99 bytes too early"));
    assert_eq!(short.asked().len(), 4, "one that brought a byte, three in vain");
    let nothing = Http::new(|_, _| Vec::new());
    assert!(refused(&nothing).contains("ended the connection"));
    assert_eq!(nothing.asked().len(), 3);
    let looping = Http::new(|n, _| answer(302, &format!("Location: /{n}\r\n"), b""));
    assert!(refused(&looping).contains("more than 5 redirects"));
    assert_eq!(looping.asked().len(), 6);
    for (bytes, why) in [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec(), "no HTTP"),
        (answer(200, "Content-Encoding: gzip\r\nContent-Length: 1\r\n", b"x"), "packs the file"),
        (answer(200, "Transfer-Encoding: chunked\r\n", b"zz\r\n"), "without a length"),
        (answer(200, "Transfer-Encoding: chunked\r\n", b"1\r\nxx\r\n0\r\n\r\n"), "longer than it says"),
        (answer(206, "Content-Length: 1\r\n", b"x"), "without a range"),
        (answer(302, "Location: file:///etc/passwd\r\n", b""), "none of http"),
        (answer(302, "Location: ftp://h/\r\n", b""), "redirect from http to ftp"),
        (answer(302, "", b""), "nowhere"),
        (answer(403, "", b""), "answers 403"),
        (vec![b'x'; 100_000], "too long"),
    ] {
        let server = Http::new(move |_, _| bytes.clone());
        let error = refused(&server);
        assert!(error.contains(why), "{why}: {error}");
        assert_eq!(server.asked().len(), 1, "{why}: another attempt would end the same way");
    }
    let missing = Http::new(|_, _| answer(404, "", b""));
    assert_eq!(plain(&missing.url("/x")), Err(Error::NotFound));
    let stalled = serve(|_, stream| std::mem::forget(stream));
    let error = plain(&Address::parse(&format!("http://{stalled}/")).unwrap()).unwrap_err();
    assert!(error.to_string().contains("says nothing any more"), "{error}");
}

#[test]
fn no_server_sends_more_than_the_limit() {
    let said = Http::new(|_, _| answer(200, "Content-Length: 1048577\r\n", b"x"));
    let endless = serve(|_, stream| {
        let mut stream = BufReader::new(stream);
        head(&mut stream);
        let _ = stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.get_mut().write_all(&[0; 1 << 13]).is_ok() {}
    });
    let chunk = Http::new(|_, _| answer(200, "Transfer-Encoding: chunked\r\n", b"ffffffffffffffff\r\nx"));
    assert_eq!(plain(&said.url("/")), Err(Error::TooLarge(LIMIT)));
    assert_eq!(plain(&Address::parse(&format!("http://{endless}/")).unwrap()), Err(Error::TooLarge(LIMIT)));
    assert!(plain(&chunk.url("/")).is_err());
}

#[test]
fn a_proxy_is_asked_for_the_whole_address() {
    let proxy = Http::new(|_, _| ok(b"through the proxy"));
    let network = Network {
        proxy: Some(Proxy::parse(&format!("http://me:secret@{}", proxy.address)).unwrap()),
        ..Network::default()
    };
    let address = Address::parse("http://u:p@repository.invalid:81/x").unwrap();
    assert_eq!(got(&address, &network, &Direct::default()).unwrap(), b"through the proxy");
    let asked = &proxy.asked()[0];
    assert!(
        asked.starts_with("GET http://repository.invalid:81/x HTTP/1.1\r\nHost: repository.invalid:81\r\n")
    );
    assert!(asked.contains("\r\nProxy-Authorization: Basic bWU6c2VjcmV0\r\n"), "{asked}");
    assert!(asked.contains("\r\nAuthorization: Basic dTpw\r\n"), "{asked}");
    for bad in ["ftp://h", "http://h/x", "http://", "h o"] {
        assert!(Proxy::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn https_checks_who_answers() {
    let (roots, config) = tls::authority();
    let server = tls::server(config);
    let at = |path: &str| Address::parse(&format!("https://localhost:{}{path}", server.port())).unwrap();
    let network = Network { roots: roots.clone(), ..Network::default() };
    assert_eq!(got(&at("/"), &network, &Direct::default()).unwrap(), b"over TLS");
    let cut = got(&at("/cut"), &network, &Direct::default()).unwrap_err();
    assert!(matches!(cut, Error::Broken(_)), "{cut:?}");
    let down = got(&at("/down"), &network, &Direct::default()).unwrap_err();
    assert!(down.to_string().contains("redirect from https to http"), "{down}");
    let none = got(&at("/"), &Network::default(), &Direct::default()).unwrap_err();
    assert!(none.to_string().contains("ca-certificates"), "{none}");
    let (others, _) = tls::authority();
    let other = Network { roots: others, ..Network::default() };
    let error = got(&at("/"), &other, &Direct::default()).unwrap_err();
    assert!(matches!(&error, Error::Refused(why) if why.contains("certificate")), "{error}");
    let by_number = Address::parse(&format!("https://127.0.0.1:{}/", server.port())).unwrap();
    let error = got(&by_number, &network, &Direct::default()).unwrap_err();
    assert!(error.to_string().contains("certificate"), "another name than the certificate's: {error}");

    // Through a proxy that opens a tunnel.
    let proxy = serve(move |_, client| {
        let mut client = BufReader::with_capacity(1, client);
        let asked = head(&mut client);
        assert!(asked.starts_with("CONNECT localhost:443 HTTP/1.1\r\n"), "{asked}");
        let mut client = client.into_inner();
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
        relay(&client, &TcpStream::connect(server).unwrap());
    });
    let proxy = Proxy::parse(&proxy.to_string()).unwrap();
    let network = Network { roots, proxy: Some(proxy) };
    let address = Address::parse("https://localhost/").unwrap();
    assert_eq!(got(&address, &network, &Direct::default()).unwrap(), b"over TLS");
}

fn relay(one: &TcpStream, other: &TcpStream) {
    std::thread::scope(|scope| {
        for (mut from, mut to) in [(one, other), (other, one)] {
            scope.spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Write);
            });
        }
    });
}

/// What a server of FTP does that others do not.
#[derive(Clone, Copy, Default)]
struct Ftp {
    no_epsv: bool,
    no_size: bool,
    /// Bytes after which the first transfer breaks.
    breaks_after: Option<usize>,
    /// It says that it has sent the whole.
    lies: bool,
}

fn ftp(how: Ftp, file: Vec<u8>) -> SocketAddr {
    serve(move |number, control| {
        let mut control = BufReader::new(control);
        let mut data = None;
        let mut from = 0;
        let mut say = b"220-hello\r\n220 there\r\n".to_vec();
        loop {
            if control.get_mut().write_all(&say).is_err() {
                return;
            }
            let mut line = String::new();
            if control.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
            let (command, argument) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
            say = match command {
                "USER" => b"331 password\r\n".to_vec(),
                "PASS" => b"230 in\r\n".to_vec(),
                "TYPE" => b"200 ok\r\n".to_vec(),
                "SIZE" | "RETR" if argument != "pub/file" => b"550 no\r\n".to_vec(),
                "SIZE" if how.no_size => b"502 no\r\n".to_vec(),
                "SIZE" => format!("213 {}\r\n", file.len()).into_bytes(),
                "EPSV" if how.no_epsv => b"500 no\r\n".to_vec(),
                "EPSV" => {
                    let port = data.insert(listen()).local_addr().unwrap().port();
                    format!("229 here (|||{port}|)\r\n").into_bytes()
                }
                "PASV" => {
                    let [high, low] = data.insert(listen()).local_addr().unwrap().port().to_be_bytes();
                    // Somebody else's address, which nobody may follow.
                    format!("227 here (192,0,2,1,{high},{low})\r\n").into_bytes()
                }
                "REST" => {
                    from = argument.parse().unwrap();
                    b"350 from there\r\n".to_vec()
                }
                "RETR" => {
                    let mut to = data.take().unwrap().accept().unwrap().0;
                    control.get_mut().write_all(b"150 coming\r\n").unwrap();
                    let cut = how.breaks_after.filter(|_| number == 0);
                    to.write_all(&file[from..cut.unwrap_or(file.len())]).unwrap();
                    drop(to);
                    if cut.is_some() && !how.lies {
                        b"426 broken\r\n".to_vec()
                    } else {
                        b"226 sent\r\n".to_vec()
                    }
                }
                other => panic!("{other}"),
            };
        }
    })
}

#[test]
fn ftp_in_every_form() {
    let file = bytes(200_000);
    let forms = [
        Ftp::default(),
        Ftp { no_epsv: true, ..Ftp::default() },
        Ftp { no_size: true, ..Ftp::default() },
        Ftp { breaks_after: Some(70_000), ..Ftp::default() },
        Ftp { breaks_after: Some(70_000), lies: true, ..Ftp::default() },
    ];
    for how in forms {
        let at = ftp(how, file.clone());
        let address = |path: &str| Address::parse(&format!("ftp://{at}/{path}")).unwrap();
        assert!(plain(&address("pub/file")).unwrap() == file);
        assert_eq!(plain(&address("pub/other")), Err(Error::NotFound));
    }
    let large = ftp(Ftp::default(), vec![0; (1 << 20) + 1]);
    let address = Address::parse(&format!("ftp://{large}/pub/file")).unwrap();
    assert_eq!(plain(&address), Err(Error::TooLarge(LIMIT)));
    for (greeting, why) in [("500 away\r\n", "500 away"), ("hello\r\n", "no FTP"), ("", "ended")] {
        let server = serve(move |_, mut stream| stream.write_all(greeting.as_bytes()).unwrap());
        let error = plain(&Address::parse(&format!("ftp://{server}/x")).unwrap()).unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
    let flood = serve(|_, mut stream| while stream.write_all(b"220-x\r\n").is_ok() {});
    let error = plain(&Address::parse(&format!("ftp://{flood}/x")).unwrap()).unwrap_err().to_string();
    assert!(error.contains("more than 200 lines"), "{error}");
}

/// Changes an answer: program, procedure, its bytes.
type Twist = fn(u32, u32, &mut Vec<u8>);

fn nfs_with(twist: Twist) -> (Direct, Vec<u8>) {
    let file = bytes(5_500);
    let files = BTreeMap::from([("dist/images/vmlinuz", file.clone())]);
    let server = nfs::export(nfs::Export { at: "/srv", files, twist });
    (Direct([111, 2049, nfs::MOUNT_PORT].map(|port| (port, server)).to_vec()), file)
}

#[test]
fn nfs_reads_below_what_is_exported() {
    let (direct, file) = nfs_with(|_, _, _| {});
    let get = |path: &str| got(&Address::parse(path).unwrap(), &Network::default(), &direct);
    assert!(get("nfs:server:/srv/dist/images/vmlinuz").unwrap() == file);
    for missing in ["nfs:server:/srv/dist/images/other", "nfs:server:/srv/x/y", "nfs:server:/other/x"] {
        assert_eq!(get(missing), Err(Error::NotFound), "{missing}");
    }
    let directory = get("nfs:server:/srv/dist/images").unwrap_err().to_string();
    assert!(directory.contains("no regular file"), "{directory}");
}

#[test]
fn servers_of_nfs_that_lie_end_in_an_error() {
    let twists: [(Twist, &str); 9] = [
        (|_, _, reply| reply[3] ^= 1, "another call"),
        (|_, _, reply| reply.truncate(20), "too short"),
        (|_, _, reply| reply[11] = 1, "does not let us call"),
        (
            |program, _, reply| {
                if program == 100_003 {
                    reply[23] = 2;
                }
            },
            "version",
        ),
        (
            |program, _, reply| {
                if program == 100_000 {
                    reply[24..].fill(0);
                }
            },
            "no mountd",
        ),
        // A handle that is too long; a file that is; a read of nothing, of another length, and too much.
        (
            |program, _, reply| {
                if program == 100_005 && reply.len() > 28 {
                    reply[28..32].fill(0xff);
                }
            },
            "for at most 64",
        ),
        (
            |program, call, reply| {
                if (program, call) == (100_003, 1) {
                    reply[48] = 1;
                }
            },
            "limit",
        ),
        (
            |program, call, reply| {
                if (program, call) == (100_003, 6) {
                    reply[32..].fill(0);
                }
            },
            "ended after 0 of",
        ),
        (
            |program, call, reply| {
                if (program, call) == (100_003, 6) {
                    reply[35] = 1;
                }
            },
            "not what it says",
        ),
    ];
    for (twist, why) in twists {
        let (direct, _) = nfs_with(twist);
        let address = Address::parse("nfs:server:/srv/dist/images/vmlinuz").unwrap();
        let error = got(&address, &Network::default(), &direct).unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
    let long = serve(|_, mut stream| {
        let _ = stream.read(&mut [0; 200]);
        let _ = stream.write_all(&[0x7f, 0xff, 0xff, 0xff, 0]);
    });
    let direct = Direct(vec![(111, long)]);
    let address = Address::parse("nfs:server:/srv/x").unwrap();
    let error = got(&address, &Network::default(), &direct).unwrap_err().to_string();
    assert!(error.contains("too long"), "{error}");
}
