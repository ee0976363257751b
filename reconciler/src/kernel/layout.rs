//! Layouts of other versions beside this one's: older ones are taken over, newer ones are left alone.
//!
//! A layout is all that lies below one directory: the shapes of maps and of images. An older one is never read, only its links
//! and the numbers of its generations; so its maps may have any shape.

use std::path::{Path, PathBuf};

use fib::layout::LAYOUT_VERSION;

use super::KernelError;
use super::pins::{LAYOUT, Pins, VERSION, links_below, names, remove_tree};

/// Directories of the layout that had no directory of its own, which was version 2 or older, in the node's place.
const WITHOUT_DIRECTORY: [&str; 3] = ["maps", "generation", "link"];
const WITHOUT_DIRECTORY_CLASS: &str = "class-";

/// A layout of another version that is pinned beside this version's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherLayout {
    /// What is below it belongs to the layout; for the oldest the node's place itself.
    pub directory: PathBuf,
    /// `None`: it is so old that it has no directory of its own.
    pub version: Option<u32>,
    /// The version of wayleave that made it, where it says so.
    pub written_by: Option<String>,
    /// The highest number of its generations; 0: it has none.
    pub newest: u64,
}

impl OtherLayout {
    /// Whether this version must not touch it.
    pub fn is_newer(&self) -> bool {
        self.version.is_some_and(|version| version > LAYOUT_VERSION)
    }

    /// What is attached by it: names and pins.
    pub(super) fn links(&self) -> Result<Vec<(String, PathBuf)>, KernelError> {
        links_below(&self.directory)
    }
}

/// All layouts of other versions, oldest first.
pub fn others(pins: &Pins) -> Result<Vec<OtherLayout>, KernelError> {
    let place = pins.place();
    let mut others = Vec::new();
    let all = names(place)?;
    if all.iter().any(|name| WITHOUT_DIRECTORY.contains(&name.as_str()) || name.starts_with(WITHOUT_DIRECTORY_CLASS)) {
        others.push(read(place, None)?);
    }
    let mut versions: Vec<u32> = all.iter().filter_map(|name| name.strip_prefix(LAYOUT)?.parse().ok()).collect();
    versions.sort_unstable();
    for version in versions.into_iter().filter(|version| *version != LAYOUT_VERSION) {
        others.push(read(&place.join(format!("{LAYOUT}{version}")), Some(version))?);
    }
    Ok(others)
}

fn read(directory: &Path, version: Option<u32>) -> Result<OtherLayout, KernelError> {
    let written_by = std::fs::read_link(directory.join(VERSION)).ok();
    let newest = names(&directory.join("generation"))?.iter().filter_map(|name| name.parse().ok()).max().unwrap_or(0);
    Ok(OtherLayout {
        directory: directory.to_owned(),
        version,
        written_by: written_by.and_then(|text| text.into_os_string().into_string().ok()),
        newest,
    })
}

/// Refuses to go on where a newer version of wayleave has its layout: what this one would attach or remove is not its own.
pub fn refuse_newer(pins: &Pins) -> Result<(), KernelError> {
    match others(pins)?.into_iter().rev().find(OtherLayout::is_newer) {
        None => Ok(()),
        Some(OtherLayout { version, written_by, .. }) => Err(KernelError::NewerLayout {
            path: pins.place().to_owned(),
            version: version.unwrap_or_default(),
            ours: LAYOUT_VERSION,
            written_by,
        }),
    }
}

/// Removes the pins of an older layout; what was attached by it alone is detached by that.
pub fn remove(pins: &Pins, directory: &Path) -> Result<(), KernelError> {
    if directory != pins.place() {
        return remove_tree(directory);
    }
    for name in names(directory)? {
        if WITHOUT_DIRECTORY.contains(&name.as_str()) || name.starts_with(WITHOUT_DIRECTORY_CLASS) {
            remove_tree(&directory.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::fmt::Write as _;

    use super::*;
    use crate::kernel::program::{self, OBJECT};

    /// The committed text names the layout; another shape of a map under the same version is a fault that no bless mends. A map more
    /// is none: the first program that has it makes it, beside those that are there, and an older program does not look for it.
    #[test]
    fn the_layout_version_changes_with_the_shapes_of_maps() {
        let object = aya_obj::Object::parse(OBJECT).unwrap();
        // Those that are pinned: a program's own maps come and go with it.
        let pinned: Vec<&str> = program::map_names(program::Stages::All).chain([program::GENERATIONS]).collect();
        let mut maps: Vec<_> = object.maps.iter().filter(|(name, _)| pinned.contains(&name.as_str())).collect();
        maps.sort_by_key(|(name, _)| name.as_str());
        let mut text = format!("layout {LAYOUT_VERSION}\n");
        for (name, map) in maps {
            let (key, value, entries) = (map.key_size(), map.value_size(), map.max_entries());
            writeln!(text, "{name}: type {}, key {key}, value {value}, entries {entries}", map.map_type()).unwrap();
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/kernel/layout-maps.txt");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        let same_version = committed.lines().next() == text.lines().next();
        let all_there = committed.lines().all(|line| text.lines().any(|now| now == line));
        if std::env::var_os("WAYLEAVE_BLESS").is_some() && (!same_version || all_there) {
            std::fs::write(path, &text).unwrap();
        } else {
            let advice = if same_version && !all_there { "raise LAYOUT_VERSION, then run" } else { "run" };
            assert_eq!(committed, text, "{path}: {advice} this test with WAYLEAVE_BLESS=1");
        }
    }
}
