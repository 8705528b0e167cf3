//! Every request and reply in the vectors.

mod common;

use common::{from_json, records, sorted};
use serde_json::Value as Json;
use xenopsd::api::{Call, CallError, Error, FromValue, Method, ToValue, Value};
use xenopsd::rpc::{Codec, json};

fn decode(codec: Codec, body: &str) -> Call {
    let (method, params) =
        codec.decode_request(body.as_bytes()).unwrap_or_else(|error| panic!("{error}: {body}"));
    Call::decode(&method.to_string(), &params).unwrap_or_else(|error| panic!("{error}: {body}"))
}

fn shown(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("UTF-8")
}

/// The id at the end of a version 1 request.
fn id(body: &str) -> i64 {
    let (_, id) = body.rsplit_once("\"id\":").expect("an id");
    id.trim_end_matches('}').parse().expect("a number")
}

#[test]
fn requests_of_all_methods() {
    let mut methods = std::collections::BTreeSet::new();
    for record in records("call") {
        let (json_text, xml_text) = (record.text("json"), record.text("xml"));
        let call = decode(Codec::Json, json_text);
        assert_eq!(call.name(), record.subject());
        methods.insert(call.name());
        assert_eq!(decode(Codec::Json, record.text("json_v2")), call, "{}", record.name());
        assert_eq!(decode(Codec::Xml, xml_text), call, "{}", record.name());
        let json = Codec::Json.encode_request(call.name(), call.to_params(), id(json_text));
        assert_eq!(shown(json), json_text, "{}", record.name());
        let xml = Codec::Xml.encode_request(call.name(), call.to_params(), 0);
        assert_eq!(shown(xml), xml_text, "{}", record.name());
    }
    assert_eq!(methods.len(), 105);
}

/// Decodes and encodes a result or an error of a method.
struct Reply {
    result: fn(&Value) -> Option<Value>,
    error: fn(&Value) -> Option<Value>,
}

fn reply<M: Method>() -> Reply {
    Reply {
        result: |value| M::Result::from_value(value).ok().map(|result| result.to_value()),
        error: |value| M::Error::from_value(value).ok().map(|error| error.to_value()),
    }
}

macro_rules! methods {
    ($($method:ident),+ $(,)?) => {
        fn reply_of(method: &str) -> Reply {
            $(if method == <xenopsd::api::$method as Method>::NAME {
                return reply::<xenopsd::api::$method>();
            })+
            panic!("the vectors have a method this test does not know: {method}")
        }
    };
}

methods! {
    QueryService, GetDiagnostics, TaskStat, TaskCancel, TaskDestroy, TaskList, TaskDestroyOnFinish, HostStat,
    HostGetConsoleData, HostGetTotalMemoryMib, HostSendDebugKeys, HostSetWorkerPoolSize,
    HostUpdateGuestAgentFeatures, HostCombineCpuPolicies, HostIsCompatible, HostSetNumaAffinityPolicy, VmAdd,
    VmRemove, VmGenerateStateString, VmMigrate, VmCreate, VmBuild, VmCreateDeviceModel, VmDestroy, VmPause,
    VmUnpause, VmRequestRdp, VmRunScript, VmSetXsdata, VmSetVcpus, VmSetShadowMultiplier, VmSetMemoryDynamicRange,
    VmStat, VmExists, VmList, VmDelay, VmStart, VmShutdown, VmReboot, VmSuspend, VmResume, VmFastResume,
    VmS3suspend, VmS3resume, VmExportMetadata, VmImportMetadata, VmImportMetadataAsync, PciAdd, PciRemove, PciStat,
    PciList, PciDequarantine, VbdAdd, VbdPlug, VbdUnplug, VbdEject, VbdInsert, VbdStat, VbdList, VbdRemove, VusbAdd,
    VusbPlug, VusbUnplug, VusbStat, VusbList, VusbRemove, VifAdd, VifPlug, VifUnplug, VifMove, VifStat, VifList,
    VifRemove, VifSetCarrier, VifSetLockingMode, VifSetIpv4Configuration, VifSetIpv6Configuration, VifSetPvsProxy,
    VifSetTrunks, VgpuAdd, VgpuStat, VgpuList, VgpuRemove, UpdatesGet, UpdatesLastId, UpdatesInjectBarrier,
    UpdatesRemoveBarrier, UpdatesRefreshVm, DebugTrigger, DebugShutdown, ObserverCreate, ObserverDestroy,
    ObserverSetEnabled, ObserverSetAttributes, ObserverSetEndpoints, ObserverInit, ObserverSetTraceLogDir,
    ObserverSetExportInterval, ObserverSetExportChunkSize, ObserverSetMaxSpans, ObserverSetMaxTraces,
    ObserverSetMaxDepth, ObserverSetMaxFileSize, ObserverSetHostId, ObserverSetCompressTracingFiles,
}

fn check_replies(file: &str) {
    for record in records(file) {
        let name = record.name();
        // The vectors of an error stand for all methods that fail in this way.
        let everything = "* (every method with error type Errors.error)";
        let method = if record.subject() == everything { "VM.start" } else { record.subject() };
        let reply = reply_of(method);
        let again = |codec: Codec, body: &str| -> Result<Value, Value> {
            let decoded =
                codec.decode_reply(body.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
            let typed = match &decoded {
                Ok(value) => (reply.result)(value).map(Ok),
                Err(value) => (reply.error)(value).map(Err),
            };
            typed.unwrap_or_else(|| panic!("{name}: {decoded:?}"))
        };
        let (json_text, xml_text) = (record.text("json"), record.text("xml"));
        let outcome = again(Codec::Json, json_text);
        assert_eq!(shown(Codec::Json.encode_reply(outcome.clone())), json_text, "{name}");
        assert_eq!(shown(Codec::Xml.encode_reply(outcome.clone())), xml_text, "{name}");
        assert_eq!(again(Codec::Json, record.text("json_v2")), outcome, "{name}");
        if !record.flag("xml_lossy") {
            assert_eq!(again(Codec::Xml, xml_text), outcome, "{name}");
        }
    }
}

#[test]
fn results_of_all_methods() {
    check_replies("response_ok");
}

#[test]
fn errors_of_all_methods() {
    check_replies("response_error");
}

/// A decoded parameter in the notation of the vectors.
fn parameter(notation: &Json) -> Value {
    if notation == "Null" {
        return Value::Null;
    }
    let (kind, content) = notation.as_object().and_then(|object| object.iter().next()).expect("a parameter");
    match kind.as_str() {
        "String" => Value::string(content.as_str().expect("text")),
        "Int" => Value::Int(content.as_str().and_then(|digits| digits.parse().ok()).expect("an integer")),
        "Bool" => Value::Bool(content.as_bool().expect("a truth value")),
        "Float" => {
            let approx = notation["approx"].as_str().expect("a float");
            Value::Float(approx.parse().expect("a float"))
        }
        "Enum" => Value::Array(content.as_array().expect("items").iter().map(parameter).collect()),
        "Dict" => {
            let members = content.as_array().expect("members").iter();
            let member = |pair: &Json| (pair[0].as_str().expect("key").into(), parameter(&pair[1]));
            Value::Dict(members.map(member).collect())
        }
        _ => panic!("unknown notation {notation}"),
    }
}

/// The arguments of a call in the notation of the vectors: an option is an array of none or one.
fn arguments(call: &Call) -> Value {
    let methods = Call::methods();
    let method = methods.iter().find(|method| method.name == call.name()).expect("described");
    let Value::Dict(mut members) = call.to_params() else { panic!("parameters are named") };
    for argument in method.arguments.iter().filter(|argument| argument.optional) {
        match members.iter_mut().find(|(name, _)| name == argument.name) {
            Some((_, value)) => *value = Value::Array(vec![value.clone()]),
            None => members.push((argument.name.into(), Value::Array(Vec::new()))),
        }
    }
    sorted(&Value::Dict(members))
}

#[test]
fn what_the_dispatcher_accepts() {
    let mut checked = 0;
    for record in records("decode_call") {
        for case in record.json().as_array().expect("cases") {
            check_dispatch(case);
            checked += 1;
        }
    }
    assert_eq!(checked, 109);
}

fn check_dispatch(case: &Json) {
    let name = format!("{} {}", case["encoding"], case["case"]);
    let codec = if case["encoding"] == "xml" { Codec::Xml } else { Codec::Json };
    let body = case["body"].as_str().expect("text").as_bytes();
    let outcome = case["outcome"].as_str().expect("text");
    let (method, params) = match (codec.decode_request(body), outcome) {
        (Err(_), "parse-exception") => return,
        (Ok(request), outcome) if outcome != "parse-exception" => request,
        (decoded, _) => panic!("{name}: {decoded:?} is not {outcome}"),
    };
    let expected: Vec<_> = case["params"].as_array().expect("params").iter().map(parameter).collect();
    assert_eq!(params, expected, "{name}");
    assert_eq!(method.as_str(), case["method"].as_str(), "{name}");
    match (Call::decode(&method.to_string(), &params), outcome) {
        (Ok(call), "success") => {
            assert_eq!(arguments(&call), from_json(&case["decoded_args"]), "{name}");
            let result = reply_of(call.name());
            let response = case["response"].as_str().expect("text");
            let decoded = codec.decode_reply(response.as_bytes()).expect("a reply").expect("a result");
            assert!((result.result)(&decoded).is_some(), "{name}: {response}");
        }
        (Err(CallError::UnknownMethod(unknown)), "server-exception") => {
            assert_eq!(Some(unknown.as_str()), case["method"].as_str(), "{name}");
        }
        // The text is the reference's, too.
        (Err(error @ CallError::Arguments(_)), "failure") => {
            let reply = codec.encode_reply(Err(Error::from(error).to_value()));
            assert_eq!(shown(reply), case["response"].as_str().expect("text"), "{name}");
        }
        (decoded, _) => panic!("{name}: {decoded:?} is not {outcome}"),
    }
}

#[test]
fn the_description_is_the_contracts() {
    let path = format!("{}/vectors/schema.json", env!("CARGO_MANIFEST_DIR"));
    let schema: Json = serde_json::from_str(&std::fs::read_to_string(path).expect("schema")).expect("JSON");
    let ours = xenopsd::api::schema::EXTENSIONS;
    let methods: Vec<_> = Call::methods().into_iter().filter(|m| !ours.contains(&m.name)).collect();
    let expected = schema["methods"].as_array().expect("methods");
    assert_eq!(methods.len(), expected.len());
    for (method, expected) in methods.iter().zip(expected) {
        assert_eq!(expected["name"], method.name);
        assert_eq!(expected["result"], method.result, "{}", method.name);
        assert_eq!(expected["error"], method.error, "{}", method.name);
        let params = expected["params"].as_array().expect("params");
        assert_eq!(params[0]["name"], method.debug_info, "{}", method.name);
        assert_eq!(params[0]["type"], "string", "{}", method.name);
        assert_eq!(params.len() - 1, method.arguments.len(), "{}", method.name);
        for (argument, expected) in method.arguments.iter().zip(&params[1..]) {
            assert_eq!(expected["name"], argument.name, "{}", method.name);
            assert_eq!(expected["type"], argument.ty, "{} {}", method.name, argument.name);
            assert_eq!(expected["omitted_when_none"], argument.optional, "{} {}", method.name, argument.name);
        }
    }
}

#[test]
fn the_described_types_are_the_contracts() {
    use xenopsd::api::schema::{EXTENSION_TYPES, Shape, types};
    let path = format!("{}/vectors/schema.json", env!("CARGO_MANIFEST_DIR"));
    let schema: Json = serde_json::from_str(&std::fs::read_to_string(path).expect("schema")).expect("JSON");
    let expected: Vec<_> = schema["types"].as_array().expect("types").iter().collect();
    let expected: Vec<_> = expected.into_iter().filter(|ty| ty["kind"] != "alias").collect();
    let types: Vec<_> = types().into_iter().filter(|ty| !ty.name.starts_with(EXTENSION_TYPES)).collect();
    for ty in &types {
        assert!(
            expected.iter().any(|expected| expected["name"] == ty.name),
            "{} is not in the contract",
            ty.name
        );
    }
    assert_eq!(types.len(), expected.len());
    for expected in expected {
        let ty = types.iter().find(|ty| expected["name"] == ty.name);
        let ty = ty.unwrap_or_else(|| panic!("{} is missing", expected["name"]));
        match &ty.shape {
            Shape::Record(fields) => {
                let expected = expected["fields"].as_array().expect("fields");
                assert_eq!(fields.len(), expected.len(), "{}", ty.name);
                for (field, expected) in fields.iter().zip(expected) {
                    let name = format!("{}.{}", ty.name, field.name);
                    assert_eq!(expected["name"], field.name, "{name}");
                    assert_eq!(expected["type"], field.ty, "{name}");
                    let default = field.default.as_ref().map(sorted);
                    assert_eq!(default, expected.get("default").map(from_json), "{name}");
                }
            }
            Shape::Variant { tags, otherwise } => {
                assert_eq!(expected["default"].as_str(), *otherwise, "{}", ty.name);
                let expected = expected["tags"].as_array().expect("tags");
                assert_eq!(tags.len(), expected.len(), "{}", ty.name);
                for (tag, expected) in tags.iter().zip(expected) {
                    assert_eq!(expected["tag"], tag.tag, "{}", ty.name);
                    assert_eq!(expected["contents"], tag.contents, "{} {}", ty.name, tag.tag);
                }
            }
        }
    }
    // Nothing above would notice an encoder that prints another default than the described one.
    assert_eq!(
        json::print_lossy(&xenopsd::api::Vbd::default().to_value()),
        "{\"can_attach_early\":false,\"persistent\":true,\"extra_private_keys\":{},\"extra_backend_keys\":{},\
         \"unpluggable\":true,\"ty\":\"Disk\",\"mode\":\"ReadWrite\",\"id\":[\"\",\"\"]}"
    );
}
