//! Everything a guest may leave behind in dom0, as text: what is there before must be there after, and nothing else.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::dom0::Dom0;

/// How long the kernel and the daemon's own threads may take to be done with what has ended.
const SETTLE: Duration = Duration::from_secs(20);

/// Prints sections of lines. As few programs as possible: each takes a fifth of a second in an emulated dom0.
const SCRIPT: &str = r"
shopt -s nullglob globstar
echo '== domain'; xl list
echo '== free MiB'; xl info free_memory
echo '== store'; xenstore-ls -f
echo '== loop'; for file in /sys/block/loop*/loop/backing_file; do read -r line <$file; echo $file $line; done
echo '== network disk'; for file in /sys/block/nbd*/backend; do read -r line <$file; echo $file $line; done
echo '== link'; ip -o link
echo '== file'; for file in /run/nonpersistent/**; do
    # What is remembered of a VM stays as long as the VM is defined.
    vm=${file/\/extra\//\/VM\/}; vm=${vm/\/screens\//\/VM\/}
    [ -f $file ] && [ ! -e $vm/config ] && echo $file
done
echo '== group'; for group in /sys/fs/cgroup/xenopsd/*/; do echo $group; done
echo '== socket'; for socket in /run/xenopsd/*; do echo $socket; done
echo '== helper'; find /proc -maxdepth 1 -name '[0-9]*' -uid +999 -printf 'process of user %U\n'
if [ -e /run/xenopsd.pid ]; then
    read -r pid </run/xenopsd.pid
    echo '== thread'; for file in /proc/$pid/task/*/comm; do read -r line <$file; echo $line; done
    echo '== fd'; readlink /proc/$pid/fd/*
fi
true
";

/// Directories that stay when the last guest is gone, as libxl leaves some of them too.
const SHARED: [&str; 9] = [
    "store /libxl = \"\"",
    "store /vm = \"\"",
    "store /local/domain/0/backend = \"\"",
    "store /local/domain/0/backend/vbd = \"\"",
    "store /local/domain/0/backend/vif = \"\"",
    "store /local/domain/0/backend/console = \"\"",
    "store /local/domain/0/backend/vfb = \"\"",
    "store /local/domain/0/backend/vkbd = \"\"",
    "store /local/domain/0/device-model = \"\"",
];

/// What connections the daemon keeps for its next operation, up to a bound of its own: handles of the hypervisor and
/// connections to xenstored.
fn is_pooled(line: &str) -> bool {
    line.starts_with("fd /dev/xen/") || line == "fd socket"
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
        Snapshot { lines: lines_of(&self.sh(SCRIPT)) }
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

    /// How often a line is there.
    pub fn count(&self, line: &str) -> usize {
        self.lines.iter().filter(|l| *l == line).count()
    }

    #[track_caller]
    fn compare(&self, dom0: &Dom0, ignored: fn(&str) -> bool) {
        let deadline = Instant::now() + SETTLE;
        loop {
            // Each look takes a second, which is pause enough for dom0.
            let different = leftover_lines(&self.lines, &dom0.snapshot().lines);
            let different: Vec<_> = different.into_iter().filter(|line| !ignored(&line[2..])).collect();
            if different.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "dom0 is not as it was:\n{}", different.join("\n"));
        }
    }
}

/// The script's output with the section before each line and without what changes by itself.
fn lines_of(printed: &str) -> Vec<String> {
    let mut section = "";
    let mut lines = Vec::new();
    for line in printed.lines() {
        if let Some(name) = line.strip_prefix("== ") {
            section = name;
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let kept = match (section, &words[..]) {
            // Name and domid; not state and times.
            ("domain", [name, domid, ..]) => format!("{name} {domid}"),
            // `4: vif1.0: <...`
            ("link", [_, name, ..]) => (*name).to_owned(),
            // `socket:[123]`
            ("fd", [target, ..]) => target.split_once(":[").map_or(*target, |(kind, _)| kind).to_owned(),
            _ => line.to_owned(),
        };
        let kept = format!("{section} {kept}");
        if !SHARED.contains(&kept.as_str()) {
            lines.push(kept);
        }
    }
    lines
}

/// Lines that are there more often after than before, as `+ line`, or less often, as `- line`.
fn leftover_lines(before: &[String], after: &[String]) -> Vec<String> {
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
    fn what_changes_by_itself_is_left_out() {
        let printed = "== domain\nName ID Mem VCPUs State Time(s)\nweb 3 128 1 -b---- 0.5\n== store\n/vm = \"\"\n/vm/x = \"\"\n\
                       == link\n4: vif3.0: <UP> mtu 1500\n== fd\nsocket:[17]\n/dev/null\n";
        let lines = [
            "domain Name ID",
            "domain web 3",
            "store /vm/x = \"\"",
            "link vif3.0:",
            "fd socket",
            "fd /dev/null",
        ];
        assert_eq!(lines_of(printed), lines);
    }

    #[test]
    fn only_kept_connections_are_ignored() {
        assert!(is_pooled("fd /dev/xen/privcmd") && is_pooled("fd socket"));
        assert!(!is_pooled("fd /dev/loop0") && !is_pooled("thread vm-worker"));
    }
}
