//! A VM with its devices and what is remembered of it, as one text that a peer can take over.

use crate::api::value::{FromValue, ToValue, Value};
use crate::api::{
    BuilderInfo, DeviceId, Error, Metadata, Pci, PciAddress, Vbd, Vgpu, VgpuImplementation, Vif, Vm, Vusb,
};
use crate::core::Core;
use crate::device::Observed;
use crate::rpc::json;
use crate::state::{EXTRA_VERSION, MAX_DEVICES, VmExtra};

/// `VM.export_metadata`.
///
/// # Errors
/// `Does_not_exist`, or `Internal_error` when a record cannot be read.
pub fn export(core: &Core, vm: &str) -> Result<String, Error> {
    let metadata = Metadata {
        vm: core.records.vm(vm)?,
        vbds: core.records.devices(vm)?,
        vifs: core.records.devices(vm)?,
        pcis: core.records.devices(vm)?,
        vgpus: core.records.devices(vm)?,
        vusbs: core.records.devices(vm)?,
        domains: core.records.export_extra(vm)?,
    };
    Ok(json::print_lossy(&metadata.to_value()))
}

/// `VM.generate_state_string`: the private state of a VM of this configuration that was suspended before there was any.
pub fn state_string(vm: &Vm) -> String {
    let flag = |key: &str| vm.platformdata.iter().any(|(k, v)| k == key && matches!(&**v, "true" | "1"));
    let extra = VmExtra {
        version: EXTRA_VERSION,
        ty: Some(vm.ty.clone()),
        nomigrate: flag("nomigrate"),
        nested_virt: flag("nested-virt"),
        pci_msitranslate: vm.pci_msitranslate,
        pci_power_mgmt: vm.pci_power_mgmt,
        platformdata: vm.platformdata.clone(),
        ..VmExtra::default()
    };
    json::print_lossy(&extra.to_value())
}

/// Reads metadata, strictly: by the contract's rules one device that cannot be made out would empty its list, and the
/// VM would lose the others, too.
///
/// # Errors
/// `Internal_error` that says what is wrong, and where.
pub fn parse(text: &str) -> Result<Metadata, Error> {
    let bad = |why: String| Error::internal(format!("metadata cannot be read: {why}"));
    let value = json::parse(text.as_bytes()).map_err(|e| bad(e.to_string()))?;
    let mut metadata = Metadata::from_value(&value).map_err(|e| bad(e.to_string()))?;
    let strict = |at: &str, checked: Result<(), String>| checked.map_err(|why| bad(format!("{at}: {why}")));
    strict("vbds", readable::<Vbd>(&value, "vbds"))?;
    strict("vifs", readable::<Vif>(&value, "vifs"))?;
    strict("pcis", readable::<Pci>(&value, "pcis"))?;
    strict("vgpus", readable::<Vgpu>(&value, "vgpus"))?;
    strict("vusbs", readable::<Vusb>(&value, "vusbs"))?;
    let id = metadata.vm.id.clone();
    belong(&mut metadata.vbds, &id)?;
    belong(&mut metadata.vifs, &id)?;
    belong(&mut metadata.pcis, &id)?;
    belong(&mut metadata.vgpus, &id)?;
    belong(&mut metadata.vusbs, &id)?;
    metadata.vbds.iter_mut().for_each(rename_ide);
    metadata.vgpus.iter_mut().for_each(promote_address);
    Ok(metadata)
}

fn readable<D: FromValue>(metadata: &Value, key: &str) -> Result<(), String> {
    let Value::Dict(members) = metadata else { return Ok(()) };
    let list = members.iter().find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(key.as_bytes()));
    list.map_or(Ok(()), |(_, list)| Vec::<D>::from_value(list).map(drop).map_err(|e| e.to_string()))
}

/// Devices are the VM's, whatever VM they were exported with: a peer may have renamed it.
fn belong<D: Observed>(devices: &mut [D], vm: &str) -> Result<(), Error> {
    if devices.len() > MAX_DEVICES {
        let (many, class) = (devices.len(), D::CLASS.name);
        return Err(Error::internal(format!("metadata has {many} {class}s; {MAX_DEVICES} are the most")));
    }
    for device in devices {
        vm.clone_into(&mut device.id_mut().vm);
        D::CLASS.check_name(&device.id().device)?;
        *device = device.chosen()?;
    }
    Ok(())
}

/// Peers from before the xvd names call the disks of HVM guests hda and so on.
fn rename_ide(disk: &mut Vbd) {
    if let Some(rest) = disk.id.device.strip_prefix("hd") {
        disk.id.device = format!("xvd{rest}");
    }
}

/// Older peers put the host device inside the implementation.
fn promote_address(gpu: &mut Vgpu) {
    let inner = match &gpu.implementation {
        VgpuImplementation::GvtG(gvt) => gvt.physical_pci_address,
        VgpuImplementation::Nvidia(nvidia) => nvidia.physical_pci_address,
        VgpuImplementation::MxGpu(mxgpu) => mxgpu.physical_function,
        VgpuImplementation::Empty => None,
    };
    if gpu.physical_pci_address == PciAddress::ZERO {
        gpu.physical_pci_address = inner.unwrap_or(PciAddress::ZERO);
    }
}

/// Stores what [`parse`] has read, on the VM's queue. Devices that are not in it are forgotten, except those that the
/// running guest has.
///
/// # Errors
/// `Internal_error` when a record cannot be written.
pub(crate) fn import(core: &Core, metadata: &Metadata) -> Result<(), Error> {
    let vm = &metadata.vm.id;
    core.records.put_vm(&metadata.vm)?;
    let mut objects = core.records.objects(vm);
    replace(core, vm, &metadata.vbds)?;
    replace(core, vm, &metadata.vifs)?;
    replace(core, vm, &metadata.pcis)?;
    replace(core, vm, &metadata.vgpus)?;
    replace(core, vm, &metadata.vusbs)?;
    if let Some(text) = &metadata.domains {
        core.records.import_extra(vm, text)?;
        // The clock's offset is the configuration's; the one that was remembered is of an earlier start.
        if let BuilderInfo::Hvm(now) = &metadata.vm.ty {
            core.records.update_extra(vm, |extra| {
                if let Some(BuilderInfo::Hvm(then)) = &mut extra.ty {
                    then.timeoffset.clone_from(&now.timeoffset);
                }
            })?;
        }
    }
    objects.extend(core.records.objects(vm));
    objects.sort();
    objects.dedup();
    core.updates.add_all(objects);
    Ok(())
}

fn replace<D: Observed>(core: &Core, vm: &str, devices: &[D]) -> Result<(), Error> {
    for name in core.records.device_names::<D>(vm)? {
        if devices.iter().any(|device| device.id().device == name) {
            continue;
        }
        let id = DeviceId::new(vm, &name);
        // One that cannot be read was not plugged by this daemon.
        let plugged = match core.records.device::<D>(&id) {
            Ok(device) => D::plugged(&device.state(core)?),
            Err(_) => false,
        };
        if plugged {
            tracing::warn!(%id, "a plugged {} is not in the VM's new metadata: kept", D::CLASS.name);
        } else {
            core.records.remove::<D>(&id)?;
        }
    }
    devices.iter().try_for_each(|device| core.records.put(device))
}
