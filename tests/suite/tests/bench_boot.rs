//! `cargo xtask bench boot`: from a Debian guest's disk to its kernel and ramdisk, beside Debian's pygrub.
//!
//! Both programs run in turn on the same image, which is in memory, and write to memory, as `/var/run/xen/pygrub` is. One
//! image is Debian's own with a small ramdisk, the other has files of the sizes that Debian has with all drivers.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use tempfile::TempDir;
use xen_host::DebianDisk;

/// Where `xen-utils-4.17` has it.
const DEBIANS: &str = "/usr/lib/xen-4.17/bin/pygrub";

/// Runs of each.
const RUNS: usize = 21;

/// What ours may take of what Debian's takes: a third.
const AIM: f64 = 1.0 / 3.0;

/// Sizes of Debian 12's kernel and ramdisk, in bytes.
const KERNEL: usize = 8 << 20;
const RAMDISK: usize = 30 << 20;

const GRUB: &str = "set default=\"0\"\nmenuentry 'Debian GNU/Linux' --class debian {\n\tlinux\t/boot/vmlinuz root=UUID=1 ro\n\t\
                    initrd\t/boot/initrd.img\n}\n";

/// Bytes that nothing packs.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let step = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(step).flatten().take(len).collect()
}

fn image(directory: &Path) -> std::path::PathBuf {
    let (tree, image) = (directory.join("tree"), directory.join("disk"));
    fs::create_dir_all(tree.join("boot/grub")).expect("a directory");
    let mut kernel = File::create(tree.join("boot/vmlinuz")).expect("a file");
    kernel.write_all(b"\x7fELF").and_then(|()| kernel.write_all(&noise(KERNEL))).expect("is written");
    fs::write(tree.join("boot/initrd.img"), noise(RAMDISK)).expect("is written");
    fs::write(tree.join("boot/grub/grub.cfg"), GRUB).expect("is written");
    File::create(&image).and_then(|file| file.set_len(128 << 20)).expect("an image");
    let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(&image).status();
    assert!(made.expect("mke2fs runs").success());
    image
}

/// Wall and processor time of one run.
fn run(program: &Path, image: &Path, out: &Path) -> (Duration, Duration) {
    let processor = || {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("is known");
        usage.user_time().num_microseconds() + usage.system_time().num_microseconds()
    };
    let (before, begun) = (processor(), Instant::now());
    let status = Command::new(program)
        .args(["-q", "--output-format=simple", &format!("--output-directory={}", out.display())])
        .arg(image)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.expect("runs").success(), "{}", program.display());
    let wall = begun.elapsed();
    let processor = u64::try_from(processor() - before).expect("it only grows");
    for file in fs::read_dir(out).expect("is listed") {
        fs::remove_file(file.expect("is listed").path()).expect("is removed");
    }
    (wall, Duration::from_micros(processor))
}

/// The largest memory of a program and its children in one run, in KiB, by time(1): this process' own is in its count.
fn memory(program: &Path, image: &Path, out: &Path) -> u32 {
    let output = Command::new("/usr/bin/time")
        .args(["-f", "KiB %M"])
        .arg(program)
        .args(["-q", "--output-format=simple", &format!("--output-directory={}", out.display())])
        .arg(image)
        .output()
        .expect("time runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    said.lines().find_map(|line| line.strip_prefix("KiB ")?.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs both in turn, prints how they compare, and fails when ours takes more processor time or memory than it may.
fn compare(what: &str, image: &Path, out: &Path) {
    let ours = xen_host::target().join("release/pygrub");
    let programs = [&*ours, Path::new(DEBIANS)];
    let [our_memory, their_memory] = programs.map(|program| memory(program, image, out));
    for program in programs {
        run(program, image, out);
    }
    let mut times: [Vec<(Duration, Duration)>; 2] = Default::default();
    for _ in 0..RUNS {
        for (times, program) in times.iter_mut().zip(programs) {
            times.push(run(program, image, out));
        }
    }
    println!("{what}, medians of {RUNS} runs of each in turn:");
    println!("            ours   Debian's   ratio   (at most: {AIM:.2})");
    let of = |what: &str, part: fn(&(Duration, Duration)) -> Duration| {
        let [ours, theirs] = times.each_ref().map(|times| times.iter().map(part).collect::<Vec<_>>());
        // Of neighbours: what else the machine does comes and goes.
        let ratios = ours.iter().zip(&theirs).map(|(ours, theirs)| ours.div_duration_f64(*theirs)).collect();
        let ratio = median(ratios);
        let [ours, theirs] =
            [ours, theirs].map(|times| median(times.iter().map(|t| t.as_secs_f64() * 1000.0).collect()));
        println!("  {what:7} {ours:6.1} ms {theirs:6.1} ms   {ratio:.2}");
        ratio
    };
    // On a machine that is busy the first says how long our processes wait for each other.
    of("wall", |time| time.0);
    let processor = of("CPU", |time| time.1);
    let memory = f64::from(our_memory) / f64::from(their_memory);
    println!("  memory  {our_memory:6} KiB {their_memory:5} KiB   {memory:.2}");
    assert!(processor <= AIM && memory <= AIM, "{processor:.3} {memory:.3}");
}

#[test]
fn bench() {
    let directory = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a directory");
    let out = directory.path().join("out");
    fs::create_dir_all(&out).expect("a directory");
    let made = image(directory.path());
    compare(&format!("a disk with {} MiB of kernel and ramdisk", (KERNEL + RAMDISK) >> 20), &made, &out);
    let debian = DebianDisk::get().unwrap_or_else(|error| panic!("{error}"));
    let copy = directory.path().join("debian");
    let copied = Command::new("cp").arg("--sparse=always").args([&debian.image(), &copy]).status();
    assert!(copied.expect("cp runs").success());
    compare("a disk as Debian's packages make it", &copy, &out);
}
