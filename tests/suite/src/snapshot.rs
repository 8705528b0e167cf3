//! Everything a guest may leave behind in dom0, as text: what is there before must be there after, and nothing else.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::dom0::Dom0;

/// How long the kernel and the daemon's own threads may take to be done with what has ended.
const SETTLE: Duration = Duration::from_secs(20);

/// One line for each thing. Left out are: directories that all guests share, once empty; the login this script runs in;
/// kernel threads that are nobody's.
const SCRIPT: &str = r#"
xl list | awk 'NR > 1 { print "domain", $1, $2 }'
xl info free_memory | sed 's/^/free MiB /'
xenstore-ls -f | sed 's/^/store /'
grep -s . /sys/block/loop*/loop/backing_file | sed 's/^/loop /'
ip -o link | awk -F': ' '{ print "link", $2 }'
bridge link | awk '{ print "bridge port", $2 }'
ps -e -o comm= | grep -E '^(vif|xenops|qemu|[0-9]+\.(xvd|hd|sd))' | sort | sed 's/^/process /'
find /run/nonpersistent -type f 2>/dev/null | sort | sed 's/^/file /'
[ -e /run/xenopsd.pid ] && cd /proc/$(cat /run/xenopsd.pid) && {
    cat task/*/comm | sort | sed 's/^/thread /'
    readlink fd/* | sed 's/:\[[0-9]*\]/:/' | sort | sed 's/^/fd /'
}
true
"#;

/// Directories that stay when the last guest is gone, as libxl leaves some of them too.
const SHARED: [&str; 6] = [
    "store /libxl = \"\"",
    "store /vm = \"\"",
    "store /local/domain/0/backend = \"\"",
    "store /local/domain/0/backend/vbd = \"\"",
    "store /local/domain/0/backend/vif = \"\"",
    "store /local/domain/0/backend/console = \"\"",
];

/// What connections the daemon keeps for its next operation, up to a bound of its own: handles of the hypervisor and
/// connections to xenstored.
fn is_pooled(line: &str) -> bool {
    line.starts_with("fd /dev/xen/") || line == "fd socket:"
}

/// What there is at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    lines: Vec<String>,
}

impl Dom0 {
    /// What there is now.
    #[track_caller]
    pub fn snapshot(&self) -> Snapshot {
        let lines =
            self.sh(SCRIPT).lines().filter(|line| !SHARED.contains(line)).map(str::to_owned).collect();
        Snapshot { lines }
    }
}

impl Snapshot {
    /// Fails the test unless dom0 is as it was, but for the connections that the daemon keeps.
    #[track_caller]
    pub fn must_be_left(&self, dom0: &Dom0) {
        self.compare(dom0, is_pooled);
    }

    /// As [`Snapshot::must_be_left`], connections included: for a daemon that had opened all it keeps before.
    #[track_caller]
    pub fn must_be_left_exactly(&self, dom0: &Dom0) {
        self.compare(dom0, |_| false);
    }

    #[track_caller]
    fn compare(&self, dom0: &Dom0, ignored: fn(&str) -> bool) {
        let deadline = Instant::now() + SETTLE;
        loop {
            // Each look takes a second, which is pause enough.
            let different = leftover_lines(&self.lines, &dom0.snapshot().lines);
            let different: Vec<_> = different.into_iter().filter(|line| !ignored(&line[2..])).collect();
            if different.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "dom0 is not as it was:\n{}", different.join("\n"));
        }
    }
}

/// Lines that are there more often after than before, as `+ line`, or less often, as `- line`.
pub fn leftover_lines(before: &[String], after: &[String]) -> Vec<String> {
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    for line in after {
        *counts.entry(line).or_default() += 1;
    }
    for line in before {
        *counts.entry(line).or_default() -= 1;
    }
    let line = |(line, count): (&str, i64)| {
        let sign = if count > 0 { '+' } else { '-' };
        std::iter::repeat_n(format!("{sign} {line}"), usize::try_from(count.abs()).unwrap_or_default())
    };
    counts.into_iter().flat_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_counted_both_ways() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(leftover_lines(&lines("a b b c"), &lines("c b a a d")), ["+ a", "- b", "+ d"]);
        assert!(leftover_lines(&lines("a b"), &lines("b a")).is_empty());
    }

    #[test]
    fn only_kept_connections_are_ignored() {
        assert!(is_pooled("fd /dev/xen/privcmd") && is_pooled("fd socket:"));
        assert!(!is_pooled("fd /dev/loop0") && !is_pooled("thread vm-worker"));
    }
}
