//! Templates: snapshots of a running dom0, from which a host starts in about a second.
//!
//! ```text
//!   image ──boot──▶ base template ──clone──▶ host (copy-on-write, as many as wanted)
//!                        │
//!                        └──copy, install, run──▶ layered template ──clone──▶ host with the daemon in it
//! ```
//!
//! A template is a directory with the machine's memory (a sparse file) and its device state. It is found by the hash
//! of all that went into it, appears in one step, and is never changed. While a [`Template`] value lives, its files
//! are not pruned.

use crate::{
    error::{Context as _, Error, Result},
    hash::Key,
    host::{self, Host},
    image::Image,
    lock::{Lock, Slot},
    machine::{self, Launch, Options, QEMU, names},
    paths::{self, Building},
    process::{self, Life},
    progress::{say, step},
    vm::{self, Vm},
};
use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Once,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

/// How many templates are kept, by last use. Each takes about 400 MB. The tests use three or four, and every rebuild
/// of a program that goes into one makes another.
const MAX_TEMPLATES: usize = 6;

/// Longest copy of a template's memory: some 400 MB.
const COPY_LIMIT: Duration = Duration::from_secs(120);

/// Longest wait for a clone slot: other tests, each bounded itself, run before.
const SLOT_LIMIT: Duration = Duration::from_secs(1800);

/// A snapshot of a running dom0.
#[derive(Clone, Debug)]
pub struct Template {
    dir: PathBuf,
    key: String,
    image: Image,
    options: Options,
    #[expect(dead_code, reason = "holding it is its purpose")]
    in_use: Arc<Lock>,
}

/// What a layered template has beyond its base.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Says what it is, in progress lines.
    pub name: &'a str,
    /// Files to copy in: from here, to there.
    pub files: &'a [(&'a Path, &'a str)],
    /// A shell script to run in dom0 after that.
    pub script: &'a str,
}

impl Template {
    /// The template of a dom0 that has just booted, made when it is not there.
    ///
    /// # Errors
    /// When the image cannot be built or does not boot; the Xen console's end is part of the error then.
    pub fn base(options: Options) -> Result<Self> {
        let image = Image::get()?;
        let launch = Launch { options, shared_memory: true, restore: false };
        let mut key = Key::new("base");
        key.field(image.key().as_bytes());
        // An image that was removed and built again has other keys, which a host of before does not let in.
        key.file(&image.ssh_key())?;
        key.field(qemu_version()?.as_bytes());
        key.field(machine::arguments(launch).join("\n").as_bytes());
        Self::get(&key.to_string(), &image, options, |dir| {
            step("boot of the nested host", || {
                let vm = Vm::start("template", dir, &image, launch, Life::Ours)?;
                vm.booted()?;
                // A first login at both servers and a first command bring in what every clone needs.
                let host = Host::new("template", dir, &image.ssh_key(), vm, Life::Ours, None)?;
                host.check(&["xl", "list"])?;
                drop(host.forward_unix(&dir.join("warm.sock"), "/run/warm.sock")?);
                Ok(host)
            })
        })
    }

    /// This template with something more in it, made when it is not there.
    ///
    /// # Errors
    /// When a file cannot be copied or the script fails; the Xen console's end is part of the error then.
    pub fn layer(&self, layer: &Layer<'_>) -> Result<Self> {
        let mut key = Key::new("layer");
        key.field(self.key.as_bytes());
        for (local, remote) in layer.files {
            key.file(local)?;
            key.field(remote.as_bytes());
        }
        key.field(layer.script.as_bytes());
        Self::get(&key.to_string(), &self.image, self.options, |dir| {
            step(&format!("template with {}", layer.name), || self.prepare(dir, layer))
        })
    }

    fn prepare(&self, dir: &Path, layer: &Layer<'_>) -> Result<Host> {
        let mut copy = Command::new("cp");
        copy.args(["--sparse=always", "--reflink=auto"])
            .arg(self.dir.join(names::MEMORY))
            .arg(dir.join(names::MEMORY));
        process::check(&mut copy, COPY_LIMIT)?;
        let state = dir.join("base-state");
        fs::copy(self.dir.join(names::STATE), &state).at("copy", &state)?;
        let link = dir.join(names::STATE);
        fs::rename(&state, &link).at("rename", &state)?;
        let launch = Launch { options: self.options, shared_memory: true, restore: true };
        let vm = Vm::start("template", dir, &self.image, launch, Life::Ours)?;
        vm.restore()?;
        let host = Host::new("template", dir, &self.image.ssh_key(), vm, Life::Ours, None)?;
        for (local, remote) in layer.files {
            host.put(local, remote)?;
        }
        host.check_shell(layer.script)?;
        Ok(host)
    }

    /// Finds a template or makes it with `prepare`, which gets a directory and returns the host to snapshot.
    fn get(
        key: &str,
        image: &Image,
        options: Options,
        prepare: impl FnOnce(&Path) -> Result<Host>,
    ) -> Result<Self> {
        let name = format!("template-{key}");
        let dir = paths::nested()?.join(&name);
        let mut prepare = Some(prepare);
        loop {
            let in_use = Lock::shared(&name)?;
            if dir.is_dir() {
                touch(&dir)?;
                let (key, image, in_use) = (key.to_owned(), image.clone(), Arc::new(in_use));
                return Ok(Self { dir, key, image, options, in_use });
            }
            drop(in_use);
            let _building = Lock::exclusive(&name)?;
            if dir.is_dir() {
                continue;
            }
            // Only a prune between our building it and our using it brings us here a second time.
            let Some(prepare) = prepare.take() else {
                return Err(Error::Damaged { path: dir, reason: "the template vanished".to_owned() });
            };
            let building = Building::new(&name)?;
            let host = prepare(building.path())?;
            if let Some(vm) = host.into_vm() {
                vm.snapshot()?;
            }
            keep_only(building.path(), &[names::MEMORY, names::STATE])?;
            touch(building.path())?;
            building.finish(&dir)?;
            prune(&name)?;
        }
    }

    /// Starts a host of one's own, which ends when it is dropped. Waits for a free clone slot first.
    ///
    /// # Errors
    /// When QEMU does not start or dom0 does not answer; the Xen console's end is part of the error then.
    pub fn start(&self) -> Result<Host> {
        static SWEEP: Once = Once::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(|| sweep().unwrap_or_else(|e| say(&format!("leftovers: {e}"))));
        let slot = Slot::take(SLOT_LIMIT)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("clone-{}-{number}", std::process::id());
        let dir = paths::nested()?.join(&name);
        self.clone_into(&name, &dir, Life::Ours, Some(slot))
    }

    /// Starts a host that goes on without this process, to be found by [`Host::attach`].
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`] when there is one of that name; otherwise as [`Template::start`].
    pub fn start_named(&self, name: &str) -> Result<Host> {
        let dir = host::named_dir(name)?;
        let _lock = Lock::exclusive(&format!("host-{name}"))?;
        if Host::attach(name).is_ok() {
            return Err(Error::AlreadyRunning { name: name.to_owned() });
        }
        // A start that was interrupted may have left a QEMU without a record; none is there most often.
        let _ = vm::quit(&dir);
        self.clone_into(name, &dir, Life::Detached, None)
    }

    fn clone_into(&self, name: &str, dir: &Path, life: Life, slot: Option<Slot>) -> Result<Host> {
        paths::remove_tree(dir)?;
        fs::create_dir_all(dir).at("create", dir)?;
        for file in [names::MEMORY, names::STATE] {
            let link = dir.join(file);
            symlink(self.dir.join(file), &link).at("link", link)?;
        }
        let launch = Launch { options: self.options, shared_memory: false, restore: true };
        let begin = || -> Result<Host> {
            let vm = Vm::start(name, dir, &self.image, launch, life)?;
            vm.restore()?;
            Host::new(name, dir, &self.image.ssh_key(), vm, life, slot)
        };
        let host = begin();
        if host.is_err() {
            drop(paths::remove_tree(dir));
        }
        host
    }

    /// Removes all templates, so that the next one is made anew.
    ///
    /// # Errors
    /// When files cannot be removed.
    pub fn discard_all() -> Result<()> {
        for (_, name) in templates()? {
            let _lock = Lock::exclusive(&name)?;
            paths::remove_tree(&paths::nested()?.join(&name))?;
        }
        Ok(())
    }
}

/// QEMU's version: a device state is for the QEMU that wrote it.
fn qemu_version() -> Result<String> {
    let output = process::check(Command::new(QEMU).arg("--version"), Duration::from_secs(30))?.text();
    Ok(output.lines().next().unwrap_or_default().to_owned())
}

/// Marks a template as used now.
fn touch(dir: &Path) -> Result<()> {
    let path = dir.join("used");
    let file = File::options().create(true).truncate(false).write(true).open(&path).at("open", &path)?;
    file.set_modified(SystemTime::now()).at("touch", path)
}

fn keep_only(dir: &Path, keep: &[&str]) -> Result<()> {
    for entry in fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        if !keep.iter().any(|name| entry.file_name() == *name) {
            fs::remove_file(entry.path()).at("remove", entry.path())?;
        }
    }
    Ok(())
}

/// All templates, the last used first.
fn templates() -> Result<Vec<(SystemTime, String)>> {
    let dir = paths::nested()?;
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).at("list", &dir)? {
        let name = entry.at("list", &dir)?.file_name().to_string_lossy().into_owned();
        if name.starts_with("template-") {
            let used = fs::metadata(dir.join(&name).join("used")).and_then(|m| m.modified());
            found.push((used.unwrap_or(SystemTime::UNIX_EPOCH), name));
        }
    }
    found.sort();
    found.reverse();
    Ok(found)
}

/// Removes the templates not used for longest, except those in use and `current`, whose lock we hold.
fn prune(current: &str) -> Result<()> {
    for (_, name) in templates()?.into_iter().skip(MAX_TEMPLATES) {
        if name == current {
            continue;
        }
        if let Some(_lock) = Lock::try_exclusive(&name)? {
            paths::remove_tree(&paths::nested()?.join(&name))?;
        }
    }
    Ok(())
}

/// Removes what the clones of processes that were killed left; their QEMUs died with them.
fn sweep() -> Result<()> {
    let dir = paths::nested()?;
    for entry in fs::read_dir(&dir).at("list", &dir)? {
        let name = entry.at("list", &dir)?.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("clone-").and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            paths::remove_tree(&dir.join(name))?;
        }
    }
    Ok(())
}
