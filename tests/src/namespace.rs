//! A network namespace of the test's own.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_change, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Where `ip netns` looks, so that `ip -n NAME …` works on a namespace of a test that hangs.
const RUN_NETNS: &str = "/run/netns";
const PREFIX: &str = "wl-";

/// Settings of every lab namespace. IPv6 addresses are usable at once (no DAD), nobody answers or asks for router
/// advertisements, no reverse path filter hides a packet, and no ICMP answer is lost to a rate limit.
const SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv4/icmp_ratemask", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/ipv4/ip_nonlocal_bind", "1"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv6/icmp/ratelimit", "0"),
    // Limit only a type that nobody sends; an empty list is not taken.
    ("net/ipv6/icmp/ratemask", "255"),
    ("net/ipv6/ip_nonlocal_bind", "1"),
];

/// A network namespace with a unique name, `lo` up, removed on drop.
///
/// A thread enters with setns(2), as `ip netns exec` would also remount /sys and so hide the bpffs.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    path: PathBuf,
    fd: Arc<OwnedFd>,
}

impl Namespace {
    /// Makes a namespace; `label` is the readable end of its name.
    pub fn new(label: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{label}", std::process::id());
        let path = Path::new(RUN_NETNS).join(&name);
        {
            let _lock = prepare_run_netns().context("preparing /run/netns")?;
            remove_stale().context("removing namespaces of runs that died")?;
            File::create_new(&path).with_context(|| format!("creating {}", path.display()))?;
            if let Err(error) = bind_new_namespace(&path) {
                remove(&path);
                return Err(error);
            }
        }
        let opened = File::open(&path).with_context(|| format!("opening {}", path.display()));
        let fd = opened.inspect_err(|_| remove(&path))?;
        let namespace = Self { name, path, fd: Arc::new(fd.into()) };
        namespace.enter(|| SYSCTLS.iter().try_for_each(|(key, value)| write_sysctl(key, value)))??;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The name that `ip -n` takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` in a thread of its own that lives in this namespace; a panic in it goes on in the caller.
    ///
    /// Sockets opened by `work` stay in the namespace wherever they are used afterwards.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let result = thread::scope(|scope| {
            let inside = scope.spawn(|| -> Result<T> {
                self.join_current_thread()?;
                Ok(work())
            });
            inside.join()
        });
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Moves the calling thread, and the threads and processes it starts later, into this namespace for good.
    pub fn join_current_thread(&self) -> Result<()> {
        move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("entering the namespace {}", self.name))
    }

    /// A command that will run in this namespace and see the same file systems, the bpffs included.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let fd = Arc::clone(&self.fd);
        let mut command = Command::new(program);
        let enter = move || Ok(move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network))?);
        // SAFETY: between fork and exec the closure makes one setns(2) call on a descriptor it owns; it neither
        // allocates nor takes a lock.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs `ip ARGUMENTS` here; the arguments are split at spaces.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        self.run(self.command("ip").args(arguments.split_whitespace()), &format!("ip {arguments}"))
    }

    /// Runs one `ip` command a line, in one process.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut file = tempfile::tempfile().context("a file for ip -batch")?;
        std::io::Write::write_all(&mut file, lines.as_bytes())?;
        std::io::Seek::rewind(&mut file)?;
        self.run(self.command("ip").args(["-batch", "-"]).stdin(file), &format!("ip -batch:\n{lines}"))?;
        Ok(())
    }

    fn run(&self, command: &mut Command, shown: &str) -> Result<String> {
        let output = command.stderr(Stdio::piped()).output().context("starting ip (package iproute2)")?;
        if !output.status.success() {
            bail!("`{shown}` in {} failed: {}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sets one sysctl of this namespace; `key` is a path below /proc/sys, such as `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.enter(|| write_sysctl(key, value))?
    }

    /// Turns the kernel's own IPv4 and IPv6 forwarding on or off.
    pub fn set_forwarding(&self, on: bool) -> Result<()> {
        let value = if on { "1" } else { "0" };
        self.sysctl("net/ipv4/ip_forward", value)?;
        self.sysctl("net/ipv6/conf/all/forwarding", value)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Whether a name of the form `PID-…` belongs to a process that no longer runs.
pub(crate) fn owner_is_gone(name: &str) -> bool {
    let pid = name.split('-').next().and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

fn write_sysctl(key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(key);
    fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))
}

/// Makes /run/netns what `ip netns add` makes of it, a shared mount, and returns the same lock that `ip` takes.
///
/// Without the shared mount a later `ip netns add` would bind the directory over itself and so pin our mounts.
fn prepare_run_netns() -> Result<File> {
    fs::create_dir_all(RUN_NETNS)?;
    let lock = File::open(RUN_NETNS)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let share = || mount_change(RUN_NETNS, MountPropagationFlags::SHARED | MountPropagationFlags::REC);
    match share() {
        Err(Errno::INVAL) => {
            mount_bind_recursive(RUN_NETNS, RUN_NETNS)?;
            share()?;
        }
        other => other?,
    }
    Ok(lock)
}

fn bind_new_namespace(path: &Path) -> Result<()> {
    let make = || -> Result<()> {
        // SAFETY: the thread was started for this call and ends after it; it shares no network state with others,
        // and its file descriptor table is left alone.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("unshare(CLONE_NEWNET)")?;
        mount_bind("/proc/thread-self/ns/net", path).with_context(|| format!("binding {}", path.display()))
    };
    thread::scope(|scope| scope.spawn(make).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

fn remove(path: &Path) {
    // Drop cannot report. What stays behind is found by `remove_stale` of the next run.
    let _ = unmount(path, UnmountFlags::DETACH);
    let _ = fs::remove_file(path);
}

fn remove_stale() -> Result<()> {
    for entry in fs::read_dir(RUN_NETNS)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().and_then(|name| name.strip_prefix(PREFIX)).is_some_and(owner_is_gone) {
            remove(&entry.path());
        }
    }
    Ok(())
}
