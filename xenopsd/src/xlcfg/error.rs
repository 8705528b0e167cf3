//! What can be wrong with a configuration, and what is worth a remark.

use super::syntax::SyntaxError;

/// Longest value repeated in a message, in characters.
const SHOWN_VALUE_MAX: usize = 80;

/// A mistake that makes the configuration unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file is not in the format.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// A key that has to be there.
    #[error("`{key}` is missing: {add}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What to add.
        add: &'static str,
    },
    /// A value that cannot be used.
    #[error("line {line}: `{key}`: {fault}")]
    Value {
        /// Line of the value.
        line: usize,
        /// The key.
        key: String,
        /// What is wrong with it.
        fault: Fault,
    },
    /// Two devices in the same place.
    #[error("line {line}: `{key}`: {found} is already used on line {first}: give each device its own")]
    Duplicate {
        /// Line of the second.
        line: usize,
        /// The key.
        key: String,
        /// What they share.
        found: String,
        /// Line of the first.
        first: usize,
    },
}

/// All mistakes of a configuration, in the order they were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl std::error::Error for ConfigErrors {}

/// One per line.
impl std::fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

/// Something that is accepted and does not do what the author may think. Displays as one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// A key that is no key of the format.
    #[error("line {line}: unknown key `{key}` is ignored{}", hint(suggestion.as_deref()))]
    UnknownKey {
        /// Its line.
        line: usize,
        /// The key.
        key: String,
        /// A known key that looks like it.
        suggestion: Option<String>,
    },
    /// A key of `xl` that has no effect here.
    #[error("line {line}: `{key}` is not supported and is ignored")]
    UnsupportedKey {
        /// Its line.
        line: usize,
        /// The key.
        key: String,
    },
    /// A key that is set again.
    #[error("line {line}: `{key}` replaces the value from line {first}")]
    Repeated {
        /// Line of the later setting.
        line: usize,
        /// The key.
        key: String,
        /// Line of the earlier one.
        first: usize,
    },
    /// A value, or part of one, that has no effect.
    #[error("line {line}: `{key}`: {} is ignored: {why}", shown(found))]
    Ignored {
        /// Its line.
        line: usize,
        /// The key.
        key: String,
        /// The value or the part.
        found: String,
        /// The reason.
        why: String,
    },
}

fn hint(suggestion: Option<&str>) -> String {
    suggestion.map(|key| format!("; did you mean `{key}`?")).unwrap_or_default()
}

fn shown(value: &str) -> String {
    let mut short: String = value.chars().take(SHOWN_VALUE_MAX).collect();
    if short.len() < value.len() {
        short.push('…');
    }
    format!("{short:?}")
}

/// What is wrong inside one value; in a file, the reader adds line and key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Means nothing.
    #[error("{} is not accepted: {accepted}", shown(found))]
    Bad {
        /// The part.
        found: String,
        /// What would be accepted.
        accepted: String,
    },
    /// Means something this toolstack does not do.
    #[error("{} is not supported: {instead}", shown(found))]
    Unsupported {
        /// The part.
        found: String,
        /// What to do.
        instead: String,
    },
}

impl Fault {
    pub(super) fn bad(found: impl Into<String>, accepted: impl Into<String>) -> Self {
        Self::Bad { found: found.into(), accepted: accepted.into() }
    }

    pub(super) fn unsupported(found: impl Into<String>, instead: impl Into<String>) -> Self {
        Self::Unsupported { found: found.into(), instead: instead.into() }
    }

    pub(super) fn at(self, line: usize, key: &str) -> ConfigError {
        ConfigError::Value { line, key: key.to_owned(), fault: self }
    }
}

/// A part of a value that has no effect, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// The part.
    pub found: String,
    /// The reason.
    pub why: &'static str,
}
