//! The node under measurement: client — router — sink, in namespaces of the benchmark's own.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use tempfile::TempDir;
use wayleave::daemon::apply::{apply, propose};
use wayleave::daemon::detach::detach;
use wayleave::daemon::node::Node;
use wayleave::policy::{Guard, node_config};
use wayleave_tests::{Bpffs, Mac, Namespace, veth};

use crate::internet::{NEXT_HOPS, Table};

pub(crate) fn via_v4(hop: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 78, 1, 0).to_bits() + hop)
}

pub(crate) fn via_v6(hop: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 1, 0).to_bits() + u128::from(hop))
}

/// Three namespaces in a row; every next hop is a permanent neighbour of the router, and all of them are the sink.
///
/// ```text
/// client eth0 ── lan router wan ── eth0 sink
/// ```
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) client: Namespace,
    pub(crate) router: Namespace,
    pub(crate) sink: Namespace,
    pub(crate) client_mac: Mac,
    pub(crate) lan_mac: Mac,
    pub(crate) wan_mac: Mac,
    pub(crate) sink_mac: Mac,
}

impl Lab {
    pub(crate) fn new() -> Result<Self> {
        let (client, router, sink) = (Namespace::new("client")?, Namespace::new("router")?, Namespace::new("sink")?);
        veth(&client, "eth0", &router, "lan")?;
        veth(&router, "wan", &sink, "eth0")?;
        let sink_mac = sink.mac("eth0")?;
        let mut batch = String::from(
            "address add 10.77.0.1/24 dev lan\naddress add 10.78.0.1/16 dev wan\naddress add fd78::1/64 dev wan nodad\n",
        );
        for hop in 0..NEXT_HOPS {
            writeln!(batch, "neighbour replace {} lladdr {sink_mac} dev wan nud permanent", via_v4(hop))?;
            writeln!(batch, "neighbour replace {} lladdr {sink_mac} dev wan nud permanent", via_v6(hop))?;
        }
        router.ip_batch(&batch)?;
        router.set_forwarding(true)?;
        Ok(Self {
            client_mac: client.mac("eth0")?,
            lan_mac: router.mac("lan")?,
            wan_mac: router.mac("wan")?,
            sink_mac,
            client,
            router,
            sink,
        })
    }

    /// Publishes what the node's source says now. What the benchmark takes away is meant.
    pub(crate) fn apply(&self, node: &Node) -> Result<()> {
        self.router.enter(|| {
            crate::block_on(async {
                let mut proposal = propose(node, &node.config.source).await?;
                proposal.allow(&Guard::ALL.into());
                apply(node, proposal, &mut |_| {}).await?;
                anyhow::Ok(())
            })?
        })?
    }
}

/// A source, a config, and places for pins and state, all of which disappear with it.
#[derive(Debug)]
pub(crate) struct Site {
    directory: TempDir,
    pub(crate) bpffs: Bpffs,
}

impl Site {
    pub(crate) fn new(table: &Table) -> Result<Self> {
        Self::with(|source| table.write_source(source))
    }

    /// One whose source is what `write` puts into the directory, which is there and empty.
    pub(crate) fn with(write: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let site = Self { directory: tempfile::tempdir()?, bpffs: Bpffs::mount()? };
        std::fs::create_dir(site.source())?;
        write(&site.source())?;
        let config = format!(
            "apiVersion: wayleave/v1\nkind: NodeConfig\nmetadata: {{name: bench}}\nspec:\n  source: {{directory: {}}}\n  \
             ports:\n    wan: {{device: wan}}\n    lan: {{device: lan}}\n  bpffs: {}\n  stateDir: {}\n",
            site.source().display(),
            site.bpffs.path().join("wayleave").display(),
            site.directory.path().join("state").display(),
        );
        std::fs::write(site.config(), config)?;
        Ok(site)
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.directory.path().join("policies")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("config.yaml")
    }

    pub(crate) fn node(&self) -> Result<Node> {
        let path = self.config();
        let text = std::fs::read(&path)?;
        let config = node_config(&text, &path).map_err(|faults| anyhow!("the benchmark's config: {faults:?}"))?;
        Ok(Node::new(config))
    }

    /// Gives the devices back and frees every generation.
    pub(crate) fn detach(&self, lab: &Lab) -> Result<()> {
        let node = self.node()?;
        lab.router.enter(|| detach(&node).map(drop))?.context("detaching")?;
        Ok(())
    }
}

/// The release binary, which lies beside this one.
pub(crate) fn wayleave() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let path = here.parent().unwrap_or(Path::new(".")).join("wayleave");
    anyhow::ensure!(path.is_file(), "{} is not there: build it with `./dev build`", path.display());
    Ok(path)
}
