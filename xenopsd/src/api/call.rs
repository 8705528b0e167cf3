//! One enum of all calls, and how a method name with its parameters becomes one.

use std::fmt;

use super::decode::DecodeError;
use super::errors::Error;
use super::schema::MethodDescription;
use super::value::{FromValue, Text, ToValue, Value, WireType};
use super::{
    explain::VmExplain,
    host::{
        DebugShutdown, DebugTrigger, HostCombineCpuPolicies, HostGetConsoleData, HostGetTotalMemoryMib,
        HostIsCompatible, HostSendDebugKeys, HostSetNumaAffinityPolicy, HostSetWorkerPoolSize, HostStat,
        HostUpdateGuestAgentFeatures,
    },
    observer::{
        ObserverCreate, ObserverDestroy, ObserverInit, ObserverSetAttributes,
        ObserverSetCompressTracingFiles, ObserverSetEnabled, ObserverSetEndpoints,
        ObserverSetExportChunkSize, ObserverSetExportInterval, ObserverSetHostId, ObserverSetMaxDepth,
        ObserverSetMaxFileSize, ObserverSetMaxSpans, ObserverSetMaxTraces, ObserverSetTraceLogDir,
    },
    pci::{PciAdd, PciDequarantine, PciList, PciRemove, PciStat},
    query::{GetDiagnostics, QueryService},
    task::{TaskCancel, TaskDestroy, TaskDestroyOnFinish, TaskList, TaskStat},
    updates::{UpdatesGet, UpdatesInjectBarrier, UpdatesLastId, UpdatesRefreshVm, UpdatesRemoveBarrier},
    vbd::{VbdAdd, VbdEject, VbdInsert, VbdList, VbdPlug, VbdRefresh, VbdRemove, VbdStat, VbdUnplug},
    vgpu::{VgpuAdd, VgpuList, VgpuRemove, VgpuStat},
    vif::{
        VifAdd, VifList, VifMove, VifPlug, VifRemove, VifSetCarrier, VifSetIpv4Configuration,
        VifSetIpv6Configuration, VifSetLockingMode, VifSetPvsProxy, VifSetTrunks, VifStat, VifUnplug,
    },
    vm::{
        VmAdd, VmBuild, VmCheckpoint, VmCreate, VmCreateDeviceModel, VmDelay, VmDestroy, VmExists,
        VmExportMetadata, VmFastResume, VmGenerateStateString, VmImportMetadata, VmImportMetadataAsync,
        VmList, VmMigrate, VmPause, VmReboot, VmRemove, VmRequestRdp, VmResume, VmRunScript, VmS3resume,
        VmS3suspend, VmSetMemoryDynamicRange, VmSetShadowMultiplier, VmSetVcpus, VmSetXsdata, VmShutdown,
        VmStart, VmStat, VmSuspend, VmUnpause,
    },
    vusb::{VusbAdd, VusbList, VusbPlug, VusbRemove, VusbStat, VusbUnplug},
};

/// A method of the contract, implemented by the struct of its arguments.
pub trait Method: Sized {
    /// Its name on the wire, case-sensitive.
    const NAME: &'static str;
    /// What it returns.
    type Result: ToValue + FromValue + WireType;
    /// How it fails.
    type Error: ToValue + FromValue + WireType + From<Error> + Into<Error>;

    /// Decodes the parameters of a call: one dictionary of named arguments. Names are compared exactly, the first
    /// of duplicates counts, unknown names and further parameters are ignored; arguments are decoded in declared
    /// order and the first failure is reported.
    ///
    /// # Errors
    /// Says which argument is missing, or what one was expected to be.
    fn from_params(params: &[Value]) -> Result<Self, DecodeError>;

    /// The one parameter of a call: a dictionary of all arguments.
    fn to_params(&self) -> Value;

    /// The caller's free text.
    fn debug_info(&self) -> &str;

    /// The method's description.
    fn describe() -> MethodDescription;
}

/// Why a call could not be made out. Its text is what the reference implementation prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// There is no such method.
    UnknownMethod(String),
    /// The arguments do not fit the method.
    Arguments(DecodeError),
}

impl std::error::Error for CallError {}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownMethod(name) => write!(f, "Idl.UnknownMethod({})", quoted(name)),
            Self::Arguments(error) => write!(f, "Idl.MarshalError({})", quoted(&error.to_string())),
        }
    }
}

impl From<DecodeError> for CallError {
    fn from(error: DecodeError) -> Self {
        Self::Arguments(error)
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        Self::InternalError(error.to_string())
    }
}

/// Longest part of a hostile method name that is repeated in an error text, in bytes.
const SHOWN_TEXT_MAX: usize = 1024;

/// A string in the reference's source notation: quotes, backslashes and everything that is not printable ASCII
/// escaped, the latter as `\\ddd` in decimal.
fn quoted(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::from("\"");
    for &byte in text.as_bytes().iter().take(SHOWN_TEXT_MAX) {
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\t' => out.push_str("\\t"),
            b'\r' => out.push_str("\\r"),
            0x08 => out.push_str("\\b"),
            0x20..=0x7e => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "\\{byte:03}");
            }
        }
    }
    out.push('"');
    out
}

/// Old peers send these two calls with positional parameters; they are turned into named ones before dispatch.
fn upgrade_positional(method: &str, params: &[Value]) -> Option<Value> {
    let second = match method {
        "query" => "unit",
        "VM.import_metadata" => "metadata",
        _ => return None,
    };
    match params {
        [debug_info @ Value::String(_), argument] => Some(Value::Dict(vec![
            (Text::from("debug_info"), debug_info.clone()),
            (Text::from(second), argument.clone()),
        ])),
        _ => None,
    }
}

macro_rules! calls {
    ($($name:ident),+ $(,)?) => {
        /// Any call of the contract, and of our extension.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Call {
            $(#[doc = concat!("[`", stringify!($name), "`]")] $name($name),)+
        }

        $(
            impl From<$name> for Call {
                fn from(call: $name) -> Self {
                    Self::$name(call)
                }
            }
        )+

        impl Call {
            /// Makes out a call.
            ///
            /// # Errors
            /// [`CallError::UnknownMethod`], or what is wrong with the arguments.
            pub fn decode(method: &str, params: &[Value]) -> Result<Self, CallError> {
                let upgraded = upgrade_positional(method, params);
                let params = upgraded.as_ref().map_or(params, std::slice::from_ref);
                match method {
                    $(<$name as Method>::NAME => Ok(Self::$name($name::from_params(params)?)),)+
                    _ => Err(CallError::UnknownMethod(method.to_owned())),
                }
            }

            /// The method's name on the wire.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => <$name as Method>::NAME,)+
                }
            }

            /// The caller's free text.
            pub fn debug_info(&self) -> &str {
                match self {
                    $(Self::$name(call) => call.debug_info(),)+
                }
            }

            /// The one parameter of the call.
            pub fn to_params(&self) -> Value {
                match self {
                    $(Self::$name(call) => call.to_params(),)+
                }
            }

            /// How this method's failures are encoded: `Observer` methods have a smaller set of errors.
            pub fn encode_error(&self) -> fn(Error) -> Value {
                match self {
                    $(Self::$name(_) => {
                        |error| <$name as Method>::Error::from(error).to_value()
                    })+
                }
            }

            /// Descriptions of all methods, in the contract's order, ours after them.
            pub fn methods() -> Vec<MethodDescription> {
                vec![$($name::describe()),+]
            }
        }
    };
}

calls! {
    QueryService,
    GetDiagnostics,
    TaskStat,
    TaskCancel,
    TaskDestroy,
    TaskList,
    TaskDestroyOnFinish,
    HostStat,
    HostGetConsoleData,
    HostGetTotalMemoryMib,
    HostSendDebugKeys,
    HostSetWorkerPoolSize,
    HostUpdateGuestAgentFeatures,
    HostCombineCpuPolicies,
    HostIsCompatible,
    HostSetNumaAffinityPolicy,
    VmAdd,
    VmRemove,
    VmGenerateStateString,
    VmMigrate,
    VmCreate,
    VmBuild,
    VmCreateDeviceModel,
    VmDestroy,
    VmPause,
    VmUnpause,
    VmRequestRdp,
    VmRunScript,
    VmSetXsdata,
    VmSetVcpus,
    VmSetShadowMultiplier,
    VmSetMemoryDynamicRange,
    VmStat,
    VmExists,
    VmList,
    VmDelay,
    VmStart,
    VmShutdown,
    VmReboot,
    VmSuspend,
    VmResume,
    VmCheckpoint,
    VmFastResume,
    VmS3suspend,
    VmS3resume,
    VmExportMetadata,
    VmImportMetadata,
    VmImportMetadataAsync,
    PciAdd,
    PciRemove,
    PciStat,
    PciList,
    PciDequarantine,
    VbdAdd,
    VbdPlug,
    VbdUnplug,
    VbdEject,
    VbdInsert,
    VbdStat,
    VbdList,
    VbdRefresh,
    VbdRemove,
    VusbAdd,
    VusbPlug,
    VusbUnplug,
    VusbStat,
    VusbList,
    VusbRemove,
    VifAdd,
    VifPlug,
    VifUnplug,
    VifMove,
    VifStat,
    VifList,
    VifRemove,
    VifSetCarrier,
    VifSetLockingMode,
    VifSetIpv4Configuration,
    VifSetIpv6Configuration,
    VifSetPvsProxy,
    VifSetTrunks,
    VgpuAdd,
    VgpuStat,
    VgpuList,
    VgpuRemove,
    UpdatesGet,
    UpdatesLastId,
    UpdatesInjectBarrier,
    UpdatesRemoveBarrier,
    UpdatesRefreshVm,
    DebugTrigger,
    DebugShutdown,
    ObserverCreate,
    ObserverDestroy,
    ObserverSetEnabled,
    ObserverSetAttributes,
    ObserverSetEndpoints,
    ObserverInit,
    ObserverSetTraceLogDir,
    ObserverSetExportInterval,
    ObserverSetExportChunkSize,
    ObserverSetMaxSpans,
    ObserverSetMaxTraces,
    ObserverSetMaxDepth,
    ObserverSetMaxFileSize,
    ObserverSetHostId,
    ObserverSetCompressTracingFiles,
    // Ours.
    VmExplain,
}

#[cfg(test)]
mod tests {
    use super::{Call, CallError};
    use crate::api::value::{Text, Value};
    use crate::api::{DecodeError, QueryService, VbdAdd, VmShutdown};
    use crate::rpc::Codec;
    use crate::rpc::json;
    use proptest::prelude::*;

    fn decode(method: &str, params: &str) -> Result<Call, CallError> {
        match json::parse(params.as_bytes()) {
            Ok(Value::Array(params)) => Call::decode(method, &params),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn arguments_are_named_exactly_and_fields_loosely() {
        let call = decode("VM.shutdown", r#"[{"id":"a","id":"b","debug_info":"d","zzz":1},{"delay":5}]"#);
        let expected = VmShutdown { debug_info: "d".to_owned(), id: "a".to_owned(), delay: None };
        assert_eq!(call, Ok(expected.into()));
        let missing = decode("VM.shutdown", r#"[{"ID":"a","debug_info":"d"}]"#);
        assert_eq!(missing, Err(CallError::Arguments(DecodeError::MissingArgument("id"))));
        let Ok(Call::VbdAdd(VbdAdd { vbd, .. })) =
            decode("VBD.add", r#"[{"debug_info":"d","vbd":{"MODE":"readonly","mode":"ReadWrite","ty":5}}]"#)
        else {
            panic!("a VBD")
        };
        assert_eq!(vbd, crate::api::Vbd { mode: crate::api::VbdMode::ReadOnly, ..Default::default() });
    }

    #[test]
    fn two_calls_may_be_positional() {
        let expected = QueryService { debug_info: "d".to_owned(), unit: () };
        assert_eq!(decode("query", r#"["d",null]"#), Ok(expected.into()));
        assert!(decode("VM.import_metadata", r#"["d","m"]"#).is_ok());
        assert!(decode("query", r#"["d",null,null]"#).is_err());
        assert!(decode("VM.create", r#"["d","vm"]"#).is_err());
    }

    #[test]
    fn errors_read_as_the_references() {
        let text = |outcome: Result<Call, CallError>| outcome.map_err(|error| error.to_string());
        assert_eq!(
            text(decode("VM.\"\n\u{e9}", "[]")),
            Err(r#"Idl.UnknownMethod("VM.\"\n\195\169")"#.to_owned())
        );
        assert_eq!(
            text(decode("VM.create", r#"[{"debug_info":5}]"#)),
            Err(r#"Idl.MarshalError("Expected string, got 'I(5)'")"#.to_owned())
        );
        let long = format!(r#"[{{"debug_info":["{}"]}}]"#, "x".repeat(1 << 20));
        let error = text(decode("VM.create", &long)).expect_err("not a string");
        assert!(error.len() < 1000, "{error}");
    }

    proptest! {
        #[test]
        fn never_panics(
            method in prop::sample::select(Call::methods().iter().map(|m| m.name).collect::<Vec<_>>()),
            names in prop::collection::vec(prop::sample::select(vec![
                "debug_info", "dbg", "id", "vm", "vbd", "vif", "unit", "last_id", "features", "disk",
            ]), 0..6),
            value in json::tests::any_value(),
        ) {
            let params = names.into_iter().map(|name| (Text::from(name), value.clone())).collect();
            let _ = Call::decode(method, &[Value::Dict(params)]);
            let _ = Call::decode(method, &[value]);
        }

        #[test]
        fn never_panics_on_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Codec::Xml.decode_call(&bytes);
            let _ = Codec::Json.decode_call(&bytes);
        }
    }
}
