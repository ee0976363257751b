//! Where fuzzing starts: the frames of the packet corpus, the policies of the examples and of the diagnostics' tests.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::packet::frame_seed;
use super::policy::SEPARATOR;
use super::world::world_policy;
use crate::corpus;

/// Larger files teach the fuzzer nothing and make it slow.
const SEED_BYTES_MAX: u64 = 4096;

/// Fills `directory/TARGET/` from the project below `root`.
pub fn write_seeds(root: &Path, directory: &Path) -> Result<()> {
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let directory = directory.join(target);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(name), bytes).with_context(|| format!("writing the seed {target}/{name}"))
    };
    for theme in corpus::load(&root.join("tests/packets"))? {
        let name = Path::new(&theme.file).file_stem().and_then(|name| name.to_str()).unwrap_or("theme");
        for case in theme.cases.iter().filter(|case| case.frame.bytes.len() as u64 <= SEED_BYTES_MAX) {
            write("packet", &format!("{name}-{}", case.line), &frame_seed(&case.frame.bytes))?;
        }
    }
    let list = b"10.1.0.0/16\n10.2.0.0/16,edge-a # why\n2001:db8::/32\n";
    let mut separated = world_policy().into_bytes();
    separated.push(SEPARATOR);
    separated.extend_from_slice(list);
    write("policy", "world", &separated)?;
    for source in ["policies", "examples", "reconciler/tests/diagnostics"] {
        policies(&root.join(source), "", &mut |name, bytes| write("policy", name, bytes))?;
    }
    // The good image; and one change of each kind that the target knows.
    write("image", "good", &[2])?;
    for kind in 0..8 {
        write("image", &format!("change-{kind}"), &[2, kind, 0x40, 1, 0, 0, 0x80, 0, 0, 0])?;
    }
    Ok(())
}

/// Hands every small YAML file below `directory` to `write`, with the prefix list beside it if there is one.
fn policies(directory: &Path, name: &str, write: &mut impl FnMut(&str, &[u8]) -> Result<()>) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(directory)
        .with_context(|| format!("reading {}", directory.display()))?
        .collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let is = |path: &Path, ending: &str| path.extension().is_some_and(|extension| extension == ending);
    let list = entries.iter().map(fs::DirEntry::path).find(|path| is(path, "txt"));
    for entry in &entries {
        let (path, own) = (entry.path(), format!("{name}{}", entry.file_name().to_string_lossy()));
        // Follows no link: some of the diagnostics' tests are about links that lead nowhere.
        let kind = entry.file_type()?;
        if kind.is_dir() {
            policies(&path, &format!("{own}-"), write)?;
        } else if kind.is_file() && is(&path, "yaml") && entry.metadata()?.len() <= SEED_BYTES_MAX {
            let mut bytes = fs::read(&path)?;
            if let Some(list) = &list
                && fs::metadata(list).is_ok_and(|metadata| metadata.len() <= SEED_BYTES_MAX)
            {
                bytes.push(SEPARATOR);
                bytes.extend(fs::read(list)?);
            }
            write(&own, &bytes)?;
        }
    }
    Ok(())
}
