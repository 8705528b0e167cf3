//! Installation repositories of the simulated host: each has every file, and gives it at once unless a fault says
//! otherwise.

use std::fs::File;
use std::path::Path;

use guest_installer::boot::{Booted, Request};
use guest_installer::eliloader::fixup::{Checksum, Fixups};
use guest_installer::eliloader::{self, Loaded, Tools, Which};
use guest_installer::fetch::{self, Address};
use guest_installer::worker::{Answer, Wanted};

use super::faults::Faults;
use crate::edge::{Installing, KernelSearch, KernelSearchError};

/// Does the next round of an installation; the files are the caller's to make.
pub(super) fn load(
    faults: &Faults,
    search: &KernelSearch<'_>,
    installing: Installing<'_>,
) -> Result<Loaded, KernelSearchError> {
    let mut tools = Simulated { faults, installing };
    eliloader::load(installing.install, search.request, &Fixups::default(), &mut tools)
        .map_err(|error| KernelSearchError::None(error.to_string()))
}

struct Simulated<'a> {
    faults: &'a Faults,
    installing: Installing<'a>,
}

impl Tools for Simulated<'_> {
    fn server(&mut self, which: Which, _: &Address, _: Option<&Checksum>) -> fetch::Result<()> {
        self.faults.check("host.download").map_err(|e| fetch::Error::Refused(e.to_string()))?;
        (self.installing.progress)(if which == Which::Kernel { 0.5 } else { 1.0 });
        Ok(())
    }

    fn local(&mut self, _: Which, _: &Path) -> eliloader::Result<()> {
        Ok(())
    }

    fn disk(&mut self, wanted: Wanted, request: &Request) -> guest_installer::Result<Answer> {
        if wanted == Wanted::List {
            return Ok(Answer::Entries(Vec::new()));
        }
        let kernel = request.kernel.clone().unwrap_or_else(|| "/boot/vmlinuz".to_owned());
        let ramdisks = vec![request.ramdisk.clone().unwrap_or_else(|| "/boot/initrd".to_owned())];
        Ok(Answer::Booted(Booted {
            title: String::new(),
            kernel,
            ramdisks,
            args: "root=/dev/xvda ro".to_owned(),
        }))
    }

    fn ramdisk(&mut self) -> eliloader::Result<(&File, u64)> {
        Err(eliloader::Error::Internal("the simulator has no ramdisks to add to".to_owned()))
    }
}
