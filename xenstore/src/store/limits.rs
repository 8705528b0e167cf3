//! What a guest may take. dom0 is trusted and exempt, as with the real daemons.

/// Nodes a guest may own (`quota-maxentity` of oxenstored, `nodes` of the C daemon).
pub const MAX_NODES: u32 = 1000;
/// Bytes of a node that a guest writes: value, permissions and children's names (`node-size` of the C daemon, which
/// counts the same; oxenstored's `quota-maxsize` counts the value alone).
pub const MAX_NODE_SIZE: usize = 2048;
/// Watches of a guest (`watches` of the C daemon; oxenstored's default is 100).
pub const MAX_WATCHES: usize = 128;
/// Transactions a guest may have open (`transactions`, `quota-transaction`).
pub const MAX_TRANSACTIONS: usize = 10;
/// Requests in one transaction of a guest (`transaction-nodes`, `quota-maxrequests`).
pub const MAX_TRANSACTION_REQUESTS: usize = 1024;
/// Bytes of requests that a guest's transaction may hold until it is committed: half of what the C daemon allows a
/// guest in all (`memory`, 2 MiB).
pub const MAX_TRANSACTION_BYTES: usize = 1 << 20;
/// Requests in one transaction of dom0: a bound on a mistake, far above the largest domain's teardown.
pub const MAX_PRIVILEGED_REQUESTS: usize = 1 << 20;
/// Entries of a permission list that a guest sets (`node-permissions`).
pub const MAX_PERMISSIONS: usize = 5;
/// Bytes of a path below `/local/domain/N/` that a guest may name (`path-max` of the C daemon; oxenstored has 1024).
pub const MAX_PATH: usize = 2048;
/// Events kept for a connection that does not fetch them. Past this there is at most one more for each of its
/// watches, for the watched path: something changed at or below it (oxenstored's `quota-maxwatchevents` is as large).
pub const MAX_EVENTS: usize = 1024;

/// What a node weighs in the C daemon beside its value, permissions and names: its record header.
pub(super) const NODE_OVERHEAD: usize = 24;
/// Bytes of one permission entry in the same record.
pub(super) const PERMISSION_SIZE: usize = 8;
