//! `cargo xtask test` and `cargo xtask bench`: which packages and targets are run, in which order, with what built
//! beforehand.
//!
//! ```text
//!   packages ──┬── compile and run the tests that need no Xen ──┬── nested tests and conformance
//!              └── dom0 image, boot, snapshot (other thread) ───┘
//! ```

use crate::{
    Failure,
    cargo::{build_clock, build_programs, cargo, check},
    pool,
};
use clap::Args;
use std::{fs, path::Path, process::ExitCode, thread};
use xen_host::{
    C_XENSTORED_VARIABLE, Options, Template, packages,
    progress::{say, step},
    workspace,
};

/// The package of the end-to-end and conformance tests.
const SUITE: &str = "suite";
/// The nested host's own package.
const HOST: &str = "xen-host";

/// The nested tests that take longest, three minutes and more each, longest first. They are begun before all others: the last
/// ones to run are short, and no processor is idle while one of these ends.
const LONGEST: [&str; 6] = [
    "nested_hvm_linux",
    "nested_debian",
    "nested_hvm",
    "nested_lifecycle",
    "nested_recovery",
    "nested_hvm_machine",
];

/// Arguments of `cargo xtask test`.
#[derive(Debug, Args)]
pub(crate) struct TestArguments {
    /// Leave out everything that needs the nested Xen host
    #[arg(long)]
    quick: bool,
    /// Run only the files of the suite whose name contains this, such as `nested_hvm`, or else the tests whose name does
    filter: Option<String>,
}

/// Runs the tests.
pub(crate) fn test(arguments: &TestArguments) -> Result<ExitCode, Failure> {
    packages::install()?;
    let filter = arguments.filter.as_deref();
    let suite = Targets::of_suite()?;
    if let Some(chosen) = filter.and_then(|filter| suite.containing(filter, false)) {
        run_targets(&chosen, arguments.quick)?;
    } else if arguments.quick {
        run_plain(filter)?;
        step("conformance tests", || Targets::run(&suite.anywhere(), filter))?;
    } else {
        thread::scope(|scope| {
            // Its own threads leave half of the machine to the compiler; both are done at about the same time.
            let template = scope.spawn(|| Template::base(Options::default()));
            let plain = run_plain(filter);
            let template =
                template.join().map_err(|_| Failure::Panicked("preparation of the nested host"))?;
            plain?;
            template.map_err(Failure::from)
        })?;
        step("programs for dom0", build_programs)?;
        step("tests of the nested host", || {
            check(&mut with_filter(&["test", "--package", HOST, "--test", "*"], filter))
        })?;
        step("conformance tests", || Targets::run(&suite.anywhere(), filter))?;
        step("end-to-end tests", || nested(&suite.of(Targets::NESTED), filter))?;
    }
    say("all tests passed");
    Ok(ExitCode::SUCCESS)
}

/// Runs tests on the nested host.
fn nested(targets: &[&str], filter: Option<&str>) -> Result<(), Failure> {
    // Compiled once, and not by each of the workers behind the others.
    check(&mut cargo(&["test", "--quiet", "--no-run", "--package", SUITE]))?;
    pool::run(SUITE, &longest_first(targets), filter)
}

/// The same, with those of [`LONGEST`] before all others.
fn longest_first<'a>(targets: &[&'a str]) -> Vec<&'a str> {
    let place = |target: &&str| LONGEST.iter().position(|name| name == target).unwrap_or(LONGEST.len());
    let mut targets = targets.to_vec();
    // Keeps the order of all others.
    targets.sort_by_key(place);
    targets
}

/// Runs some of the suite's targets.
fn run_targets(targets: &Targets, quick: bool) -> Result<(), Failure> {
    let (anywhere, nested) = (targets.anywhere(), targets.of(Targets::NESTED));
    if quick && anywhere.is_empty() {
        return Err(Failure::AllNested(targets.0.clone()));
    }
    if !anywhere.is_empty() {
        Targets::run(&anywhere, None)?;
    }
    if !quick && !nested.is_empty() {
        step("programs for dom0", build_programs)?;
        step("nested host", || Template::base(Options::default()))?;
        step("end-to-end tests", || self::nested(&nested, None))?;
    }
    Ok(())
}

fn with_filter(arguments: &[&str], filter: Option<&str>) -> std::process::Command {
    let mut command = cargo(arguments);
    command.args(filter);
    command
}

/// Everything that runs anywhere.
fn run_plain(filter: Option<&str>) -> Result<(), Failure> {
    step("tests without Xen", || {
        check(&mut with_filter(
            &["test", "--no-fail-fast", "--workspace", "--exclude", SUITE, "--exclude", HOST],
            filter,
        ))?;
        check(&mut with_filter(&["test", "--package", HOST, "--lib"], filter))
    })
}

/// The suite's test targets: `nested_*` run on the nested host, `bench_*` measure, all others run anywhere.
struct Targets(Vec<String>);

impl Targets {
    const NESTED: &str = "nested_";
    const BENCH: &str = "bench_";

    fn of_suite() -> Result<Self, Failure> {
        Self::in_directory(&workspace().join("tests/suite/tests"))
    }

    fn in_directory(directory: &Path) -> Result<Self, Failure> {
        let mut names = Vec::new();
        if directory.is_dir() {
            for entry in fs::read_dir(directory)? {
                let path = entry?.path();
                let single = path.extension().is_some_and(|e| e == "rs");
                if single || path.join("main.rs").is_file() {
                    names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
                }
            }
        }
        names.sort();
        Ok(Self(names))
    }

    /// Those, measurements or the others, whose name contains `text`; none when there is no such one.
    fn containing(&self, text: &str, measurements: bool) -> Option<Self> {
        let chosen = |name: &&String| name.contains(text) && name.starts_with(Self::BENCH) == measurements;
        let names: Vec<_> = self.0.iter().filter(chosen).cloned().collect();
        (!names.is_empty()).then_some(Self(names))
    }

    fn of(&self, prefix: &str) -> Vec<&str> {
        self.0.iter().map(String::as_str).filter(|name| name.starts_with(prefix)).collect()
    }

    fn anywhere(&self) -> Vec<&str> {
        let special = |name: &str| name.starts_with(Self::NESTED) || name.starts_with(Self::BENCH);
        self.0.iter().map(String::as_str).filter(|name| !special(name)).collect()
    }

    fn run(targets: &[&str], filter: Option<&str>) -> Result<(), Failure> {
        let mut arguments = vec!["test", "--no-fail-fast", "--package", SUITE, "--lib"];
        for name in targets {
            arguments.extend(["--test", name]);
        }
        check(&mut with_filter(&arguments, filter))
    }
}

/// Arguments of `cargo xtask bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArguments {
    /// Measure with the C xenstored in dom0 instead of oxenstored
    #[arg(long)]
    c_xenstored: bool,
    /// Run only the files of the suite whose name contains this, such as `bench_pv`, or else the measurements whose name does
    filter: Option<String>,
}

/// Runs the suite's measurements, one at a time and with their output shown.
pub(crate) fn bench(arguments: &BenchArguments) -> Result<ExitCode, Failure> {
    packages::install()?;
    let suite = Targets::of_suite()?;
    let named = arguments.filter.as_deref().and_then(|filter| suite.containing(filter, true));
    let filter = arguments.filter.as_deref().filter(|_| named.is_none());
    let chosen = named.as_ref().unwrap_or(&suite).of(Targets::BENCH);
    if chosen.is_empty() {
        return Err(Failure::NoTargets("bench_*"));
    }
    step("programs for dom0", || build_programs().and_then(|()| build_clock()))?;
    let options = Options { c_xenstored: arguments.c_xenstored, ..Options::default() };
    step("nested host", || Template::base(options))?;
    let mut command = cargo(&["test", "--release", "--package", SUITE]);
    // Said in either case: one that is left in the environment would measure the other store.
    command.env_remove(C_XENSTORED_VARIABLE);
    if options.c_xenstored {
        command.env(C_XENSTORED_VARIABLE, "1");
    }
    for name in chosen {
        command.args(["--test", name]);
    }
    command.args(filter).args(["--", "--nocapture", "--test-threads=1"]);
    step("measurements", || check(&mut command))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_chosen_by_their_prefix() {
        let targets = Targets(["bench_a", "conformance_b", "nested_c", "other"].map(str::to_owned).to_vec());
        assert_eq!(targets.anywhere(), ["conformance_b", "other"]);
        assert_eq!(targets.of(Targets::NESTED), ["nested_c"]);
        assert_eq!(targets.of(Targets::BENCH), ["bench_a"]);
    }

    #[test]
    fn a_filter_names_targets_before_it_names_tests() {
        let targets =
            Targets(["bench_hvm", "nested_hvm", "nested_hvm_linux", "other"].map(str::to_owned).to_vec());
        let names = |text: &str| targets.containing(text, false).map(|chosen| chosen.0);
        assert_eq!(names("hvm"), Some(vec!["nested_hvm".to_owned(), "nested_hvm_linux".to_owned()]));
        assert_eq!(names("a_guest_is_moved"), None);
        assert_eq!(
            targets.containing("hvm", true).map(|chosen| chosen.0),
            Some(vec!["bench_hvm".to_owned()])
        );
        assert!(targets.containing("linux", true).is_none());
    }

    #[test]
    fn the_longest_are_run_first_and_the_others_in_their_order() {
        let targets = ["nested_b", LONGEST[1], "nested_a", LONGEST[0]];
        assert_eq!(longest_first(&targets), [LONGEST[0], LONGEST[1], "nested_b", "nested_a"]);
        let suite = Targets::of_suite().expect("reads");
        for name in LONGEST {
            assert!(suite.of(Targets::NESTED).contains(&name), "{name} is none of the suite's files");
        }
    }

    #[test]
    fn targets_that_need_the_nested_host_are_not_passed_over_in_silence() {
        let chosen = Targets(vec!["nested_hvm".to_owned()]);
        assert!(
            matches!(run_targets(&chosen, true), Err(Failure::AllNested(names)) if names == ["nested_hvm"])
        );
    }

    #[test]
    fn targets_are_found() {
        let own = Targets::in_directory(&workspace().join("tests/host/tests")).expect("reads");
        assert!(own.0.contains(&"nested_host".to_owned()), "{:?}", own.0);
        assert!(Targets::in_directory(Path::new("/nowhere")).is_ok_and(|t| t.0.is_empty()));
    }
}
