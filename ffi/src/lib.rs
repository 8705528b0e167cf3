//! Every `unsafe` line of the project: bindings, owned handles, safe calls.

pub mod linux;
