//! What clients ask of tracing. It is kept and can be looked at (`get_diagnostics`), and validated as if it were used;
//! spans are not exported: this daemon's trace is its log, where each line of a call or an operation has the client's
//! own words and trace context.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::api::value::{ToValue, Value};
use crate::api::{Dict, Error, ObserverCreate};
use crate::rpc::json;

/// Most observers. A management layer makes a few.
const MAX_OBSERVERS: usize = 64;

/// Longest setting, in bytes: a path, or a host's id.
const MAX_SETTING: usize = 4096;

/// One observer.
#[derive(Debug, Clone, PartialEq)]
pub struct Observer {
    /// Its name for people.
    pub name_label: String,
    /// What would be added to every span.
    pub attributes: Dict<String>,
    /// Where spans would be sent.
    pub endpoints: Vec<String>,
    /// Whether it is enabled.
    pub enabled: bool,
}

#[derive(Default)]
struct Inner {
    observers: BTreeMap<String, Observer>,
    settings: BTreeMap<&'static str, Value>,
}

/// All observers, and the settings they share.
#[derive(Default)]
pub struct Observers {
    inner: Mutex<Inner>,
}

impl Observers {
    /// A new observer, or another definition of one.
    ///
    /// # Errors
    /// `Internal_error` when there are too many.
    pub fn create(&self, wanted: &ObserverCreate) -> Result<(), Error> {
        let mut inner = self.lock();
        if inner.observers.len() >= MAX_OBSERVERS && !inner.observers.contains_key(&wanted.uuid) {
            return Err(Error::internal(format!("there are {MAX_OBSERVERS} observers; destroy some")));
        }
        let observer = Observer {
            name_label: wanted.name_label.clone(),
            attributes: wanted.dict.clone(),
            endpoints: wanted.endpoints.clone(),
            enabled: wanted.bool,
        };
        inner.observers.insert(wanted.uuid.clone(), observer);
        Ok(())
    }

    /// Forgets an observer. One that is not there is not an error.
    pub fn destroy(&self, uuid: &str) {
        self.lock().observers.remove(uuid);
    }

    /// Changes an observer.
    ///
    /// # Errors
    /// `Internal_error` when there is no such observer.
    pub fn change(&self, uuid: &str, change: impl FnOnce(&mut Observer)) -> Result<(), Error> {
        let mut inner = self.lock();
        let observer = inner.observers.get_mut(uuid);
        change(observer.ok_or_else(|| Error::internal(format!("there is no observer {uuid:?}")))?);
        Ok(())
    }

    /// Keeps a setting that observers share.
    ///
    /// # Errors
    /// `Internal_error` for a text that is too long.
    pub fn set(&self, name: &'static str, value: &impl ToValue) -> Result<(), Error> {
        let value = value.to_value();
        if matches!(&value, Value::String(text) if text.as_bytes().len() > MAX_SETTING) {
            return Err(Error::internal(format!("{name} is longer than {MAX_SETTING} bytes")));
        }
        self.lock().settings.insert(name, value);
        Ok(())
    }

    /// As [`Observers::set`], of a number that counts or measures something.
    ///
    /// # Errors
    /// `Internal_error` for one that is not positive.
    pub fn set_positive<T: ToValue + PartialOrd + Default>(
        &self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        if *value > T::default() {
            return self.set(name, value);
        }
        Err(Error::internal(format!("{name} must be above 0, not {}", json::print_lossy(&value.to_value()))))
    }

    /// For diagnostics.
    pub fn describe(&self) -> Value {
        let inner = self.lock();
        let observer = |(uuid, observer): (&String, &Observer)| {
            let members = vec![
                ("name_label".into(), observer.name_label.to_value()),
                ("attributes".into(), observer.attributes.to_value()),
                ("endpoints".into(), observer.endpoints.to_value()),
                ("enabled".into(), observer.enabled.to_value()),
            ];
            (uuid.clone().into(), Value::Dict(members))
        };
        let settings = inner.settings.iter().map(|(name, value)| ((*name).into(), value.clone()));
        Value::Dict(vec![
            ("observers".into(), Value::Dict(inner.observers.iter().map(observer).collect())),
            ("settings".into(), Value::Dict(settings.collect())),
        ])
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's free text in its two parts: words for the log, and the trace they belong to. The latter is a line of its
/// own after the first, a W3C `traceparent` or a JSON object with one; anything else is all words.
pub fn debug_info(text: &str) -> (&str, Option<String>) {
    match text.split_once('\n') {
        Some((log, context)) if !context.contains('\n') => (log, Some(traceparent(context))),
        _ => (text, None),
    }
}

fn traceparent(context: &str) -> String {
    let parsed = json::parse(context.as_bytes()).ok();
    match parsed.as_ref().and_then(|value| value.get("traceparent")) {
        Some(Value::String(parent)) => parent.to_string(),
        _ => context.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn observer(uuid: &str) -> ObserverCreate {
        ObserverCreate {
            debug_info: "d".to_owned(),
            uuid: uuid.to_owned(),
            name_label: "n".to_owned(),
            dict: Dict(vec![("a".to_owned(), "b".to_owned())]),
            endpoints: vec!["bugtool".to_owned()],
            bool: false,
        }
    }

    #[test]
    fn observers_are_kept_and_changed_and_forgotten() {
        let all = Observers::default();
        all.create(&observer("u")).unwrap();
        all.change("u", |o| o.enabled = true).unwrap();
        assert!(json::print_lossy(&all.describe()).contains(r#""enabled":true"#));
        all.destroy("u");
        all.destroy("u");
        assert!(matches!(all.change("u", |o| o.enabled = true), Err(Error::InternalError(_))));
    }

    #[test]
    fn they_are_bounded_and_settings_are_checked() {
        let all = Observers::default();
        for n in 0..MAX_OBSERVERS {
            all.create(&observer(&n.to_string())).unwrap();
        }
        assert!(all.create(&observer("more")).is_err());
        all.create(&observer("1")).unwrap();
        assert!(all.set_positive("export_interval", &0.0).is_err());
        assert!(all.set_positive("export_interval", &f64::NAN).is_err());
        assert!(all.set_positive("max_spans", &-1_isize).is_err());
        all.set_positive("max_spans", &10_isize).unwrap();
        assert!(json::print_lossy(&all.describe()).contains(r#""max_spans":10"#));
    }

    #[test]
    fn free_text_may_carry_a_trace() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(debug_info("VM.start R:1"), ("VM.start R:1", None));
        assert_eq!(debug_info(&format!("a\n{parent}")), ("a", Some(parent.to_owned())));
        let as_json = format!("a\n{{\"traceparent\":\"{parent}\",\"baggage\":\"x\"}}");
        assert_eq!(debug_info(&as_json), ("a", Some(parent.to_owned())));
        assert_eq!(debug_info("a\nb\nc"), ("a\nb\nc", None));
    }

    proptest! {
        #[test]
        fn free_text_never_panics(text in "\\PC*\n?[{}\":a-z\n]*") {
            let _ = debug_info(&text);
        }
    }
}
