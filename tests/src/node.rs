//! A node under test: its configuration, its policies on disk, its pins, and the released binary that runs in its namespace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use fib::layout::LAYOUT_VERSION;
use serde_json::Value;
use tempfile::TempDir;
use wayleave::daemon::node::Node;
use wayleave::policy;

use crate::{Bpffs, Namespace, Topology};

/// The binary under test, `target/release/wayleave`, found beside the test executable's own folder.
///
/// A test never builds it: what is tested is what was built, and a missing one is an error.
pub fn binary() -> Result<PathBuf> {
    let test = std::env::current_exe().context("where this test lies")?;
    // target/<profile>/deps/<test>: the binary is always the released one.
    let target = test.ancestors().nth(3).context("the test does not lie in a target directory")?;
    let binary = target.join("release/wayleave");
    ensure!(binary.is_file(), "{} is missing: run `./dev build` first", binary.display());
    Ok(binary)
}

/// One node: everything below a temporary directory and a bpffs of its own, gone when dropped.
#[derive(Debug)]
pub struct TestNode<'n> {
    namespace: &'n Namespace,
    directory: TempDir,
    bpffs: Bpffs,
    ports: Vec<(String, String, &'static str)>,
    settings: String,
    source: String,
}

/// What a command said and how it ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl<'n> TestNode<'n> {
    /// A node in `namespace` whose `ports` are (port, device), attached by `auto`; its source is empty.
    pub fn new(namespace: &'n Namespace, ports: &[(&str, &str)]) -> Result<Self> {
        let node = Self {
            namespace,
            directory: TempDir::new().context("a directory for the node")?,
            bpffs: Bpffs::mount()?,
            ports: ports.iter().map(|(port, device)| ((*port).to_owned(), (*device).to_owned(), "auto")).collect(),
            settings: String::new(),
            source: "{directory: policies}".to_owned(),
        };
        fs::create_dir(node.source())?;
        node.write_config()?;
        Ok(node)
    }

    /// The router of the lab, with the ports `lan`, `uplink-a`, `uplink-b`, … and `sink`.
    pub fn router(lab: &'n Topology) -> Result<Self> {
        let uplinks: Vec<String> =
            lab.upstreams.iter().map(|one| one.router_device.replacen("up", "uplink-", 1)).collect();
        let mut ports = vec![("lan", lab.client.router_device.as_str()), ("sink", lab.sink.router_device.as_str())];
        ports
            .extend(uplinks.iter().map(String::as_str).zip(lab.upstreams.iter().map(|one| one.router_device.as_str())));
        Self::new(&lab.router, &ports)
    }

    /// Where it runs.
    pub fn namespace(&self) -> &'n Namespace {
        self.namespace
    }

    /// Gives a port another way of attaching.
    pub fn set_attach(&mut self, port: &str, attach: &'static str) -> Result<()> {
        let found = self.ports.iter_mut().find(|(name, ..)| name == port).with_context(|| format!("no port {port}"))?;
        found.2 = attach;
        self.write_config()
    }

    /// Adds or moves a port.
    pub fn set_port(&mut self, port: &str, device: &str) -> Result<()> {
        self.ports.retain(|(name, ..)| name != port);
        self.ports.push((port.to_owned(), device.to_owned(), "auto"));
        self.write_config()
    }

    pub fn remove_port(&mut self, port: &str) -> Result<()> {
        self.ports.retain(|(name, ..)| name != port);
        self.write_config()
    }

    /// Adds lines to the `spec` of the configuration, such as `retain: {generations: 2}`.
    pub fn set_spec(&mut self, lines: &str) -> Result<()> {
        lines.lines().map(|line| format!("  {line}\n")).collect::<String>().clone_into(&mut self.settings);
        self.write_config()
    }

    /// Gives the node another source, such as `{git: {url: …, ref: {branch: main}}}`.
    pub fn set_source(&mut self, source: &str) -> Result<()> {
        source.clone_into(&mut self.source);
        self.write_config()
    }

    fn write_config(&self) -> Result<()> {
        let ports: String = self
            .ports
            .iter()
            .map(|(port, device, attach)| format!("    {port}: {{device: {device}, attach: {attach}}}\n"))
            .collect();
        // Guards have tests of their own: in the others large changes are meant.
        let guards = if self.settings.contains("guards:") {
            ""
        } else {
            "  guards: {allow: [removals, empty, default-route, management]}\n"
        };
        let text = format!(
            "apiVersion: wayleave/v1\nkind: NodeConfig\nmetadata: {{name: lab}}\nspec:\n  source: {}\n\
             \x20 bpffs: {}\n  stateDir: {}\n  ports:\n{ports}{guards}{}",
            self.source,
            self.place().display(),
            self.state().display(),
            self.settings
        );
        fs::write(self.config(), text).context("writing the node's configuration")
    }

    pub fn config(&self) -> PathBuf {
        self.directory.path().join("config.yaml")
    }

    /// The directory of policies.
    pub fn source(&self) -> PathBuf {
        self.directory.path().join("policies")
    }

    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// A place for other things of the test.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// What the configuration names as the place of the pins; not made yet.
    pub fn place(&self) -> PathBuf {
        self.bpffs.path().join("node")
    }

    /// Where this version pins in it.
    pub fn pins(&self) -> PathBuf {
        self.place().join(format!("layout-{LAYOUT_VERSION}"))
    }

    /// Writes one file of the source in place.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.source().join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Puts the sample policies of this repository into the source.
    pub fn write_samples(&self) -> Result<()> {
        let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
        for entry in fs::read_dir(&samples).with_context(|| format!("reading {}", samples.display()))? {
            let entry = entry?;
            fs::copy(entry.path(), self.source().join(entry.file_name()))?;
        }
        Ok(())
    }

    /// The command line `wayleave --config … ARGUMENTS` in the node's namespace.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        self.command_of(&binary()?, arguments)
    }

    /// The same of another build of wayleave.
    pub fn command_of(&self, binary: &Path, arguments: &[&str]) -> Result<Command> {
        let mut command = self.namespace.command(binary);
        command.arg("--config").arg(self.config()).args(arguments).stdin(Stdio::null()).env_remove("NOTIFY_SOCKET");
        Ok(command)
    }

    /// Runs a command to its end, however it ends.
    pub fn run(&self, arguments: &[&str]) -> Result<Outcome> {
        let output = self.command(arguments)?.output().with_context(|| format!("running wayleave {arguments:?}"))?;
        Ok(output.into())
    }

    /// Runs a command that must succeed.
    pub fn succeed(&self, arguments: &[&str]) -> Result<Outcome> {
        let outcome = self.run(arguments)?;
        if outcome.code != Some(0) {
            bail!("wayleave {arguments:?} ended with {:?}\n{}{}", outcome.code, outcome.stdout, outcome.stderr);
        }
        Ok(outcome)
    }

    /// `apply --auto-approve`, which must succeed.
    pub fn apply(&self) -> Result<Outcome> {
        self.succeed(&["apply", "--auto-approve"])
    }

    /// `status --format json`.
    pub fn status(&self) -> Result<Value> {
        let outcome = self.succeed(&["status", "--format", "json"])?;
        serde_json::from_str(&outcome.stdout).context("status is not JSON")
    }

    /// Every (verdict, reason) counter that has counted, as `verdict/reason`.
    pub fn counters(&self) -> Result<Counters> {
        let status = self.status()?;
        let rows = status["counters"].as_array().context("status has no counters")?;
        rows.iter()
            .map(|row| {
                let word = |key: &str| row[key].as_str().with_context(|| format!("{row} has no {key}"));
                Ok((format!("{}/{}", word("verdict")?, word("reason")?), row["packets"].as_u64().context("packets")?))
            })
            .collect::<Result<_>>()
            .map(Counters)
    }

    /// The same node for the library, to be used in threads of the namespace.
    pub fn library(&self) -> Result<Node> {
        let path = self.config();
        let config = policy::node_config(&fs::read(&path)?, &path)
            .map_err(|faults| anyhow::anyhow!("the configuration has faults: {faults:?}"))?;
        Ok(Node::new(config))
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Packets by `verdict/reason`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(pub std::collections::BTreeMap<String, u64>);

impl Counters {
    /// What was counted since `before`, without those that counted nothing.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let added = |(name, count): (&String, &u64)| (name.clone(), count - before.0.get(name).copied().unwrap_or(0));
        Self(self.0.iter().map(added).filter(|(_, count)| *count > 0).collect())
    }

    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl FromIterator<(String, u64)> for Counters {
    fn from_iter<I: IntoIterator<Item = (String, u64)>>(rows: I) -> Self {
        Self(rows.into_iter().collect())
    }
}
