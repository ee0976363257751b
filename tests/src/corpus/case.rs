//! One case: a packet, where it comes in, and what must become of it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use fib::service::{BACKEND_AWAY_AT, BACKEND_DOWN};
use wayleave::compile::View;

use super::expect::Expect;
use super::flow::KnownFlow;
use super::frame::Frame;
use super::node::NodeDescription;

/// What changes the finished bytes of a frame.
const CHANGES: [&str; 4] = ["truncate", "pad", "set", "transport"];

impl Case {
    /// Words of the backends that are down or slow while it runs, by id; written `SERVICE/ADDRESS`, with the port where the backend
    /// has one.
    pub(super) fn backend_words(&self, view: &View<'_>) -> Result<BTreeMap<u32, u32>> {
        let id = |name: &String| {
            let (service, backend) = name.split_once('/').context("a backend is written SERVICE/ADDRESS")?;
            let service =
                view.services().find(|one| one.name == service).with_context(|| format!("no service {service}"))?;
            let backend = view.backends(&service).find(|one| one.name() == backend);
            anyhow::Ok(backend.with_context(|| format!("no backend {name}"))?.id)
        };
        let mut words = BTreeMap::new();
        for name in &self.backends_down {
            *words.entry(id(name)?).or_default() |= BACKEND_DOWN;
        }
        for (name, away) in &self.backends_slow {
            *words.entry(id(name)?).or_default() |= u32::from(*away) << BACKEND_AWAY_AT;
        }
        Ok(words)
    }
}

/// One case of a theme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Name of its file.
    pub file: String,
    /// 1-based line at which it begins.
    pub line: usize,
    /// A sentence.
    pub name: String,
    /// Index of the port that the packet comes in by.
    pub ingress: usize,
    pub frame: Frame,
    /// Next hops that are down while it runs.
    pub down: Vec<String>,
    /// Backends that are down while it runs, as `SERVICE/ADDRESS`.
    pub(super) backends_down: Vec<String>,
    /// Backends that are slow while it runs, and how many of 256 new flows they pass on.
    pub(super) backends_slow: Vec<(String, u8)>,
    /// What the flow table knows while it runs.
    pub(super) flows: Vec<KnownFlow>,
    pub(super) expect: Expect,
}

impl Case {
    /// Reads the indented lines below `case:`.
    pub(super) fn read(file: &str, line: usize, name: &str, body: &[&str], node: &NodeDescription) -> Result<Self> {
        let mut ingress = 0;
        let mut layers: Option<String> = None;
        let mut changes = Vec::new();
        let mut out: Option<String> = None;
        let mut becomes: Option<String> = None;
        let mut down = Vec::new();
        let mut backends_down = Vec::new();
        let mut backends_slow = Vec::new();
        let mut flows = Vec::new();
        for text in body.iter().map(|text| text.trim()) {
            let first = text.split_whitespace().next().unwrap_or_default();
            if let Some(rest) = text.strip_prefix("in:") {
                ensure!(layers.is_none(), "`in` stands twice");
                layers = Some(rest.trim().to_owned());
            } else if let Some((port, rest)) = text.strip_prefix("in ").and_then(|text| text.split_once(':')) {
                ensure!(layers.is_none(), "`in` stands twice");
                let known = node.ports.iter().position(|one| one.name == port.trim());
                ingress = known.with_context(|| format!("the node has no port `{port}`"))?;
                layers = Some(rest.trim().to_owned());
            } else if let Some(rest) = text.strip_prefix("out:") {
                ensure!(out.is_none(), "`out` stands twice");
                out = Some(rest.trim().to_owned());
            } else if let Some(rest) = text.strip_prefix("becomes:") {
                ensure!(becomes.is_none(), "`becomes` stands twice");
                becomes = Some(rest.trim().to_owned());
            } else if let Some(names) = text.strip_prefix("down:") {
                for name in names.split_whitespace() {
                    ensure!(node.hop(name).is_some(), "the node says nothing of the neighbour `{name}`");
                    down.push(name.to_owned());
                }
            } else if let Some(names) = text.strip_prefix("backends down:") {
                backends_down.extend(names.split_whitespace().map(str::to_owned));
            } else if let Some(names) = text.strip_prefix("backends slow:") {
                for name in names.split_whitespace() {
                    let (name, away) =
                        name.split_once('=').context("a slow backend is written SERVICE/ADDRESS=0 to 255")?;
                    backends_slow.push((name.to_owned(), away.parse()?));
                }
            } else if let Some(flow) = text.strip_prefix("flow:") {
                flows.push(KnownFlow::read(flow)?);
            } else if CHANGES.contains(&first) {
                changes.push(text);
            } else if let Some(layers) = becomes.as_mut().or(if out.is_none() { layers.as_mut() } else { None }) {
                layers.push(' ');
                layers.push_str(text);
            } else {
                bail!("`{text}`: a case has `in:`, changes of the frame, `down:`, `out:` and `becomes:`");
            }
        }
        let layers = layers.context("`in:` is missing")?;
        let becomes =
            becomes.map(|layers| Frame::build(&layers, &[], node.ports[ingress].mac, |_| None)).transpose()?;
        let expect = Expect::read(&out.context("`out:` is missing")?, becomes, node)?;
        let frame = Frame::build(&layers, &changes, node.ports[ingress].mac, |name| node.mac(name))?;
        Ok(Self {
            file: file.to_owned(),
            line,
            name: name.to_owned(),
            ingress,
            frame,
            down,
            backends_down,
            backends_slow,
            flows,
            expect,
        })
    }
}
