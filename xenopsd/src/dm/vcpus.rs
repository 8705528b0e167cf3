//! Processors that a guest gets while it runs: QEMU's list of places for them, and what it is told to fill one.
//!
//! The guest's ACPI tables have a place for each; QEMU tells the guest of a new one with an ACPI event. There is no taking
//! one away: what the guest does with those it has is its own affair.

use super::qmp::QmpError;
use crate::api::value::{Text, Value};

/// QEMU's name for what is already there: a place that has it is taken.
const TAKEN: &str = "qom-path";

/// The arguments of `device_add` for each of the first `wanted` places that is free, from the answer to
/// `query-hotpluggable-cpus`. Processor N gets the id `cpu-N`, as libxl names it.
///
/// # Errors
/// [`QmpError::Malformed`] when the answer is no such list or has too few places.
pub(super) fn missing(places: &Value, wanted: usize) -> Result<Vec<Value>, QmpError> {
    let malformed = |what: &str| QmpError::Malformed(format!("{what} in the list of processors"));
    let Value::Array(places) = places else { return Err(malformed("no list")) };
    if places.len() < wanted {
        return Err(malformed(&format!("{} places and not {wanted}", places.len())));
    }
    // It begins with the last one.
    let first = places.iter().rev().take(wanted).enumerate();
    first
        .filter(|(_, place)| place.get(TAKEN).is_none())
        .map(|(index, place)| {
            let (Some(driver @ Value::String(_)), Some(Value::Dict(props))) =
                (place.get("type"), place.get("props"))
            else {
                return Err(malformed("a place without type or properties"));
            };
            let mut arguments: Vec<(Text, Value)> =
                vec![("driver".into(), driver.clone()), ("id".into(), Value::string(format!("cpu-{index}")))];
            let numbers = props.iter().filter(|(_, value)| matches!(value, Value::Int(_)));
            arguments.extend(numbers.cloned());
            Ok(Value::Dict(arguments))
        })
        .collect()
}

/// How many processors there are, from the same answer.
///
/// # Errors
/// [`QmpError::Malformed`] when it is no list.
pub(super) fn present(places: &Value) -> Result<usize, QmpError> {
    let Value::Array(places) = places else {
        return Err(QmpError::Malformed("no list of processors".to_owned()));
    };
    Ok(places.iter().filter(|place| place.get(TAKEN).is_some()).count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::json;

    fn parse(text: &str) -> Value {
        json::parse(text.as_bytes()).expect("JSON")
    }

    // As QEMU 7.2 answers for `-smp 1,maxcpus=3`.
    const PLACES: &str = r#"[
        {"props": {"core-id": 0, "thread-id": 0, "socket-id": 2}, "vcpus-count": 1, "type": "qemu32-i386-cpu"},
        {"props": {"core-id": 0, "thread-id": 0, "socket-id": 1}, "vcpus-count": 1, "type": "qemu32-i386-cpu"},
        {"props": {"core-id": 0, "thread-id": 0, "socket-id": 0}, "vcpus-count": 1, "type": "qemu32-i386-cpu",
         "qom-path": "/machine/unattached/device[0]"}]"#;

    #[test]
    fn free_places_are_filled_in_order() {
        let places = parse(PLACES);
        assert_eq!(missing(&places, 1).expect("a list"), []);
        let second =
            r#"{"driver": "qemu32-i386-cpu", "id": "cpu-1", "core-id": 0, "thread-id": 0, "socket-id": 1}"#;
        assert_eq!(missing(&places, 2).expect("a list"), [parse(second)]);
        let ids: Vec<_> = missing(&places, 3).expect("a list").iter().map(|a| a.get("id").cloned()).collect();
        assert_eq!(ids, [Some(Value::string("cpu-1")), Some(Value::string("cpu-2"))]);
    }

    #[test]
    fn those_that_are_there_are_counted() {
        assert_eq!(present(&parse(PLACES)).expect("a list"), 1);
        assert!(present(&parse("{}")).is_err());
    }

    #[test]
    fn what_is_no_such_list_is_refused() {
        for (text, wanted) in [("{}", 0), (PLACES, 4), ("[{}]", 1), (r#"[{"type": "x", "props": 1}]"#, 1)] {
            assert!(matches!(missing(&parse(text), wanted), Err(QmpError::Malformed(_))), "{text}");
        }
        // Only numbers go back: no property of another kind, whatever is in the answer.
        let odd = parse(r#"[{"type": "x", "props": {"socket-id": 0, "path": "/etc"}}]"#);
        assert_eq!(missing(&odd, 1).expect("a list")[0].get("path"), None);
    }
}
