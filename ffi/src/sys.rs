//! bindgen's output over the installed Xen headers. Private: everything public is a safe layer above it.
//! bindgen also generates the size and offset check of each struct, as constant assertions, so a layout that does
//! not match the C headers does not compile.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
