//! What happened on this node, one JSON line an event, appended and synced.
//!
//! History only: what is live is read from the kernel, never from here. A torn last line (power lost while writing) is
//! skipped when read and kept in place.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

/// Version of the line format.
const FORMAT_VERSION: u32 = 1;

/// What kind of event a line records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    Applied,
    RolledBack,
    Detached,
    /// What was live before the machine was restarted is so again.
    Restored,
    /// What somebody changed in the kernel was put right; the generation may be the same as before.
    Repaired,
    /// Somebody changed something in the kernel, and it was left so.
    Drifted,
    /// Nothing was published: the source is not followed for a while.
    Suspended,
    /// Nor here: it is again.
    Resumed,
}

impl Event {
    /// Whether it is about the source alone; what is live stays.
    const fn changes_nothing(self) -> bool {
        matches!(self, Self::Suspended | Self::Resumed)
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub format_version: u32,
    pub unix_ms: u64,
    pub event: Event,
    pub generation: u64,
    pub parent: u64,
    pub revision: String,
    pub digest: String,
    /// Who: the login name behind sudo, else the user's name or number.
    pub by: String,
    /// What changed, in a few words.
    pub summary: String,
    /// Why, where somebody said so: an operator, a commit, a probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Entry {
    pub fn new(event: Event, unix_ms: u64) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            unix_ms,
            event,
            generation: 0,
            parent: 0,
            revision: String::new(),
            digest: String::new(),
            by: String::new(),
            summary: String::new(),
            why: None,
        }
    }
}

/// The journal of one state directory.
#[derive(Clone, Debug)]
pub struct Journal {
    path: PathBuf,
}

impl Journal {
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join("journal.jsonl") }
    }

    /// Appends one event and waits until it is on disk.
    pub fn append(&self, entry: &Entry) -> io::Result<()> {
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let mut file = OpenOptions::new().create(true).append(true).read(true).open(&self.path)?;
        if !ends_with_newline(&file)? {
            line.insert(0, b'\n');
        }
        file.write_all(&line)?;
        file.sync_data()
    }

    /// What was published and taken away, oldest first; none when there is no journal.
    pub fn read(&self) -> io::Result<Vec<Entry>> {
        let mut entries = self.read_all()?;
        entries.retain(|entry| !entry.event.changes_nothing());
        Ok(entries)
    }

    /// Every readable event, oldest first, those that published nothing included.
    pub fn read_all(&self) -> io::Result<Vec<Entry>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut entries = Vec::new();
        for line in BufReader::new(file).split(b'\n') {
            entries.extend(parse(&line?));
        }
        Ok(entries)
    }
}

/// One line; `None` when it is torn or of another format.
fn parse(line: &[u8]) -> Option<Entry> {
    let line: Value = serde_json::from_slice(line).ok()?;
    let number = |key: &str| line.get(key)?.as_u64();
    let text = |key: &str| line.get(key)?.as_str().map(str::to_owned);
    if number("format_version")? != u64::from(FORMAT_VERSION) {
        return None;
    }
    let event = match line.get("event")?.as_str()? {
        "applied" => Event::Applied,
        "rolled-back" => Event::RolledBack,
        "detached" => Event::Detached,
        "restored" => Event::Restored,
        "suspended" => Event::Suspended,
        "resumed" => Event::Resumed,
        "repaired" => Event::Repaired,
        "drifted" => Event::Drifted,
        _ => return None,
    };
    Some(Entry {
        format_version: FORMAT_VERSION,
        unix_ms: number("unix_ms")?,
        event,
        generation: number("generation")?,
        parent: number("parent")?,
        revision: text("revision")?,
        digest: text("digest")?,
        by: text("by")?,
        summary: text("summary")?,
        why: text("why"),
    })
}

fn ends_with_newline(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::FileExt as _;
    let length = file.metadata()?.len();
    if length == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.read_exact_at(&mut last, length - 1)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn a_torn_line_loses_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path());
        let first = Entry { generation: 1, ..Entry::new(Event::Applied, 5) };
        let second = Entry { generation: 2, ..Entry::new(Event::RolledBack, 6) };
        journal.append(&first).unwrap();
        OpenOptions::new().append(true).open(&journal.path).unwrap().write_all(b"{\"format_ver\xff\0").unwrap();
        journal.append(&second).unwrap();
        assert_eq!(journal.read().unwrap(), [first.clone(), second.clone()]);
        // What published nothing is no publish.
        let resumed = Entry::new(Event::Resumed, 8);
        journal.append(&Entry::new(Event::Suspended, 7)).unwrap();
        journal.append(&resumed).unwrap();
        assert_eq!(journal.read().unwrap(), [first, second]);
        assert_eq!(journal.read_all().unwrap().last(), Some(&resumed));
    }
}
