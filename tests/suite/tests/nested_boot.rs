//! A real PV guest that boots what is on its own disk, changes its kernel from inside, and reboots into that one; and
//! a guest that is installed from a server in dom0, in two rounds; one disk that `xl` boots with our `pygrub` as a PV guest and the daemon as a PVH guest.

use std::process::Command;

use suite::{Dom0, Guest};
use xen_host::{Options, target};
use xenopsd::api::{Console, ConsoleProtocol, PowerState, VbdMode, Vm};

/// Makes `/root/tree`: a kernel as Debian packs it, the test guest's initramfs, a second one with what a guest needs to
/// write to FAT, and a configuration of GRUB 2. Debian's initramfs-tools are not in dom0, so it is the guest's userland.
const MAKE_TREE: &str = r#"
set -e
boot=/root/tree/boot more=/root/more
mkdir -p $boot/grub $more/modules
modules=/usr/lib/modules/$(uname -r)/kernel
for path in fs/nls/nls_cp437.ko fs/nls/nls_ascii.ko fs/fat/fat.ko fs/fat/vfat.ko; do
    n=$((${n:-89} + 1))
    cp $modules/$path $more/modules/$n-$(basename $path)
done
(cd $more; busybox find modules | busybox cpio -o -H newc 2>/dev/null) >$boot/more.img
cp /guests/vmlinuz $boot/vmlinuz-old
cp /guests/initramfs $boot/initrd.img
cat >$boot/grub/grub.cfg <<'GRUB'
set default="0"
if [ x"${feature_menuentry_id}" = xy ]; then menuentry_id_option="--id"; fi
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'debian' {
	linux	/boot/vmlinuz-old booted=old
	initrd	/boot/initrd.img /boot/more.img
}
submenu 'Advanced options' {
	menuentry 'Debian GNU/Linux, other' {
		linux	/boot/vmlinuz-gone root=/dev/xvda
	}
}
GRUB
"#;

/// The tree on FAT, which this machine has the tools for and the guest a driver.
fn fat_disk(dom0: &Dom0) {
    let scratch = tempfile::tempdir().expect("a directory");
    let (archive, image) = (scratch.path().join("tree.tar"), scratch.path().join("disk"));
    dom0.sh("tar -C /root/tree -cf /root/tree.tar boot");
    dom0.host.get("/root/tree.tar", &archive).expect("is copied");
    let run = |program: &str, arguments: &[&str]| {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let status = Command::new(program).args(arguments).current_dir(&scratch).env("PATH", path).status();
        assert!(status.expect("runs").success(), "{program} {arguments:?}");
    };
    run("tar", &["-xf", "tree.tar"]);
    run("truncate", &["-s", "128M", "disk"]);
    run("mkfs.vfat", &["-F", "16", "disk"]);
    run("mcopy", &["-s", "-i", "disk", "boot", "::/"]);
    dom0.host.put(&image, "/root/debian.img").expect("is copied");
}

/// A dom0 whose daemon has patience: emulated processors, which others keep busy, unpack a kernel in seconds.
fn dom0() -> Dom0 {
    let dom0 = Dom0::without_daemon(Options::default());
    dom0.start_daemon("--boot-loader-timeout 300");
    dom0.sh(MAKE_TREE);
    dom0
}

fn config(name: &str, kind: &str, bootloader: &str) -> String {
    let guest = Guest::new(name);
    let uuid = guest.id();
    format!(
        "name = \"{name}\"\nuuid = \"{uuid}\"\ntype = \"{kind}\"\nmemory = 128\nvcpus = 1\nbootloader = \"{bootloader}\"\n\
         extra = \"console=hvc0\"\non_reboot = \"restart\"\ndisk = [\"/root/debian.img,raw,xvda,rw\"]\n"
    )
}

fn with_frame_buffer(name: &str, kind: &str) -> String {
    format!("{}vfb = [\"vnc=1\"]\n", config(name, kind, "pygrub"))
}

/// Rows of 800 pixels that the guest draws: 50 of one colour from this one on, and as many of another below. A pixel is
/// four bytes: blue, green, red, and one that nobody looks at, which is the end of a line of `yes` here.
const FIRST_ROW: usize = 300;
const ROWS: usize = 50;
const DRAW: &str = "draw() { busybox yes \"$1\" | \
    dd of=/dev/fb0 bs=160000 count=1 seek=$2 iflag=fullblock 2>/dev/null; }; draw 4Vx 6; draw 0@P 7; echo drawn";

/// The two colours, as red, green and blue.
const DRAWN: [&[u8]; 2] = [b"xV4", b"P@0"];

/// Fails unless a picture, of red, green and blue, has what was drawn, where it was drawn and nowhere else.
#[track_caller]
fn has_what_was_drawn(size: (u32, u32), rgb: &[u8]) {
    assert_eq!(size, (800, 600));
    for (number, row) in rgb.chunks_exact(800 * 3).enumerate() {
        let colour = number.checked_sub(FIRST_ROW).and_then(|below| DRAWN.get(below / ROWS));
        for pixel in row.chunks_exact(3) {
            let right = colour.map_or(!DRAWN.contains(&pixel), |colour| pixel == *colour);
            assert!(right, "{pixel:?} in row {number}, where {colour:?} was drawn");
        }
    }
}

/// Waits until the guest's own drivers are connected, to another process than before; its number.
fn server(dom0: &Dom0, guest: &Guest, before: Option<u32>) -> u32 {
    let domid = dom0.domid(guest);
    let states = ["vfb", "vkbd"].map(|class| {
        format!(
            "/local/domain/{domid}/device/{class}/0/state /local/domain/0/backend/{class}/{domid}/0/state"
        )
    });
    let connected = format!("xenstore-read {}", states.join(" "));
    let pid = || dom0.read(&format!("/local/domain/{domid}/vfb-pid"))?.parse().ok();
    dom0.wait_until(guest, "its screen is served", |state| {
        let screen = |console: &Console| console.protocol == ConsoleProtocol::Rfb && console.port > 0;
        state.consoles.iter().any(screen)
            && pid().is_some_and(|pid| Some(pid) != before)
            && dom0.run(&connected).text().split_whitespace().eq(["4"; 4])
    });
    pid().expect("a process")
}

/// A real driver's screen, keyboard and pointer: what is drawn is seen, keys and buttons arrive, and who serves them has
/// nothing else.
fn has_a_screen_and_a_keyboard(dom0: &Dom0, guest: &Guest) {
    let pid = server(dom0, guest, None);
    let opened = dom0.type_into(guest, &format!("exec 4</dev/tty1 5</dev/input/mice; {DRAW}"));
    assert_eq!(opened, "drawn");
    let (mut viewer, seen) = dom0.view(guest);
    has_what_was_drawn((seen.width().into(), seen.height().into()), seen.rgb());

    // They come to the guest in this order: `x`, `e`, the button.
    viewer.types(&[0x78, 0x65]);
    viewer.clicks(10, 20);
    // A packet of three bytes, of which the first has the left button as its lowest bit.
    let pressed = "until head -c 3 <&5 | hexdump -e '3/1 \"%u \"' | grep -q '^9 '; do :; done; echo pressed";
    assert_eq!(dom0.type_into(guest, pressed), "pressed");

    let view = dom0.look_at(pid);
    // The second range of users, of which each domain has one: not its terminal server's.
    let domid = u32::try_from(dom0.domid(guest)).expect("a small number");
    view.must_be_jailed(131_072 + 0x7ff0 + domid);
    let open = view.descriptors();
    let devices: Vec<_> =
        open.iter().map(|d| &*d.target).filter(|target| target.starts_with("/dev/")).collect();
    assert_eq!(devices, ["/dev/xen/evtchn"], "{open:#?}");
    // The two shared pages, and the frame buffer, which it cannot write.
    let maps = dom0.sh(&format!("awk '$6 == \"/dev/xen/privcmd\" {{ print $2 }}' /proc/{pid}/maps | sort"));
    assert_eq!(maps.split_whitespace().collect::<Vec<_>>(), ["r--s", "rw-s", "rw-s"]);

    // Another maps the same pages when it is killed, and the guest notices nothing.
    dom0.sh(&format!("kill -KILL {pid}"));
    server(dom0, guest, Some(pid));
    let seen = dom0.screenshot(guest);
    has_what_was_drawn((seen.width, seen.height), seen.pixels.as_flattened());
    // `n` and Return, after which the kernel may move what is on the screen.
    let (mut viewer, _) = dom0.view(guest);
    viewer.types(&[0x6e, 0xff0d]);
    assert_eq!(dom0.type_into(guest, "read -r line <&4; echo \"it read $line\""), "it read xen");
}

#[test]
fn a_guest_boots_its_own_kernel_and_reboots_into_the_one_it_installs() {
    let dom0 = dom0();
    fat_disk(&dom0);
    let before = dom0.snapshot();
    let guest = Guest::new("debian");
    dom0.sh(&format!(
        "cat >/root/debian.cfg <<'EOF'\n{}EOF\nxenops create --start /root/debian.cfg",
        with_frame_buffer("debian", "pv")
    ));
    dom0.said(&guest, "GUEST: ready");
    assert_eq!(dom0.type_into(&guest, "cat /proc/cmdline"), "booted=old console=hvc0");
    has_a_screen_and_a_keyboard(&dom0, &guest);

    // What a package with a new kernel does: its file, the configuration, the old one away.
    let changed = dom0.type_into(
        &guest,
        "mkdir -p /mnt && mount -t vfat /dev/xvda /mnt && cd /mnt/boot && mv vmlinuz-old vmlinuz-new && \
         sed -i s/old/new/g grub/grub.cfg && cd / && umount /mnt && echo changed",
    );
    assert_eq!(changed, "changed");
    let first = dom0.domid(&guest);
    dom0.forget_output(&guest);
    dom0.reboot(&guest, None).expect("reboots");
    dom0.said(&guest, "GUEST: ready");
    assert_ne!(dom0.domid(&guest), first);
    assert_eq!(dom0.type_into(&guest, "cat /proc/cmdline"), "booted=new console=hvc0");
    server(&dom0, &guest, None);
    // No worker, no file of one.
    assert_eq!(dom0.run("pgrep -x boot-worker").text(), "");
    assert_eq!(dom0.sh("ls -A /var/run/xen/pygrub /var/run/xend/boot 2>/dev/null | grep boot_ || true"), "");

    // The guest removes what it boots: the next start says so, and nothing is left of it.
    let removed = dom0.type_into(
        &guest,
        "mount -t vfat /dev/xvda /mnt && rm /mnt/boot/vmlinuz-new && umount /mnt && echo removed",
    );
    assert_eq!(removed, "removed");
    dom0.hard_shutdown(&guest).expect("goes down");
    let refused = dom0.run("xenops start debian");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.success() && said.contains("/boot/vmlinuz-new, which does not exist"), "{said}");
    assert_eq!(dom0.state(&guest).power_state, PowerState::Halted);
    dom0.remove(&guest).expect("is forgotten");
    before.must_be_left(&dom0);
}

#[test]
fn xl_boots_with_our_pygrub_what_the_daemon_boots_as_pvh() {
    let program = target().join("release/pygrub");
    assert!(program.is_file(), "{} is not built: cargo build --release --bins", program.display());
    let dom0 = dom0();
    dom0.sh("truncate -s 128M /root/debian.img; mke2fs -q -F -t ext4 -d /root/tree /root/debian.img");
    dom0.host.put(&program, "/usr/local/bin/pygrub").expect("is copied");
    let text = config("debian-xl", "pv", "/usr/local/bin/pygrub").replace(",raw,xvda,rw", ",raw,xvda,w");
    dom0.sh(&format!("cat >/root/xl.cfg <<'EOF'\n{text}EOF\nxl create /root/xl.cfg"));
    dom0.host.wait_for_guest("debian-xl", "GUEST: ready", suite::LIMIT).expect("boots");
    dom0.sh("xl destroy debian-xl");
    assert_eq!(dom0.sh("ls -A /var/run/xen/pygrub 2>/dev/null || true"), "", "xl has removed the files");

    let guest = Guest::new("debian-pvh");
    let text = with_frame_buffer("debian-pvh", "pvh");
    dom0.sh(&format!("cat >/root/pvh.cfg <<'EOF'\n{text}EOF\nxenops create --start /root/pvh.cfg"));
    dom0.said(&guest, "GUEST: ready");
    assert_eq!(dom0.type_into(&guest, "cat /sys/hypervisor/guest_type"), "PVH");
    assert_eq!(dom0.type_into(&guest, "cat /proc/cmdline"), "booted=old console=hvc0");
    has_a_screen_and_a_keyboard(&dom0, &guest);
    dom0.hard_shutdown(&guest).expect("goes down");
    assert!(!dom0.run("pgrep vncterm").success());
}

/// A repository of the test guest as its own installer, which has the drivers for the disk with it, as a second archive.
const MAKE_REPOSITORY: &str = r"
set -e
os=/root/www/os/isolinux
mkdir -p $os
cp /guests/vmlinuz $os/vmlinuz
cp /guests/initramfs $os/initrd.img
truncate -s %4 $os/initrd.img
cat /root/tree/boot/more.img >>$os/initrd.img
";

const REPOSITORY: &str = "http://127.0.0.1:8000/os/";

#[test]
fn a_guest_is_installed_from_a_server_and_reboots_into_what_it_has_installed() {
    let dom0 = dom0();
    dom0.sh("mv /root/tree/boot/grub/grub.cfg /root/tree/boot/grub/grub.new");
    fat_disk(&dom0);
    dom0.sh(MAKE_REPOSITORY);
    dom0.serve_http("/root/www");
    let before = dom0.snapshot();
    let guest = Guest::new("installed").memory(160).disk("xvda", "/root/debian.img", VbdMode::ReadWrite);
    let guest = guest.installed_from(REPOSITORY, &[("install-vnc", "1")]);
    dom0.boot(&guest);
    let said = dom0.type_into(&guest, "cat /proc/cmdline");
    assert_eq!(said, format!("method={REPOSITORY} vnc console=hvc0"));
    let key = |vm: &Vm, key: &str| vm.platformdata.get(key).cloned();
    let loader = |vm: &Vm| vm.indirect_boot().expect("its disk").bootloader.clone();
    let first = dom0.record(&guest);
    assert_eq!((&*loader(&first), key(&first, "install-round").as_deref()), ("eliloader", Some("2")));

    // What an installer does last.
    let done = dom0.type_into(
        &guest,
        "mkdir -p /mnt && mount -t vfat /dev/xvda /mnt && mv /mnt/boot/grub/grub.new /mnt/boot/grub/grub.cfg && \
         umount /mnt && echo installed",
    );
    assert_eq!(done, "installed");
    dom0.forget_output(&guest);
    dom0.reboot(&guest, None).expect("reboots");
    dom0.said(&guest, "GUEST: ready");
    assert_eq!(dom0.type_into(&guest, "cat /proc/cmdline"), "booted=old console=hvc0");
    let second = dom0.record(&guest);
    assert_eq!((&*loader(&second), key(&second, "install-round")), ("pygrub", None));

    // Each file was asked for once, in the first round; no worker is left.
    let asked = dom0.asked_of_http();
    let expected = "/os/images/xen/vmlinuz 404\n/os/isolinux/vmlinuz 200\n/os/isolinux/initrd.img 200";
    assert_eq!(asked, expected);
    assert_eq!(dom0.run("pgrep -x 'fetch-worker|boot-worker'").text(), "");
    dom0.hard_shutdown(&guest).expect("goes down");
    dom0.remove(&guest).expect("is forgotten");
    before.must_be_left(&dom0);
}
