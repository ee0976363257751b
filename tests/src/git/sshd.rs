//! A real sshd for one test.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::run;
use crate::Namespace;

const PROGRAM: &str = "/usr/sbin/sshd";

/// sshd on 127.0.0.1 in a namespace, with a host key and one key that may log in; ended when dropped.
#[derive(Debug)]
pub struct Sshd {
    folder: TempDir,
    child: Child,
    pub port: u16,
}

impl Sshd {
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        ensure!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing: install openssh-server (`./dev test kernel` does)");
        let folder = TempDir::new()?;
        for key in ["host", "user", "stranger", "other-host"] {
            make_key(&folder.path().join(key))?;
        }
        // Where sshd keeps its unprivileged half.
        fs::create_dir_all("/run/sshd")?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nLogLevel VERBOSE\n",
            at("host"),
            at("user.pub")
        );
        fs::write(folder.path().join("config"), config)?;
        for (known, host) in [("known_hosts", "host"), ("wrong_hosts", "other-host")] {
            let key = fs::read_to_string(folder.path().join(format!("{host}.pub")))?;
            fs::write(folder.path().join(known), format!("[127.0.0.1]:{port} {key}"))?;
        }
        let log = File::create(folder.path().join("log"))?;
        let mut command = namespace.command(PROGRAM);
        command.args(["-D", "-e", "-f"]).arg(folder.path().join("config"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("starting sshd")?;
        let sshd = Self { folder, child, port };
        let deadline = Instant::now() + Duration::from_secs(5);
        while namespace.enter(|| TcpStream::connect(("127.0.0.1", port)).is_err())? {
            ensure!(Instant::now() < deadline, "sshd does not listen: {}", sshd.log()?);
            thread::sleep(Duration::from_millis(10));
        }
        Ok(sshd)
    }

    /// The path of `user` (a key that may log in), `stranger` (one that may not), `known_hosts` or `wrong_hosts`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.path().join("log"))?)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes an ed25519 key at `path`, without a passphrase.
pub(super) fn make_key(path: &Path) -> Result<()> {
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(path)).map(drop)
}
