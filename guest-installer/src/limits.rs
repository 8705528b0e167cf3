//! Every bound on what a guest's disk can make this program do, with its reason.

/// Most bytes read from the disk in one run, file contents aside: a Debian guest needs less than 4 MiB; a journal or
/// log that has to be replayed can be 32 MiB.
pub const METADATA_BYTES: u64 = 128 << 20;

/// Largest kernel file. The value XenServer uses; distributions' kernels are 6 to 16 MiB.
pub const KERNEL_BYTES: u64 = 32 << 20;

/// Largest unpacked kernel: a distribution's kernel unpacks to about 60 MiB.
pub const UNPACKED_KERNEL_BYTES: u64 = 128 << 20;

/// Largest ramdisk, all files of an entry together. The value XenServer uses.
pub const RAMDISK_BYTES: u64 = 128 << 20;

/// Largest configuration file. A generated grub.cfg of forty kernels has 60 KiB.
pub const CONFIG_BYTES: u64 = 1 << 20;

/// Most bytes of all configuration files of one run together.
pub const ALL_CONFIG_BYTES: u64 = 8 << 20;

/// Most boot entries in one configuration.
pub const ENTRIES: usize = 1000;

/// Longest kernel command line: Linux on x86 takes 2,048, libxl passes on 8 KiB.
pub const ARGS_BYTES: usize = 4096;

/// Longest path in a configuration or a symbolic link: Linux' `PATH_MAX`.
pub const PATH_BYTES: usize = 4096;

/// Most symbolic links followed in one lookup: Linux' limit.
pub const SYMLINKS: usize = 40;

/// Most entries read of one directory. `/boot` has some dozens; the root of an ISO a few hundred.
pub const DIRECTORY_ENTRIES: usize = 65_536;

/// Most partitions and logical volumes looked at. GPT's usual table has 128.
pub const VOLUMES: usize = 256;

/// Most logical partitions in an extended one; each costs a read. Linux stops at 60 for one disk.
pub const LOGICAL_PARTITIONS: usize = 128;

/// Largest LVM metadata text. The default area is 1 MiB, half of which one version may use.
pub const LVM_METADATA_BYTES: u64 = 4 << 20;

/// Most segments of one logical volume.
pub const LVM_SEGMENTS: usize = 4096;
