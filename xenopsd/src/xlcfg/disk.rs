//! Disk specifications: xl-disk-configuration(5).
//!
//! ```text
//!  '/dev/vg/web,raw,xvda,rw'      target, format, vdev, access: positions
//!  'vdev=xvda, target=/srv/web'   names; target= takes the rest, commas and all
//!  'phy:/dev/vg/web,xvda,w'       xend's spelling: prefix, and no format
//!  '/srv/cd.iso,,hdc,cdrom'       flags may stand anywhere
//! ```

use crate::api::DeviceNumber;
use crate::edge::ImageFormat;

use super::error::{Fault, Remark};

/// One disk of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Line of the specification.
    pub line: usize,
    /// Block device or raw file in dom0; absent for an empty CD-ROM drive.
    pub target: Option<String>,
    /// The format of its image, if a disk server is to serve it.
    pub image: Option<ImageFormat>,
    /// Where the guest sees it.
    pub vdev: DeviceNumber,
    /// Whether the guest may write.
    pub writable: bool,
    /// Whether it is a CD-ROM drive.
    pub cdrom: bool,
    /// `direct-io-safe` was given.
    pub direct_io_safe: bool,
    /// `discard` or `no-discard` was given.
    pub discard: Option<bool>,
    /// `untrusted` makes this false.
    pub trusted: bool,
}

impl DiskConfig {
    /// What of it has no effect.
    pub(super) fn remarks(&self) -> Vec<Remark> {
        let untrusted = (!self.trusted)
            .then(|| Remark { found: "untrusted".to_owned(), why: "all backends are in dom0" });
        untrusted.into_iter().collect()
    }
}

const ACCESS: &str = "r or ro, w or rw";
const TO_QCOW2: &str = "convert the image with `qemu-img convert -O qcow2 IMAGE IMAGE.qcow2` and name that";
const NO_SCRIPTS: &str = "attach the disk in dom0 first and name its block device";

#[derive(Default)]
struct Fields {
    target: Option<String>,
    format: Option<String>,
    vdev: Option<String>,
    access: Option<String>,
    cdrom: bool,
    direct_io_safe: bool,
    discard: Option<bool>,
    untrusted: bool,
    /// The disk is QEMU's to serve, whatever its format.
    qdisk: bool,
    /// The kernel is to serve it.
    phy: bool,
    /// xend's spelling, which has no place for a format after the target.
    xend_style: bool,
}

/// Reads one specification.
pub(super) fn parse(line: usize, spec: &str) -> Result<DiskConfig, Fault> {
    let mut fields = Fields::default();
    let mut rest = Some(spec);
    while let Some(text) = rest {
        let text = text.trim_start();
        // By name, the target reaches to the end.
        if let Some(target) = text.strip_prefix("target=") {
            fields.target = Some(target.to_owned());
            break;
        }
        let (parameter, after) = match text.split_once(',') {
            Some((parameter, after)) => (parameter, Some(after)),
            None => (text, None),
        };
        rest = after;
        if let Some((name, value)) = parameter.split_once('=') {
            fields.named(name.trim(), value.trim())?;
        } else if !fields.flag(parameter.trim()) {
            fields.positional(parameter.trim())?;
        }
    }
    fields.finish(line)
}

impl Fields {
    fn named(&mut self, name: &str, value: &str) -> Result<(), Fault> {
        let set = |field: &mut Option<String>| match field {
            Some(earlier) if !earlier.is_empty() => {
                Err(Fault::bad(format!("{name}={value}"), format!("{name} is already given as {earlier:?}")))
            }
            _ => {
                *field = Some(value.to_owned());
                Ok(())
            }
        };
        match name {
            "format" => set(&mut self.format),
            "vdev" => set(&mut self.vdev),
            "access" => set(&mut self.access),
            "devtype" => match value {
                "cdrom" => {
                    self.cdrom = true;
                    Ok(())
                }
                "disk" | "" => Ok(()),
                _ => Err(Fault::bad(format!("devtype={value}"), "cdrom, or leave it out for a disk")),
            },
            "backendtype" => match value {
                "phy" | "qdisk" | "" => {
                    (self.phy, self.qdisk) = (value == "phy", value == "qdisk");
                    Ok(())
                }
                "tap" | "standalone" => Err(Fault::unsupported(
                    format!("backendtype={value}"),
                    "leave it out: raw disks are served by the kernel, images by QEMU",
                )),
                _ => Err(Fault::bad(format!("backendtype={value}"), "phy or qdisk, or leave it out")),
            },
            "specification" if matches!(value, "xen" | "") => Ok(()),
            "specification" => {
                Err(Fault::unsupported(format!("specification={value}"), "leave it out: disks are Xen VBDs"))
            }
            "backend" if matches!(value, "0" | "Domain-0" | "") => Ok(()),
            "backend" => Err(Fault::unsupported(
                format!("backend={value}"),
                "leave it out: disks are served by dom0, not by driver domains",
            )),
            "script" => Err(Fault::unsupported(format!("script={value}"), NO_SCRIPTS)),
            _ => Err(Fault::bad(
                format!("{name}={value}"),
                "the names are target, format, vdev, access, devtype, backendtype; the flags cdrom, discard, \
                 no-discard, direct-io-safe, trusted, untrusted",
            )),
        }
    }

    fn flag(&mut self, word: &str) -> bool {
        match word {
            "cdrom" => self.cdrom = true,
            "direct-io-safe" => self.direct_io_safe = true,
            "discard" => self.discard = Some(true),
            "no-discard" => self.discard = Some(false),
            "trusted" => self.untrusted = false,
            "untrusted" => self.untrusted = true,
            _ => return false,
        }
        true
    }

    fn positional(&mut self, word: &str) -> Result<(), Fault> {
        if self.target.is_none() {
            let path = self.strip_prefixes(word)?;
            self.target = Some(path.to_owned());
        } else if let Some(vdev) = self.vdev.is_none().then(|| word.strip_suffix(":cdrom")).flatten() {
            self.cdrom = true;
            self.xend_vdev(vdev);
        } else if let Some(vdev) = self.vdev.is_none().then(|| word.strip_suffix(":disk")).flatten() {
            self.xend_vdev(vdev);
        } else if self.format.is_none() && !self.xend_style {
            self.format = Some(word.to_owned());
        } else if self.vdev.is_none() {
            self.vdev = Some(word.to_owned());
        } else if self.access.is_none() {
            self.access = Some(word.to_owned());
        } else if !word.is_empty() {
            return Err(Fault::bad(word, "the positions are target,format,vdev,access and all are taken"));
        }
        Ok(())
    }

    fn xend_vdev(&mut self, vdev: &str) {
        self.vdev = Some(vdev.to_owned());
        self.xend_style = true;
    }

    fn strip_prefixes<'a>(&mut self, word: &'a str) -> Result<&'a str, Fault> {
        let mut rest = word;
        while let Some((prefix, after)) = rest.split_once(':') {
            match prefix {
                "phy" | "file" | "aio" | "tap" | "tap2" | "tapdisk" | "ioemu" | "raw" => {}
                "qcow" | "qcow2" | "vhd" | "qed" => self.format = Some(prefix.to_owned()),
                "iscsi" | "nbd" | "enbd" | "drbd" | "script" => {
                    return Err(Fault::unsupported(format!("{prefix}:"), NO_SCRIPTS));
                }
                _ => break,
            }
            self.xend_style = true;
            rest = after;
        }
        Ok(rest)
    }

    /// libxl's choice: the kernel for raw disks, QEMU for images, unless it is said.
    fn image(&self) -> Result<Option<ImageFormat>, Fault> {
        let image = match self.format.as_deref() {
            Some("empty") => None,
            None | Some("" | "raw") => self.qdisk.then_some(ImageFormat::Raw),
            Some("qcow2") => Some(ImageFormat::Qcow2),
            Some("vhd") => Some(ImageFormat::Vhd),
            Some(format @ ("qcow" | "qed")) => {
                return Err(Fault::unsupported(format!("format {format}"), TO_QCOW2));
            }
            Some(other) => return Err(Fault::bad(other, "the format is raw, qcow2, vhd, or empty")),
        };
        match image {
            Some(format) if self.phy => Err(Fault::bad(
                format!("backendtype=phy, format={format}"),
                "the kernel serves raw disks only: backendtype=qdisk, or leave it out",
            )),
            image => Ok(image),
        }
    }

    fn finish(self, line: usize) -> Result<DiskConfig, Fault> {
        let image = self.image()?;
        let vdev = self.vdev.filter(|vdev| !vdev.is_empty()).ok_or_else(|| {
            Fault::bad("", "a disk needs a vdev, the place the guest sees it in, like xvda")
        })?;
        let vdev = vdev.parse::<DeviceNumber>().map_err(|error| Fault::bad(vdev, error.to_string()))?;
        let writable = match self.access.as_deref() {
            None | Some("") => !self.cdrom,
            Some("r" | "ro") => false,
            Some("w" | "rw") => true,
            Some(other) => return Err(Fault::bad(other, format!("the access is {ACCESS}"))),
        };
        let target = match self.target.filter(|target| !target.is_empty()) {
            Some(path) if path.starts_with('/') => Some(path),
            // xl.cfg's rule for short names.
            Some(name) => Some(format!("/dev/{name}")),
            None if self.cdrom => None,
            None => return Err(Fault::bad("", "a disk needs a target; only CD-ROM drives can be empty")),
        };
        Ok(DiskConfig {
            line,
            target,
            image,
            vdev,
            writable,
            cdrom: self.cdrom,
            direct_io_safe: self.direct_io_safe,
            discard: self.discard,
            trusted: !self.untrusted,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn disk(spec: &str) -> DiskConfig {
        parse(1, spec).unwrap_or_else(|fault| panic!("{spec}: {fault:?}"))
    }

    /// The groups of equal specifications that the manual page gives.
    #[test]
    fn the_manuals_examples_mean_the_same() {
        for (specs, target, vdev, writable, cdrom) in [
            (
                [
                    "/dev/vg/guest-volume,,hda",
                    "/dev/vg/guest-volume,raw,hda,rw",
                    "format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume",
                    "raw:/dev/vg/guest-volume,hda,w",
                    "phy:vg/guest-volume,hda,w",
                ],
                "/dev/vg/guest-volume",
                "hda",
                true,
                false,
            ),
            (
                [
                    "/root/image.iso,,hdc,cdrom",
                    "/root/image.iso,,hdc,,cdrom",
                    "/root/image.iso,raw,hdc,devtype=cdrom",
                    "format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/image.iso",
                    "raw:/root/image.iso,hdc:cdrom,ro",
                ],
                "/root/image.iso",
                "hdc",
                false,
                true,
            ),
        ] {
            for spec in specs {
                let found = disk(spec);
                assert_eq!(found.target.as_deref(), Some(target), "{spec}");
                assert_eq!(found.vdev.to_string(), vdev, "{spec}");
                assert_eq!((found.writable, found.cdrom), (writable, cdrom), "{spec}");
            }
        }
    }

    #[test]
    fn empty_drives_and_odd_targets() {
        for spec in [",hdc:cdrom,r", ",,hdc,cdrom", "vdev=hdc,devtype=cdrom,target="] {
            let found = disk(spec);
            assert_eq!((found.target, found.cdrom, found.writable), (None, true, false), "{spec}");
        }
        assert_eq!(disk("vdev=xvda,target=/srv/a,b:c ").target.as_deref(), Some("/srv/a,b:c "));
        assert_eq!(disk("file:/srv/web.img,xvda2,w").vdev.to_string(), "xvda2");
        let flags = disk("/srv/a,raw,xvda,w,no-discard,direct-io-safe,untrusted");
        assert_eq!((flags.discard, flags.direct_io_safe, flags.trusted), (Some(false), true, false));
    }

    #[test]
    fn images_are_served_and_raw_disks_if_it_is_said() {
        for (spec, image) in [
            ("/srv/a,qcow2,xvda", Some(ImageFormat::Qcow2)),
            ("format=qcow2, vdev=xvda, backendtype=qdisk, target=/srv/a", Some(ImageFormat::Qcow2)),
            ("vhd:/srv/a,xvda,w", Some(ImageFormat::Vhd)),
            ("/srv/a,raw,xvda,backendtype=qdisk", Some(ImageFormat::Raw)),
            ("/srv/a,raw,xvda,backendtype=phy", None),
            ("/srv/a,,xvda", None),
            (",empty,hdc,cdrom,backendtype=qdisk", None),
        ] {
            assert_eq!(disk(spec).image, image, "{spec}");
        }
    }

    #[test]
    fn mistakes_and_what_is_not_supported() {
        for (spec, part) in [
            ("/srv/a", "needs a vdev"),
            ("/srv/a,raw,,w", "needs a vdev"),
            (",,xvda", "only CD-ROM"),
            ("/srv/a,raw,vda,w", "not a disk name"),
            ("/srv/a,raw,xvda,x", "the access is"),
            ("/srv/a,raw,xvda,w,extra", "all are taken"),
            ("/srv/a,raw,xvda,vdev=xvdb", "already given"),
            ("/srv/a,raw,xvda,colour=red", "the names are"),
            ("/srv/a,ext4,xvda", "the format is raw"),
            ("/srv/a,qcow2,xvda,backendtype=phy", "raw disks only"),
            ("/srv/a,raw,xvda,devtype=floppy", "cdrom, or"),
        ] {
            let Fault::Bad { accepted, .. } = parse(1, spec).expect_err(spec) else { panic!("{spec}") };
            assert!(accepted.contains(part), "{spec}: {accepted}");
        }
        for (spec, part) in [
            ("/srv/a,qed,xvda", "qemu-img"),
            ("qcow:/srv/a,xvda,w", "qemu-img"),
            ("/srv/a,raw,xvda,backendtype=tap", "leave it out"),
            ("/srv/a,raw,xvda,backend=storage", "driver domains"),
            ("iscsi:target,xvda,w", "in dom0 first"),
            ("vdev=xvda,script=block-nbd,target=x", "in dom0 first"),
        ] {
            let Fault::Unsupported { instead, .. } = parse(1, spec).expect_err(spec) else {
                panic!("{spec}")
            };
            assert!(instead.contains(part), "{spec}: {instead}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(spec in "\\PC*") {
            let _ = parse(1, &spec);
        }

        #[test]
        fn never_panics_on_nearly_right_specs(spec in "(phy:|file:|target=|vdev=|/a|,| |xvda|hdc:cdrom|w|raw|=){0,12}") {
            let _ = parse(1, &spec);
        }

        #[test]
        fn positions_and_names_mean_the_same(target in "/[a-z/]{1,20}", disk_index in 0u8..26, write: bool) {
            let vdev = format!("xvd{}", char::from(b'a' + disk_index));
            let access = if write { "w" } else { "r" };
            let by_position = parse(1, &format!("{target},raw,{vdev},{access}"));
            let by_name = parse(1, &format!("access={access},vdev={vdev},format=raw,target={target}"));
            prop_assert_eq!(by_position, by_name);
        }
    }
}
