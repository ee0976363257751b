//! Reads a plain directory, a Kubernetes volume included, into a snapshot.
//!
//! Listed, read, listed again: when the two listings differ the files are read again, so that a swap of the `..data`
//! link or an editor's rename in the middle never gives a mix of two states.

use std::collections::BTreeMap;
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{FileFault, Limits, Snapshot, SourceError, SourceFile};

/// How often a source that changes under the reader is read again.
const ATTEMPTS_MAX: usize = 4;

/// What a listing says about one path; equal before and after the read means: not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Listed {
    File(Identity),
    Fault(FileFault),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    /// Where the file really lies, no link on the way.
    real: PathBuf,
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

impl Identity {
    fn new(real: PathBuf, m: &Metadata) -> Self {
        Self {
            real,
            device: m.dev(),
            inode: m.ino(),
            size_bytes: m.len(),
            modified_ns: (m.mtime(), m.mtime_nsec()),
            changed_ns: (m.ctime(), m.ctime_nsec()),
        }
    }
}

/// Every file below `path` that is not hidden; entries whose name begins with a dot are left out.
///
/// Links are followed inside the source only: one that leaves it is recorded as a fault of that path. A file above its
/// limit is recorded with its size and not read.
pub fn read_directory(path: &Path, limits: &Limits) -> Result<Snapshot, SourceError> {
    for _ in 0..ATTEMPTS_MAX {
        let before = list(path, limits)?;
        let files = read_listed(path, &before, limits)?;
        if list(path, limits)? == before {
            if files.is_empty() {
                return Err(SourceError::Empty { path: path.to_owned() });
            }
            return Ok(Snapshot::of_directory(files));
        }
    }
    Err(SourceError::Changing { path: path.to_owned() })
}

fn list(path: &Path, limits: &Limits) -> Result<BTreeMap<String, Listed>, SourceError> {
    let root = fs::canonicalize(path).map_err(|cause| match cause.kind() {
        ErrorKind::NotFound => SourceError::Missing { path: path.to_owned() },
        _ => SourceError::Unreadable { path: path.to_owned(), cause },
    })?;
    if !root.is_dir() {
        return Err(SourceError::NotADirectory { path: path.to_owned() });
    }
    let mut walk = Walk { source: path, root: root.clone(), limits, entries: 0, found: BTreeMap::new() };
    walk.directory(&root, "", &mut Vec::new())?;
    Ok(walk.found)
}

struct Walk<'a> {
    /// As the caller wrote it, for messages.
    source: &'a Path,
    root: PathBuf,
    limits: &'a Limits,
    entries: usize,
    found: BTreeMap<String, Listed>,
}

impl Walk<'_> {
    /// Lists `real`, known in the source as `prefix`; `above` are the real directories on the way down.
    fn directory(&mut self, real: &Path, prefix: &str, above: &mut Vec<PathBuf>) -> Result<(), SourceError> {
        if above.len() > self.limits.depth_max {
            return Err(self.too_large("levels of directories", self.limits.depth_max));
        }
        let entries = match fs::read_dir(real) {
            Ok(entries) => entries,
            Err(cause) if above.is_empty() => {
                return Err(SourceError::Unreadable { path: self.source.to_owned(), cause });
            }
            Err(cause) => return self.fault(prefix, FileFault::Unreadable { reason: cause.to_string() }),
        };
        above.push(real.to_owned());
        for entry in entries {
            let entry = entry.map_err(|cause| SourceError::Unreadable { path: self.source.to_owned(), cause })?;
            self.entries += 1;
            if self.entries > self.limits.entries_max {
                return Err(self.too_large("directory entries", self.limits.entries_max));
            }
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let shown = format!("{prefix}{}", name.to_string_lossy());
            if name.to_str().is_none() {
                self.fault(&shown, FileFault::Name)?;
                continue;
            }
            self.entry(&entry.path(), &shown, above)?;
        }
        above.pop();
        Ok(())
    }

    fn entry(&mut self, path: &Path, shown: &str, above: &mut Vec<PathBuf>) -> Result<(), SourceError> {
        let real = match fs::canonicalize(path) {
            Ok(real) => real,
            Err(cause) => return self.fault(shown, FileFault::Unreadable { reason: cause.to_string() }),
        };
        if !real.starts_with(&self.root) {
            // The link's own text, not the place it resolves to: that differs between machines.
            let target = fs::read_link(path).unwrap_or(real);
            return self.fault(shown, FileFault::LeavesSource { target: target.display().to_string() });
        }
        let metadata = match fs::metadata(&real) {
            Ok(metadata) => metadata,
            Err(cause) => return self.fault(shown, FileFault::Unreadable { reason: cause.to_string() }),
        };
        if metadata.is_dir() {
            if above.contains(&real) {
                return self.fault(shown, FileFault::Cycle);
            }
            return self.directory(&real, &format!("{shown}/"), above);
        }
        if !metadata.is_file() {
            return self.fault(shown, FileFault::NotRegular);
        }
        let (size_bytes, limit_bytes) = (metadata.len(), self.limits.bytes_max(shown));
        if size_bytes > limit_bytes {
            return self.fault(shown, FileFault::Oversized { size_bytes, limit_bytes });
        }
        self.record(shown, Listed::File(Identity::new(real, &metadata)))
    }

    fn fault(&mut self, shown: &str, fault: FileFault) -> Result<(), SourceError> {
        self.record(shown.trim_end_matches('/'), Listed::Fault(fault))
    }

    fn record(&mut self, shown: &str, listed: Listed) -> Result<(), SourceError> {
        self.found.insert(shown.to_owned(), listed);
        if self.found.len() > self.limits.files_max {
            return Err(self.too_large("files", self.limits.files_max));
        }
        Ok(())
    }

    fn too_large(&self, what: &'static str, limit: usize) -> SourceError {
        SourceError::TooLarge { path: self.source.to_owned(), what, limit: limit as u64 }
    }
}

fn read_listed(
    source: &Path,
    listed: &BTreeMap<String, Listed>,
    limits: &Limits,
) -> Result<BTreeMap<String, SourceFile>, SourceError> {
    let mut total_bytes = 0;
    let mut files = BTreeMap::new();
    for (shown, entry) in listed {
        let file = match entry {
            Listed::Fault(fault) => SourceFile::Fault(fault.clone()),
            Listed::File(identity) => {
                total_bytes += identity.size_bytes;
                if total_bytes > limits.total_bytes_max {
                    let (path, what, limit) = (source.to_owned(), "bytes in its files", limits.total_bytes_max);
                    return Err(SourceError::TooLarge { path, what, limit });
                }
                match read_file(identity) {
                    Ok(bytes) => SourceFile::Content(bytes),
                    Err(cause) => SourceFile::Fault(FileFault::Unreadable { reason: cause.to_string() }),
                }
            }
        };
        files.insert(shown.clone(), file);
    }
    Ok(files)
}

/// The bytes of a file, never more than its listing promised: a file that grew shows in the second listing.
fn read_file(identity: &Identity) -> io::Result<Arc<[u8]>> {
    // O_NONBLOCK: a pipe put in the file's place after the listing must not hang the reader.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&identity.real)?;
    let mut bytes = Vec::with_capacity(usize::try_from(identity.size_bytes).unwrap_or(0));
    file.take(identity.size_bytes).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn read(path: &Path) -> Result<Snapshot, SourceError> {
        read_directory(path, &Limits::default())
    }

    fn write(root: &Path, path: &str, content: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn a_missing_an_empty_and_a_non_directory_are_errors() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(read(&root.path().join("no")), Err(SourceError::Missing { .. })));
        assert!(matches!(read(root.path()), Err(SourceError::Empty { .. })));
        write(root.path(), ".git/config", "hidden");
        assert!(matches!(read(root.path()), Err(SourceError::Empty { .. })));
        write(root.path(), "file", "x");
        assert!(matches!(read(&root.path().join("file")), Err(SourceError::NotADirectory { .. })));
    }

    #[test]
    fn the_revision_depends_on_paths_and_contents_only() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for path in ["x.yaml", "lists/y.txt", "z.yaml"] {
            write(a.path(), path, path);
        }
        for path in ["z.yaml", "x.yaml", "lists/y.txt"] {
            write(b.path(), path, path);
        }
        let first = read(a.path()).unwrap();
        assert_eq!(first, read(b.path()).unwrap());
        assert!(first.revision.starts_with("dir@sha256:") && first.revision.len() == 11 + 64, "{}", first.revision);
        write(b.path(), "z.yaml", "other");
        assert_ne!(first.revision, read(b.path()).unwrap().revision);
    }

    #[test]
    fn a_kubernetes_volume_reads_like_a_plain_directory() {
        let (volume, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(volume.path(), "..2026_01/a.yaml", "a");
        write(volume.path(), "..2026_01/lists/b.txt", "b");
        symlink("..2026_01", volume.path().join("..data")).unwrap();
        symlink("..data/a.yaml", volume.path().join("a.yaml")).unwrap();
        symlink("..data/lists", volume.path().join("lists")).unwrap();
        write(plain.path(), "a.yaml", "a");
        write(plain.path(), "lists/b.txt", "b");
        assert_eq!(read(volume.path()).unwrap(), read(plain.path()).unwrap());
    }

    #[test]
    fn links_out_of_the_source_cycles_and_dangling_links_are_faults_of_their_path() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(root.path(), "sub/a.yaml", "a");
        write(outside.path(), "secret.yaml", "s");
        symlink(outside.path().join("secret.yaml"), root.path().join("out.yaml")).unwrap();
        symlink(outside.path(), root.path().join("outdir")).unwrap();
        symlink("..", root.path().join("sub/up")).unwrap();
        symlink("nowhere", root.path().join("gone.yaml")).unwrap();
        let files = read(root.path()).unwrap().files;
        let fault = |path: &str| match &files[path] {
            SourceFile::Fault(fault) => fault.clone(),
            SourceFile::Content(_) => panic!("{path} was read"),
        };
        assert!(matches!(fault("out.yaml"), FileFault::LeavesSource { .. }));
        assert!(matches!(fault("outdir"), FileFault::LeavesSource { .. }));
        assert_eq!(fault("sub/up"), FileFault::Cycle);
        assert!(matches!(fault("gone.yaml"), FileFault::Unreadable { .. }));
        assert_eq!(files.len(), 5);
    }

    #[test]
    fn a_file_above_its_limit_is_recorded_and_not_read() {
        let root = tempfile::tempdir().unwrap();
        let huge = fs::File::create(root.path().join("huge.yaml")).unwrap();
        huge.set_len(1 << 40).unwrap(); // sparse: one TiB to whoever would read it
        let files = read(root.path()).unwrap().files;
        let fault = FileFault::Oversized { size_bytes: 1 << 40, limit_bytes: Limits::default().yaml_bytes_max };
        assert_eq!(files["huge.yaml"], SourceFile::Fault(fault));
    }

    #[test]
    fn limits_on_files_depth_entries_and_bytes_stop_the_read() {
        let root = tempfile::tempdir().unwrap();
        for n in 0..4 {
            write(root.path(), &format!("a/b/{n}.txt"), "0123456789");
        }
        let check = |limits: Limits, expected: &str| {
            let error = read_directory(root.path(), &limits).unwrap_err().to_string();
            assert!(error.ends_with(expected), "{error}");
        };
        check(Limits { files_max: 3, ..Limits::default() }, "has more than 3 files");
        check(Limits { depth_max: 1, ..Limits::default() }, "has more than 1 levels of directories");
        check(Limits { entries_max: 5, ..Limits::default() }, "has more than 5 directory entries");
        check(Limits { total_bytes_max: 39, ..Limits::default() }, "has more than 39 bytes in its files");
    }
}
