//! The three edges: everything that touches the machine goes through here.

pub mod linux;
