//! Tracing control. These methods call their first argument `dbg`, name some arguments after their type, and have
//! a smaller set of errors of their own.
//!
//! Observers and settings are kept while the daemon runs and shown by `get_diagnostics`. Nothing is exported: the trace is
//! the daemon's log, whose lines have the caller's words and its trace context.

use super::errors::Error;
use super::value::{Dict, Int};

variant! {
    /// Why an `Observer` call failed.
    pub enum ObserverError as "Observer.Errors.error" derive(Eq) {
        /// Anything; the payload says what.
        InternalError as "Internal_error" (String),
        /// The daemon does not do that.
        Unimplemented as "Unimplemented" (String),
        /// An error this version of the contract has no name for.
        UnknownError as "Unknown_error",
    }
    otherwise UnknownError
}

impl From<Error> for ObserverError {
    fn from(error: Error) -> Self {
        match error {
            Error::Unimplemented(what) => Self::Unimplemented(what),
            Error::UnknownError => Self::UnknownError,
            Error::InternalError(text) => Self::InternalError(text),
            other => Self::InternalError(other.to_string()),
        }
    }
}

impl From<ObserverError> for Error {
    fn from(error: ObserverError) -> Self {
        match error {
            ObserverError::InternalError(text) => Self::InternalError(text),
            ObserverError::Unimplemented(what) => Self::Unimplemented(what),
            ObserverError::UnknownError => Self::UnknownError,
        }
    }
}

methods! {
    debug_info as "dbg", errors ObserverError;

    /// Creates a tracing observer. It is kept, and shown by `get_diagnostics`; this daemon exports no spans: its log has
    /// the caller's words and trace context on every line of an operation.
    "Observer.create" ObserverCreate -> () {
        /// The observer.
        uuid: String,
        /// Its name for people.
        name_label: String,
        /// Attributes added to every span.
        dict: Dict<String>,
        /// Where spans are sent: `bugtool` or URLs.
        endpoints: Vec<String>,
        /// Whether it is enabled.
        bool: bool,
    }

    /// Destroys an observer.
    "Observer.destroy" ObserverDestroy -> () {
        /// The observer.
        uuid: String,
    }

    /// Enables or disables an observer.
    "Observer.set_enabled" ObserverSetEnabled -> () {
        /// The observer.
        uuid: String,
        /// Whether it is enabled.
        bool: bool,
    }

    /// Replaces an observer's attributes.
    "Observer.set_attributes" ObserverSetAttributes -> () {
        /// The observer.
        uuid: String,
        /// Attributes added to every span.
        dict: Dict<String>,
    }

    /// Replaces an observer's endpoints.
    "Observer.set_endpoints" ObserverSetEndpoints -> () {
        /// The observer.
        uuid: String,
        /// Where spans are sent.
        endpoints: Vec<String>,
    }

    /// Starts the exporter; there is none to start.
    "Observer.init" ObserverInit -> () {}

    /// Where span files are written.
    "Observer.set_trace_log_dir" ObserverSetTraceLogDir -> () {
        /// A directory.
        string: String,
    }

    /// How often spans are exported.
    "Observer.set_export_interval" ObserverSetExportInterval -> () {
        /// Seconds.
        float: f64,
    }

    /// How many spans are sent at once.
    "Observer.set_export_chunk_size" ObserverSetExportChunkSize -> () {
        /// Spans.
        int: Int,
    }

    /// How many spans one trace may have.
    "Observer.set_max_spans" ObserverSetMaxSpans -> () {
        /// Spans.
        int: Int,
    }

    /// How many traces are kept.
    "Observer.set_max_traces" ObserverSetMaxTraces -> () {
        /// Traces.
        int: Int,
    }

    /// How deep spans may nest.
    "Observer.set_max_depth" ObserverSetMaxDepth -> () {
        /// Levels.
        int: Int,
    }

    /// How large a span file may grow.
    "Observer.set_max_file_size" ObserverSetMaxFileSize -> () {
        /// Bytes.
        int: Int,
    }

    /// The host's id, an attribute of every span.
    "Observer.set_host_id" ObserverSetHostId -> () {
        /// The id.
        string: String,
    }

    /// Whether span files are compressed.
    "Observer.set_compress_tracing_files" ObserverSetCompressTracingFiles -> () {
        /// Whether they are.
        bool: bool,
    }
}
