//! The RPC contract as documented types. No I/O.
