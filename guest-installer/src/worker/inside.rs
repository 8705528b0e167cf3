//! The worker's half: lock in, read the disk, answer.

use super::{
    ANSWER, Answer, COUNT, DISK, FIRST, Job, KERNEL, Listed, NAME, RAMDISK, READY, REQUEST, Wanted, record,
};
use crate::{
    boot::{Booted, Found, Request},
    disk::{Disk, Volume},
    error::{Error, Result, printable},
    kernel, limits,
};
use ffi::jail::{self, Denied, SyscallFilter};
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};
use std::{
    fs::File,
    io::{Read, Write},
    os::unix::fs::FileExt,
    process::ExitCode,
};

/// What a worker does once it is locked in: the parser, and in a test one that was taken over.
pub type Parser = fn(&Job, File, &mut File, &mut File) -> Result<Answer>;

/// System calls that the worker may make with any arguments. They reach nothing outside of the process.
pub const ANY_ARGUMENTS: [i64; 14] = [
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
];

/// System calls that it may make on these descriptors only, which are the first argument.
pub const ON_DESCRIPTORS: [(i64, &[i32]); 4] = [
    (libc::SYS_read, &[REQUEST]),
    (libc::SYS_pread64, &[DISK]),
    (libc::SYS_lseek, &[DISK]),
    // 1 and 2 are /dev/null: a panic's message goes there.
    (libc::SYS_write, &[1, 2, ANSWER, KERNEL, RAMDISK]),
];

/// The one that copies from the disk into an output, its second and its first argument.
pub const SENDFILE: (i32, &[i32]) = (DISK, &[KERNEL, RAMDISK]);

/// System calls that map memory, whose third argument says what for: never to execute it.
pub const NOT_EXECUTABLE: [i64; 2] = [libc::SYS_mmap, libc::SYS_mprotect];

/// Of `fcntl`, the second argument says what for: only whether a descriptor is open, which debug builds ask before they
/// close one.
pub const FCNTL: i32 = libc::F_GETFD;

/// Becomes a worker that reads disks, for [`crate::main_if_asked`].
pub(crate) fn parse_disk() -> ExitCode {
    main(parse)
}

/// The whole life of a worker.
pub fn main(parser: Parser) -> ExitCode {
    match serve(parser) {
        Ok(()) => ExitCode::SUCCESS,
        // The caller sees that there is no answer; nobody reads this but a developer who gives it a terminal.
        Err(error) => {
            eprintln!("{NAME}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(parser: Parser) -> Result<()> {
    let given = jail::given(FIRST, COUNT).map_err(Error::io("the worker's descriptors"))?;
    let files: Vec<File> = given.into_iter().map(File::from).collect();
    let [request, mut answer, disk, mut kernel, mut ramdisk] = <[File; 5]>::try_from(files)
        .map_err(|_| Error::Worker("it was not given five descriptors".to_owned()))?;
    // A panic's own message asks the kernel for more than there is to be had.
    std::panic::set_hook(Box::new(|_| ()));
    filter()?.enter().map_err(Error::io("the worker's system call filter"))?;
    answer.write_all(&[READY]).map_err(Error::io("saying that it is ready"))?;
    let mut bytes = Vec::new();
    let most = u64::try_from(record::REQUEST_BYTES).unwrap_or(u64::MAX);
    request.take(most).read_to_end(&mut bytes).map_err(Error::io("reading the request"))?;
    let outcome = record::decode_job(&bytes).and_then(|job| {
        let parse = std::panic::AssertUnwindSafe(|| parser(&job, disk, &mut kernel, &mut ramdisk));
        std::panic::catch_unwind(parse)
            .unwrap_or_else(|_| Err(Error::Worker("it made a mistake while reading the disk".to_owned())))
    });
    answer.write_all(&record::encode_answer(&outcome)).map_err(Error::io("answering"))
}

/// What the worker may ask of the kernel; any other call ends it.
fn filter() -> Result<SyscallFilter> {
    let invalid = |error: &dyn std::fmt::Display| Error::Worker(format!("its system call filter: {error}"));
    let condition = |argument: u8, op: SeccompCmpOp, value: u64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value).map_err(|e| invalid(&e))
    };
    let is = |argument, fd: i32| condition(argument, SeccompCmpOp::Eq, u64::from(fd.unsigned_abs()));
    let rule = |conditions| SeccompRule::new(conditions).map_err(|e| invalid(&e));
    let mut rules: Vec<(i64, Vec<SeccompRule>)> = ANY_ARGUMENTS.map(|call| (call, Vec::new())).to_vec();
    for (call, descriptors) in ON_DESCRIPTORS {
        let each = descriptors.iter().map(|&fd| rule(vec![is(0, fd)?]));
        rules.push((call, each.collect::<Result<_>>()?));
    }
    let (from, outputs) = SENDFILE;
    let each = outputs.iter().map(|&to| rule(vec![is(0, to)?, is(1, from)?]));
    rules.push((libc::SYS_sendfile, each.collect::<Result<_>>()?));
    rules.push((libc::SYS_fcntl, vec![rule(vec![is(1, FCNTL)?])?]));
    let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
    for call in NOT_EXECUTABLE {
        rules.push((call, vec![rule(vec![condition(2, SeccompCmpOp::MaskedEq(executable), 0)?])?]));
    }
    SyscallFilter::exactly(rules, Denied::Kills).map_err(|e| invalid(&e))
}

/// Does the job.
fn parse(job: &Job, disk: File, kernel: &mut File, ramdisk: &mut File) -> Result<Answer> {
    let request = &job.request;
    if job.wanted == Wanted::Image {
        return image(request, &disk, kernel).map(|()| Answer::Booted(Booted::default()));
    }
    let files = request.kernel_limit.saturating_add(request.ramdisk_limit);
    let mut found = Found::on(&Volume::whole(&Disk::new(disk, files)?), request)?;
    match job.wanted {
        Wanted::List => listed(&found).map(Answer::Entries),
        Wanted::Check => {
            let entry = found.entry(request)?;
            found.check(&entry).map(Answer::Booted)
        }
        Wanted::Deliver | Wanted::Image => {
            let entry = found.entry(request)?;
            found.deliver(&entry, request, kernel, ramdisk).map(Answer::Booted)
        }
    }
}

/// A kernel out of a file that is one.
fn image(request: &Request, file: &File, output: &mut File) -> Result<()> {
    let mut bytes = Vec::new();
    let mut part = vec![0; 64 << 10];
    loop {
        let at = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let read = file.read_at(&mut part, at).map_err(Error::io("reading the kernel's file"))?;
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(&part[..read]);
        if at.saturating_add(u64::try_from(read).unwrap_or(u64::MAX)) > request.kernel_limit {
            return Err(Error::too_large("the kernel", request.kernel_limit));
        }
    }
    let mut write = |part: &[u8]| output.write_all(part).map_err(Error::io("writing the kernel"));
    match request.unpack {
        Some(limit) => kernel::unpack(&bytes, limit, &mut write),
        None => kernel::check(&bytes).and_then(|()| write(&bytes)),
    }
}

/// What a listing shows: every string made printable, for it is for people.
fn listed(found: &Found) -> Result<Vec<Listed>> {
    let mut list = Vec::new();
    let mut size = 0usize;
    for entry in found.menu().entries() {
        let shown =
            |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
        let args = shown(&entry.args);
        let ramdisks = entry.ramdisks.iter().take(record::RAMDISKS).map(|r| printable(&r.path)).collect();
        size = size.saturating_add(args.len());
        if size > record::ANSWER_BYTES / 2 || args.len() > limits::ARGS_BYTES {
            return Err(Error::too_large("the command lines of all entries", record::ANSWER_BYTES / 2));
        }
        list.push(Listed {
            title: printable(&entry.title),
            volume: entry.kernel.as_ref().map_or_else(String::new, |k| found.volume_name(k.volume)),
            kernel: entry.kernel.as_ref().map_or_else(String::new, |k| printable(&k.path)),
            args,
            ramdisks,
        });
    }
    Ok(list)
}
