//! Running the administrator's scripts, and waiting.

use std::time::{Duration, Instant};

use super::VmExecutor;
use crate::api::Error;
use crate::edge::{ScriptError, ScriptRun};
use crate::ops::hook::{Hook, HookReason};

/// How long a script may run: as long as the model lets any step (1200 s).
const SCRIPT_LIMIT: Duration = Duration::from_secs(1200);

/// The exit code that is logged and goes no further.
const WARNS: i32 = 1;

impl VmExecutor<'_> {
    pub(super) fn run_hook(&self, hook: Hook, reason: HookReason) -> Result<(), Error> {
        let host = self.core.edges.host();
        let scripts = host.hook_scripts(&hook.to_string())?;
        if scripts.is_empty() {
            return Ok(());
        }
        let mut arguments = vec!["-vmuuid".to_owned(), self.vm().to_owned()];
        if let Some(domain) = self.core.domain_of(self.vm())? {
            arguments.extend(["-vmdomid".to_owned(), domain.domid.to_string()]);
        }
        arguments.extend(["-reason".to_owned(), reason.to_string()]);
        for script in scripts {
            let run = ScriptRun {
                script: &script,
                arguments: &arguments,
                input: None,
                environment: &[],
                limit: SCRIPT_LIMIT,
                cancelled: self.task.cancel_event(),
            };
            let ended = self.slot.without(|| host.run_script(&run));
            let failed = |stdout: String, code: String| Error::HookFailed {
                script: script.display().to_string(),
                reason: reason.to_string(),
                stdout,
                code,
            };
            match ended {
                Ok(end) if end.code == 0 => {
                    tracing::info!(vm = self.vm(), script = %script.display(), "hook");
                }
                Ok(end) if end.code == WARNS => {
                    tracing::warn!(vm = self.vm(), script = %script.display(), stdout = %end.stdout, "hook exited with {WARNS}");
                }
                Ok(end) => return Err(failed(end.stdout, end.code.to_string())),
                Err(ScriptError::Cancelled) => return Err(self.task.cancelled_error()),
                Err(error) => return Err(failed(error.to_string(), "none".to_owned())),
            }
        }
        Ok(())
    }

    pub(super) fn delay(&self, time: Duration) -> Result<(), Error> {
        self.core.waiting(Some(self.task), self.slot).pause(Instant::now() + time)
    }
}
