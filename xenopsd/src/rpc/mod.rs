//! Frames and codecs: HTTP/1.1 on a Unix socket, XML-RPC, JSON-RPC.
