//! The daemon's entry: settings, logging, run.

use std::io::Write as _;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use xenopsd::config::{Config, ConfigError, Loaded};
use xenopsd::daemon;

fn main() -> ExitCode {
    // The daemon starts itself again to read a guest's disk.
    guest_installer::main_if_asked().unwrap_or_else(serve)
}

fn serve() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let Loaded { config, unknown } = match Config::load(&args) {
        Ok(loaded) => loaded,
        Err(ConfigError::Usage(usage)) => usage.exit(),
        Err(error) => return refuse(&error),
    };
    if let Some(what) = config.print {
        return match what.text().and_then(|text| std::io::stdout().write_all(&text)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => refuse(&error),
        };
    }
    let filter = match EnvFilter::try_new(&config.log_level) {
        Ok(filter) => filter,
        Err(error) => return refuse(&format!("log-level {:?}: {error}", config.log_level)),
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if config.log_json {
        log.json().init();
    } else {
        log.with_ansi(false).init();
    }
    for (line, key) in unknown {
        tracing::warn!(file = %config.config.display(), line, "setting {key:?} is not known to this daemon: ignored");
    }
    match daemon::run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error),
    }
}

fn refuse(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("xenopsd: {error}");
    ExitCode::FAILURE
}
