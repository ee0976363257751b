//! What was last tried, and what an operator has set aside or suspended; small files, replaced whole.
//!
//! Nothing here says what is live: that is the kernel's to say.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

/// What the daemon says of a next hop: since when it is what it is, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NextHopRecord {
    pub id: u32,
    /// `policy/name`.
    pub next_hop: String,
    pub via: std::net::IpAddr,
    /// `up`, `down` or `unknown`, as [`super::reach::word`] says it.
    pub state: String,
    pub since_unix_ms: u64,
    /// Of one that is down.
    pub why: Option<String>,
}

/// What the daemon says of a backend: since when it is what it is, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendRecord {
    pub id: u32,
    pub service: String,
    pub backend: String,
    /// `healthy`, `unhealthy` or `unknown`.
    pub state: String,
    pub since_unix_ms: u64,
    /// Of one that is unhealthy.
    pub why: Option<String>,
    /// What packets meet: whether they go elsewhere, all of them, or so many of 256 new flows.
    pub is_down: bool,
    pub away: u8,
    /// How long the checks that pass take, averaged.
    pub latency_ms: Option<f64>,
    /// How often this daemon has checked it, and when it last did.
    pub checks: u64,
    pub checked_unix_ms: Option<u64>,
}

/// How a device was attached, and why so. Indexes mean something until the next start of the machine, as attachments do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AttachmentRecord {
    pub device: String,
    pub index: u32,
    /// What the configuration said: `auto` or a mode.
    pub configured: String,
    pub mode: String,
    pub why: String,
}

/// A source state that an operator rolled back from.
///
/// A source is the same while either says so: a comment beside the policies makes another revision, and another address of
/// the node makes another digest, but neither makes a bad change good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SetAside {
    pub revision: String,
    /// Of the rules that it compiled to.
    pub digest: String,
}

impl SetAside {
    /// Whether a source of this revision, compiled to these rules, is what was set aside.
    pub fn matches(&self, revision: &str, digest: &str) -> bool {
        self.revision == revision || self.digest == digest
    }
}

/// The state directory of one node.
#[derive(Clone, Debug)]
pub struct State {
    directory: PathBuf,
}

impl State {
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Records the last attempt, as [`super::attempt`] writes it.
    pub(super) fn set_attempt(&self, attempt: &Value) -> io::Result<()> {
        self.replace("attempt.json", attempt.to_string().as_bytes())
    }

    /// The last attempt as JSON; `None` when there was none.
    pub(super) fn attempt(&self) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.directory.join("attempt.json")).ok()?).ok()
    }

    /// Records what the daemon last found to differ in the kernel. Written with every look, so not forced to the disk.
    pub fn set_drift(&self, drift: &Value) -> io::Result<()> {
        let new = self.write_beside("drift.json", drift.to_string().as_bytes())?.1;
        std::fs::rename(new, self.directory.join("drift.json"))
    }

    /// What a daemon last found to differ; `None` where none looked.
    pub fn drift(&self) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.directory.join("drift.json")).ok()?).ok()
    }

    /// Records what the daemon knows of the source that it follows.
    pub fn set_source(&self, source: &Value) -> io::Result<()> {
        self.replace("source.json", source.to_string().as_bytes())
    }

    /// What a daemon last knew of the source that it follows; `None` where it never did.
    pub fn source(&self) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.directory.join("source.json")).ok()?).ok()
    }

    /// Records what the daemon last said of the next hops. Written often when links flap, so not forced to the disk: the
    /// truth is in the kernel, and this only says since when and why.
    pub fn set_next_hops(&self, next_hops: &[NextHopRecord]) -> io::Result<()> {
        let new = self.write_beside("next-hops.json", &serde_json::to_vec(&json!({ "next_hops": next_hops }))?)?.1;
        std::fs::rename(new, self.directory.join("next-hops.json"))
    }

    /// What the daemon last said of the next hops; nothing where it never did.
    pub fn next_hops(&self) -> Vec<NextHopRecord> {
        let read = || -> Option<Value> {
            serde_json::from_slice(&std::fs::read(self.directory.join("next-hops.json")).ok()?).ok()
        };
        let value = read().unwrap_or_default();
        let record = |entry: &Value| {
            Some(NextHopRecord {
                id: u32::try_from(entry["id"].as_u64()?).ok()?,
                next_hop: entry["next_hop"].as_str()?.to_owned(),
                via: entry["via"].as_str()?.parse().ok()?,
                state: entry["state"].as_str()?.to_owned(),
                since_unix_ms: entry["since_unix_ms"].as_u64()?,
                why: entry["why"].as_str().map(str::to_owned),
            })
        };
        value["next_hops"].as_array().into_iter().flatten().filter_map(record).collect()
    }

    /// Records what the daemon last said of backends, and when. Not forced to the disk, as next hops are not.
    pub fn set_backends(&self, as_of_unix_ms: u64, backends: &[BackendRecord]) -> io::Result<()> {
        let value = json!({ "as_of_unix_ms": as_of_unix_ms, "backends": backends });
        let new = self.write_beside("backends.json", &serde_json::to_vec(&value)?)?.1;
        std::fs::rename(new, self.directory.join("backends.json"))
    }

    /// When the daemon last said what of backends; nothing where it never did.
    pub fn backends(&self) -> (Option<u64>, Vec<BackendRecord>) {
        let read = || -> Option<Value> {
            serde_json::from_slice(&std::fs::read(self.directory.join("backends.json")).ok()?).ok()
        };
        let value = read().unwrap_or_default();
        let record = |entry: &Value| {
            let text = |key: &str| entry[key].as_str().map(str::to_owned);
            Some(BackendRecord {
                id: u32::try_from(entry["id"].as_u64()?).ok()?,
                service: text("service")?,
                backend: text("backend")?,
                state: text("state")?,
                since_unix_ms: entry["since_unix_ms"].as_u64()?,
                why: text("why"),
                is_down: entry["is_down"].as_bool()?,
                away: u8::try_from(entry["away"].as_u64()?).ok()?,
                latency_ms: entry["latency_ms"].as_f64(),
                checks: entry["checks"].as_u64()?,
                checked_unix_ms: entry["checked_unix_ms"].as_u64(),
            })
        };
        let records = value["backends"].as_array().into_iter().flatten().filter_map(record).collect();
        (value["as_of_unix_ms"].as_u64(), records)
    }

    /// Records how a device was attached; what was recorded of the same device before is forgotten.
    pub fn add_attachment(&self, record: AttachmentRecord) -> io::Result<()> {
        let mut all = self.attachments();
        all.retain(|one| one.device != record.device && one.index != record.index);
        all.push(record);
        all.sort_by(|a, b| a.device.cmp(&b.device));
        self.replace("attachments.json", json!({ "attachments": all }).to_string().as_bytes())
    }

    /// How devices were attached when they were, by name; nothing where nobody wrote it.
    pub fn attachments(&self) -> Vec<AttachmentRecord> {
        let read = || -> Option<Value> {
            serde_json::from_slice(&std::fs::read(self.directory.join("attachments.json")).ok()?).ok()
        };
        let value = read().unwrap_or_default();
        let record = |entry: &Value| {
            let text = |key: &str| entry[key].as_str().map(str::to_owned);
            Some(AttachmentRecord {
                device: text("device")?,
                index: u32::try_from(entry["index"].as_u64()?).ok()?,
                configured: text("configured")?,
                mode: text("mode")?,
                why: text("why")?,
            })
        };
        value["attachments"].as_array().into_iter().flatten().filter_map(record).collect()
    }

    /// Sets a source state aside: `run` does not apply it until another one comes. What was set aside before stays so, or a
    /// second rollback would bring back what the first one took away.
    pub fn quarantine(&self, aside: SetAside) -> io::Result<()> {
        let mut all = self.quarantined()?;
        if !all.contains(&aside) {
            all.push(aside);
        }
        self.replace("quarantine.json", json!({ "set_aside": all }).to_string().as_bytes())
    }

    /// What is set aside, oldest first. A file that is there and cannot be read is an error, never "nothing": what was
    /// rolled back would come back.
    pub fn quarantined(&self) -> io::Result<Vec<SetAside>> {
        let Some(bytes) = self.read("quarantine.json")? else { return Ok(Vec::new()) };
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "quarantine.json is damaged; remove it to go on");
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
        let all = value.get("set_aside").and_then(Value::as_array).ok_or_else(damaged)?;
        let text = |entry: &Value, key: &str| entry.get(key)?.as_str().map(str::to_owned);
        let entry = |e: &Value| Some(SetAside { revision: text(e, "revision")?, digest: text(e, "digest")? });
        all.iter().map(|e| entry(e).ok_or_else(damaged)).collect()
    }

    /// Lifts the quarantine; none set is no error.
    pub fn lift_quarantine(&self) -> io::Result<()> {
        match std::fs::remove_file(self.directory.join("quarantine.json")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// The bytes of a file; `None`: it is not there.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.directory.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes a file beside the old one and renames it: a reader sees the old or the new, whole.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (file, new) = self.write_beside(name, bytes)?;
        file.sync_data()?;
        std::fs::rename(&new, self.directory.join(name))
    }

    fn write_beside(&self, name: &str, bytes: &[u8]) -> io::Result<(std::fs::File, PathBuf)> {
        std::fs::create_dir_all(&self.directory)?;
        // Commands write while the daemon does.
        let new = self.directory.join(format!(".{name}.{}.new", std::process::id()));
        let mut file = std::fs::File::create(&new)?;
        file.write_all(bytes)?;
        Ok((file, new))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn a_second_rollback_keeps_the_first_one_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::new(&dir.path().join("not-there-yet"));
        assert!(state.quarantined().unwrap().is_empty());
        let aside = |n: u8| SetAside { revision: format!("dir@sha256:{n}"), digest: format!("{n}{n}") };
        for n in [3, 2, 3] {
            state.quarantine(aside(n)).unwrap();
        }
        assert_eq!(state.quarantined().unwrap(), [aside(3), aside(2)]);
        assert!(aside(3).matches("dir@sha256:3", "an address changed"));
        assert!(aside(3).matches("a README changed", "33"));
        assert!(!aside(3).matches("dir@sha256:4", "44"));
        state.lift_quarantine().unwrap();
        state.lift_quarantine().unwrap();
        assert!(state.quarantined().unwrap().is_empty());
        for damaged in ["", "{", "{}", r#"{"set_aside": [{"revision": 1}]}"#] {
            std::fs::write(state.directory.join("quarantine.json"), damaged).unwrap();
            assert!(state.quarantined().is_err(), "{damaged}");
        }
    }
}
