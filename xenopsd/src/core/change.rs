//! What clients want to be different about a VM that may be running, and when they may.

use std::fmt;

use super::operation::Request;
use crate::api::{
    BuilderInfo, DeviceId, Dict, Disk, Error, Int, Ipv4Configuration, Ipv6Configuration, LockingMode,
    Network, PowerState, Vbd, VbdType, Vif, Vm,
};
use crate::device;
use crate::domain::memory;
use crate::ops::change::{self, Aspect, Change};
use crate::ops::plan::Device;

/// What is to be different.
#[derive(Debug, Clone, PartialEq)]
pub enum Wish {
    /// A medium in a drive.
    Insert(String, Disk),
    /// No medium in a drive.
    Eject(String),
    /// As many processors.
    Vcpus(Int),
    /// Memory in this range, in bytes.
    Memory(i64, i64),
    /// So many times the memory for page tables that an HVM guest needs at least.
    ShadowMultiplier(f64),
    /// Other data of its owner's.
    Xsdata(Dict<String>),
    /// Another setting of a network interface.
    Interface(String, VifWish),
}

/// What is to be different about a network interface.
#[derive(Debug, Clone, PartialEq)]
pub enum VifWish {
    /// The network it is connected to.
    Network(Network),
    /// Whether its cable is in.
    Carrier(bool),
    /// What it may send.
    LockingMode(LockingMode),
    /// The IPv4 configuration that the guest's agent is asked for.
    Ipv4(Ipv4Configuration),
    /// The IPv6 configuration likewise.
    Ipv6(Ipv6Configuration),
    /// VLANs that it carries.
    Trunks(Vec<i64>),
    /// No proxy for provisioning servers.
    NoProxy,
}

impl VifWish {
    fn grant(&self, vif: &mut Vif) {
        match self {
            Self::Network(network) => vif.backend = network.clone(),
            Self::Carrier(carrier) => vif.carrier = *carrier,
            Self::LockingMode(mode) => vif.locking_mode = mode.clone(),
            Self::Ipv4(configuration) => vif.ipv4_configuration = configuration.clone(),
            Self::Ipv6(configuration) => vif.ipv6_configuration = configuration.clone(),
            Self::NoProxy => vif.pvs_proxy = None,
            Self::Trunks(trunks) => vif.trunks.clone_from(trunks),
        }
    }
}

impl fmt::Display for VifWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Network(_) => "network",
            Self::Carrier(_) => "carrier",
            Self::LockingMode(_) => "locking mode",
            Self::Ipv4(_) => "IPv4 configuration",
            Self::Ipv6(_) => "IPv6 configuration",
            Self::Trunks(_) => "trunks",
            Self::NoProxy => "proxy",
        })
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Insert(drive, _) => write!(f, "insert into disk {drive}"),
            Self::Eject(drive) => write!(f, "eject of disk {drive}"),
            Self::Vcpus(vcpus) => write!(f, "change to {vcpus} vcpus"),
            Self::Memory(..) => write!(f, "change of memory range"),
            Self::ShadowMultiplier(multiplier) => write!(f, "change to shadow multiplier {multiplier}"),
            Self::Xsdata(_) => write!(f, "change of xsdata"),
            Self::Interface(name, wish) => write!(f, "change of {wish} of interface {name}"),
        }
    }
}

impl Request<'_> {
    pub(super) fn change(&self, wish: &Wish) -> Result<(), Error> {
        match wish {
            Wish::Insert(drive, medium) => self.insert(drive, medium),
            Wish::Eject(drive) => self.eject(drive),
            Wish::Interface(name, wish) => self.interface(name, wish),
            Wish::Vcpus(vcpus) => self.of_vm(Aspect::Vcpus, |vm| vm.vcpus = *vcpus),
            Wish::Memory(minimum, maximum) => self.of_vm(Aspect::Memory, |vm| {
                (vm.memory_dynamic_min, vm.memory_dynamic_max) = (*minimum, *maximum);
            }),
            Wish::ShadowMultiplier(multiplier) => self.shadow_multiplier(*multiplier),
            Wish::Xsdata(xsdata) => self.of_vm(Aspect::Xsdata, |vm| vm.xsdata = xsdata.clone()),
        }
    }

    fn shadow_multiplier(&self, multiplier: f64) -> Result<(), Error> {
        if !matches!(self.core.records.vm(self.vm)?.ty, BuilderInfo::Hvm(_)) {
            return Err(Error::Unimplemented("shadow multiplier of a guest that is not HVM".to_owned()));
        }
        self.of_vm(Aspect::Paging, |vm| {
            if let BuilderInfo::Hvm(hvm) = &mut vm.ty {
                hvm.shadow_multiplier = multiplier;
            }
        })
    }

    /// Also while the VM does not run: it is then so when it does.
    fn of_vm(&self, aspect: Aspect, grant: impl FnOnce(&mut Vm)) -> Result<(), Error> {
        let before = self.core.records.vm(self.vm)?;
        let mut now = before.clone();
        grant(&mut now);
        memory::check(&now)?;
        self.run(&Change::vm(before, now, aspect).plan())
    }

    /// Likewise.
    fn interface(&self, name: &str, wish: &VifWish) -> Result<(), Error> {
        let before: Vif = self.core.records.device(&DeviceId::new(self.vm, name))?;
        let mut now = before.clone();
        wish.grant(&mut now);
        device::vif::check(self.core, &now)?;
        self.run(&Change::interface(before, now).plan())
    }

    fn insert(&self, name: &str, medium: &Disk) -> Result<(), Error> {
        let (drive, plugged) = self.drive(name)?;
        if plugged {
            return Err(Error::MediaPresent);
        }
        let emulated = self.is_emulated(&drive)?;
        let mut records = self.records()?;
        for vbd in records.vbds.iter_mut().filter(|vbd| vbd.id == drive.id) {
            vbd.backend = Some(medium.clone());
            device::vbd::check(self.core, vbd)?;
        }
        self.run_on(&records, &change::insert(&drive, medium, emulated))
    }

    fn eject(&self, name: &str) -> Result<(), Error> {
        let (drive, plugged) = self.drive(name)?;
        if drive.ty == VbdType::Disk {
            return Err(Error::MediaNotEjectable);
        }
        if drive.backend.is_none() {
            return Err(Error::MediaNotPresent);
        }
        let emulated = self.is_emulated(&drive)?;
        self.run_on(&self.records()?, &change::eject(&drive, plugged, emulated))
    }

    /// Whether a device model may have the drive; which of them it has is its own to know.
    fn is_emulated(&self, drive: &Vbd) -> Result<bool, Error> {
        let hvm = matches!(self.core.records.vm(self.vm)?.ty, BuilderInfo::Hvm(_));
        Ok(hvm && drive.ty == VbdType::Cdrom)
    }

    /// A drive, and whether the guest has it: one without a medium is not shown to PV drivers.
    fn drive(&self, name: &str) -> Result<(Vbd, bool), Error> {
        let drive: Vbd = self.core.records.device(&DeviceId::new(self.vm, name))?;
        self.need(&[PowerState::Running, PowerState::Paused])?;
        let plugged = device::is_plugged(self.core, self.vm, &Device::Vbd(name.to_owned()))?;
        Ok((drive, plugged))
    }
}
