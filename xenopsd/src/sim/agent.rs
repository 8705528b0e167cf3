//! What a guest's agent writes: as XenServer's and xcp-ng's do, or what one does that means harm.

use xenstore::{Client, Operations, Path};

/// What it is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Agent {
    /// There is none.
    #[default]
    None,
    /// One of Linux'.
    Linux,
    /// One that writes what a terminal would obey, no text, and much of it.
    Hostile,
}

impl Agent {
    pub(super) fn of(word: &str) -> Self {
        match word {
            "linux" => Self::Linux,
            "hostile" => Self::Hostile,
            _ => Self::None,
        }
    }

    /// Writes all that it has to say once its guest is up. What the store refuses is left out.
    pub(super) fn write(self, store: &mut Client) {
        let mut put = |name: &str, value: &[u8]| {
            if let Ok(path) = Path::new(name) {
                let _ = store.write(&path, value);
            }
        };
        match self {
            Self::None => {}
            Self::Linux => LINUX.iter().for_each(|(name, value)| put(name, value.as_bytes())),
            Self::Hostile => {
                put("data/os_name", b"\x1b]0;mine\x07\x1b[2J\xff\xfe\0\r\n\xe2\x80\xae");
                put("attr/vif/0/ipv4/0", &[0xff; 2000]);
                put(&format!("data/{}", "n".repeat(900)), b"long");
                (0..2000).for_each(|n| put(&format!("data/x{n}"), &[b'x'; 2000]));
            }
        }
    }
}

/// The nodes of an agent in Linux, and of its kernel.
const LINUX: [(&str, &str); 18] = [
    ("control/feature-poweroff", "1"),
    ("control/feature-reboot", "1"),
    ("control/feature-suspend", "1"),
    ("control/feature-balloon", "1"),
    ("attr/PVAddons/Installed", "1"),
    ("attr/PVAddons/MajorVersion", "7"),
    ("attr/PVAddons/MinorVersion", "30"),
    ("attr/PVAddons/MicroVersion", "0"),
    ("attr/PVAddons/BuildVersion", "12"),
    ("attr/vif/0/ipv4/0", "10.0.0.2"),
    ("attr/vif/0/ipv6/0", "fe80::216:3eff:fe00:1"),
    ("data/os_name", "Debian GNU/Linux 12 (bookworm)"),
    ("data/os_distro", "debian"),
    ("data/os_majorver", "12"),
    ("data/os_uname", "6.1.0-13-amd64"),
    ("data/meminfo_total", "65536"),
    ("data/meminfo_free", "32768"),
    ("data/updated", "1"),
];
