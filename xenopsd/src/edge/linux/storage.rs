//! Running the storage layer's program ([`crate::edge::storage`] is what is said to it).
//!
//! It runs as root, so nobody else may be able to change it: it and every directory above it belong to root (or to the
//! daemon's own user) and only they may write there. That is looked at before every call.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::script;
use crate::edge::storage::{parse_attached, parse_refusal};
use crate::edge::{Attached, ScriptError, ScriptRun, StorageCall, StorageError, Verb};

/// Write permission of the group and of others.
const OTHERS_WRITE: u32 = 0o022;

/// In a directory with this bit others cannot rename or remove what is not theirs.
const STICKY: u32 = 0o1000;

/// Checks the program that is set.
///
/// # Errors
/// [`StorageError::Refused`]: none is set, or somebody else could change it.
pub fn check(program: Option<&Path>) -> Result<&Path, StorageError> {
    let Some(program) = program else {
        return Err(StorageError::unusable(
            "disks of a storage service need a program: set `storage-program` in /etc/xenopsd.conf",
        ));
    };
    trusted(program).map_err(|why| StorageError::unusable(format!("{}: {why}", program.display())))?;
    Ok(program)
}

fn trusted(program: &Path) -> io::Result<()> {
    if !program.is_absolute() {
        return Err(io::Error::other("it is not an absolute path"));
    }
    let real: PathBuf = fs::canonicalize(program)?;
    let found = fs::metadata(&real)?;
    if !script::is_program(&found) {
        return Err(io::Error::other("it is not an executable file"));
    }
    // Of a link, the directories it is in count as well.
    for path in real.ancestors().chain(program.ancestors().skip(1)) {
        let found = fs::metadata(path)?;
        let owner = found.uid();
        if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
            return Err(io::Error::other(format!("{} belongs to user {owner}, not to root", path.display())));
        }
        let kept = found.is_dir() && found.mode() & STICKY != 0;
        if found.mode() & OTHERS_WRITE != 0 && !kept {
            let text = format!("{} can be written by others than its owner", path.display());
            return Err(io::Error::other(text));
        }
    }
    Ok(())
}

/// Makes one call.
///
/// # Errors
/// [`StorageError`].
pub fn call(program: Option<&Path>, call: &StorageCall<'_>) -> Result<Option<Attached>, StorageError> {
    let program = check(program)?;
    let (verb, input) = (call.verb, call.datapath.request());
    let run = ScriptRun {
        script: program,
        arguments: &[verb.to_string()],
        input: Some(&input),
        environment: &[],
        limit: call.limit,
        cancelled: call.cancelled,
    };
    let end = script::run(&run).map_err(|error| match error {
        ScriptError::Cancelled => StorageError::Cancelled,
        other => StorageError::unusable(format!("{} {verb}: {other}", program.display())),
    })?;
    if !end.stderr.is_empty() {
        tracing::info!(%verb, datapath = %call.datapath.name, "the storage program says: {}", end.stderr.trim());
    }
    match (end.code, verb) {
        (0, Verb::Attach) => parse_attached(end.stdout.as_bytes()).map(Some),
        (0, _) => Ok(None),
        (code, _) => Err(parse_refusal(verb, code, end.stdout.as_bytes(), &end.stderr)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::Datapath;
    use crate::edge::storage::UNUSABLE;
    use crossbeam::channel::bounded;
    use std::convert::Infallible;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::Duration;

    fn program(directory: &Path, text: &str) -> PathBuf {
        let path = directory.join("program");
        crate::test_script(&path, text);
        path
    }

    fn ask(text: &str, verb: Verb, limit: Duration) -> Result<Option<Attached>, StorageError> {
        let directory = tempfile::tempdir().unwrap();
        let program = program(directory.path(), text);
        let disk = "sr/vdi".parse().unwrap();
        let datapath = Datapath { name: "vbd/1".to_owned(), vm: "vm".to_owned(), disk, writable: true };
        let (_keep, cancelled) = bounded::<Infallible>(0);
        call(Some(&program), &StorageCall { verb, datapath: &datapath, limit, cancelled: &cancelled })
    }

    const LONG: Duration = Duration::from_secs(60);

    fn refused(outcome: Result<Option<Attached>, StorageError>) -> (String, String) {
        match outcome {
            Err(StorageError::Refused { code, params }) => (code, params.join(" ")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_is_told_the_verb_and_the_disk_and_answers() {
        let answer = r#"grep -q '"vdi":"vdi"' && [ "$1" = attach ] && echo '{"implementations": [["File", {"path": "/srv/x"}]]}'"#;
        let attached = ask(answer, Verb::Attach, LONG).unwrap().unwrap();
        assert_eq!(attached.path, Path::new("/srv/x"));
        for verb in [Verb::Activate, Verb::Deactivate, Verb::Detach] {
            assert_eq!(ask(&format!(r#"[ "$1" = {verb} ]"#), verb, LONG), Ok(None));
        }
    }

    #[test]
    fn a_refusal_keeps_its_code() {
        let said =
            refused(ask(r#"echo '{"code": "VDI_IN_USE", "params": ["vdi"]}'; exit 1"#, Verb::Activate, LONG));
        assert_eq!(said, ("VDI_IN_USE".to_owned(), "vdi".to_owned()));
        let (code, why) = refused(ask("echo broken >&2; exit 7", Verb::Attach, LONG));
        assert!(code == UNUSABLE && why.contains("exited with 7: broken"), "{why}");
        let (code, why) = refused(ask("echo /dev/x", Verb::Attach, LONG));
        assert!(code == UNUSABLE && why.contains("not JSON"), "{why}");
        // More than is read of an answer is no answer.
        let (code, _) = refused(ask("head -c 1000000 /dev/zero", Verb::Attach, LONG));
        assert_eq!(code, UNUSABLE);
    }

    #[test]
    fn one_that_hangs_is_killed() {
        let (code, why) = refused(ask("sleep 1000", Verb::Detach, Duration::from_millis(50)));
        assert!(code == UNUSABLE && why.contains("was killed"), "{why}");
    }

    #[test]
    fn one_that_others_can_change_is_not_run() {
        let directory = tempfile::tempdir().unwrap();
        let path = program(directory.path(), "exit 0");
        assert!(trusted(&path).is_ok(), "{:?}", trusted(&path));
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let link = directory.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(trusted(&link).is_ok());
        mode(&path, 0o775);
        assert!(trusted(&path).is_err() && trusted(&link).is_err());
        mode(&path, 0o644);
        assert!(trusted(&path).is_err(), "not executable");
        mode(&path, 0o755);
        mode(directory.path(), 0o777);
        assert!(trusted(&path).is_err(), "its directory");
        mode(directory.path(), 0o1777);
        assert!(trusted(&path).is_ok(), "as /tmp");
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            assert!(trusted(&path).is_err(), "its owner");
        }
        assert!(trusted(Path::new("program")).is_err() && trusted(directory.path()).is_err());
        assert!(check(None).is_err() && check(Some(Path::new("/nonexistent"))).is_err());
    }
}
