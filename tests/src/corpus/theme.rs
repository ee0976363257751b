//! One file of the corpus: a policy, a node, and the cases that they decide.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use wayleave::compile::{Image, LiveIds, NodeFacts, compile};
use wayleave::policy::validate;
use wayleave::source::{Snapshot, SourceFile};

use super::case::Case;
use super::node::NodeDescription;

/// A file of the corpus, read and compiled.
#[derive(Clone, Debug)]
pub struct Theme {
    /// The file's name.
    pub file: String,
    pub node: NodeDescription,
    pub image: Image,
    pub cases: Vec<Case>,
}

/// A line at the left margin and the indented ones below it.
struct Section<'t> {
    /// 1-based.
    line: usize,
    head: &'t str,
    body: Vec<(usize, &'t str)>,
}

impl Theme {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&path.display().to_string(), &text)
    }

    pub(crate) fn parse(file: &str, text: &str) -> Result<Self> {
        let mut policies = BTreeMap::new();
        let mut node = NodeDescription::default();
        let mut cases: Vec<Case> = Vec::new();
        for section in sections(file, text)? {
            let place = || format!("{file}:{}", section.line);
            match section.head.split_once(':').map(|(word, rest)| (word, rest.trim())) {
                Some(("policy", "")) => {
                    policies.insert(format!("{:03}.yaml", policies.len()), SourceFile::Content(yaml(&section)));
                }
                Some((word, "")) if word.starts_with("list ") => {
                    let text: String = section.body.iter().map(|(_, line)| format!("{}\n", line.trim())).collect();
                    policies.insert(word["list ".len()..].to_owned(), SourceFile::Content(text.into_bytes().into()));
                }
                Some(("node", "")) => {
                    for (number, line) in &section.body {
                        node.add(line).with_context(|| format!("{file}:{number}"))?;
                    }
                }
                Some(("case", name)) if !name.is_empty() => {
                    ensure!(!node.ports.is_empty(), "{}: the node stands before the cases", place());
                    let twice = cases.iter().find(|case| case.name == name).map(|case| case.line);
                    ensure!(twice.is_none(), "{}: line {} has a case of this name", place(), twice.unwrap_or(0));
                    let body: Vec<&str> = section.body.iter().map(|(_, line)| *line).collect();
                    let case = Case::read(file, section.line, name, &body, &node);
                    cases.push(case.with_context(|| format!("{}: {name}", place()))?);
                }
                _ => return Err(anyhow!("{}: expected `policy:`, `list PATH:`, `node:` or `case: NAME`", place())),
            }
        }
        ensure!(!cases.is_empty(), "{file} has no case");
        let image = image(policies, &node).with_context(|| format!("{file}: its policy"))?;
        let theme = Self { file: file.to_owned(), node, image, cases };
        theme.check_next_hops()?;
        Ok(theme)
    }

    /// Every next hop of the policy has its line in the node, and the other way round.
    fn check_next_hops(&self) -> Result<()> {
        let view = self.image.view()?;
        for hop in view.next_hops() {
            self.node
                .reach(hop.name, hop.port, &[])
                .with_context(|| format!("{}: next hop {}", self.file, hop.name))?;
        }
        for hop in &self.node.hops {
            let times = view.next_hops().filter(|one| one.name == hop.name).count();
            ensure!(times == 1, "{}: {times} next hops of the policy are called `{}`", self.file, hop.name);
        }
        Ok(())
    }
}

fn sections<'t>(file: &str, text: &'t str) -> Result<Vec<Section<'t>>> {
    let mut sections: Vec<Section> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        if !line.starts_with(' ') {
            sections.push(Section { line: number, head: line.trim_end(), body: Vec::new() });
        } else if let Some(section) = sections.last_mut() {
            section.body.push((number, line));
        } else {
            return Err(anyhow!("{file}:{number}: an indented line without a section"));
        }
    }
    Ok(sections)
}

/// The document, at the lines at which it stands in the file, so that diagnostics name them.
fn yaml(section: &Section) -> Arc<[u8]> {
    let mut text = String::new();
    let mut at = 1;
    for (number, line) in &section.body {
        text.extend(std::iter::repeat_n('\n', number - at));
        text.push_str(line);
        at = *number;
    }
    text.push('\n');
    text.into_bytes().into()
}

fn image(policies: BTreeMap<String, SourceFile>, node: &NodeDescription) -> Result<Image> {
    let validated = validate(&Snapshot::of_directory(policies));
    let policy = validated.policy.ok_or_else(|| {
        let say = |diagnostic: &wayleave::policy::Diagnostic| format!("\n  {diagnostic:?}");
        anyhow!("it is not valid:{}", validated.diagnostics.iter().map(say).collect::<String>())
    })?;
    let facts = NodeFacts { local_addresses: node.locals.clone(), tunnels: node.tunnels.clone() };
    let mut image = compile(&policy, &facts, &LiveIds::default())?;
    image.stamp(1, 0, 0);
    Ok(image)
}
