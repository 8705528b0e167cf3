//! The contract's errors, exactly its variants; the text for people is their `Display`.

use std::fmt;

use super::value::Int;
use super::vm::PowerState;

variant! {
    /// Why a call or a task failed.
    pub enum Error as "Errors.error" {
        /// An object of that name is there already.
        AlreadyExists as "Already_exists" {
            /// Kind of object, e.g. `VM`.
            kind: String,
            /// Its name.
            id: String,
        },
        /// No object of that name.
        DoesNotExist as "Does_not_exist" {
            /// Kind of object, e.g. `VM`.
            kind: String,
            /// Its name.
            id: String,
        },
        /// The daemon does not do that.
        Unimplemented as "Unimplemented" (String),
        /// The domain exists but has no kernel in it yet.
        DomainNotBuilt as "Domain_not_built",
        /// More vCPUs than the VM can have; the payload is the most it can.
        InvalidVcpus as "Invalid_vcpus" (Int),
        /// The operation does not fit the VM's power state.
        BadPowerState as "Bad_power_state" {
            /// The state it is in.
            found: PowerState,
            /// A state the operation wants.
            expected: PowerState,
        },
        /// The guest did not react to a shutdown or reboot request.
        FailedToAcknowledgeShutdownRequest as "Failed_to_acknowledge_shutdown_request",
        /// The guest did not react to a suspend request.
        FailedToAcknowledgeSuspendRequest as "Failed_to_acknowledge_suspend_request",
        /// The guest reacted but did not shut down in time.
        FailedToShutdown as "Failed_to_shutdown" {
            /// The VM.
            id: String,
            /// How long it was given, in seconds.
            timeout: f64,
        },
        /// The guest reacted but did not suspend in time.
        FailedToSuspend as "Failed_to_suspend" {
            /// The VM.
            id: String,
            /// How long it was given, in seconds.
            timeout: f64,
        },
        /// The device is plugged in and the operation needs it not to be.
        DeviceIsConnected as "Device_is_connected",
        /// The device is not plugged in and the operation needs it to be.
        DeviceNotConnected as "Device_not_connected",
        /// The guest refuses to let go of the device.
        DeviceDetachRejected as "Device_detach_rejected" {
            /// Device class, e.g. `VBD`.
            class: String,
            /// The device.
            id: String,
            /// What the guest said.
            message: String,
        },
        /// The drive does not let its medium go.
        MediaNotEjectable as "Media_not_ejectable",
        /// The drive has a medium in it.
        MediaPresent as "Media_present",
        /// The drive is empty.
        MediaNotPresent as "Media_not_present",
        /// No disk to boot from.
        NoBootableDevice as "No_bootable_device",
        /// The boot loader that looks for the kernel on the guest's disk failed.
        BootloaderError as "Bootloader_error" {
            /// The VM.
            id: String,
            /// What it said.
            message: String,
        },
        /// Ballooning cannot free as much memory as the operation needs.
        CannotFreeThisMuchMemory as "Cannot_free_this_much_memory" {
            /// Bytes wanted.
            needed: i64,
            /// Bytes that could be freed.
            free: i64,
        },
        /// VMs whose balloon driver does not react; the payload is their ids.
        VmsFailedToCooperate as "Vms_failed_to_cooperate" (Vec<String>),
        /// Reading or writing a stream failed.
        IoError as "IO_error",
        /// Another service did not answer; the payload says which and why.
        FailedToContactRemoteService as "Failed_to_contact_remote_service" (String),
        /// A hook script failed.
        HookFailed as "Hook_failed" {
            /// The script.
            script: String,
            /// The event it was run for.
            reason: String,
            /// What it printed.
            stdout: String,
            /// Its exit code.
            code: String,
        },
        /// The host has not enough free memory; the payload is the bytes needed.
        NotEnoughMemory as "Not_enough_memory" (i64),
        /// The task was cancelled; the payload is its id.
        Cancelled as "Cancelled" (String),
        /// A storage service refused.
        StorageBackendError as "Storage_backend_error" {
            /// Its error code.
            code: String,
            /// The code's parameters.
            params: Vec<String>,
        },
        /// PCI passthrough needs the pciback driver, which is not loaded.
        PcibackNotLoaded as "PCIBack_not_loaded",
        /// The script could not be run in the guest; the payload says why.
        FailedToRunScript as "Failed_to_run_script" (String),
        /// A helper process of the VM did not start.
        FailedToStartEmulator as "Failed_to_start_emulator" {
            /// The VM.
            id: String,
            /// The process.
            name: String,
            /// What went wrong.
            message: String,
        },
        /// The guest did not balloon down in time for its migration.
        BallooningTimeoutBeforeMigration as "Ballooning_timeout_before_migration",
        /// Anything that has no variant of its own; the payload says what.
        InternalError as "Internal_error" (String),
        /// An error this version of the contract has no name for.
        UnknownError as "Unknown_error",
    }
    otherwise UnknownError
}

impl Error {
    /// No object of that kind and name.
    pub fn does_not_exist(kind: impl Into<String>, id: impl Into<String>) -> Self {
        Self::DoesNotExist { kind: kind.into(), id: id.into() }
    }

    /// Anything that has no variant of its own.
    pub fn internal(text: impl fmt::Display) -> Self {
        Self::InternalError(text.to_string())
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyExists { kind, id } => write!(f, "{kind} {id} exists already"),
            Self::DoesNotExist { kind, id } => write!(f, "there is no {kind} {id}"),
            Self::Unimplemented(what) => write!(f, "{what} is not implemented by this daemon"),
            Self::DomainNotBuilt => f.write_str("the domain has not been built yet"),
            Self::InvalidVcpus(max) => {
                write!(f, "the VM cannot have that many vCPUs; its maximum is {max}")
            }
            Self::BadPowerState { found, expected } => write!(
                f,
                "the VM is {} and this operation needs it {}",
                found.tag().to_lowercase(),
                expected.tag().to_lowercase()
            ),
            Self::FailedToAcknowledgeShutdownRequest => f.write_str(
                "the guest did not acknowledge the shutdown request; shut it down by force instead",
            ),
            Self::FailedToAcknowledgeSuspendRequest => {
                f.write_str("the guest did not acknowledge the suspend request")
            }
            Self::FailedToShutdown { id, timeout } => {
                write!(f, "VM {id} did not shut down within {timeout} s; shut it down by force instead")
            }
            Self::FailedToSuspend { id, timeout } => write!(f, "VM {id} did not suspend within {timeout} s"),
            Self::DeviceIsConnected => f.write_str("the device is plugged in; unplug it first"),
            Self::DeviceNotConnected => f.write_str("the device is not plugged in"),
            Self::DeviceDetachRejected { class, id, message } => {
                write!(f, "the guest refuses to detach {class} {id}: {message}")
            }
            Self::MediaNotEjectable => f.write_str("the drive's medium cannot be ejected"),
            Self::MediaPresent => f.write_str("the drive has a medium in it; eject it first"),
            Self::MediaNotPresent => f.write_str("the drive has no medium in it"),
            Self::NoBootableDevice => f.write_str("the VM has no disk to boot from"),
            Self::BootloaderError { id, message } => {
                write!(f, "the boot loader of VM {id} failed: {message}")
            }
            Self::CannotFreeThisMuchMemory { needed, free } => {
                write!(f, "{needed} bytes of memory are needed and only {free} can be freed")
            }
            Self::VmsFailedToCooperate(ids) => {
                write!(f, "these VMs do not give memory back when asked: {}", ids.join(", "))
            }
            Self::IoError => f.write_str("reading or writing a stream failed"),
            Self::FailedToContactRemoteService(what) => write!(f, "cannot reach another service: {what}"),
            Self::HookFailed { script, reason, stdout, code } => {
                write!(f, "hook {script} for {reason} exited with {code}: {stdout}")
            }
            Self::NotEnoughMemory(needed) => {
                write!(f, "the host has not enough free memory: {needed} bytes are needed")
            }
            Self::Cancelled(task) => write!(f, "task {task} was cancelled"),
            Self::StorageBackendError { code, params } => {
                write!(f, "the storage service refused with {code} ({})", params.join(", "))
            }
            Self::PcibackNotLoaded => {
                f.write_str("the pciback driver is not loaded in dom0; load xen-pciback first")
            }
            Self::FailedToRunScript(why) => write!(f, "the script could not be run in the guest: {why}"),
            Self::FailedToStartEmulator { id, name, message } => {
                write!(f, "{name} of VM {id} did not start: {message}")
            }
            Self::BallooningTimeoutBeforeMigration => {
                f.write_str("the guest did not balloon down in time for its migration")
            }
            Self::InternalError(text) => f.write_str(text),
            Self::UnknownError => f.write_str("unknown error"),
        }
    }
}
