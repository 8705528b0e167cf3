//! The calls on VMs.

use super::{Vm, VmState};
use crate::api::errors::Error;
use crate::api::ids::{TaskId, VmId};
use crate::api::pci::PciAddress;
use crate::api::value::{Dict, Int};
use crate::api::vbd::Disk;
use crate::api::vif::Network;

methods! {
    debug_info as "debug_info", errors Error;

    /// Adds a VM, or replaces the configuration of one of the same id. Returns the id.
    "VM.add" VmAdd -> VmId {
        /// The configuration.
        vm: Vm,
    }

    /// Forgets a halted VM and its devices.
    "VM.remove" VmRemove -> () {
        /// The VM.
        id: VmId,
    }

    /// Opaque text with the state a VM of this configuration would be given.
    "VM.generate_state_string" VmGenerateStateString -> String {
        /// The configuration.
        vm: Vm,
    }

    /// Moves a VM to another host, or to itself on this one.
    "VM.migrate" VmMigrate -> TaskId {
        /// The VM.
        id: VmId,
        /// Disks here, and what they are called there.
        vdi_map: Dict<String>,
        /// VIF positions, and their networks there.
        vif_map: Dict<Network>,
        /// vGPU positions, and their PCI devices there.
        pci_map: Dict<PciAddress>,
        /// The other daemon.
        xenops_url: String,
        /// Compress the memory stream.
        compress: bool,
        /// Check the other side's certificate.
        verify_dest: bool,
        /// Both daemons are this one.
        localhost_migration: bool,
    }

    /// Creates an empty domain for the VM.
    "VM.create" VmCreate -> TaskId {
        /// The VM.
        id: VmId,
    }

    /// Puts kernel or firmware and memory into the VM's domain.
    "VM.build" VmBuild -> TaskId {
        /// The VM.
        id: VmId,
        /// Build even if the featureset does not fit this host.
        force: bool,
    }

    /// Starts the VM's device model.
    "VM.create_device_model" VmCreateDeviceModel -> TaskId {
        /// The VM.
        id: VmId,
        /// Restore the device model's saved state.
        save_state: bool,
    }

    /// Destroys the VM's domain.
    "VM.destroy" VmDestroy -> TaskId {
        /// The VM.
        id: VmId,
    }

    /// Stops scheduling the VM's domain.
    "VM.pause" VmPause -> TaskId {
        /// The VM.
        id: VmId,
    }

    /// Schedules the VM's domain again.
    "VM.unpause" VmUnpause -> TaskId {
        /// The VM.
        id: VmId,
    }

    /// Asks the guest agent to allow or forbid remote desktop.
    "VM.request_rdp" VmRequestRdp -> TaskId {
        /// The VM.
        id: VmId,
        /// Allow it.
        enabled: bool,
    }

    /// Runs a script in the guest through its agent; the task's result has exit code and output.
    "VM.run_script" VmRunScript -> TaskId {
        /// The VM.
        id: VmId,
        /// Text of the script.
        script: String,
    }

    /// Replaces the VM's xenstore data.
    "VM.set_xsdata" VmSetXsdata -> TaskId {
        /// The VM.
        id: VmId,
        /// The new data.
        xsdata: Dict<String>,
    }

    /// Changes how many vCPUs the guest may use.
    "VM.set_vcpus" VmSetVcpus -> TaskId {
        /// The VM.
        id: VmId,
        /// vCPUs.
        vcpus: Int,
    }

    /// Changes the shadow memory of a running HVM guest.
    "VM.set_shadow_multiplier" VmSetShadowMultiplier -> TaskId {
        /// The VM.
        id: VmId,
        /// The new multiplier.
        multiplier: f64,
    }

    /// Changes the range the VM's memory may be ballooned in.
    "VM.set_memory_dynamic_range" VmSetMemoryDynamicRange -> TaskId {
        /// The VM.
        id: VmId,
        /// Bytes.
        minimum: i64,
        /// Bytes.
        maximum: i64,
    }

    /// A VM's configuration and state.
    "VM.stat" VmStat -> (Vm, VmState) {
        /// The VM.
        id: VmId,
    }

    /// Whether there is such a VM.
    "VM.exists" VmExists -> bool {
        /// The VM.
        id: VmId,
    }

    /// All VMs.
    "VM.list" VmList -> Vec<(Vm, VmState)> {
        /// Always null, and required.
        unit: (),
    }

    /// Keeps the VM's queue busy.
    "VM.delay" VmDelay -> TaskId {
        /// The VM.
        id: VmId,
        /// Seconds.
        delay: f64,
    }

    /// Starts the VM and leaves it paused.
    "VM.start" VmStart -> TaskId {
        /// The VM.
        id: VmId,
        /// Despite its name: start even if the featureset does not fit this host.
        paused: bool,
    }

    /// Shuts the VM down.
    "VM.shutdown" VmShutdown -> TaskId {
        /// The VM.
        id: VmId,
        /// Seconds the guest is given to do it itself; absent pulls the plug.
        delay: Option<f64>,
    }

    /// Reboots the VM.
    "VM.reboot" VmReboot -> TaskId {
        /// The VM.
        id: VmId,
        /// Seconds the guest is given to do it itself; absent resets it.
        delay: Option<f64>,
    }

    /// Suspends the VM to a disk.
    "VM.suspend" VmSuspend -> TaskId {
        /// The VM.
        id: VmId,
        /// Where its image goes.
        suspend_vdi: Disk,
    }

    /// Resumes a suspended VM and leaves it paused.
    "VM.resume" VmResume -> TaskId {
        /// The VM.
        id: VmId,
        /// Where its image is.
        suspend_vdi: Disk,
    }

    /// Resumes a domain that was suspended and not destroyed.
    "VM.fast_resume" VmFastResume -> TaskId {
        /// The VM.
        id: VmId,
    }

    /// Writes the image of a running VM, as `VM.suspend` does, and lets it run on where it was. Its disks go on being
    /// written: copy them while it is paused, or suspend it. Not in xapi's contract.
    "VM.checkpoint" VmCheckpoint -> TaskId {
        /// The VM.
        id: VmId,
        /// Where its image goes.
        suspend_vdi: Disk,
    }

    /// Puts the guest to sleep (ACPI S3).
    "VM.s3suspend" VmS3suspend -> TaskId {
        /// The VM.
        id: VmId,
    }

    /// Wakes a sleeping guest.
    "VM.s3resume" VmS3resume -> TaskId {
        /// The VM.
        id: VmId,
    }

    /// JSON text with the VM's configuration and that of its devices.
    "VM.export_metadata" VmExportMetadata -> String {
        /// The VM.
        id: VmId,
    }

    /// Adds a VM and its devices from what `VM.export_metadata` returned, or replaces them behind whatever is queued for
    /// the VM. Devices that are not in it are forgotten, except those the running guest has. Nothing is changed when a
    /// device in it cannot be made out. Returns the id.
    "VM.import_metadata" VmImportMetadata -> VmId {
        /// JSON text.
        metadata: String,
    }

    /// As `VM.import_metadata`, as a task.
    "VM.import_metadata_async" VmImportMetadataAsync -> TaskId {
        /// JSON text.
        metadata: String,
    }
}
