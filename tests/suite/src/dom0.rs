//! A nested host with the daemon in it, driven over the forwarded socket and with commands in dom0.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use xen_host::programs::{DAEMON_LOG, SOCKET};
use xen_host::progress::timed;
use xen_host::{Host, Options, Output, Processors, Template, quote};
use xenopsd::api::value::Value;
use xenopsd::api::{
    Error, Int, Method, PowerState, TaskId, UpdatesGet, UpdatesLastId, VbdAdd, VifAdd, VmAdd, VmPause,
    VmReboot, VmRemove, VmShutdown, VmStart, VmStat, VmState, VmUnpause,
};
use xenopsd::rpc::Codec;
use xenopsd::rpc::client::{Client, ClientError};

use crate::guest::Guest;

/// Longest wait for a guest or the daemon. A guest boots in five seconds on an idle machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// How long one request for updates waits, in seconds.
const UPDATES_WAIT: Int = 10;

/// Where the server of [`Dom0::serve_http`] is, for everybody in dom0.
pub const HTTP: &str = "http://127.0.0.1:8000";

/// What it prints.
const HTTP_LOG: &str = "/root/http.log";

/// Its program: the parent ends once it listens.
const SERVE: &str = r#"
import http.server, os
server = http.server.HTTPServer(("127.0.0.1", 8000), http.server.SimpleHTTPRequestHandler)
if os.fork():
    os._exit(0)
os.setsid()
log = os.open("/root/http.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
null = os.open("/dev/null", os.O_RDWR)
os.dup2(null, 0); os.dup2(log, 1); os.dup2(log, 2)
server.serve_forever()
"#;

/// What the test guest prints when it is up.
const READY: &str = "GUEST: ready";

/// How much of the daemon's log a failed test shows.
const LOG_LINES: u32 = 60;

/// A running nested host of one's own; it ends when dropped.
#[derive(Debug)]
pub struct Dom0 {
    /// The host.
    pub host: Host,
    /// The daemon's client, in XML-RPC.
    pub client: Client,
    dir: TempDir,
    marks: AtomicU32,
}

impl Dom0 {
    /// One with the daemon running.
    pub fn start() -> Self {
        Self::of(&Template::with_daemon(Options::default()).expect("the template with the daemon"))
    }

    /// The same for guests in a container with a device model or without, see [`Processors`].
    pub fn on_one_processor() -> Self {
        let options = Options { processors: Processors::One, ..Options::default() };
        Self::of(&Template::with_daemon(options).expect("the template with the daemon"))
    }

    /// The same for a measurement, over the xenstored that it is to be made with.
    pub fn measured() -> Self {
        let options = Options::from_environment();
        Self::of(&Template::with_daemon(options).expect("the template with the daemon"))
    }

    /// One with the programs installed and the daemon not started.
    pub fn without_daemon(options: Options) -> Self {
        Self::of(&Template::with_programs(options).expect("the template with the programs"))
    }

    fn of(template: &Template) -> Self {
        let starting = timed("a clone of the nested host");
        let host = template.start().expect("a clone");
        drop(starting);
        let dir = tempfile::tempdir().expect("a directory for sockets");
        let (xml, json) = (dir.path().join("xml"), dir.path().join("json"));
        host.open_forward(&xml, SOCKET).expect("forwards the daemon's socket");
        host.open_forward(&json, &format!("{SOCKET}.json")).expect("forwards the daemon's JSON socket");
        Self { host, client: Client::new(xml, Codec::Xml).without_keeping(), dir, marks: AtomicU32::new(0) }
    }

    /// The forwarded socket of a codec.
    pub fn socket(&self, codec: Codec) -> std::path::PathBuf {
        self.dir.path().join(if codec == Codec::Json { "json" } else { "xml" })
    }

    /// Runs a shell script in dom0 that must succeed; returns what it printed.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.host.check_shell(script).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs a shell script in dom0, whatever comes of it.
    #[track_caller]
    pub fn run(&self, script: &str) -> Output {
        self.host.shell(script).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Reads a node of the store; none when it does not exist.
    #[track_caller]
    pub fn read(&self, path: &str) -> Option<String> {
        let output = self.run(&format!("xenstore-read {}", quote(path)));
        output.success().then(|| output.text().trim_end_matches('\n').to_owned())
    }

    /// The daemon's process id.
    #[track_caller]
    pub fn daemon(&self) -> u32 {
        self.sh("cat /run/xenopsd.pid").trim().parse().expect("a process id")
    }

    /// Starts the daemon with more flags and waits until it answers.
    #[track_caller]
    pub fn start_daemon(&self, flags: &str) {
        self.sh(&format!(
            "setsid xenopsd --pidfile /run/xenopsd.pid {flags} </dev/null >>{DAEMON_LOG} 2>&1 &
             tail -n +1 -F --pid=$! {DAEMON_LOG} 2>/dev/null | timeout 60 grep -q -m1 \"ready xen\"
             xenops list >/dev/null"
        ));
    }

    /// Sends the daemon a signal and waits until it has ended.
    #[track_caller]
    pub fn stop_daemon(&self, signal: &str) {
        let pid = self.daemon();
        self.sh(&format!(
            "kill -{signal} {pid}; timeout 30 tail --pid={pid} -s 0.05 -f /dev/null; : >{DAEMON_LOG}"
        ));
    }

    /// Calls the daemon; any failure but its own error fails the test.
    ///
    /// # Errors
    /// The daemon's.
    #[track_caller]
    pub fn call<M: Method>(&self, call: &M) -> Result<M::Result, Error> {
        remote(self.client.call(call))
    }

    /// Calls a method that answers with a task, and waits for the task.
    ///
    /// # Errors
    /// The daemon's, of the call or the task.
    #[track_caller]
    pub fn task<M: Method<Result = TaskId>>(&self, call: &M) -> Result<(), Error> {
        let id = self.call(call)?;
        let _timed = timed(M::NAME);
        self.wait_task(&id)
    }

    /// Waits for a task to end.
    ///
    /// # Errors
    /// The task's.
    #[track_caller]
    pub fn wait_task(&self, id: &str) -> Result<(), Error> {
        let done: Result<Option<Value>, ClientError> = self.client.wait_task("test", id, |_| ());
        remote(done).map(drop)
    }

    /// Adds the VM and its devices.
    #[track_caller]
    pub fn add(&self, guest: &Guest) {
        self.try_add(guest).unwrap_or_else(|error| panic!("{} is not added: {error}", guest.name()));
    }

    /// Adds the VM and its devices as far as the daemon accepts them.
    ///
    /// # Errors
    /// The daemon's first one.
    #[track_caller]
    pub fn try_add(&self, guest: &Guest) -> Result<(), Error> {
        self.call(&VmAdd { debug_info: dbg("add"), vm: guest.vm.clone() })?;
        for vbd in &guest.vbds {
            self.call(&VbdAdd { debug_info: dbg("add disk"), vbd: vbd.clone() })?;
        }
        for vif in &guest.vifs {
            self.call(&VifAdd { debug_info: dbg("add interface"), vif: vif.clone() })?;
        }
        Ok(())
    }

    /// Starts a VM, leaving it paused.
    ///
    /// # Errors
    /// The task's.
    #[track_caller]
    pub fn start_paused(&self, guest: &Guest) -> Result<(), Error> {
        self.task(&VmStart { debug_info: dbg("start"), id: guest.vm.id.clone(), paused: true })
    }

    /// Lets a VM run.
    ///
    /// # Errors
    /// The task's.
    #[track_caller]
    pub fn unpause(&self, guest: &Guest) -> Result<(), Error> {
        self.task(&VmUnpause { debug_info: dbg("unpause"), id: guest.vm.id.clone() })
    }

    /// Pauses a VM.
    ///
    /// # Errors
    /// The task's.
    #[track_caller]
    pub fn pause(&self, guest: &Guest) -> Result<(), Error> {
        self.task(&VmPause { debug_info: dbg("pause"), id: guest.vm.id.clone() })
    }

    /// Starts a VM that was added and lets it run.
    #[track_caller]
    pub fn run_guest(&self, guest: &Guest) {
        self.start_paused(guest).unwrap_or_else(|error| panic!("{} does not start: {error}", guest.name()));
        self.unpause(guest).unwrap_or_else(|error| panic!("{} does not run: {error}", guest.name()));
    }

    /// Adds a VM, starts it and waits until it is up.
    #[track_caller]
    pub fn boot(&self, guest: &Guest) {
        self.add(guest);
        self.run_guest(guest);
        self.is_up(guest);
    }

    /// Waits until a guest that was started or restarted is up.
    ///
    /// Inside three levels of virtual machines a hardware container is now and then reset by the processor within the
    /// first instructions of its kernel, whoever built it. Xen's console says so; such a guest is restarted, once.
    #[track_caller]
    pub fn is_up(&self, guest: &Guest) {
        let Err(error) = self.host.wait_for_guest(guest.name(), READY, LIMIT) else { return };
        let console = std::fs::read_to_string(self.host.console_log()).expect("the Xen console");
        assert!(was_reset(&console, self.domid(guest)), "{error}");
        eprintln!("{} was reset by the processor before it ran; it is restarted", guest.name());
        self.reboot(guest, None).unwrap_or_else(|error| panic!("{} does not restart: {error}", guest.name()));
        self.said(guest, READY);
    }

    /// Waits until the guest has printed `text`.
    #[track_caller]
    pub fn said(&self, guest: &Guest, text: &str) {
        self.host.wait_for_guest(guest.name(), text, LIMIT).unwrap_or_else(|error| panic!("{error}"));
    }

    /// [`Host::put_boot_sector`].
    #[track_caller]
    pub fn make_sector_disk(&self, path: &str, text: &str) {
        self.host.put_boot_sector(path, text).unwrap_or_else(|error| panic!("{error}"));
    }

    /// [`Host::put_probe`].
    #[track_caller]
    pub fn make_probe_disk(&self, path: &str) {
        self.host.put_probe(path).unwrap_or_else(|error| panic!("{error}"));
    }

    /// [`Host::put_boot_cd`].
    #[track_caller]
    pub fn make_sector_cd(&self, path: &str) {
        self.host.put_boot_cd(path).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Copies what an HVM guest has said on its serial port, and what it says from now on, to a file, until it ends. For
    /// [`Dom0::serial_said`].
    #[track_caller]
    pub fn listen_to_serial(&self, guest: &Guest) {
        let port = format!("/local/domain/{}/console/tc-port", self.domid(guest));
        let log = quote(&serial_log(guest));
        self.sh(&format!(
            "exec 3<>/dev/tcp/127.0.0.1/$(xenstore-read {port}) && : >{log} && \
             setsid cat <&3 >>{log} 2>/dev/null & exec 3<&-"
        ));
    }

    /// Waits until an HVM guest has said `text` on its serial port.
    #[track_caller]
    pub fn serial_said(&self, guest: &Guest, text: &str) {
        self.serial_said_within(guest, text, LIMIT);
    }

    /// As [`Dom0::serial_said`] with a limit.
    #[track_caller]
    pub fn serial_said_within(&self, guest: &Guest, text: &str, limit: Duration) {
        let said = self.host.wait_for_text(&serial_log(guest), text, limit);
        said.unwrap_or_else(|error| panic!("{error}"));
    }

    /// What an HVM guest has said on its serial port since it was last typed to, once that is a whole line.
    #[track_caller]
    pub fn serial_line(&self, guest: &Guest) -> String {
        self.serial_said(guest, "\n");
        self.serial_text(guest)
    }

    /// What it has said so far.
    pub(crate) fn serial_text(&self, guest: &Guest) -> String {
        self.sh(&format!("cat {}", quote(&serial_log(guest))))
    }

    /// Sends letters to an HVM guest's serial port, having forgotten what it has said so far.
    #[track_caller]
    pub fn type_on_serial(&self, guest: &Guest, letters: &str) {
        let tty = format!("/local/domain/{}/serial/0/tty", self.domid(guest));
        let log = quote(&serial_log(guest));
        self.sh(&format!(": >{log}; printf %s {} >$(xenstore-read {tty})", quote(letters)));
    }

    /// Serves a directory of dom0 over HTTP, on port 8000 of the loopback interface; it is listening when this returns. What
    /// was asked for is in [`HTTP_LOG`].
    #[track_caller]
    pub fn serve_http(&self, directory: &str) {
        self.sh(&format!("cd {} && python3 - <<'PYTHON'\n{SERVE}PYTHON", quote(directory)));
    }

    /// What the server of [`Dom0::serve_http`] was asked for, a path and the answer's status each.
    #[track_caller]
    pub fn asked_of_http(&self) -> String {
        let lines = format!("sed -n 's/.*\"GET \\([^ ]*\\) [^\"]*\" \\([0-9]*\\).*/\\1 \\2/p' {HTTP_LOG}");
        self.sh(&lines).trim().to_owned()
    }

    /// Forgets what the guest has printed so far, so that the same text can be waited for again.
    #[track_caller]
    pub fn forget_output(&self, guest: &Guest) {
        self.sh(&format!(": >{}", Host::guest_log(guest.name())));
    }

    /// Asks the guest to shut down within `seconds`.
    ///
    /// # Errors
    /// The task's.
    #[track_caller]
    pub fn shutdown(&self, guest: &Guest, seconds: f64) -> Result<(), Error> {
        self.task(&VmShutdown { debug_info: dbg("shutdown"), id: guest.vm.id.clone(), delay: Some(seconds) })
    }

    /// Pulls the plug.
    ///
    /// # Errors
    /// The task's.
    #[track_caller]
    pub fn hard_shutdown(&self, guest: &Guest) -> Result<(), Error> {
        self.task(&VmShutdown { debug_info: dbg("hard shutdown"), id: guest.vm.id.clone(), delay: None })
    }

    /// Reboots, asking the guest when there is a time for that.
    ///
    /// # Errors
    /// The task's.
    #[track_caller]
    pub fn reboot(&self, guest: &Guest, seconds: Option<f64>) -> Result<(), Error> {
        self.task(&VmReboot { debug_info: dbg("reboot"), id: guest.vm.id.clone(), delay: seconds })
    }

    /// Forgets a VM.
    ///
    /// # Errors
    /// The daemon's.
    #[track_caller]
    pub fn remove(&self, guest: &Guest) -> Result<(), Error> {
        self.call(&VmRemove { debug_info: dbg("remove"), id: guest.vm.id.clone() })
    }

    /// What the daemon sees of a VM.
    #[track_caller]
    pub fn state(&self, guest: &Guest) -> VmState {
        let stat = self.call(&VmStat { debug_info: dbg("stat"), id: guest.vm.id.clone() });
        stat.unwrap_or_else(|error| panic!("VM.stat of {}: {error}", guest.name())).1
    }

    /// A VM's record as the daemon has it.
    #[track_caller]
    pub fn record(&self, guest: &Guest) -> xenopsd::api::Vm {
        let stat = self.call(&VmStat { debug_info: dbg("stat"), id: guest.vm.id.clone() });
        stat.unwrap_or_else(|error| panic!("VM.stat of {}: {error}", guest.name())).0
    }

    /// The domain of a VM that has one.
    #[track_caller]
    pub fn domid(&self, guest: &Guest) -> Int {
        *self.state(guest).domids.last().unwrap_or_else(|| panic!("{} has no domain", guest.name()))
    }

    /// Waits, by the daemon's own notifications, until a VM is as wanted.
    #[track_caller]
    pub fn wait_until(&self, guest: &Guest, what: &str, wanted: impl Fn(&VmState) -> bool) -> VmState {
        let _timed = timed(&format!("{} is {what}", guest.name()));
        let deadline = Instant::now() + LIMIT;
        let mut last_id = self.call(&UpdatesLastId { debug_info: dbg("wait") }).expect("UPDATES.last_id");
        loop {
            let state = self.state(guest);
            if wanted(&state) {
                return state;
            }
            assert!(Instant::now() < deadline, "{} is not {what}: {state:?}", guest.name());
            let get =
                UpdatesGet { debug_info: dbg("wait"), last_id: Some(last_id), timeout: Some(UPDATES_WAIT) };
            last_id = self.call(&get).expect("UPDATES.get").2;
        }
    }

    /// Waits until a VM is in a power state.
    #[track_caller]
    pub fn wait_for_power(&self, guest: &Guest, power: PowerState) -> VmState {
        self.wait_until(guest, &format!("{power:?}"), |state| state.power_state == power)
    }

    /// Fails unless a guest still has what a test left in its memory (`/tmp/kept`) and on its disk, and reaches its network.
    #[track_caller]
    pub fn has_kept(&self, guest: &Guest, when: &str) {
        assert_eq!(self.type_into(guest, "cat /tmp/kept"), "in memory", "{when}");
        assert_eq!(self.type_into(guest, "head -c 6 /dev/xvda"), "a disk", "{when}");
        let ping = self.type_into(guest, "ping -c1 -W30 10.9.0.1 >/dev/null 2>&1 && echo answered");
        assert_eq!(ping, "answered", "{when}");
    }

    /// Types a command into the shell on the guest's console, and returns what it printed.
    #[track_caller]
    pub fn type_into(&self, guest: &Guest, command: &str) -> String {
        self.type_within(guest, command, LIMIT)
    }

    /// Types a line into the guest's console.
    #[track_caller]
    pub fn enter(&self, guest: &Guest, line: &str) {
        let tty = format!("/local/domain/{}/console/tty", self.domid(guest));
        self.sh(&format!("printf '%s\\r' {} >$(xenstore-read {tty})", quote(line)));
    }

    /// As [`Dom0::type_into`] with a limit.
    #[track_caller]
    pub fn type_within(&self, guest: &Guest, command: &str, limit: Duration) -> String {
        let mark = self.marks.fetch_add(1, Ordering::Relaxed);
        // The kernel's messages go to the same console: from now on only the gravest. What is typed comes back as echo:
        // the quotes make it differ from what the command prints.
        let quiet = "echo 1 >/proc/sys/kernel/printk";
        self.enter(guest, &format!("{quiet}; echo BE''GIN{mark}; {command}; echo E''ND{mark}"));
        let said = self.host.wait_for_guest(guest.name(), &format!("END{mark}"), limit);
        said.unwrap_or_else(|error| panic!("{error}"));
        let log = self.sh(&format!("cat {}", quote(&Host::guest_log(guest.name()))));
        let printed = log.split_once(&format!("BEGIN{mark}")).and_then(|(_, rest)| rest.split_once("END"));
        let (printed, _) = printed.unwrap_or_else(|| panic!("{} printed no marks: {log}", guest.name()));
        let printed = printed.replace('\r', "");
        // A guest that was told to tick prints to the same console all the time.
        let lines: Vec<_> = printed.lines().filter(|line| !line.starts_with("GUEST: tick ")).collect();
        lines.join("\n").trim().to_owned()
    }
}

impl Drop for Dom0 {
    fn drop(&mut self) {
        if thread::panicking()
            && let Ok(log) = self.host.shell(&format!("tail -n {LOG_LINES} {DAEMON_LOG}"))
        {
            eprintln!("the end of the daemon's log:\n{}", log.text());
        }
    }
}

fn serial_log(guest: &Guest) -> String {
    format!("/root/serial-{}", guest.name())
}

fn dbg(what: &str) -> String {
    format!("test {what}")
}

#[track_caller]
fn remote<T>(outcome: Result<T, ClientError>) -> Result<T, Error> {
    match outcome {
        Ok(value) => Ok(value),
        Err(ClientError::Remote(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

/// Whether the Xen console says that a domain was reset by a triple fault.
fn was_reset(console: &str, domid: Int) -> bool {
    let vcpu = format!("(XEN) d{domid}v");
    console.lines().any(|line| line.starts_with(&vcpu) && line.contains(" Triple fault - "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_triple_fault_is_found_in_the_console() {
        let console =
            "(XEN) d2v0: upcall vector f3\n(XEN) d3v0 Triple fault - invoking HVM shutdown action 1\n";
        assert!(was_reset(console, 3));
        assert!(!was_reset(console, 2) && !was_reset(console, 33) && !was_reset("", 3));
    }
}
