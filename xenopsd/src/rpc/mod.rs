//! Frames and codecs: HTTP/1.1 on a Unix socket, XML-RPC and JSON-RPC bodies.
//!
//! ```text
//!           socket          http             codec (json_rpc over json, or xml)        api
//!  client ─────────► bytes ──────► body ────────────────────────────► method, params ──────► Call
//!                                                                                             │ Service
//!  client ◄───────── bytes ◄────── head+body ◄─── Responder (any thread) ◄─── Value ◄─────────┘
//! ```
//!
//! [`server`] drives this with one I/O thread; [`client`] is the other end, blocking; [`switch`] takes the same calls
//! from a message-switch queue. Everything that comes from
//! outside is bounded by the constants in [`http`], [`json`], [`xml`] and [`server`].

pub mod client;
pub mod codec;
pub mod console;
mod exchange;
pub mod http;
pub mod json;
pub mod json_rpc;
mod line;
pub mod server;
pub mod socket;
pub mod switch;
mod text;
pub mod xml;
pub mod xml_rpc;

pub use client::{Client, ClientError};
pub use codec::Codec;
pub use server::{Responder, Server, Service, StopHandle};
