//! `wayleave run` on a node under test.
#![expect(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a test stops at the first surprise")]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{TestNode, binary};

/// Where Debian keeps the certificates that the system trusts.
const TRUSTED: &str = "/etc/ssl/certs/ca-certificates.crt";
const BOUND: Duration = Duration::from_secs(5);

/// A running daemon, killed when the test ends early; its log goes to a file of the node.
#[derive(Debug)]
pub struct Daemon<'n> {
    child: Child,
    node: &'n TestNode<'n>,
}

impl<'n> Daemon<'n> {
    /// Starts it and waits for its word that it is ready.
    pub fn start(node: &'n TestNode<'n>) -> Self {
        Self::spawn(node, node.command(&["run"]).unwrap())
    }

    /// The same with `authority` as the only certificate that the system trusts, in a mount namespace of its own.
    pub fn start_trusting(node: &'n TestNode<'n>, authority: &Path) -> Self {
        let mut command = node.namespace().command("unshare");
        let script = format!("mount --bind \"$0\" {TRUSTED} && exec \"$@\"");
        command.args(["--mount", "sh", "-c", &script]).arg(authority).arg(binary().unwrap());
        command.arg("--config").arg(node.config()).arg("run").stdin(Stdio::null());
        Self::spawn(node, command)
    }

    fn spawn(node: &'n TestNode<'n>, mut command: Command) -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = node.scratch().join(format!("notify-{number}"));
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(2 * BOUND)).unwrap();
        let log = fs::File::options().create(true).append(true).open(node.scratch().join("log")).unwrap();
        command.env("NOTIFY_SOCKET", &path).stdout(Stdio::null()).stderr(log);
        let daemon = Self { child: command.spawn().unwrap(), node };
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("not ready: {e}\n{}", daemon.log()));
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert!(text.lines().any(|line| line == "READY=1"), "{text}");
        daemon
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged, its predecessors on the same node included.
    pub fn log(&self) -> String {
        fs::read_to_string(self.node.scratch().join("log")).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends it by a signal; returns its exit code.
    pub fn stop(mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        let deadline = Instant::now() + BOUND;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not stop: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
