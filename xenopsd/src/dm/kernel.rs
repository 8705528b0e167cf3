//! The kernel that an HVM guest is started with, instead of what is on its disk: its device model puts it into memory
//! behind an option ROM of its own, which the firmware finds before any disk.
//!
//! The contract has no place for it: these are keys of the VM's `platformdata`, which the guest does not see.

use std::path::{Path, PathBuf};

use crate::api::Vm;
use crate::edge::{Image, ImageError, ImageFile, StartFile};

/// Key of a kernel's path in dom0.
pub const KERNEL: &str = "kernel";
/// Key of a ramdisk's.
pub const RAMDISK: &str = "ramdisk";
/// Key of the kernel's command line.
pub const COMMAND_LINE: &str = "cmdline";

/// All of them.
pub const KEYS: [&str; 3] = [KERNEL, RAMDISK, COMMAND_LINE];

/// Largest kernel in bytes: a packed one is 8 MB in Debian. A device model has it in memory twice while it starts.
pub const MAX_KERNEL: u64 = 32 << 20;

/// Largest ramdisk in bytes: those of distributions are up to 100 MB. A device model keeps it in memory.
pub const MAX_RAMDISK: u64 = 128 << 20;

/// Longest command line in bytes: `COMMAND_LINE_SIZE` of Linux on x86, which counts the zero byte at its end.
pub const MAX_COMMAND_LINE: usize = 2047;

/// Where the device model finds the kernel in its own root.
pub(super) const KERNEL_PATH: &str = "/boot/kernel";
/// Where it finds the ramdisk.
pub(super) const RAMDISK_PATH: &str = "/boot/ramdisk";

/// Where `HdrS` is in a Linux kernel that a boot loader can load (Documentation/x86/boot.rst, "header"); the version of
/// the protocol follows.
const MAGIC_AT: u64 = 0x202;
const MAGIC: &[u8; 4] = b"HdrS";

/// The keys make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelKeyError {
    /// A ramdisk or a command line, and no kernel that it is for.
    #[error(
        "platform key {0} is for a kernel, and there is none: give platform key kernel too, or leave it out"
    )]
    WithoutKernel(&'static str),
    /// More than Linux reads.
    #[error("platform key cmdline has {0} bytes; a kernel takes at most {MAX_COMMAND_LINE}")]
    TooLong(usize),
    /// A zero byte would end it.
    #[error("platform key cmdline holds a zero byte")]
    ZeroByte,
}

/// What a VM is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectKernel {
    kernel: PathBuf,
    ramdisk: Option<PathBuf>,
    command_line: String,
}

impl DirectKernel {
    /// What the VM's keys ask for; none if it starts from its disks.
    ///
    /// # Errors
    /// [`KernelKeyError`].
    pub fn of(vm: &Vm) -> Result<Option<Self>, KernelKeyError> {
        let text = |key: &str| vm.platformdata.get(key).filter(|text| !text.is_empty());
        let Some(kernel) = text(KERNEL) else {
            let without = [RAMDISK, COMMAND_LINE].into_iter().find(|key| text(key).is_some());
            return without.map_or(Ok(None), |key| Err(KernelKeyError::WithoutKernel(key)));
        };
        let command_line = text(COMMAND_LINE).cloned().unwrap_or_default();
        if command_line.len() > MAX_COMMAND_LINE {
            return Err(KernelKeyError::TooLong(command_line.len()));
        }
        if command_line.contains('\0') {
            return Err(KernelKeyError::ZeroByte);
        }
        Ok(Some(Self { kernel: kernel.into(), ramdisk: text(RAMDISK).map(PathBuf::from), command_line }))
    }

    /// The files, opened and checked as far as that can be without reading them.
    ///
    /// # Errors
    /// [`ImageError`]: missing, no regular file, too large, or not a kernel that can be loaded.
    pub fn open(&self) -> Result<Vec<StartFile>, ImageError> {
        let kernel = Image::open("kernel", &self.kernel, MAX_KERNEL)?;
        check_kernel(&kernel)?;
        let mut files = vec![StartFile { path: Path::new(KERNEL_PATH), file: kernel }];
        if let Some(path) = &self.ramdisk {
            let file = Image::open("ramdisk", path, MAX_RAMDISK)?;
            files.push(StartFile { path: Path::new(RAMDISK_PATH), file });
        }
        Ok(files)
    }

    /// What the device model is told.
    pub(super) fn options(&self) -> Vec<(&'static str, &str)> {
        let mut options = vec![("-kernel", KERNEL_PATH)];
        options.extend(self.ramdisk.as_ref().map(|_| ("-initrd", RAMDISK_PATH)));
        options.extend((!self.command_line.is_empty()).then_some(("-append", &*self.command_line)));
        options
    }
}

fn check_kernel(file: &ImageFile) -> Result<(), ImageError> {
    let mut magic = [0; MAGIC.len()];
    match file.read_at(MAGIC_AT, &mut magic) {
        Ok(()) if magic == *MAGIC => Ok(()),
        Ok(()) => Err(not_a_kernel(file)),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(not_a_kernel(file)),
        Err(error) => Err(file.unusable(error.to_string())),
    }
}

fn not_a_kernel(file: &ImageFile) -> ImageError {
    let why = "not a packed Linux kernel (bzImage, such as /boot/vmlinuz-*), and an HVM guest's firmware starts no other";
    file.unusable(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_vm;

    fn keys(keys: &[(&str, &str)]) -> Result<Option<DirectKernel>, KernelKeyError> {
        let mut vm = test_vm("11111111-2222-3333-4444-555555555555", "demo");
        vm.platformdata.0 = keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        DirectKernel::of(&vm)
    }

    #[test]
    fn keys_become_options_that_hold_no_path_of_this_hosts() {
        assert_eq!(keys(&[]), Ok(None));
        assert_eq!(keys(&[("kernel", ""), ("ramdisk", "")]), Ok(None));
        let alone = keys(&[("kernel", "/boot/k")]).unwrap().unwrap();
        assert_eq!(alone.options(), [("-kernel", "/boot/kernel")]);
        let all = keys(&[("kernel", "/k"), ("ramdisk", "/r"), ("cmdline", "-S root=x, y")]).unwrap().unwrap();
        let expected =
            [("-kernel", "/boot/kernel"), ("-initrd", "/boot/ramdisk"), ("-append", "-S root=x, y")];
        assert_eq!(all.options(), expected);
    }

    #[test]
    fn keys_that_make_no_sense_are_named() {
        for key in ["ramdisk", "cmdline"] {
            assert_eq!(keys(&[(key, "x")]), Err(KernelKeyError::WithoutKernel(key)));
        }
        let with = |line: &str| keys(&[("kernel", "/k"), ("cmdline", line)]);
        assert!(with(&"x".repeat(2047)).is_ok());
        assert_eq!(with(&"x".repeat(2048)), Err(KernelKeyError::TooLong(2048)));
        assert_eq!(with("a\0b"), Err(KernelKeyError::ZeroByte));
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let write = |name: &str, bytes: &[u8]| std::fs::write(path(name), bytes).unwrap();
        let open = |kernel: &str, ramdisk: Option<&str>| {
            let direct = DirectKernel {
                kernel: path(kernel),
                ramdisk: ramdisk.map(path),
                command_line: String::new(),
            };
            direct.open().map(|files| files.into_iter().map(|file| file.path).collect::<Vec<_>>())
        };
        let mut kernel = vec![0; 0x202];
        kernel.extend_from_slice(b"HdrS");
        write("kernel", &kernel);
        write("short", &kernel[..0x204]);
        write("text", &[b'x'; 0x1000]);
        write("ramdisk", b"x");
        assert_eq!(open("kernel", None).unwrap(), [Path::new("/boot/kernel")]);
        assert_eq!(open("kernel", Some("ramdisk")).unwrap().len(), 2);
        for bad in ["short", "text"] {
            let error = open(bad, None).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("not a packed Linux kernel"), "{error}");
        }
        assert!(matches!(open("none", None), Err(ImageError::Missing { what: "kernel", .. })));
        assert!(matches!(open("kernel", Some("none")), Err(ImageError::Missing { what: "ramdisk", .. })));
        std::fs::File::options().write(true).open(path("ramdisk")).unwrap().set_len(MAX_RAMDISK + 1).unwrap();
        let error = open("kernel", Some("ramdisk")).unwrap_err().to_string();
        assert!(error.contains("ramdisk") && error.contains("above the limit of 134217728"), "{error}");
        std::fs::File::options().write(true).open(path("kernel")).unwrap().set_len(MAX_KERNEL + 1).unwrap();
        assert!(open("kernel", None).unwrap_err().to_string().contains("above the limit of 33554432"));
    }
}
