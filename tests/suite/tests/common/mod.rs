//! Reading the vectors, and comparing trees.

#![allow(dead_code, reason = "each test file uses another part of it")]

use serde_json::Value as Json;
use xenopsd::api::{Text, Value};

/// One record of a vectors file.
pub(crate) struct Record(Json);

impl Record {
    /// The member as text; records hold texts only as strings.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_else(|| panic!("no text {key} in {}", self.name()))
    }

    /// The type or method, without what a sample adds to it.
    pub(crate) fn subject(&self) -> &str {
        self.text("type_or_method")
    }

    pub(crate) fn json(&self) -> &Json {
        &self.0["json"]
    }

    pub(crate) fn flag(&self, key: &str) -> bool {
        self.0[key].as_bool().unwrap_or(false)
    }

    /// For messages.
    pub(crate) fn name(&self) -> String {
        format!("{} {} {}", self.0["kind"], self.0["type_or_method"], self.0["constructor"])
    }
}

/// All records of `vectors/{file}.jsonl`.
pub(crate) fn records(file: &str) -> Vec<Record> {
    let path = format!("{}/vectors/{file}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let records: Vec<_> =
        text.lines().map(|line| Record(serde_json::from_str(line).expect("a record is JSON"))).collect();
    assert!(!records.is_empty(), "{path} is empty");
    records
}

/// A tree of the independent JSON library as a value, dictionaries in the order of their keys.
pub(crate) fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(truth) => Value::Bool(*truth),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::Float(number.as_f64().expect("a number")),
        },
        Json::String(text) => Value::string(text.as_str()),
        Json::Array(items) => Value::Array(items.iter().map(from_json).collect()),
        Json::Object(members) => {
            let members = members.iter().map(|(key, item)| (Text::from(key.as_str()), from_json(item)));
            sorted(&Value::Dict(members.collect()))
        }
    }
}

/// The same value with every dictionary in the order of its keys.
pub(crate) fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        Value::Dict(members) => {
            let mut members: Vec<_> = members.iter().map(|(key, item)| (key.clone(), sorted(item))).collect();
            members.sort_by(|(a, _), (b, _)| a.cmp(b));
            Value::Dict(members)
        }
        other => other.clone(),
    }
}
