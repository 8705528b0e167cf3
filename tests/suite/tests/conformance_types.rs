//! Every value of every type in the vectors, through both encodings and back, byte for byte.

mod common;

use common::{Record, records};
use xenopsd::api::updates::{Barrier, Updates};
use xenopsd::api::vif::PvsProxy;
use xenopsd::api::*;
use xenopsd::rpc::{json, xml};

/// A value in JSON and in XML.
type Encoded = (Vec<u8>, Vec<u8>);

/// Decodes a value of some type, and encodes it again both ways. `None` if it does not decode.
struct Codec {
    from_json: fn(&[u8]) -> Option<Encoded>,
    from_xml: fn(&[u8]) -> Option<Encoded>,
}

fn encode<T: FromValue + ToValue>(value: &Value) -> Option<Encoded> {
    let value = T::from_value(value).ok()?.to_value();
    Some((json::print(&value), xml::print_value(&value)))
}

fn codec<T: FromValue + ToValue>() -> Codec {
    Codec {
        from_json: |text| encode::<T>(&json::parse(text).ok()?),
        from_xml: |text| encode::<T>(&xml::parse_value(text).ok()?),
    }
}

macro_rules! types {
    ($($name:literal => $ty:ty),+ $(,)?) => {
        fn codec_of(name: &str) -> Codec {
            match name {
                $($name => codec::<$ty>(),)+
                _ => panic!("the vectors have a type this test does not know: {name}"),
            }
        }
    };
}

types! {
    "CPU_policy.host" => CpuPolicy,
    "CPU_policy.vm" => CpuPolicy,
    "Device_number.bus_type" => BusType,
    "Device_number.t" => DeviceNumber,
    "Dynamic.barrier" => Barrier,
    "Dynamic.id" => DynamicId,
    "Errors.error" => Error,
    "Host.chipset_info" => ChipsetInfo,
    "Host.cpu_info" => CpuInfo,
    "Host.guest_agent_feature" => GuestAgentFeature,
    "Host.guest_agent_feature_list" => Vec<GuestAgentFeature>,
    "Host.hypervisor" => Hypervisor,
    "Host.numa_affinity_policy" => NumaAffinityPolicy,
    "Host.numa_affinity_policy_opt" => Option<NumaAffinityPolicy>,
    "Host.t" => Host,
    "Metadata.t" => Metadata,
    "Network.t" => Network,
    "Network.ts" => Vec<Network>,
    "Nvram_uefi_variables.onboot" => OnBoot,
    "Nvram_uefi_variables.t" => NvramUefiVariables,
    "Observer.Errors.error" => ObserverError,
    "Observer.debug_info" => String,
    "Pci.address" => PciAddress,
    "Pci.id" => DeviceId,
    "Pci.state" => PciState,
    "Pci.t" => Pci,
    "Query.t" => Query,
    "Task.async_result" => Value,
    "Task.completion_t" => Completion,
    "Task.id" => TaskId,
    "Task.state" => TaskState,
    "Task.t" => Task,
    "Task.t_list" => Vec<Task>,
    "UPDATES.get" => Updates,
    "VM.stat" => (Vm, VmState),
    "Vbd.id" => DeviceId,
    "Vbd.mode" => VbdMode,
    "Vbd.qos" => Qos,
    "Vbd.qos_class" => QosClass,
    "Vbd.qos_scheduler" => QosScheduler,
    "Vbd.state" => VbdState,
    "Vbd.t" => Vbd,
    "Vbd.ty" => VbdType,
    "Vgpu.gvt_g" => GvtG,
    "Vgpu.id" => DeviceId,
    "Vgpu.implementation" => VgpuImplementation,
    "Vgpu.mxgpu" => MxGpu,
    "Vgpu.nvidia" => Nvidia,
    "Vgpu.state" => VgpuState,
    "Vgpu.t" => Vgpu,
    "Vif.PVS_proxy.interface" => String,
    "Vif.PVS_proxy.server" => PvsServer,
    "Vif.PVS_proxy.site" => String,
    "Vif.PVS_proxy.t" => PvsProxy,
    "Vif.id" => DeviceId,
    "Vif.ipv4_configuration" => Ipv4Configuration,
    "Vif.ipv6_configuration" => Ipv6Configuration,
    "Vif.locked_addresses" => LockedAddresses,
    "Vif.locking_mode" => LockingMode,
    "Vif.state" => VifState,
    "Vif.t" => Vif,
    "Vif.trunks" => Vec<i64>,
    "Vm.action" => Action,
    "Vm.builder_info" => BuilderInfo,
    "Vm.console" => Console,
    "Vm.console_protocol" => ConsoleProtocol,
    "Vm.domain_type" => DomainType,
    "Vm.firmware_type" => FirmwareType,
    "Vm.hvm_info" => HvmInfo,
    "Vm.id" => VmId,
    "Vm.igd_passthrough" => IgdPassthrough,
    "Vm.pv_boot" => Boot,
    "Vm.pv_direct_boot" => DirectBoot,
    "Vm.pv_indirect_boot" => IndirectBoot,
    "Vm.pv_info" => PvInfo,
    "Vm.scheduler_params" => SchedulerParams,
    "Vm.state" => VmState,
    "Vm.t" => Vm,
    "Vm.tpm" => Tpm,
    "Vm.video_card" => VideoCard,
    "Vusb.id" => DeviceId,
    "Vusb.state" => VusbState,
    "Vusb.t" => Vusb,
    "debug_info" => String,
    "dict" => Dict<String>,
    "disk" => Disk,
    "float" => f64,
    "int" => Int,
    "int64" => i64,
    "pair_string_int" => (String, Int),
    "power_state" => PowerState,
    "string" => String,
    "unit" => (),
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn check(record: &Record) {
    // Samples say what they are a sample of after the type.
    let codec = codec_of(record.subject().split(' ').next().unwrap_or_default());
    let name = record.name();
    let (json_text, xml_text) = (record.text("json"), record.text("xml"));
    let (json, xml) =
        (codec.from_json)(json_text.as_bytes()).unwrap_or_else(|| panic!("{name}: {json_text}"));
    assert_eq!(shown(&json), json_text, "{name}: JSON to JSON");
    // The reference forgets to escape member names; ours are escaped.
    if record.text("constructor") == "xml-in-key" {
        assert_eq!(
            shown(&xml),
            xml_text.replace("<name>a<b&c>\"</name>", "<name>a&lt;b&amp;c&gt;&quot;</name>")
        );
        return;
    }
    assert_eq!(shown(&xml), xml_text, "{name}: JSON to XML");
    if record.flag("xml_lossy") {
        return;
    }
    let (json, xml) = (codec.from_xml)(xml_text.as_bytes()).unwrap_or_else(|| panic!("{name}: {xml_text}"));
    assert_eq!(shown(&json), json_text, "{name}: XML to JSON");
    assert_eq!(shown(&xml), xml_text, "{name}: XML to XML");
}

#[test]
fn values_of_all_types() {
    records("type").iter().for_each(check);
}

#[test]
fn realistic_samples() {
    records("sample").iter().for_each(check);
}

#[test]
fn surprising_values() {
    records("odd").iter().for_each(check);
}

#[test]
fn what_each_type_accepts() {
    let mut checked = 0;
    for record in records("decode_type") {
        let codec = codec_of(record.subject());
        for case in record.json()["cases"].as_array().expect("cases") {
            let name = format!("{} {}", record.subject(), case["case"]);
            let outcome = match (case["input_json"].as_str(), case["input_xml"].as_str()) {
                (Some(text), _) => (codec.from_json)(text.as_bytes()),
                (None, Some(text)) => (codec.from_xml)(text.as_bytes()),
                _ => panic!("{name} has no input"),
            };
            let outcome = outcome.map(|(json, _)| shown(&json));
            assert_eq!(outcome.as_deref(), case["ok_json"].as_str(), "{name}: {case}");
            checked += 1;
        }
    }
    assert!(checked > 3000, "only {checked} cases");
}

/// The frames both ways: the text is made out, and encoded again byte for byte.
#[test]
fn frames_of_the_queue_protocol() {
    use xenopsd::rpc::switch::protocol::{
        Command, Transferred, decode_names, decode_sent, encode_names, encode_sent,
    };
    for record in records("message_switch") {
        let name = record.name();
        let frame: serde_json::Value = serde_json::from_str(record.text("json")).expect("a frame");
        let body = frame["body"].as_str().unwrap_or_default();
        let constructor = record.text("constructor");
        let again = match constructor.split('.').next() {
            _ if record.subject() == "In.request" => {
                let (method, path) = (frame["method"].as_str(), frame["path"].as_str());
                let (method, path) = (method.expect("a method"), path.expect("a path"));
                let command = Command::decode(method, path, body.as_bytes());
                let again = command.unwrap_or_else(|error| panic!("{name}: {error}")).encode();
                assert_eq!((again.method, again.path.as_str()), (method, path), "{name}");
                assert_eq!(again.body.is_some(), frame["body"].is_string(), "{name}");
                again.body.unwrap_or_default()
            }
            Some("Transfer") => Transferred::decode(body.as_bytes()).expect("a transfer").encode(),
            Some("Send") => encode_sent(decode_sent(body.as_bytes()).expect("an id").as_ref()),
            Some("List") => encode_names(&decode_names(body.as_bytes()).expect("names")),
            // A queue's name as it is.
            Some("Create") => body.as_bytes().to_vec(),
            other => panic!("the vectors have a frame this test does not know: {other:?}"),
        };
        assert_eq!(shown(&again), body, "{name}");
    }
}
