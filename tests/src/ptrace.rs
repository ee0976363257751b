//! Kills a process just before one of its system calls that change the world.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

// linux/ptrace.h
const PTRACE_GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const PTRACE_SYSCALL_INFO_ENTRY: u8 = 1;
/// bpf(2) commands that change something, or that a killed process would have left half-done: `MAP_CREATE`,
/// `MAP_UPDATE_ELEM`, `MAP_DELETE_ELEM`, `PROG_LOAD`, `OBJ_PIN`, `PROG_TEST_RUN`, `BTF_LOAD`, `MAP_FREEZE`,
/// `LINK_CREATE`, `LINK_UPDATE`, `LINK_DETACH`.
const BPF_CHANGES: [(u64, &str); 11] = [
    (0, "MAP_CREATE"),
    (2, "MAP_UPDATE_ELEM"),
    (3, "MAP_DELETE_ELEM"),
    (5, "PROG_LOAD"),
    (6, "OBJ_PIN"),
    (10, "PROG_TEST_RUN"),
    (18, "BTF_LOAD"),
    (22, "MAP_FREEZE"),
    (28, "LINK_CREATE"),
    (29, "LINK_UPDATE"),
    (34, "LINK_DETACH"),
];
/// Mappings this large are images.
const IMAGE_BYTES_MIN: u64 = 1 << 20;

/// How a traced process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// By SIGKILL, instead of making this call.
    Killed { before: String },
    /// By itself, with this exit code: it makes fewer calls than that.
    Ended { code: i32 },
}

/// `struct ptrace_syscall_info` at a system call's entry.
#[repr(C)]
struct SyscallInfo {
    op: u8,
    pad: [u8; 3],
    arch: u32,
    instruction_pointer: u64,
    stack_pointer: u64,
    number: u64,
    arguments: [u64; 6],
}

/// Runs `command` and kills it when it is about to make its `nth` (from 1) call that changes the world: bpf(2) objects,
/// files, directories, locks, image mappings. Threads are followed.
///
/// The process is gone when this returns.
pub fn kill_before(command: &mut Command, nth: usize) -> Result<Fate> {
    let trace_me = || {
        // SAFETY: PTRACE_TRACEME takes no further arguments; the call is async-signal-safe.
        match unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: between fork and exec only one system call is made.
    unsafe { command.pre_exec(trace_me) };
    let child = command.stdin(Stdio::null()).spawn().context("starting the process to trace")?;
    let leader = libc::pid_t::try_from(child.id())?;
    // Its exec stops it once.
    let (tid, status) = wait_any()?;
    ensure!(tid == leader && libc::WIFSTOPPED(status), "the process did not stop at its start: {status:#x}");
    let options =
        libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK;
    ptrace(libc::PTRACE_SETOPTIONS, leader, options.into())?;
    ptrace(libc::PTRACE_SYSCALL, leader, 0)?;
    let mut calls = 0;
    loop {
        let (tid, status) = wait_any()?;
        if !libc::WIFSTOPPED(status) {
            if tid != leader {
                continue;
            }
            ensure!(libc::WIFEXITED(status), "the process was ended by signal {}", libc::WTERMSIG(status));
            return Ok(Fate::Ended { code: libc::WEXITSTATUS(status) });
        }
        let mut deliver = 0;
        match libc::WSTOPSIG(status) {
            signal if signal == libc::SIGTRAP | 0x80 => {
                if let Some(name) = call(tid)? {
                    calls += 1;
                    if calls == nth {
                        kill(leader)?;
                        return Ok(Fate::Killed { before: name });
                    }
                }
            }
            // Events, and the first stop of a new thread.
            libc::SIGTRAP | libc::SIGSTOP => {}
            signal => deliver = signal,
        }
        // A thread may have died meanwhile; its end is reported next.
        let _ = ptrace(libc::PTRACE_SYSCALL, tid, deliver.into());
    }
}

/// The name of the system call that a stopped thread enters, if it changes the world.
fn call(tid: libc::pid_t) -> Result<Option<String>> {
    // SAFETY: integers, for which zero is a value.
    let mut info: SyscallInfo = unsafe { zeroed() };
    // SAFETY: the kernel writes at most the given number of bytes into the live structure.
    let written = unsafe { libc::ptrace(PTRACE_GET_SYSCALL_INFO, tid, size_of::<SyscallInfo>(), &raw mut info) };
    ensure!(written >= 0, "PTRACE_GET_SYSCALL_INFO: {}", io::Error::last_os_error());
    if info.op != PTRACE_SYSCALL_INFO_ENTRY {
        return Ok(None);
    }
    let number = libc::c_long::try_from(info.number)?;
    let [first, second, third, _, fifth, _] = info.arguments;
    let created = |flags: u64| flags & u64::from(libc::O_CREAT.cast_unsigned()) != 0;
    let name = match number {
        libc::SYS_bpf => match BPF_CHANGES.iter().find(|(command, _)| *command == first) {
            Some((_, name)) => return Ok(Some(format!("bpf {name}"))),
            None => return Ok(None),
        },
        libc::SYS_unlinkat => "unlinkat",
        libc::SYS_mkdirat => "mkdirat",
        libc::SYS_renameat | libc::SYS_renameat2 => "renameat",
        libc::SYS_fsync => "fsync",
        libc::SYS_fdatasync => "fdatasync",
        libc::SYS_flock => "flock",
        libc::SYS_openat if created(third) => "openat O_CREAT",
        libc::SYS_munmap if second >= IMAGE_BYTES_MIN && second.is_power_of_two() => "munmap of an image",
        // Without a file the descriptor is -1.
        libc::SYS_mmap if second >= IMAGE_BYTES_MIN && second.is_power_of_two() && fifth < 1 << 20 => {
            "mmap of an image"
        }
        // Beyond stdin, stdout and stderr: the journal, and wake-ups of the runtime.
        libc::SYS_write if first > 2 => "write",
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink | libc::SYS_rmdir => "unlink or rmdir",
        #[cfg(target_arch = "x86_64")]
        libc::SYS_mkdir => "mkdir",
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rename => "rename",
        _ => return Ok(None),
    };
    Ok(Some(name.to_owned()))
}

/// Kills the process whole and waits until it is gone: its descriptors are closed then.
fn kill(leader: libc::pid_t) -> Result<()> {
    // SAFETY: kill(2) takes two integers; the process is our child and not reaped yet.
    let result = unsafe { libc::kill(leader, libc::SIGKILL) };
    ensure!(result == 0, "kill: {}", io::Error::last_os_error());
    loop {
        let (tid, status) = wait_any()?;
        if tid == leader && libc::WIFSIGNALED(status) {
            return Ok(());
        }
        if tid == leader && libc::WIFEXITED(status) {
            bail!("the process ended by itself while it was killed");
        }
    }
}

/// The next child or traced thread of this thread that has stopped or ended.
fn wait_any() -> Result<(libc::pid_t, i32)> {
    let mut status = 0;
    loop {
        // SAFETY: the kernel writes one integer.
        let tid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        if tid > 0 {
            return Ok((tid, status));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).context("waiting for the traced process");
        }
    }
}

fn ptrace(request: libc::c_uint, tid: libc::pid_t, data: libc::c_long) -> Result<()> {
    // SAFETY: the requests used here take integers only.
    let result = unsafe { libc::ptrace(request, tid, 0, data) };
    ensure!(result != -1, "ptrace request {request}: {}", io::Error::last_os_error());
    Ok(())
}
