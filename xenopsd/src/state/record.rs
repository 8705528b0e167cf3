//! How a record becomes a file and back: the contract's JSON with a format number, and what this daemon does not know
//! left as it was.
//!
//! ```text
//!   read    file ──► JSON value ──► typed record
//!   write   typed record ──► JSON value ──► + what the old file has and the record's type has not ──► file
//! ```

use std::path::Path;

use crate::api::value::{FromValue, Text, ToValue, Value};
use crate::rpc::json;

/// The member with the format number. Readers that do not know it ignore it, as they do any unknown member.
const FORMAT_KEY: &str = "xenopsd_format";

/// The format this daemon writes. To be raised when a member's meaning changes; new members need no new number.
pub const FORMAT: i64 = 1;

/// A file that is no record of the kind it should be.
#[derive(Debug, thiserror::Error)]
#[error("record {path} cannot be read: {why}{}", newer(*.format))]
pub struct RecordError {
    path: String,
    why: String,
    format: i64,
}

fn newer(format: i64) -> String {
    if format > FORMAT {
        format!(" (format {format}, written by a newer version; this one writes {FORMAT})")
    } else {
        String::new()
    }
}

/// Reads a record.
///
/// # Errors
/// [`RecordError`] with the file's name and what is wrong with it.
pub fn decode<T: FromValue>(path: &Path, bytes: &[u8]) -> Result<T, RecordError> {
    let broken = |why: String, format| RecordError { path: path.display().to_string(), why, format };
    let value = json::parse(bytes).map_err(|error| broken(error.to_string(), FORMAT))?;
    T::from_value(&value).map_err(|error| broken(error.to_string(), format_of(&value)))
}

/// The text of a record that replaces `old`. What `old` has and `T` has no name for is kept.
pub fn encode<T: ToValue + FromValue>(record: &T, old: Option<&[u8]>) -> Vec<u8> {
    let mut new = record.to_value();
    let mut format = FORMAT;
    if let Some(mut value) = old.and_then(|bytes| json::parse(bytes).ok()) {
        format = format.max(format_of(&value));
        if let Value::Dict(members) = &mut value {
            members.retain(|(key, _)| key != FORMAT_KEY);
        }
        // One that cannot be read is replaced: this is how it is repaired.
        if let Ok(known) = T::from_value(&value) {
            carry(&value, &known.to_value(), &mut new);
        }
    }
    if let Value::Dict(members) = &mut new {
        members.push((Text::from(FORMAT_KEY), Value::Int(format)));
    }
    json::print(&new)
}

fn format_of(value: &Value) -> i64 {
    match value.get(FORMAT_KEY) {
        Some(Value::Int(format)) => *format,
        _ => FORMAT,
    }
}

/// Brings into `new` what `old` has beyond `known`, which is `old` as far as it is understood. Where the understood
/// part has not changed, the old value stays whole.
fn carry(old: &Value, known: &Value, new: &mut Value) {
    if known == new {
        old.clone_into(new);
        return;
    }
    match (old, known, new) {
        (Value::Dict(old), Value::Dict(known), Value::Dict(new)) => {
            for (key, value) in old {
                match (find(known, key), new.iter().position(|(name, _)| same(name, key))) {
                    (None, None) => new.push((key.clone(), value.clone())),
                    (Some(known), Some(at)) => carry(value, known, &mut new[at].1),
                    // Known and taken out, or unknown then and set now.
                    (Some(_), None) | (None, Some(_)) => {}
                }
            }
        }
        (Value::Array(old), Value::Array(known), Value::Array(new))
            if old.len() == known.len() && known.len() == new.len() =>
        {
            // A variant's payload belongs to its tag; in a list, only unchanged members are surely the same ones.
            let variant =
                matches!(&known[..], [Value::String(tag), _] if new[0] == Value::String(tag.clone()));
            for ((old, known), new) in old.iter().zip(known).zip(new) {
                if variant || known == new {
                    carry(old, known, new);
                }
            }
        }
        _ => {}
    }
}

fn find<'a>(members: &'a [(Text, Value)], key: &Text) -> Option<&'a Value> {
    members.iter().find(|(name, _)| same(name, key)).map(|(_, value)| value)
}

/// Members of records are named without regard to case.
fn same(a: &Text, b: &Text) -> bool {
    a.as_bytes().eq_ignore_ascii_case(b.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{BuilderInfo, HvmInfo, PvInfo, Vgpu, Vm};
    use crate::test_vm;
    use proptest::prelude::*;

    const ID: &str = "11111111-2222-3333-4444-555555555555";

    fn value(text: &str) -> Value {
        json::parse(text.as_bytes()).unwrap()
    }

    /// The record of a VM as a newer daemon may have written it.
    fn newer(change: impl FnOnce(&mut String)) -> Vec<u8> {
        let mut text = String::from_utf8(encode(&test_vm(ID, "demo"), None)).unwrap();
        change(&mut text);
        text.into_bytes()
    }

    fn read(bytes: &[u8]) -> Result<Vm, RecordError> {
        decode(Path::new("/db/VM/x/config"), bytes)
    }

    #[test]
    fn unknown_members_survive_a_rewrite_at_the_top_and_below() {
        let old = newer(|text| {
            *text = text
                .replacen('{', r#"{"colour":"blue","#, 1)
                .replace(r#""cmdline""#, r#""fancy":[1,{"x":2}],"cmdline""#)
                .replace(r#""xenopsd_format":1"#, r#""xenopsd_format":7"#);
        });
        let mut vm = read(&old).unwrap();
        vm.name = "renamed".to_owned();
        let BuilderInfo::Pv(pv) = &mut vm.ty else { panic!() };
        let crate::api::Boot::Direct(boot) = &mut pv.boot else { panic!() };
        boot.cmdline = "quiet".to_owned();
        let new = encode(&vm, Some(&old));
        assert_eq!(read(&new).unwrap(), vm);
        let text = String::from_utf8(new).unwrap();
        for kept in [r#""colour":"blue""#, r#""fancy":[1,{"x":2}]"#, r#""xenopsd_format":7"#] {
            assert!(text.contains(kept), "{kept} in {text}");
        }
    }

    #[test]
    fn what_was_known_and_is_taken_out_stays_out() {
        let mut vm = test_vm(ID, "demo");
        vm.generation_id = Some("1:2".to_owned());
        let old = encode(&vm, None);
        vm.generation_id = None;
        vm.xsdata.0.clear();
        let new = encode(&vm, Some(&old));
        assert_eq!(read(&new).unwrap(), vm);
        assert!(!String::from_utf8(new).unwrap().contains("generation"));
    }

    #[test]
    fn a_payload_s_unknown_members_go_with_its_tag() {
        let mut vm = test_vm(ID, "demo");
        vm.ty = BuilderInfo::Hvm(HvmInfo::default());
        let old = String::from_utf8(encode(&vm, None)).unwrap().replace(r#""hap""#, r#""odd":1,"hap""#);
        let BuilderInfo::Pv(pv) = test_vm(ID, "demo").ty else { panic!() };
        vm.ty = BuilderInfo::Pvh(PvInfo { framebuffer: true, ..pv });
        assert!(!String::from_utf8(encode(&vm, Some(old.as_bytes()))).unwrap().contains("odd"));
    }

    #[test]
    fn a_variant_of_tomorrow_is_kept_until_it_is_replaced() {
        let old = br#"{"id":["v","0"],"position":0,"implementation":["Holographic",{"depth":3}]}"#;
        let vgpu: Vgpu = decode(Path::new("x"), old).unwrap();
        let moved = Vgpu { position: 2, ..vgpu };
        let text = String::from_utf8(encode(&moved, Some(old))).unwrap();
        assert!(
            text.contains(r#"["Holographic",{"depth":3}]"#) && text.contains(r#""position":2"#),
            "{text}"
        );
    }

    #[test]
    fn list_members_that_changed_take_nothing_from_their_predecessors() {
        let mut new = value(r#"[{"a":1},{"a":3}]"#);
        carry(&value(r#"[{"a":1,"x":1},{"a":2,"x":2}]"#), &value(r#"[{"a":1},{"a":2}]"#), &mut new);
        assert_eq!(new, value(r#"[{"a":1,"x":1},{"a":3}]"#));
    }

    #[test]
    fn errors_name_the_file_and_a_newer_format() {
        let text = read(b"{\"id\":").unwrap_err().to_string();
        assert!(text.contains("/db/VM/x/config") && !text.contains("newer"), "{text}");
        let text = read(br#"{"xenopsd_format":2,"id":5}"#).unwrap_err().to_string();
        assert!(text.contains("format 2") && text.contains("newer"), "{text}");
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
            let _ = encode(&test_vm(ID, "demo"), Some(&bytes));
        }

        #[test]
        fn a_damaged_record_is_refused_or_read_but_never_panics(
            at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = encode(&test_vm(ID, "demo"), None);
            let length = bytes.len();
            bytes[at.index(length)] = byte;
            bytes.truncate(cut.index(length));
            let _ = read(&bytes);
            let vm = test_vm(ID, "demo");
            // Whatever was there, what is written reads back.
            prop_assert_eq!(read(&encode(&vm, Some(&bytes))).unwrap(), vm);
        }

        #[test]
        fn any_value_is_carried_without_loss(old in json::tests::any_value()) {
            let mut new = old.clone();
            carry(&old, &old, &mut new);
            prop_assert_eq!(json::print(&new), json::print(&old));
        }
    }
}
