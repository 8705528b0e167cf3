//! A server of HTTPS with a certificate of its own authority.

use super::{head, ok, serve};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{
    io::{BufReader, Write},
    net::SocketAddr,
    process::Command,
    sync::Arc,
};

fn openssl(arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An authority and a server's certificate for `localhost` by it, in PEM.
pub(crate) fn authority() -> (Vec<u8>, ServerConfig) {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let (ca, ca_key, cert, key) = (path("ca"), path("ca.key"), path("cert"), path("key"));
    let new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-batch"];
    let request = |more: &[&str]| openssl(&[&["req", "-x509"], &new[..], more].concat());
    request(&["-subj", "/CN=test authority", "-keyout", &ca_key, "-out", &ca]);
    request(&[
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-CA",
        &ca,
        "-CAkey",
        &ca_key,
        "-keyout",
        &key,
        "-out",
        &cert,
    ]);
    let chain = CertificateDer::pem_file_iter(&cert).unwrap().collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    (std::fs::read(&ca).unwrap(), config)
}

/// Answers `/cut` with half a file, `/down` with a redirect to HTTP, and all else with a file.
pub(crate) fn server(config: ServerConfig) -> SocketAddr {
    let config = Arc::new(config);
    serve(move |_, stream| {
        let connection = rustls::ServerConnection::new(config.clone()).unwrap();
        let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
        let asked = head(&mut stream);
        let stream = stream.get_mut();
        if asked.starts_with("GET /cut ") {
            // The end of the connection without the end of TLS: somebody has cut it.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhalf");
            return;
        }
        if asked.starts_with("GET /down ") {
            let _ = stream.write_all(b"HTTP/1.1 302 x\r\nLocation: http://localhost/\r\n\r\n");
            return;
        }
        let _ = stream.write_all(&ok(b"over TLS"));
        stream.conn.send_close_notify();
        let _ = stream.flush();
    })
}
