//! `cargo xtask demo`: from a fresh machine to a guest under our toolstack, every step shown and timed.

use crate::{Failure, cargo::build_programs};
use clap::Args;
use std::{
    fmt::Write as _,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};
use xen_host::boot_sector::UP;
use xen_host::{Host, Options, Template, packages, progress::say, target};

/// The host that `--keep` leaves.
const NAME: &str = "demo";

/// The guest, as `demo.cfg` describes it.
const GUEST: &str = "demo";
const GUEST_ADDRESS: &str = "10.9.0.21";
const DISK: &str = "/root/demo.img";
const CONFIG: &str = include_str!("../assets/demo.cfg");

/// The HVM guest, as `screen.cfg` describes it.
const HVM_GUEST: &str = "screen";
const HVM_DISK: &str = "/root/sector.img";
const HVM_CONFIG: &str = include_str!("../assets/screen.cfg");

/// What the guest writes to its disk and dom0 reads back, and where: sector 9.
const BLOCK: &str = "written by the guest through blkfront and blkback";

/// What comes from its serial port.
const SERIAL_LOG: &str = "/run/screen.serial";

/// Longest wait for the daemon or the guest: a few seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Arguments of `cargo xtask demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// Leave the host up at the end, and say how to go on
    #[arg(long)]
    keep: bool,
}

/// The steps done and how long each took.
struct Steps {
    begin: Instant,
    done: Vec<(String, Duration)>,
}

impl Steps {
    fn run<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        say(name);
        let begin = Instant::now();
        let value = step()?;
        self.done.push((name.to_owned(), begin.elapsed()));
        Ok(value)
    }

    fn summary(&self) -> String {
        let mut text = String::from("\n");
        for (name, took) in &self.done {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {:6.1} s  {name}", took.as_secs_f64());
        }
        let _ = write!(text, "  {:6.1} s  in all", self.begin.elapsed().as_secs_f64());
        text
    }
}

/// Runs the demonstration.
pub(crate) fn run(arguments: &DemoArguments) -> Result<ExitCode, Failure> {
    let mut steps = Steps { begin: Instant::now(), done: Vec::new() };
    steps.run("install packages", || Ok(packages::install()?))?;
    let template = steps.run("build xenopsd; build, boot and snapshot the nested host", prepare)?;
    let host = steps.run("start a clone of the nested host", || {
        Ok(if arguments.keep { template.start_named(NAME)? } else { template.start()? })
    })?;
    guest(&host, &mut steps)?;
    say("the demonstration went well:");
    println!("{}", steps.summary());
    if arguments.keep {
        println!("\n{}", how_to_go_on());
    }
    Ok(ExitCode::SUCCESS)
}

fn how_to_go_on() -> String {
    let run = format!("cargo xtask host run --name {NAME} --");
    format!(
        "The host `{NAME}` is up and xenopsd runs in it. To go on:\n\
         \x20 {run} xenops list\n\
         \x20 {run} xenops create /root/demo.cfg\n\
         \x20 cargo xtask host shell --name {NAME}\n\
         \x20 cargo xtask host forward --name {NAME} ./xenopsd.sock   (then: xenops out here)\n\
         \x20 cargo xtask host down --name {NAME}"
    )
}

/// Compiles and makes the base template side by side, then puts the programs into a template of their own.
fn prepare() -> Result<Template, Failure> {
    thread::scope(|scope| {
        let template = scope.spawn(|| Template::base(Options::default()));
        let built = build_programs();
        let template = template.join().map_err(|_| Failure::Panicked("preparation of the nested host"))?;
        built?;
        template.map(drop).map_err(Failure::from)
    })?;
    Ok(Template::with_programs(Options::default())?)
}

fn guest(host: &Host, steps: &mut Steps) -> Result<(), Failure> {
    steps.run("start xenopsd", || Ok(host.start_daemon()?))?;
    steps.run("create a guest from a file", || {
        let write = format!("printf %s {} >/root/demo.cfg; truncate -s 64M {DISK}", xen_host::quote(CONFIG));
        host.check_shell(&write)?;
        shown(host, &["xenops", "create", "/root/demo.cfg"])
    })?;
    steps.run("start it", || shown(host, &["xenops", "start", GUEST]))?;
    steps.run("list", || shown(host, &["xenops", "list"]))?;
    steps.run("its console, up to its network being up", || {
        host.wait_for_guest(GUEST, "GUEST: ready", LIMIT)?;
        shown(host, &["grep", "-a", "GUEST:", &Host::guest_log(GUEST)])
    })?;
    steps.run("a picture of its screen", || picture(host, GUEST))?;
    steps.run("the guest writes a block to its disk, dom0 reads it", || disk(host))?;
    steps.run("ping it from dom0", || shown(host, &["ping", "-c", "3", "-i", "0.3", GUEST_ADDRESS]))?;
    steps.run("shut it down", || shown(host, &["xenops", "shutdown", GUEST, "--timeout", "60"]))?;
    steps.run("destroy it", || shown(host, &["xenops", "destroy", GUEST]))?;
    hvm_guest(host, steps)?;
    steps.run("nothing is left", || {
        let domains = host.check(&["xenstore-list", "/local/domain"])?;
        if domains.trim() == "0" { Ok(()) } else { Err(Failure::Demo(format!("domains left: {domains}"))) }
    })
}

/// One with firmware, an emulated disk and an emulated screen.
fn hvm_guest(host: &Host, steps: &mut Steps) -> Result<(), Failure> {
    steps.run("create and start an HVM guest", || {
        host.put_boot_sector(HVM_DISK, "a disk")?;
        host.check_shell(&format!("printf %s {} >/root/screen.cfg", xen_host::quote(HVM_CONFIG)))?;
        shown(host, &["xenops", "create", "/root/screen.cfg"])?;
        shown(host, &["xenops", "start", "--paused", HVM_GUEST])?;
        host.check_shell(&format!("setsid xenops console {HVM_GUEST} </dev/null >{SERIAL_LOG} 2>&1 &"))?;
        shown(host, &["xenops", "unpause", HVM_GUEST])
    })?;
    steps.run("firmware starts what is on its disk", || {
        host.wait_for_text(SERIAL_LOG, UP, LIMIT)?;
        shown(host, &["xenops", "list"])
    })?;
    steps.run("a picture of its screen", || picture(host, HVM_GUEST))?;
    steps.run("destroy it", || shown(host, &["xenops", "destroy", HVM_GUEST]))
}

/// Takes a picture of a guest's screen and brings it here.
fn picture(host: &Host, guest: &str) -> Result<(), Failure> {
    let (there, here) = (format!("/root/{guest}.png"), target().join(format!("{guest}.png")));
    shown(host, &["xenops", "vnc", guest])?;
    host.check(&["xenops", "screenshot", guest, &there])?;
    host.get(&there, &here)?;
    println!("        {}", here.display());
    Ok(())
}

/// Types a command into the guest's console and looks at the disk's file from outside.
fn disk(host: &Host) -> Result<(), Failure> {
    let typed =
        format!("printf '{BLOCK}' | dd of=/dev/xvda bs=512 seek=9 2>/dev/null; sync; echo GUEST: wr''ote\r");
    let tty = format!("/local/domain/$(xl domid {GUEST})/console/tty");
    host.check_shell(&format!("printf %s {} >$(xenstore-read {tty})", xen_host::quote(&typed)))?;
    host.wait_for_guest(GUEST, "GUEST: wrote", LIMIT)?;
    let read = format!("dd if={DISK} bs=512 skip=9 count=1 2>/dev/null | head -c {}", BLOCK.len());
    let read = host.check_shell(&read)?;
    if read != BLOCK {
        return Err(Failure::Demo(format!("the disk holds {read:?} instead of {BLOCK:?}")));
    }
    println!("        dom0 read: {read}");
    Ok(())
}

/// Runs a command in dom0 and shows what it printed.
fn shown(host: &Host, words: &[&str]) -> Result<(), Failure> {
    for line in host.check(words)?.lines() {
        println!("        {}", line.trim_end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_the_one_the_file_describes() {
        for part in [&format!("name = \"{GUEST}\""), GUEST_ADDRESS, DISK] {
            assert!(CONFIG.contains(part), "{part}");
        }
        for part in [&format!("name = \"{HVM_GUEST}\""), HVM_DISK] {
            assert!(HVM_CONFIG.contains(part), "{part}");
        }
    }

    #[test]
    fn the_summary_has_every_step() {
        let mut steps = Steps { begin: Instant::now(), done: Vec::new() };
        steps.run("one", || Ok(())).expect("runs");
        let failed = steps.run::<()>("two", || Err(Failure::Demo("no".to_owned())));
        assert!(failed.is_err());
        let text = steps.summary();
        assert!(text.contains("one") && !text.contains("two") && text.contains("in all"), "{text}");
    }
}
