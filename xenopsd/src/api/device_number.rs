//! Where a guest sees a disk: bus, disk and partition, and its conversions to the names and numbers of the
//! virtual block device interface.
//!
//! | bus    | name              | number ("virtual-device" in xenstore)                     |
//! |--------|-------------------|-----------------------------------------------------------|
//! | Xen    | `xvda1`, `d0p1`   | `202<<8 \| disk<<4 \| part`, or `1<<28 \| disk<<8 \| part` |
//! | Scsi   | `sda1`            | `8<<8 \| disk<<4 \| part`                                  |
//! | Floppy | `fda`             | `203<<8 \| disk<<4 \| part`                                |
//! | Ide    | `hda1`            | `major<<8 \| (disk%2)<<6 \| part`                          |
//!
//! The second Xen form holds what does not fit the first: a disk or partition above 15. See
//! xen-vbd-interface(7) in the Xen documentation.

use std::fmt;
use std::str::FromStr;

use super::decode::DecodeError;
use super::value::{FromValue, Int, ToValue, Value, WireType};

variant! {
    /// Bus a disk is seen on.
    pub enum BusType as "Device_number.bus_type" derive(Copy, Eq, Hash, PartialOrd, Ord) {
        /// Paravirtual, `xvd`.
        Xen as "Xen",
        /// SCSI names, `sd`.
        Scsi as "Scsi",
        /// Floppy drives, `fd`.
        Floppy as "Floppy",
        /// IDE names, `hd`.
        Ide as "Ide",
    }
}

impl BusType {
    /// Highest disk and partition numbers the interface can express.
    const fn limits(self) -> (Int, Int) {
        match self {
            // 1<<28 | disk<<8 | part: 20 bits of disk, 8 of partition.
            Self::Xen => (XEN_DISK_MAX, XEN_PARTITION_MAX),
            Self::Scsi => (15, 15),
            Self::Floppy => (2, 0),
            // Ten majors of two disks each, six bits of minor for the partition.
            Self::Ide => (19, 63),
        }
    }

    /// Prefix of its Linux names in dom0's and the guest's eyes. IDE names do not exist any more in Linux, whose
    /// paravirtual driver shows such disks as `xvd`.
    const fn linux_prefix(self) -> &'static str {
        match self {
            Self::Xen | Self::Ide => "xvd",
            Self::Scsi => "sd",
            Self::Floppy => "fd",
        }
    }

    /// Prefix in configurations.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Xen => "xvd",
            Self::Scsi => "sd",
            Self::Floppy => "fd",
            Self::Ide => "hd",
        }
    }
}

const XEN_DISK_MAX: Int = (1 << 20) - 1;
const XEN_PARTITION_MAX: Int = 255;
/// Largest disk and partition the older Xen form has room for.
const XEN_OLD_FORM_MAX: Int = 15;
const XEN_MAJOR: u32 = 202;
const SCSI_MAJOR: u32 = 8;
const FLOPPY_MAJOR: u32 = 203;
/// Linux block majors of the ten IDE channels.
const IDE_MAJORS: [u32; 10] = [3, 22, 33, 34, 56, 57, 88, 89, 90, 91];
/// No form of the interface has a smaller number: block majors begin at 1, and are shifted by 8 bits.
const LEAST_NUMBER: u32 = 1 << 8;
/// Marks the newer Xen form.
const XEN_NEW_FORM: u32 = 1 << 28;

/// Where a guest sees a disk. As it comes from the wire it may hold any numbers; the conversions check them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// The bus.
    pub bus: BusType,
    /// Which disk of the bus, from 0.
    pub disk: Int,
    /// Partition, 0 for the whole disk.
    pub partition: Int,
}

/// A disk position that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceNumberError {
    /// A disk or partition the bus does not have.
    #[error(
        "disk {disk} partition {partition} does not exist on bus {}: disks are 0 to {}, partitions 0 to {}",
        .bus.tag(), .bus.limits().0, .bus.limits().1
    )]
    OutOfRange {
        /// The bus.
        bus: BusType,
        /// The disk.
        disk: Int,
        /// The partition.
        partition: Int,
    },
    /// Neither a device name nor a number.
    #[error(
        "'{0}' is not a disk name: use xvda, sda, hda, fda (with a partition number if need be), d0p1 or a number"
    )]
    Syntax(String),
    /// A number that is in none of the interface's forms.
    #[error("{0} ({0:#x}) is not the number of a virtual block device")]
    UnknownNumber(u32),
}

/// Longest name repeated in an error.
const SHOWN_NAME_MAX: usize = 64;

impl DeviceNumber {
    /// A disk of a bus.
    ///
    /// # Errors
    /// [`DeviceNumberError::OutOfRange`] if the bus does not have it.
    pub fn new(bus: BusType, disk: Int, partition: Int) -> Result<Self, DeviceNumberError> {
        Self { bus, disk, partition }.checked()
    }

    fn checked(self) -> Result<Self, DeviceNumberError> {
        let (disks, partitions) = self.bus.limits();
        if (0..=disks).contains(&self.disk) && (0..=partitions).contains(&self.partition) {
            Ok(self)
        } else {
            Err(DeviceNumberError::OutOfRange { bus: self.bus, disk: self.disk, partition: self.partition })
        }
    }

    /// The number under which the guest and the backend know the disk (`virtual-device`, also the last part of
    /// its xenstore paths).
    ///
    /// # Errors
    /// [`DeviceNumberError::OutOfRange`].
    pub fn to_xenstore(self) -> Result<u32, DeviceNumberError> {
        let Self { bus, disk, partition } = self.checked()?;
        let out_of_range = |_| DeviceNumberError::OutOfRange { bus, disk, partition };
        let disk_number = u32::try_from(disk).map_err(out_of_range)?;
        let part = u32::try_from(partition).map_err(out_of_range)?;
        Ok(match bus {
            BusType::Xen if disk <= XEN_OLD_FORM_MAX && partition <= XEN_OLD_FORM_MAX => {
                (XEN_MAJOR << 8) | (disk_number << 4) | part
            }
            BusType::Xen => XEN_NEW_FORM | (disk_number << 8) | part,
            BusType::Scsi => (SCSI_MAJOR << 8) | (disk_number << 4) | part,
            BusType::Floppy => (FLOPPY_MAJOR << 8) | (disk_number << 4) | part,
            BusType::Ide => {
                let channel = usize::try_from(disk / 2).ok().and_then(|channel| IDE_MAJORS.get(channel));
                let major = channel.ok_or(DeviceNumberError::OutOfRange { bus, disk, partition })?;
                (major << 8) | ((disk_number % 2) << 6) | part
            }
        })
    }

    /// The disk a number stands for.
    ///
    /// # Errors
    /// [`DeviceNumberError::UnknownNumber`], or [`DeviceNumberError::OutOfRange`] for a number whose form is known
    /// but whose disk is not.
    pub fn from_xenstore(number: u32) -> Result<Self, DeviceNumberError> {
        // Each part is masked to 20 bits or fewer and fits.
        let int = |bits: u32| Int::try_from(bits).unwrap_or(Int::MAX);
        if number & XEN_NEW_FORM != 0 {
            if number >> 29 != 0 {
                return Err(DeviceNumberError::UnknownNumber(number));
            }
            return Self::new(BusType::Xen, int((number >> 8) & 0xf_ffff), int(number & 0xff));
        }
        let (major, minor) = (number >> 8, number & 0xff);
        let (bus, disk, partition) = match major {
            XEN_MAJOR => (BusType::Xen, minor >> 4, minor & 15),
            SCSI_MAJOR => (BusType::Scsi, minor >> 4, minor & 15),
            FLOPPY_MAJOR => (BusType::Floppy, minor >> 4, minor & 15),
            _ => {
                let channel = (0_u32..)
                    .zip(IDE_MAJORS)
                    .find_map(|(channel, ide)| (ide == major && minor < 128).then_some(channel));
                let channel = channel.ok_or(DeviceNumberError::UnknownNumber(number))?;
                (BusType::Ide, channel * 2 + (minor >> 6), minor & 63)
            }
        };
        Self::new(bus, int(disk), int(partition))
    }

    /// The name of the disk in Linux, e.g. `xvda1`.
    ///
    /// # Errors
    /// [`DeviceNumberError::OutOfRange`].
    pub fn linux_name(self) -> Result<String, DeviceNumberError> {
        self.checked()?;
        Ok(self.name_with(self.bus.linux_prefix()))
    }

    fn name_with(self, prefix: &str) -> String {
        let mut name = format!("{prefix}{}", letters(self.disk));
        if self.partition > 0 {
            name.push_str(&self.partition.to_string());
        }
        name
    }

    /// What a bare disk index in a request means: the first four are IDE disks for an HVM guest, and paravirtual
    /// ones otherwise.
    ///
    /// # Errors
    /// [`DeviceNumberError::OutOfRange`].
    pub fn from_index(index: Int, hvm: bool) -> Result<Self, DeviceNumberError> {
        /// Drives of the two IDE channels the device model emulates.
        const EMULATED_IDE_DISKS: Int = 4;
        let bus = if hvm && index < EMULATED_IDE_DISKS { BusType::Ide } else { BusType::Xen };
        Self::new(bus, index, 0)
    }
}

/// Disk 0 is `a`, 25 `z`, 26 `aa`: base 26 without a zero.
fn letters(disk: Int) -> String {
    let mut out = Vec::new();
    let mut rest = disk;
    while rest >= 0 {
        let digit = u8::try_from(rest % 26).unwrap_or(0);
        out.push(char::from(b'a' + digit));
        rest = rest / 26 - 1;
    }
    out.iter().rev().collect()
}

/// The disk's name in configurations, e.g. `hda1`; parses back to the same disk if it is in range.
impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name_with(self.bus.prefix()))
    }
}

/// Reads `xvda`, `xvda1`, `sda`, `hda`, `fda`, `fd0`, `d5p1`, a number in decimal or hexadecimal in the interface's own
/// form, or a smaller decimal number, which counts disks: `0` is `xvda`.
impl FromStr for DeviceNumber {
    type Err = DeviceNumberError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || DeviceNumberError::Syntax(text.chars().take(SHOWN_NAME_MAX).collect());
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
                Some(digits) if digits.starts_with(|c: char| c.is_ascii_hexdigit()) => {
                    u32::from_str_radix(digits, 16)
                }
                _ => text.parse(),
            };
            let number = number.map_err(|_| syntax())?;
            if number < LEAST_NUMBER && !text.starts_with("0x") && !text.starts_with("0X") {
                return Self::new(BusType::Xen, Int::try_from(number).map_err(|_| syntax())?, 0);
            }
            return Self::from_xenstore(number);
        }
        for (prefix, bus) in
            [("xvd", BusType::Xen), ("sd", BusType::Scsi), ("hd", BusType::Ide), ("fd", BusType::Floppy)]
        {
            let Some(rest) = text.strip_prefix(prefix) else { continue };
            let split = rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len());
            let (disk, partition) = rest.split_at(split);
            if disk.is_empty() && bus == BusType::Floppy {
                return Self::new(bus, decimal(partition).ok_or_else(syntax)?, 0);
            }
            let disk = disk_of_letters(disk).ok_or_else(syntax)?;
            let partition = if partition.is_empty() { 0 } else { decimal(partition).ok_or_else(syntax)? };
            return Self::new(bus, disk, partition);
        }
        let rest = text.strip_prefix('d').ok_or_else(syntax)?;
        let (disk, partition) = rest.split_once('p').unwrap_or((rest, "0"));
        Self::new(BusType::Xen, decimal(disk).ok_or_else(syntax)?, decimal(partition).ok_or_else(syntax)?)
    }
}

/// Only digits: no sign, no blanks.
fn decimal(text: &str) -> Option<Int> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn disk_of_letters(text: &str) -> Option<Int> {
    if text.is_empty() {
        return None;
    }
    let mut disk: Int = 0;
    for byte in text.bytes() {
        disk = disk.checked_mul(26)?.checked_add(Int::from(byte - b'a') + 1)?;
    }
    Some(disk - 1)
}

impl WireType for DeviceNumber {
    fn type_expr() -> String {
        <(BusType, Int, Int)>::type_expr()
    }
}

impl ToValue for DeviceNumber {
    fn to_value(&self) -> Value {
        (self.bus, self.disk, self.partition).to_value()
    }
}

impl FromValue for DeviceNumber {
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        let (bus, disk, partition) = FromValue::from_value(value)?;
        Ok(Self { bus, disk, partition })
    }
}

#[cfg(test)]
mod tests {
    use super::{BusType, DeviceNumber, DeviceNumberError};
    use proptest::prelude::*;

    fn number(text: &str) -> Result<u32, DeviceNumberError> {
        text.parse::<DeviceNumber>()?.to_xenstore()
    }

    #[test]
    fn the_interfaces_own_examples() {
        for (name, expected) in [
            ("xvda", 51712),
            ("xvdb", 51728),
            ("xvda1", 51713),
            ("xvdp15", 202 << 8 | 15 << 4 | 15),
            ("xvdq", 1 << 28 | 16 << 8),
            ("xvda16", 1 << 28 | 16),
            ("d5p1", 202 << 8 | 5 << 4 | 1),
            ("d0", 51712),
            ("hda", 768),
            ("hdb", 832),
            ("hdc", 5632),
            ("hdd", 5696),
            ("hda63", 768 + 63),
            ("sda", 2048),
            ("sdb1", 2065),
            ("fd0", 51968),
            ("fda", 51968),
            ("fdb", 51984),
            ("51712", 51712),
            ("0xca00", 51712),
            ("5632", 5632),
            ("0", 51712),
            ("3", 51760),
            ("255", 1 << 28 | 255 << 8),
        ] {
            assert_eq!(number(name), Ok(expected), "{name}");
        }
    }

    #[test]
    fn linux_names() {
        for (name, linux) in [
            ("xvda", "xvda"),
            ("xvdaa3", "xvdaa3"),
            ("hdc1", "xvdc1"),
            ("sdb", "sdb"),
            ("fd1", "fdb"),
            ("d26", "xvdaa"),
            ("d701", "xvdzz"),
            ("d702", "xvdaaa"),
        ] {
            let device: DeviceNumber = name.parse().expect(name);
            assert_eq!(device.linux_name().as_deref(), Ok(linux), "{name}");
        }
    }

    #[test]
    fn what_is_not_a_disk() {
        for name in [
            "",
            "xvd",
            "xvdA",
            "xvda-1",
            "xvda 1",
            "vda",
            "d",
            "dp1",
            "d1p",
            "d-1",
            "hda64",
            "hdu",
            "sdq",
            "sda16",
            "fdd",
            "fd3",
            "fda1",
            "xvda256",
            "d1048576",
            "0x",
            "0xg",
            "256",
            "0x1",
            "4294967296",
            "99999999999999999999",
            "xvdzzzzzzzzzzzzzzzzzzzzzzzzz",
            "0x+5",
            "+5",
            "xvda1p1",
        ] {
            assert!(number(name).is_err(), "{name}");
        }
        assert_eq!(
            "sda16".parse::<DeviceNumber>(),
            Err(DeviceNumberError::OutOfRange { bus: BusType::Scsi, disk: 0, partition: 16 })
        );
    }

    #[test]
    fn bare_indices() {
        let text = |index, hvm| DeviceNumber::from_index(index, hvm).map(|device| device.to_string());
        assert_eq!(text(0, true).as_deref(), Ok("hda"));
        assert_eq!(text(3, true).as_deref(), Ok("hdd"));
        assert_eq!(text(4, true).as_deref(), Ok("xvde"));
        assert_eq!(text(0, false).as_deref(), Ok("xvda"));
        assert!(text(-1, true).is_err());
    }

    fn any_device() -> impl Strategy<Value = DeviceNumber> {
        prop::sample::select(vec![BusType::Xen, BusType::Scsi, BusType::Floppy, BusType::Ide]).prop_flat_map(
            |bus| {
                let (disks, partitions) = bus.limits();
                (0..=disks, 0..=partitions).prop_map(move |(disk, partition)| DeviceNumber {
                    bus,
                    disk,
                    partition,
                })
            },
        )
    }

    proptest! {
        #[test]
        fn numbers_and_names_lead_back(device in any_device()) {
            let number = device.to_xenstore()?;
            prop_assert_eq!(DeviceNumber::from_xenstore(number), Ok(device));
            prop_assert_eq!(device.to_string().parse(), Ok(device));
            prop_assert_eq!(number.to_string().parse(), Ok(device));
            prop_assert!(device.linux_name().is_ok());
        }

        #[test]
        fn numbers_are_unique(a in any_device(), b in any_device()) {
            prop_assert_eq!(a == b, a.to_xenstore() == b.to_xenstore());
        }

        #[test]
        fn never_panics(text in "\\PC*", number in any::<u32>(), disk in any::<isize>(), part in any::<isize>()) {
            let _ = text.parse::<DeviceNumber>();
            let _ = DeviceNumber::from_xenstore(number).map(DeviceNumber::to_xenstore);
            for bus in [BusType::Xen, BusType::Scsi, BusType::Floppy, BusType::Ide] {
                let _ = DeviceNumber::new(bus, disk, part);
                let device = DeviceNumber { bus, disk, partition: part };
                let _ = (device.to_string(), device.linux_name(), device.to_xenstore());
            }
        }
    }
}
