//! A process of dom0 as the kernel shows it: what it may do, what it can reach, what it has open.

use std::collections::BTreeMap;

use crate::dom0::Dom0;

/// Everything in one go, since each program takes a while in an emulated dom0. `$p` is the process's directory.
const SCRIPT: &str = r"
echo '== status'; cat $p/status
echo '== limit'; tail -n +2 $p/limits
echo '== group'; cat $p/cgroup
echo '== namespace'; for n in cgroup ipc mnt net pid user uts; do echo $n $(readlink $p/ns/$n /proc/1/ns/$n); done
echo '== root'; stat -Lc '%u %g %a' $p/root/; ls -A $p/root/
echo '== mount'; cat $p/mountinfo
echo '== descriptor'; find $p/fd -type l -printf '%f %l\n' | sort -n
echo '== flags'; grep -H ^flags: $p/fdinfo/*
echo '== argument'; tr '\0' '\n' <$p/cmdline
echo '== thread'; grep -hE '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp):' $p/task/*/status | sort | uniq -c
";

/// Lines of `/proc/PID/status` that a process in its jail has like this, beside those of its user.
const CONFINED: [(&str, &str); 8] = [
    ("Groups", ""),
    ("CapInh", "0000000000000000"),
    ("CapPrm", "0000000000000000"),
    ("CapEff", "0000000000000000"),
    ("CapBnd", "0000000000000000"),
    ("CapAmb", "0000000000000000"),
    ("NoNewPrivs", "1"),
    ("Seccomp", "2"),
];

/// Namespaces that a process in its jail shares with nobody. There are no users or host names to hide.
const OWN_NAMESPACES: [&str; 4] = ["ipc", "mnt", "net", "pid"];

/// What there is to see of a process.
#[derive(Debug, Clone)]
pub struct ProcessView {
    sections: BTreeMap<String, Vec<String>>,
}

/// An open descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number in the process.
    pub number: u32,
    /// What `/proc` says that it is, without inode numbers: `/dev/null`, `socket`, `pipe`, `anon_inode:[eventpoll]`.
    pub target: String,
    /// Whether it was opened read-only.
    pub read_only: bool,
}

impl Dom0 {
    /// Looks at a process of dom0.
    #[track_caller]
    pub fn look_at(&self, pid: u32) -> ProcessView {
        ProcessView::of(&self.sh(&format!("p=/proc/{pid}{SCRIPT}")))
    }
}

impl ProcessView {
    fn of(printed: &str) -> Self {
        let mut sections = BTreeMap::<String, Vec<String>>::new();
        let mut name = "";
        for line in printed.lines() {
            match line.strip_prefix("== ") {
                Some(next) => name = next,
                None => sections.entry(name.to_owned()).or_default().push(line.to_owned()),
            }
        }
        Self { sections }
    }

    /// The lines of a section of [`SCRIPT`].
    fn section(&self, name: &str) -> &[String] {
        self.sections.get(name).map_or(&[], Vec::as_slice)
    }

    /// A value of `/proc/PID/status`.
    pub fn status<'a>(&'a self, key: &str) -> &'a str {
        let value = |line: &'a String| line.strip_prefix(key)?.strip_prefix(':');
        self.section("status").iter().find_map(value).unwrap_or_default().trim()
    }

    /// A hard limit of `/proc/PID/limits`, such as `Max file size`.
    pub fn limit(&self, name: &str) -> Option<&str> {
        let line = self.section("limit").iter().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().nth(1)
    }

    /// Its control group, of version 2.
    pub fn group(&self) -> Option<&str> {
        self.section("group").iter().find_map(|line| line.strip_prefix("0::"))
    }

    /// The words of its command line.
    pub fn arguments(&self) -> &[String] {
        self.section("argument")
    }

    /// What it has open, by number.
    pub fn descriptors(&self) -> Vec<Descriptor> {
        let lines = self.section("descriptor").iter().filter_map(|line| line.split_once(' '));
        lines.map(|(number, target)| self.descriptor(number, target)).collect()
    }

    fn descriptor(&self, number: &str, target: &str) -> Descriptor {
        let flags = self.section("flags").iter().find_map(|line| {
            let (file, flags) = line.split_once(":flags:")?;
            file.ends_with(&format!("/{number}")).then(|| flags.trim())
        });
        // Octal; the two lowest bits are the access mode, of which 0 is reading.
        let read_only = flags.is_some_and(|flags| flags.ends_with('0') || flags.ends_with('4'));
        let target = match target.split_once(":[") {
            Some((kind @ ("socket" | "pipe"), _)) => kind,
            _ => target,
        };
        Descriptor { number: number.parse().expect("a number"), target: target.to_owned(), read_only }
    }

    /// Fails the test unless the process is in a jail of user `uid`, every thread of it: no rights, an empty root that
    /// cannot be written, namespaces of its own, a control group of its own, no core dump.
    #[track_caller]
    pub fn must_be_jailed(&self, uid: u32) {
        let user = [uid; 4].map(|id| id.to_string()).join("\t");
        let wanted = [("Uid", user.as_str()), ("Gid", user.as_str())].into_iter().chain(CONFINED);
        let threads = self.status("Threads").to_owned();
        for (key, value) in wanted {
            assert_eq!(self.status(key), value, "{key}");
            let of_threads: Vec<_> =
                self.section("thread").iter().filter(|line| line.contains(&format!(" {key}:"))).collect();
            assert_eq!(of_threads.len(), 1, "threads differ: {of_threads:?}");
            assert!(
                of_threads[0].trim_start().starts_with(&threads),
                "{threads} threads, but {of_threads:?}"
            );
        }
        for line in self.section("namespace") {
            let [name, own, first] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            assert_eq!(own != first, OWN_NAMESPACES.contains(&name), "namespace {line}");
        }
        assert_eq!(self.section("root"), ["0 0 555"], "owner and mode of its root, and what is in it");
        let mounts: Vec<_> =
            self.section("mount").iter().map(|line| line.split(' ').collect::<Vec<_>>()).collect();
        let [root] = &mounts[..] else { panic!("more than a root is mounted: {mounts:?}") };
        assert_eq!((root[4], root[5].split(',').next()), ("/", Some("ro")), "{root:?}");
        for name in ["Max core file size", "Max locked memory", "Max msgqueue size"] {
            assert_eq!(self.limit(name), Some("0"), "{name}");
        }
        // Number 1 of its own.
        assert_eq!(self.status("NSpid").split_whitespace().last(), Some("1"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "== status\nUid:\t7\t7\t7\t7\nThreads:\t3\n== limit\nMax open files            256                  256                  files     \n\
        == group\n0::/xenopsd/domain-3\n== root\n0 0 555\nleft\n== descriptor\n0 /dev/null\n3 socket:[17]\n4 /dev/loop1\n\
        == flags\n/proc/9/fdinfo/0:flags:\t0100000\n/proc/9/fdinfo/3:flags:\t02000002\n/proc/9/fdinfo/4:flags:\t0100002\n\
        == argument\nqemu\n-S\n";

    #[test]
    fn a_view_is_read_from_what_is_printed() {
        let view = ProcessView::of(PRINTED);
        assert_eq!((view.status("Threads"), view.status("Gid")), ("3", ""));
        assert_eq!((view.limit("Max open files"), view.limit("Max")), (Some("256"), Some("files")));
        assert_eq!(view.group(), Some("/xenopsd/domain-3"));
        assert_eq!(view.arguments(), ["qemu", "-S"]);
        let descriptors = view.descriptors();
        let seen = descriptors.iter().map(|d| (d.number, d.target.as_str(), d.read_only)).collect::<Vec<_>>();
        assert_eq!(seen, [(0, "/dev/null", true), (3, "socket", false), (4, "/dev/loop1", false)]);
    }

    #[test]
    #[should_panic(expected = "Gid")]
    fn a_process_without_a_jail_is_found() {
        ProcessView::of(&format!("{PRINTED}== thread\n      3 Uid:\t7\t7\t7\t7\n")).must_be_jailed(7);
    }
}
