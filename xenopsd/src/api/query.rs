//! Who answers: the calls without a noun.

use super::errors::Error;

record! {
    /// Identity of the daemon that answered.
    pub struct Query as "Query.t" derive(Eq) {
        /// Service name; `xenops` for every daemon that speaks this contract.
        name: String,
        /// Who made it.
        vendor: String,
        /// Its version.
        version: String,
        /// Optional features it offers.
        features: Vec<String>,
        /// Fresh for every run of the daemon: a peer that sees it change knows that the daemon restarted, and a
        /// migration whose destination has the same one is to the same host.
        instance_id: String,
    }
}

methods! {
    debug_info as "debug_info", errors Error;

    /// Asks the daemon who it is.
    "query" QueryService -> Query {
        /// Always null, and required.
        unit: (),
    }

    /// A JSON text with the state of queues, workers, tasks and updates, for people.
    "get_diagnostics" GetDiagnostics -> String {
        /// Always null, and required.
        unit: (),
    }
}
