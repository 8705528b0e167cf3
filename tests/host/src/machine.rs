//! The machine Xen runs on: QEMU's command line as a pure function of what is wanted.

/// The program. Debian 12's QEMU 7.2: newer ones start PV guests but lose guests in HVM containers.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// Port of dom0's dropbear, which answers quickly: commands and files.
pub(crate) const COMMAND_PORT: u16 = 22;
/// Port of dom0's OpenSSH, which can forward Unix sockets.
pub(crate) const FORWARD_PORT: u16 = 2222;

/// Size of the machine. Guests of 128 to 512 MiB fit beside dom0 by the half dozen.
const MEMORY_MIB: u32 = 4096;

/// What is switched off in the emulated CPU:
/// with SMAP on, dom0 crashes at its start under QEMU 7.2 (SMEP and RDTSCP go with it);
/// with XSAVE and AVX on, guests in HVM containers and programs in dom0 die now and then;
/// with ERMS and FSRM on, Linux and the C library copy and clear memory with string instructions of bytes, which are the
/// fastest where they are claimed and the slowest here: the emulator carries them out byte by byte.
const CPU: &str = "max,-smap,-smep,-rdtscp,-avx,-avx2,-xsave,-pku,-la57,-pcid,-erms,-fsrm";

/// Emulation only, never KVM: the same behaviour on every machine. The translation cache is large enough for Xen,
/// dom0 and a few guests; with the default size it is thrown away over and over.
const ACCELERATOR: &str = "tcg,thread=multi,tb-size=1024";

/// Mitigations and scrubbing protect nothing here and cost a tenth of the boot; unscrubbed memory also stays out of the
/// snapshot's file.
const XEN: &str = "console=com1 com1=115200,8n1 dom0_mem=1024M,max:1024M \
                   loglvl=warning guest_loglvl=all spec-ctrl=no xpti=no bootscrub=0";

/// Names in the directory QEMU is started in. Fixed names keep sockets' paths short and options free of the commas and
/// spaces that a real path may have; what lies elsewhere is linked.
pub(crate) mod names {
    /// Link to the image's directory.
    pub(crate) const IMAGE: &str = "image";
    /// The machine's memory, or a link to a template's.
    pub(crate) const MEMORY: &str = "memory";
    /// The device state to write or read, or a link to it.
    pub(crate) const STATE: &str = "state";
    /// What Xen and dom0 print.
    pub(crate) const CONSOLE: &str = "console.log";
    /// QEMU's monitor.
    pub(crate) const MONITOR: &str = "qmp.sock";
}

/// What a test may want different about the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Run the C `xenstored` instead of `oxenstored`, which is Debian's default.
    pub c_xenstored: bool,
    /// The machine's processors.
    pub processors: Processors,
}

/// A nested host's processors, each a thread of the emulator's.
///
/// Dom0 and a guest with emulated devices hand over to each other thousands of times a second. On one processor that is Xen's
/// own work. On two, the threads wait for each other, and on a machine where others want the same real processors each
/// time for as long as those others' turn takes: beside another nested host, Debian started in 439 seconds instead of 46, and
/// UEFI firmware in 327. With one processor it was 65 and 43. PV guests, which seldom wait for dom0, are slower on one.
///
/// PVH guests on two ended with a reboot that nobody had asked for in two of three runs of their tests on a busy machine, while
/// they booted; both runs on one did not. Why is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Processors {
    /// One, which dom0 and guests share: for guests in a container, HVM and PVH.
    One,
    /// Two, of which dom0 has one at a time: for all others, and for measurements.
    #[default]
    Two,
    /// Two, which dom0 can use at the same time: for what is measured on a quiet machine. Where others want the same real
    /// processors, every operation is several times slower than in a dom0 with one.
    TwoForDom0,
}

impl Processors {
    /// The machine's, and dom0's vcpus.
    const fn count(self) -> (u8, u8) {
        match self {
            Self::One => (1, 1),
            Self::Two => (2, 1),
            Self::TwoForDom0 => (2, 2),
        }
    }
}

/// The environment variable that `cargo xtask bench --c-xenstored` tells the measurements with.
pub const C_XENSTORED_VARIABLE: &str = "XEN_HOST_C_XENSTORED";

impl Options {
    /// Those of a measurement: the C `xenstored` if [`C_XENSTORED_VARIABLE`] is set, to whatever.
    pub fn from_environment() -> Self {
        Self { c_xenstored: std::env::var_os(C_XENSTORED_VARIABLE).is_some(), ..Self::default() }
    }
}

/// What QEMU is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) options: Options,
    /// What the machine writes to its memory ends up in the file, for a snapshot; otherwise it is copy-on-write.
    pub(crate) shared_memory: bool,
    /// Wait for a device state over the monitor instead of booting.
    pub(crate) restore: bool,
}

/// QEMU's arguments.
pub(crate) fn arguments(launch: Launch) -> Vec<String> {
    use names::{CONSOLE, IMAGE, MEMORY, MONITOR};
    let share = if launch.shared_memory { "on" } else { "off" };
    let store = if launch.options.c_xenstored { " xenhost.store=c" } else { "" };
    let (processors, vcpus) = launch.options.processors.count();
    // Port 0: the system picks one, which the monitor tells. `restrict` keeps dom0 off every network.
    let forwards = [COMMAND_PORT, FORWARD_PORT].map(|port| format!("hostfwd=tcp:127.0.0.1:0-:{port}"));
    let options = [
        ("-M", "pc,memory-backend=ram0".to_owned()),
        (
            "-object",
            format!("memory-backend-file,id=ram0,size={MEMORY_MIB}M,mem-path={MEMORY},share={share}"),
        ),
        ("-m", MEMORY_MIB.to_string()),
        ("-accel", ACCELERATOR.to_owned()),
        ("-smp", processors.to_string()),
        ("-cpu", CPU.to_owned()),
        ("-display", "none".to_owned()),
        ("-vga", "none".to_owned()),
        ("-chardev", format!("file,id=con,path={CONSOLE}")),
        ("-serial", "chardev:con".to_owned()),
        ("-chardev", format!("socket,id=qmp,path={MONITOR},server=on,wait=off")),
        ("-mon", "chardev=qmp,mode=control".to_owned()),
        ("-kernel", format!("{IMAGE}/xen")),
        ("-append", format!("{XEN} dom0_max_vcpus={vcpus}")),
        // Multiboot modules are separated by commas and their arguments by spaces.
        ("-initrd", format!("{IMAGE}/vmlinux console=hvc0 quiet{store},{IMAGE}/initramfs")),
        ("-drive", format!("file={IMAGE}/root.squashfs,format=raw,if=none,id=root,readonly=on")),
        ("-device", "virtio-blk-pci,drive=root".to_owned()),
        ("-netdev", format!("user,id=net0,restrict=on,{}", forwards.join(","))),
        ("-device", "virtio-net-pci,netdev=net0,romfile=".to_owned()),
    ];
    let mut arguments: Vec<_> =
        options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
    arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    if launch.restore {
        arguments.extend(["-incoming", "defer"].map(str::to_owned));
    }
    arguments
}

/// Reads the local port forwarded to `guest_port` from the monitor's `info usernet` table, whose lines are
/// `TCP[HOST_FORWARD] FD SOURCE PORT DESTINATION PORT RECVQ SENDQ`.
pub(crate) fn forwarded_port(table: &str, guest_port: u16) -> Option<u16> {
    table.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            ["TCP[HOST_FORWARD]", _, _, local, _, remote, ..] if remote.parse() == Ok(guest_port) => {
                local.parse().ok()
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(shared_memory: bool, restore: bool) -> String {
        arguments(Launch { options: Options::default(), shared_memory, restore }).join(" ")
    }

    #[test]
    fn boot_and_restore_differ_only_in_memory_and_incoming() {
        let boot = line(true, false);
        let restore = line(false, true);
        assert_eq!(boot.replace("share=on", "share=off") + " -incoming defer", restore);
    }

    #[test]
    fn dom0_has_no_more_vcpus_than_there_are_processors() {
        let said = |processors| {
            let options = Options { processors, ..Options::default() };
            let line = arguments(Launch { options, shared_memory: false, restore: false });
            let after = |name: &str| line[line.iter().position(|word| word == name).unwrap() + 1].clone();
            let vcpus = after("-append").rsplit_once("dom0_max_vcpus=").unwrap().1.to_owned();
            (after("-smp"), vcpus)
        };
        let all = [Processors::One, Processors::Two, Processors::TwoForDom0].map(said);
        assert_eq!(all, [("1", "1"), ("2", "1"), ("2", "2")].map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn never_kvm_and_never_beyond_this_machine() {
        let line = line(true, false);
        assert!(line.contains("-accel tcg") && !line.contains("kvm"));
        assert!(line.contains("restrict=on"));
        assert_eq!(line.matches("hostfwd=").count(), line.matches("hostfwd=tcp:127.0.0.1:").count());
    }

    #[test]
    fn ports_are_found() {
        let table = "Hub -1 (net0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n\
                     \x20 TCP[HOST_FORWARD]  13       127.0.0.1 41234       10.0.2.15    22     0     0\r\n\
                     \x20 TCP[HOST_FORWARD]  12       127.0.0.1 39999       10.0.2.15  2222     0     0\r\n";
        assert_eq!(forwarded_port(table, 22), Some(41234));
        assert_eq!(forwarded_port(table, 2222), Some(39999));
        assert_eq!(forwarded_port(table, 80), None);
    }

    proptest! {
        #[test]
        fn tables_never_panic(table in "(?s).{0,200}") {
            forwarded_port(&table, 22);
        }
    }
}
