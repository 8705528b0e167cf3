//! What is booted from disks laid out as the distributions lay them out.

mod common;

use common::*;
use guest_installer::boot::{Booted, Found, Request};
use std::path::Path;

/// What passes for a kernel.
fn kernel(name: &str) -> Vec<u8> {
    [b"\x7fELF", name.as_bytes(), &[0; 2000]].concat()
}

/// What is booted, and the bytes delivered.
fn boot(image: &Path, request: &Request) -> guest_installer::Result<(Booted, Vec<u8>, Vec<u8>)> {
    let mut found = Found::on(&open(image), request)?;
    let entry = found.entry(request)?;
    let (mut kernel, mut ramdisk) = (Vec::new(), Vec::new());
    let booted = found.deliver(&entry, request, &mut kernel, &mut ramdisk)?;
    Ok((booted, kernel, ramdisk))
}

/// An ext4 image of some files, with kernels `/boot/vmlinuz-NAME` and ramdisks `/boot/initrd-NAME`.
fn disk(scratch: &Scratch, names: &[&str], files: &[(&str, &str)]) -> std::path::PathBuf {
    let kernels: Vec<_> = names.iter().map(|n| (format!("boot/vmlinuz-{n}"), kernel(n))).collect();
    let ramdisks = names.iter().map(|n| (format!("boot/initrd-{n}"), format!("ramdisk {n}").into_bytes()));
    let all: Vec<_> = kernels.into_iter().chain(ramdisks).collect();
    let mut tree: Vec<(&str, &[u8])> = all.iter().map(|(n, c)| (n.as_str(), c.as_slice())).collect();
    tree.extend(files.iter().map(|(n, c)| (*n, c.as_bytes())));
    let tree = scratch.tree("tree", &tree);
    let image = scratch.empty("disk", 16 << 20);
    ext(&image, &tree, &["-t", "ext4", "-U", ID]);
    image
}

const ID: &str = "0f0e0d0c-0b0a-4908-8706-050403020100";

/// The shape grub-mkconfig gives on Debian.
fn debian(default: &str) -> String {
    format!(
        r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${{next_entry}}" ] ; then
   set default="${{next_entry}}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="{default}"
fi
if [ x"${{feature_menuentry_id}}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function load_video {{
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
  fi
}}
function gfxmode {{
	set gfxpayload="${{1}}"
}}
set linux_gfx_mode=
export linux_gfx_mode
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple-1' {{
	load_video
	gfxmode $linux_gfx_mode
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	set root='hd7,msdos9'
	if [ x$feature_platform_search_hint = xy ]; then
	  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,msdos1 {ID}
	else
	  search --no-floppy --fs-uuid --set=root {ID}
	fi
	echo	'Loading Linux 6.1 ...'
	linux	/boot/vmlinuz-new root=UUID=1 ro  quiet
	initrd	/boot/initrd-new
}}
submenu 'Advanced options' $menuentry_id_option 'gnulinux-advanced-1' {{
	menuentry 'Debian, with Linux new' --class debian $menuentry_id_option 'gnulinux-new-advanced-1' {{
		linux	/boot/vmlinuz-new root=UUID=1 ro
		initrd	/boot/initrd-new
	}}
	menuentry 'Debian, with Linux old' --class debian $menuentry_id_option 'gnulinux-old-advanced-1' {{
		linux	/boot/vmlinuz-old root=UUID=1 ro old
		initrd	/boot/initrd-old
	}}
}}
"#
    )
}

#[test]
fn debian_default_in_every_form() {
    let scratch = Scratch::new();
    for (default, env, wanted, args) in [
        ("0", "", "new", "root=UUID=1 ro quiet"),
        ("1>1", "", "old", "root=UUID=1 ro old"),
        ("gnulinux-advanced-1>gnulinux-old-advanced-1", "", "old", "root=UUID=1 ro old"),
        ("Advanced options>Debian, with Linux old", "", "old", "root=UUID=1 ro old"),
        (
            "${saved_entry}",
            "saved_entry=gnulinux-advanced-1>gnulinux-old-advanced-1",
            "old",
            "root=UUID=1 ro old",
        ),
        ("${saved_entry}", "", "new", "root=UUID=1 ro quiet"),
        ("0", "next_entry=1>1", "old", "root=UUID=1 ro old"),
    ] {
        let env = format!("# GRUB Environment Block\n{env}\n#####");
        let image = disk(
            &scratch,
            &["new", "old"],
            &[("boot/grub/grub.cfg", &debian(default)), ("boot/grub/grubenv", &env)],
        );
        let (booted, bytes, ramdisk) = boot(&image, &Request::new()).unwrap();
        assert_eq!(
            (booted.kernel, booted.args.as_str()),
            (format!("/boot/vmlinuz-{wanted}"), args),
            "{default}"
        );
        assert!(bytes == kernel(wanted) && ramdisk == format!("ramdisk {wanted}").into_bytes());
    }
    let image =
        disk(&scratch, &["new"], &[("boot/grub/grub.cfg", &debian("gone")), ("boot/grub/grubenv", "")]);
    let error = boot(&image, &Request::new()).unwrap_err();
    assert_eq!(error.code(), "NO_ENTRY");
    assert!(error.to_string().contains("Debian, with Linux old"), "{error}");
    let asked = Request { entry: Some("1".to_owned()), ..Request::new() };
    assert_eq!(boot(&image, &asked).unwrap().0.title, "Debian, with Linux new");
}

#[test]
fn fedora_entries_newest_first_with_variables() {
    let scratch = Scratch::new();
    let conf = |name: &str| {
        format!(
            "title Fedora {name}\nversion {name}\nlinux /vmlinuz-{name}\ninitrd /initrd-{name} $tuned_initrd\noptions $kernelopts v={name}\n"
        )
    };
    let (old, new) = (conf("5.9.1"), conf("5.10.0"));
    let grub = "load_env\nset default=\"${saved_entry}\"\ninsmod blscfg\nblscfg\n";
    for (env, wanted) in [("", "5.10.0"), ("saved_entry=m-5.9.1\n", "5.9.1"), ("saved_entry=1\n", "5.9.1")] {
        let env = format!("kernelopts=root=/dev/xvda1 ro\n{env}");
        let image = disk(
            &scratch,
            &["5.9.1", "5.10.0"],
            &[
                ("boot/grub2/grub.cfg", grub),
                ("boot/grub2/grubenv", &env),
                ("boot/loader/entries/m-5.9.1.conf", &old),
                ("boot/loader/entries/m-5.10.0.conf", &new),
            ],
        );
        let (booted, ..) = boot(&image, &Request::new()).unwrap();
        assert_eq!(booted.kernel, format!("/boot/vmlinuz-{wanted}"), "{env}");
        assert_eq!(booted.args, format!("root=/dev/xvda1 ro v={wanted}"));
    }
}

#[test]
fn several_ramdisks_are_put_together_aligned() {
    let scratch = Scratch::new();
    let grub =
        "k=/boot/vmlinuz-a\nmenuentry x {\n linuxefi $k one\n initrdefi /boot/initrd-a /boot/initrd-bcd\n}\n";
    let image = disk(&scratch, &["a", "bcd"], &[("boot/grub/grub.cfg", grub)]);
    let (_, _, ramdisk) = boot(&image, &Request::new()).unwrap();
    assert_eq!(ramdisk, b"ramdisk a\0\0\0ramdisk bcd");
}

#[test]
fn other_boot_loaders() {
    let scratch = Scratch::new();
    let legacy = "default 1\ntimeout 3\ntitle One\nroot (hd0,0)\nkernel /boot/vmlinuz-a ro one\ninitrd /boot/initrd-a\n\
                  title Two\nroot (hd0,0)\nkernel (hd0,0)/boot/vmlinuz-b ro two\ninitrd /boot/initrd-b\n";
    let alpine = "DEFAULT menu.c32\nPROMPT 0\nMENU TITLE Alpine\nLABEL other\n LINUX vmlinuz-a\n APPEND x\n\
                  LABEL virt\n  MENU DEFAULT\n  MENU LABEL Linux virt\n  LINUX vmlinuz-b\n  INITRD initrd-b\n  APPEND root=UUID=1\n";
    let loader = "title Arch\nlinux /boot/vmlinuz-b\ninitrd /boot/initrd-a\ninitrd /boot/initrd-b\noptions root=/dev/xvda2 rw\n";
    let suse = "if [ -f /boot/vmlinuz-b ]; then\n  if true; then\n    submenu 'S' {\n menuentry 'T' {\n linux ($root)/boot/vmlinuz-b \
                suse\n}\n}\n  fi\nelse\n menuentry 'no' { linux /boot/vmlinuz-a\n}\nfi\n";
    for (files, args) in [
        (&[("boot/grub/menu.lst", legacy)][..], "ro two"),
        (&[("boot/extlinux.conf", alpine)], "root=UUID=1"),
        (
            &[("loader/entries/arch.conf", loader), ("loader/loader.conf", "default ar*\n")],
            "root=/dev/xvda2 rw",
        ),
        (&[("boot/grub2/grub.cfg", suse)], "suse"),
    ] {
        let image = disk(&scratch, &["a", "b"], files);
        let (booted, bytes, _) = boot(&image, &Request::new()).unwrap();
        assert_eq!((booted.kernel.as_str(), booted.args.as_str()), ("/boot/vmlinuz-b", args));
        assert!(bytes == kernel("b"));
        // The tree of the next one starts afresh.
        std::fs::remove_dir_all(scratch.path("tree")).unwrap();
    }
}

#[test]
fn what_cannot_be_booted_is_an_error_that_says_why() {
    let scratch = Scratch::new();
    let with = |grub: &str| {
        let image = disk(&scratch, &["a"], &[("boot/grub/grub.cfg", grub)]);
        boot(&image, &Request::new()).unwrap_err()
    };
    let entry = |body: &str| format!("menuentry x {{\n{body}\n}}\n");
    assert_eq!(with(&entry("linux /boot/gone")).code(), "FILE_MISSING");
    assert_eq!(with(&entry("linux /boot/grub/grub.cfg")).code(), "BAD_KERNEL");
    assert_eq!(with(&entry("chainloader +1")).code(), "BAD_KERNEL");
    assert_eq!(with(&entry("linux /boot/vmlinuz-a 'x\ny'")).code(), "CONTROL_CHARACTER");
    assert_eq!(with(&entry(&format!("linux /boot/vmlinuz-a {}", "x".repeat(5000)))).code(), "TOO_LARGE");
    assert_eq!(with("while true; do x; done\n").code(), "TOO_LARGE");
    assert_eq!(with("function f { f; }\nf\n").code(), "TOO_LARGE");
    assert_eq!(with("source /boot/grub/grub.cfg\n").code(), "TOO_LARGE");
    assert_eq!(with("a=x\nset a=xxxxxxxx\nwhile true; do set a=$a$a; done\n").code(), "TOO_LARGE");
    assert_eq!(with("# nothing\n").code(), "NO_ENTRY");
    assert_eq!(with("menuentry x {\n").code(), "BAD_BOOT_CONFIG");
    let image = disk(&scratch, &["a"], &[("boot/grub/grub.cfg", &entry("linux /boot/vmlinuz-a"))]);
    let small = Request { kernel_limit: 100, ..Request::new() };
    assert_eq!(boot(&image, &small).unwrap_err().code(), "TOO_LARGE");
    let two = entry("linux /boot/vmlinuz-a\n initrd /boot/one /boot/two");
    let files = [("boot/grub/grub.cfg", &*two), ("boot/one", &"1".repeat(60)), ("boot/two", &"2".repeat(60))];
    let image = disk(&scratch, &["a"], &files);
    // Together, not each.
    for (ramdisk_limit, code) in [(119, Some("TOO_LARGE")), (120, None)] {
        let outcome = boot(&image, &Request { ramdisk_limit, ..Request::new() });
        assert_eq!(outcome.as_ref().err().map(guest_installer::Error::code), code, "{ramdisk_limit}");
    }
    assert_eq!(boot(&scratch.empty("zero", 1 << 20), &Request::new()).unwrap_err().code(), "NO_FILESYSTEM");
    let explicit =
        Request { kernel: Some("/boot/vmlinuz-a".to_owned()), args: Some("x".to_owned()), ..Request::new() };
    assert_eq!(boot(&image, &explicit).unwrap().0.args, "x");
    std::fs::remove_dir_all(scratch.path("tree")).unwrap();
    let bare = disk(&scratch, &["a"], &[]);
    assert_eq!(boot(&bare, &Request::new()).unwrap_err().code(), "NO_BOOT_CONFIG");
}
