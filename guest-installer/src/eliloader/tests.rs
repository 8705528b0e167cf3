//! Rounds with scripted tools: what is asked for, in which order, and what becomes of the record.

use super::{
    Changes, Error, Install, Result, Tools, Which,
    changes::Record,
    fixup::{Checksum, Checksums, Fixups},
    load::load,
};
use crate::{
    boot::{Booted, Request},
    fetch::{self, Address},
    worker::{Answer, Listed, Wanted},
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, Write},
    path::Path,
};

fn install(keys: &[(&'static str, &'static str)]) -> Result<Install> {
    Install::read(|key| keys.iter().find(|(k, _)| *k == key).map(|(_, value)| *value))
}

/// Tools that have these files, and tell what they were asked.
struct Script {
    has: Vec<&'static str>,
    entries: Vec<&'static str>,
    /// The disk boots by itself.
    boots: bool,
    asked: Vec<String>,
    ramdisk: File,
}

impl Script {
    fn new(has: &[&'static str]) -> Self {
        let ramdisk = tempfile::tempfile().unwrap();
        Self { has: has.to_vec(), entries: Vec::new(), boots: true, asked: Vec::new(), ramdisk }
    }

    fn load(&mut self, keys: &[(&'static str, &'static str)]) -> Result<super::Loaded> {
        load(&install(keys)?, &Request::new(), &Fixups::default(), self)
    }
}

impl Tools for Script {
    fn server(&mut self, _: Which, from: &Address, _: Option<&Checksum>) -> fetch::Result<()> {
        self.asked.push(from.to_string());
        if self.has.iter().any(|has| from.to_string().ends_with(has)) {
            Ok(())
        } else {
            Err(fetch::Error::NotFound)
        }
    }

    fn local(&mut self, _: Which, path: &Path) -> Result<()> {
        self.asked.push(path.display().to_string());
        let there = self.has.is_empty() || self.has.iter().any(|has| path.ends_with(has));
        if there { Ok(()) } else { Err(Error::SupportMissing(path.display().to_string())) }
    }

    fn disk(&mut self, wanted: Wanted, request: &Request) -> crate::Result<Answer> {
        let what = request.kernel.clone().or_else(|| request.entry.clone()).unwrap_or_default();
        self.asked.push(format!("{wanted:?} {what}"));
        let missing = || crate::Error::NoBootConfig(Vec::new());
        match (wanted, &request.kernel) {
            (Wanted::List, _) if self.boots => {
                let entry = |title: &&str| Listed { title: (*title).to_owned(), ..Listed::default() };
                Ok(Answer::Entries(self.entries.iter().map(entry).collect()))
            }
            (_, None) if self.boots => {
                let args = "disk's own".to_owned();
                Ok(Answer::Booted(Booted { kernel: what, args, ..Booted::default() }))
            }
            (_, Some(kernel)) if self.has.contains(&&**kernel) => {
                let ramdisks = request.ramdisk.iter().cloned().collect();
                Ok(Answer::Booted(Booted { kernel: kernel.clone(), ramdisks, ..Booted::default() }))
            }
            (_, Some(kernel)) => Err(crate::Error::NotFound(kernel.clone())),
            (_, None) => Err(missing()),
        }
    }

    fn ramdisk(&mut self) -> Result<(&File, u64)> {
        Ok((&self.ramdisk, 1 << 20))
    }
}

/// A record in memory.
#[derive(Default)]
struct Kept {
    keys: BTreeMap<String, String>,
    said: Vec<String>,
}

impl Record for Kept {
    fn get(&self, key: &str) -> Option<String> {
        self.keys.get(key).cloned()
    }

    fn set(&mut self, key: &str, value: Option<&str>) {
        self.keys.remove(key);
        self.keys.extend(value.map(|value| (key.to_owned(), value.to_owned())));
    }

    fn set_boot_loader(&mut self, name: &str) {
        self.said.push(format!("boot loader {name}"));
    }

    fn set_boot_loader_args(&mut self, args: &str) {
        self.said.push(format!("args {args}"));
    }

    fn boot_from_first_disk(&mut self) {
        self.said.push("first disk".to_owned());
    }

    fn remove_disk(&mut self, disk: &str) {
        self.said.push(format!("without {disk}"));
    }
}

/// The keys of a record after changes, and what else was changed.
fn after(changes: &Changes, keys: &[(&'static str, &'static str)]) -> (String, Vec<String>) {
    let keys = keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let mut kept = Kept { keys, said: Vec::new() };
    changes.apply(&mut kept);
    let pairs: Vec<_> = kept.keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
    (pairs.join(" "), kept.said)
}

const REPOSITORY: (&str, &str) = ("install-repository", "http://u:p@h/os");

#[test]
fn red_hat_has_two_places_and_two_rounds() {
    let keys = [REPOSITORY, ("install-vnc", "1"), ("install-vncpasswd", "x"), ("install-args", "ks=y")];
    let mut tools = Script::new(&["isolinux/vmlinuz", "isolinux/initrd.img"]);
    let loaded = tools.load(&keys).unwrap();
    assert_eq!(
        tools.asked,
        ["http://h/os/images/xen/vmlinuz", "http://h/os/isolinux/vmlinuz", "http://h/os/isolinux/initrd.img"]
    );
    assert_eq!(loaded.args, "method=http://u:p@h/os/ vnc vncpassword=x ks=y");
    let (kept, said) = after(&loaded.changes, &[("install-distro", "rhlike")]);
    assert_eq!((&*kept, said.len()), ("install-distro=rhlike install-round=2", 0));

    let newest = Script::new(&["pxeboot/vmlinuz", "initrd.img"]).load(&keys[..1]).unwrap();
    assert_eq!(newest.kernel, "http://h/os/images/pxeboot/vmlinuz");
    let nfs = [("install-repository", "nfs://h/os")];
    let nfs = Script::new(&["xen/vmlinuz", "initrd.img"]).load(&nfs).unwrap();
    assert_eq!(nfs.args, "method=nfs:h:/os/");

    let second = [("install-round", "2"), ("install-distro", "rhlike")];
    let mut tools = Script::new(&[]);
    let loaded = tools.load(&second).unwrap();
    assert_eq!((tools.asked, &*loaded.args), (vec!["List ".to_owned(), "Deliver ".to_owned()], "disk's own"));
    let before =
        [("install-round", "2"), ("install-distro", "rhlike"), ("pv-postinstall-kernel-max-size", "7")];
    let (kept, said) = after(&loaded.changes, &before);
    assert_eq!((&*kept, said), ("pv-kernel-max-size=7", vec!["boot loader pygrub".to_owned()]));
}

#[test]
fn oracles_kernel_for_hardware_is_passed_over_for_good() {
    let second = [("install-round", "2")];
    let mut tools = Script::new(&[]);
    tools.entries = vec!["Oracle Linux (2.6.39-100.el5UEK)", "Oracle Linux (2.6.18-348.el5xen)"];
    let loaded = tools.load(&second).unwrap();
    assert_eq!(tools.asked, ["List ", "Deliver 1"]);
    assert_eq!(after(&loaded.changes, &[]).1, ["boot loader pygrub", "args --entry 1"]);
    tools.entries.truncate(1);
    assert!(tools.load(&second).unwrap_err().to_string().contains("el5uek"));
}

#[test]
fn old_red_hat_is_installed_from_dom0s_files() {
    let mut tools = Script::new(&[]);
    let loaded = tools.load(&[("install-distro", "rhel44"), ("install-vnc", "true")]).unwrap();
    let at = "/opt/xensource/packages/files/guest-installer/rhel4.4-";
    assert_eq!(tools.asked, [format!("{at}vmlinuz"), format!("{at}install-initrd.img")]);
    assert_eq!(loaded.args, "text updates ramdisk_size=32000 nofb serial vnc");
    // As XenServer 3 named them.
    let mut tools = Script::new(&["rhel41-vmlinuz", "rhel41-install-initrd.img"]);
    let loaded = tools.load(&[("install-distro", "rhel41")]).unwrap();
    assert!(loaded.ramdisk.ends_with("/rhel41-install-initrd.img"), "{}", loaded.ramdisk);
    assert_eq!(tools.asked.len(), 3);
    let none = Script::new(&["x"]).load(&[("install-distro", "rhel41")]).unwrap_err().to_string();
    assert!(none.starts_with("SUPPORT_PACKAGE_MISSING: ") && none.ends_with("/rhel4.1-vmlinuz"), "{none}");
    let cd = [("install-distro", "rhel44"), ("install-repository", "cdrom")];
    let cd = Script::new(&[]).load(&cd).unwrap_err().to_string();
    assert!(cd.starts_with("UNSUPPORTED_INSTALL_METHOD: cdrom"), "{cd}");
    let second = [("install-distro", "rhel44"), ("install-round", "2"), ("install-updates-disk", "xvdc")];
    let loaded = Script::new(&[]).load(&second).unwrap();
    assert_eq!(after(&loaded.changes, &[]).1, ["boot loader pygrub", "without xvdc"]);
}

#[test]
fn suse_without_a_configuration_is_booted_as_by_dom_u_loader() {
    let keys = [REPOSITORY, ("install-distro", "sleslike"), ("install-arch", "x86_64")];
    let mut tools = Script::new(&["vmlinuz-xen", "initrd-xen"]);
    let loaded = tools.load(&keys).unwrap();
    assert_eq!(tools.asked[0], "http://h/os/boot/x86_64/vmlinuz-xen");
    assert_eq!(loaded.args, "install=http://u:p@h/os/");
    let second = [("install-distro", "sleslike"), ("install-arch", "x86_64"), ("install-round", "2")];
    let mut tools = Script::new(&[]);
    tools.load(&second).unwrap();
    assert_eq!(tools.asked, ["Check ", "Deliver "], "it says itself what it boots");
    let mut tools = Script { boots: false, ..Script::new(&["/boot/vmlinuz-xen"]) };
    let loaded = tools.load(&second).unwrap();
    assert_eq!(
        tools.asked,
        ["Check ", "Check /vmlinuz-xen", "Check /boot/vmlinuz-xen", "Deliver /boot/vmlinuz-xen"]
    );
    let (_, said) = after(&loaded.changes, &[]);
    assert_eq!(said, ["boot loader pygrub", "args --kernel /boot/vmlinuz-xen --ramdisk /boot/initrd-xen"]);
    let mut nothing = Script { boots: false, ..Script::new(&[]) };
    assert!(matches!(nothing.load(&second), Err(Error::Disk(crate::Error::NoBootConfig(_)))));
    let nfs = [("install-repository", "nfs:h:/os"), keys[1], keys[2]];
    let nfs = Script::new(&["loader/linux", "loader/initrd"]).load(&nfs).unwrap();
    assert_eq!((&*nfs.kernel, &*nfs.args), ("nfs://h/os/boot/x86_64/loader/linux", "install=nfs://h/os/"));
    let pae = Script::new(&["vmlinuz-xenpae", "initrd-xenpae"]).load(&[REPOSITORY, keys[1]]).unwrap();
    assert_eq!(pae.kernel, "http://h/os/boot/i386/vmlinuz-xenpae");
}

#[test]
fn debian_has_one_round_and_a_release() {
    let keys = |repository| {
        [
            ("install-repository", repository),
            ("install-distro", "debianlike"),
            ("install-arch", "amd64"),
            ("debian-release", "bookworm"),
        ]
    };
    let mut tools = Script::new(&["xen/vmlinuz", "initrd.gz"]);
    let loaded = tools.load(&keys("ftp://h/debian")).unwrap();
    let images = "main/installer-amd64/current/images/netboot";
    assert_eq!(loaded.kernel, format!("ftp://h/debian/dists/bookworm/{images}/xen/vmlinuz"));
    assert_eq!(loaded.args, "");
    let (kept, said) = after(&loaded.changes, &keys("x"));
    assert!(!kept.contains("install-distro") && !kept.contains("install-round"), "{kept}");
    assert_eq!(said, ["boot loader pygrub"]);
    let named = tools.load(&keys("http://h/debian/dists/sid")).unwrap();
    assert_eq!(named.kernel, format!("http://h/debian/dists/sid/{images}/xen/vmlinuz"));
    let mut ubuntu = Script::new(&["linux", "initrd.gz"]);
    let loaded = ubuntu
        .load(&[
            REPOSITORY,
            ("install-distro", "ubuntulike"),
            ("install-arch", "amd64"),
            ("debian-release", "xenial"),
        ])
        .unwrap();
    assert!(loaded.kernel.ends_with("netboot/ubuntu-installer/amd64/linux"), "{}", loaded.kernel);
    let focal =
        [keys("http://h/")[0], ("install-distro", "ubuntulike"), keys("")[2], ("debian-release", "focal")];
    let loaded = Script::new(&["legacy-images/netboot/ubuntu-installer/amd64/linux", "initrd.gz"])
        .load(&focal)
        .unwrap();
    assert!(loaded.ramdisk.ends_with("legacy-images/netboot/ubuntu-installer/amd64/initrd.gz"));
    let nfs = tools.load(&keys("nfs:h:/debian")).unwrap_err();
    assert!(nfs.to_string().starts_with("UNSUPPORTED_INSTALL_METHOD: nfs"), "{nfs}");
    let none = Script::new(&[]).load(&keys("http://h/debian")).unwrap_err().to_string();
    assert!(none.starts_with("INVALID_SOURCE: http://h/debian: it has none of dists/bookworm/"), "{none}");
}

#[test]
fn cds_are_booted_from_once() {
    let debian =
        [("install-repository", "cdrom"), ("install-distro", "debianlike"), ("install-arch", "amd64")];
    let mut tools = Script::new(&["/install.amd/vmlinuz"]);
    let loaded = tools.load(&debian).unwrap();
    assert_eq!(tools.asked, ["Deliver /install.amd/xen/vmlinuz", "Deliver /install.amd/vmlinuz"]);
    assert_eq!(after(&loaded.changes, &[]).1, ["boot loader pygrub", "first disk"]);
    let pygrub = [("install-repository", "cdrom"), ("install-distro", "pygrub")];
    let loaded = Script::new(&[]).load(&pygrub).unwrap();
    assert_eq!(loaded.args, "", "the CD's own arguments are for hardware");
    let sles = [("install-repository", "cdrom"), ("install-distro", "sleslike")];
    let loaded = Script::new(&["/boot/i386/vmlinuz-xenpae"]).load(&sles).unwrap();
    assert_eq!(loaded.args, "install=hd");
    let none = Script::new(&[]).load(&sles).unwrap_err().to_string();
    assert_eq!(
        none,
        "INVALID_SOURCE: cdrom: it has none of boot/i386/vmlinuz-xenpae, boot/i386/loader/linux"
    );
}

#[test]
fn anything_else_is_named() {
    let keys = [REPOSITORY, ("install-distro", "pygrub"), ("install-kernel", "my/kernel")];
    let mut tools = Script::new(&["my/kernel"]);
    let loaded = tools.load(&keys).unwrap();
    assert_eq!((&*loaded.kernel, &*loaded.ramdisk), ("http://h/os/my/kernel", ""));
    let missing = tools.load(&keys[..2]).unwrap_err().to_string();
    assert!(missing.starts_with("install-kernel: it is not set"), "{missing}");
}

#[test]
fn keys_that_cannot_be_are_named() {
    for (key, value) in [
        ("install-repository", "file:///etc/passwd"),
        ("install-repository", "http://h/\nkernel /etc/shadow"),
        ("install-distro", "windows"),
        ("install-round", "0"),
        ("install-round", "3"),
        ("install-arch", "../x"),
        ("install-vncpasswd", "a b"),
        ("install-args", "a\nramdisk /etc/shadow"),
        ("install-kernel", "../../etc/passwd"),
        ("install-proxy", "ftp://h"),
        ("install-kernel-checksum", "md5:12"),
        ("debian-release", "a/b"),
    ] {
        let error = install(&[(key, value)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{key}: ")), "{key} {value:?}: {error}");
    }
    let long: &'static str = Box::leak("x".repeat(10_000).into_boxed_str());
    assert!(install(&[("install-args", long)]).is_err());
    let methods = |list| install(&[("install-repository", "https://h/"), ("install-methods", list)]);
    assert!(methods("cdrom, http").is_ok() && methods("https").is_ok());
    assert!(matches!(methods("cdrom,nfs"), Err(Error::UnsupportedMethod(_))));
    let none = Script::new(&[]).load(&[]).unwrap_err().to_string();
    assert!(none.contains("nothing to install from"), "{none}");
}

#[test]
fn known_ramdisks_are_added_to() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("overlay.cpio"), b"added").unwrap();
    let table = "# a comment\n\n900150983cd24fb0d6963f7d28e17f72 cpio overlay.cpio some Linux\n\
                 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad cpio gone.cpio another\n";
    std::fs::write(at("a.map"), table).unwrap();
    let fixed = |content: &[u8], limit| {
        let mut ramdisk = tempfile::tempfile().unwrap();
        ramdisk.write_all(content).unwrap();
        let sums = Checksums::of(&ramdisk).unwrap();
        let fixups = Fixups::read(directory.path())?;
        fixups.apply(&ramdisk, &sums, limit)?;
        let mut bytes = Vec::new();
        ramdisk.rewind().unwrap();
        ramdisk.read_to_end(&mut bytes).unwrap();
        Ok::<_, Error>(bytes)
    };
    // MD5 and SHA-256 of "abc" are those of RFC 1321 and FIPS 180-4.
    assert_eq!(fixed(b"abc", 100).unwrap(), b"abc\0added", "at a multiple of four");
    assert_eq!(fixed(b"other", 100).unwrap(), b"other");
    assert!(matches!(fixed(b"abc", 8), Err(Error::Limits { .. })));
    std::fs::write(at("a.map"), format!("ba78{}", table.rsplit_once("\nba78").unwrap().1)).unwrap();
    assert!(fixed(b"abc", 100).unwrap_err().to_string().contains("gone.cpio"));
    for bad in [
        "x cpio y z",
        "900150983cd24fb0d6963f7d28e17f72 cpio ../y z",
        "900150983cd24fb0d6963f7d28e17f72 ext3 y z",
        "900150983cd24fb0d6963f7d28e17f72 cpio",
    ] {
        std::fs::write(at("a.map"), format!("\n{bad}\n")).unwrap();
        let error = fixed(b"abc", 100).unwrap_err().to_string();
        assert!(error.starts_with("SUPPORT_PACKAGE_MISSING: ") && error.contains("a.map: line 2"), "{error}");
    }
    // XenServer's table of RHEL 4's ramdisks harms no others.
    std::fs::write(at("a.map"), "900150983cd24fb0d6963f7d28e17f72 ext2 el4.5.cpio CentOS #4.5\n").unwrap();
    assert_eq!(fixed(b"other", 100).unwrap(), b"other");
    let refused = fixed(b"abc", 100).unwrap_err().to_string();
    assert!(
        refused.starts_with("SUPPORT_PACKAGE_MISSING: ") && refused.contains("el4.5.cpio: is for"),
        "{refused}"
    );
    let empty = tempfile::tempfile().unwrap();
    let none = Fixups::read(Path::new("/nonexistent")).unwrap();
    assert!(none.apply(&empty, &Checksums::of(&empty).unwrap(), 0).is_ok());
}
