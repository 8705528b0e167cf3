//! The contract's description of itself: what the declarations in `macros.rs` say, as data and as markdown.

use std::fmt::Write as _;

use super::call::Call;
use super::value::Value;
use super::{
    device_number::BusType,
    errors::Error,
    explain::{Explanation, PlannedStep, StepState, Undo},
    host::{ChipsetInfo, CpuInfo, GuestAgentFeature, Host, Hypervisor, NumaAffinityPolicy},
    metadata::Metadata,
    observer::ObserverError,
    pci::{Pci, PciAddress, PciState},
    query::Query,
    task::{Completion, Task, TaskState},
    updates::DynamicId,
    vbd::{Disk, Qos, QosClass, QosScheduler, Vbd, VbdMode, VbdState, VbdType},
    vgpu::{GvtG, MxGpu, Nvidia, Vgpu, VgpuImplementation, VgpuState},
    vif::{
        Ipv4Configuration, Ipv6Configuration, LockedAddresses, LockingMode, Network, PvsServer, Vif, VifState,
    },
    vm::{
        Action, Boot, BuilderInfo, Console, ConsoleProtocol, DirectBoot, DomainType, FirmwareType, HvmInfo,
        IgdPassthrough, IndirectBoot, NvramUefiVariables, OnBoot, PowerState, PvInfo, SchedulerParams, Tpm,
        VideoCard, Vm, VmState,
    },
    vusb::{Vusb, VusbState},
};

/// A type that can describe itself.
pub trait Described {
    /// Its description.
    fn describe() -> TypeDescription;
}

/// A record or variant of the contract.
#[derive(Debug, Clone, PartialEq)]
pub struct TypeDescription {
    /// Its name in the contract, e.g. `Vm.t`.
    pub name: &'static str,
    /// Its name in this crate, e.g. `Vm`.
    pub rust: &'static str,
    /// What it is.
    pub doc: &'static str,
    /// What it is made of.
    pub shape: Shape,
}

/// What a type is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// Fields in declared order; they are emitted in reverse.
    Record(Vec<FieldDescription>),
    /// Tags in declared order.
    Variant {
        /// The tags.
        tags: Vec<TagDescription>,
        /// What an unknown tag decodes to; none means that it is an error.
        otherwise: Option<&'static str>,
    },
}

/// A field of a record.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldDescription {
    /// Its key on the wire.
    pub name: &'static str,
    /// Its type expression.
    pub ty: String,
    /// What it means.
    pub doc: &'static str,
    /// What absence or an undecodable value stands for; none means that the field is required (or an option).
    pub default: Option<Value>,
}

/// A tag of a variant.
#[derive(Debug, Clone, PartialEq)]
pub struct TagDescription {
    /// Its text on the wire.
    pub tag: &'static str,
    /// The payload's type expression; `unit` for none.
    pub contents: String,
    /// Names and meanings of the payload's parts, if it has several.
    pub members: Vec<(&'static str, &'static str)>,
    /// What it means.
    pub doc: &'static str,
}

/// A method.
#[derive(Debug, Clone, PartialEq)]
pub struct MethodDescription {
    /// Its name on the wire.
    pub name: &'static str,
    /// What it does.
    pub doc: &'static str,
    /// What its first argument, a string, is called.
    pub debug_info: &'static str,
    /// The other arguments.
    pub arguments: Vec<ArgumentDescription>,
    /// The result's type expression.
    pub result: String,
    /// The error's type expression.
    pub error: String,
}

/// An argument of a method.
#[derive(Debug, Clone, PartialEq)]
pub struct ArgumentDescription {
    /// Its name on the wire.
    pub name: &'static str,
    /// Its type expression.
    pub ty: String,
    /// Whether it is left out for "none".
    pub optional: bool,
    /// What it means.
    pub doc: &'static str,
}

macro_rules! describe_all {
    ($($ty:ty),+ $(,)?) => {
        vec![$(<$ty as Described>::describe()),+]
    };
}

/// Methods that xapi's contract has not.
pub const EXTENSIONS: [&str; 3] = ["VM.checkpoint", "VM.explain", "VBD.refresh"];

/// What the names of types begin with that xapi's contract has not.
pub const EXTENSION_TYPES: &str = "Explain.";

/// Every record and variant of the contract, and of our extension.
pub fn types() -> Vec<TypeDescription> {
    describe_all![
        PowerState,
        Disk,
        PciAddress,
        Pci,
        PciState,
        GvtG,
        Nvidia,
        MxGpu,
        VgpuImplementation,
        Vgpu,
        VgpuState,
        OnBoot,
        NvramUefiVariables,
        IgdPassthrough,
        VideoCard,
        FirmwareType,
        Tpm,
        HvmInfo,
        DirectBoot,
        IndirectBoot,
        Boot,
        PvInfo,
        BuilderInfo,
        Action,
        SchedulerParams,
        Vm,
        ConsoleProtocol,
        Console,
        DomainType,
        VmState,
        Error,
        Query,
        Network,
        Vusb,
        VusbState,
        BusType,
        VbdMode,
        VbdType,
        QosClass,
        QosScheduler,
        Qos,
        Vbd,
        VbdState,
        Ipv4Configuration,
        Ipv6Configuration,
        LockedAddresses,
        LockingMode,
        PvsServer,
        Vif,
        VifState,
        Metadata,
        Completion,
        TaskState,
        Task,
        DynamicId,
        CpuInfo,
        ChipsetInfo,
        Hypervisor,
        Host,
        GuestAgentFeature,
        NumaAffinityPolicy,
        ObserverError,
        StepState,
        Undo,
        PlannedStep,
        Explanation,
    ]
}

/// The whole contract as markdown.
pub fn document() -> String {
    let methods = Call::methods();
    let types = types();
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "# The RPC contract\n\n\
         Printed by `cargo run -p xenopsd --bin xenopsd -- --print contract`; do not edit.\n\n\
         {} methods, {} types. Every call has one parameter, a dictionary of its arguments by name, the first of\n\
         which is `debug_info` (`dbg` for `Observer` methods), a string that is not repeated below. A task is\n\
         returned as its id, a string.\n\n\
         Encoding: a record is an object/struct, an option field is left out for \"none\"; an option elsewhere is an\n\
         array of none or one; a tuple is an array; a `dict` is an object; a variant is its tag, or an array of tag\n\
         and contents. Field names and tags are read without regard to case, argument names are not. A field with a\n\
         default takes it when it is absent or does not decode.\n\n",
        methods.len(),
        types.len()
    );
    out.push_str("## Methods\n\n");
    for method in &methods {
        document_method(&mut out, method);
    }
    out.push_str("## Types\n\n");
    for description in &types {
        document_type(&mut out, description);
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// A doc comment on one line.
fn line(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A default in JSON notation; defaults are short and plain.
fn notation(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(truth) => truth.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::String(text) => format!("\"{text}\""),
        Value::Array(items) => format!("[{}]", items.iter().map(notation).collect::<Vec<_>>().join(",")),
        Value::Dict(members) => {
            let members: Vec<_> =
                members.iter().map(|(key, item)| format!("\"{key}\":{}", notation(item))).collect();
            format!("{{{}}}", members.join(","))
        }
    }
}

fn document_method(out: &mut String, method: &MethodDescription) {
    let _ = write!(out, "### {}\n\n{}\n\n", method.name, line(method.doc));
    for argument in &method.arguments {
        let optional = if argument.optional { ", may be left out" } else { "" };
        let _ = writeln!(out, "- `{}`: `{}`{optional}. {}", argument.name, argument.ty, line(argument.doc));
    }
    if !method.arguments.is_empty() {
        out.push('\n');
    }
    let _ = write!(out, "Returns `{}`", method.result);
    if method.error != "Errors.error" {
        let _ = write!(out, ", fails with `{}`", method.error);
    }
    out.push_str(".\n\n");
}

fn document_type(out: &mut String, description: &TypeDescription) {
    let _ = write!(out, "### {}\n\n{}\n\n", description.name, line(description.doc));
    match &description.shape {
        Shape::Record(fields) => {
            for field in fields {
                let default = field.default.as_ref().map_or(String::new(), |default| match default {
                    Value::Array(items) if items.is_empty() && field.ty.starts_with("option<") => {
                        ", default none".to_owned()
                    }
                    default => format!(", default `{}`", notation(default)),
                });
                let _ = writeln!(out, "- `{}`: `{}`{default}. {}", field.name, field.ty, line(field.doc));
            }
        }
        Shape::Variant { tags, otherwise } => {
            for tag in tags {
                let _ = write!(out, "- `{}`", tag.tag);
                if tag.contents != "unit" {
                    let _ = write!(out, " of `{}`", tag.contents);
                }
                let _ = write!(out, ". {}", line(tag.doc));
                for (index, (name, doc)) in tag.members.iter().enumerate() {
                    let separator = if index == 0 { " Contents:" } else { ";" };
                    let _ =
                        write!(out, "{separator} {name}, {}", line(doc).trim_end_matches('.').to_lowercase());
                }
                out.push_str(if tag.members.is_empty() { "\n" } else { ".\n" });
            }
            if let Some(otherwise) = otherwise {
                let _ = write!(out, "\nAn unknown tag is read as `{otherwise}`.\n");
            }
        }
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::document;

    #[test]
    fn the_printed_contract_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/contract.md");
        let printed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            printed == document(),
            "docs/contract.md is not what the code says; print it anew: \
             cargo run -p xenopsd --bin xenopsd -- --print contract > docs/contract.md"
        );
    }
}
