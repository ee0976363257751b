//! What BPF objects the kernel has, and which of them hang on a pin.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

// linux/bpf.h
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_NEXT_ID: libc::c_long = 11;
const BPF_MAP_GET_NEXT_ID: libc::c_long = 12;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_MAP_GET_FD_BY_ID: libc::c_long = 14;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;

/// Names of the programs, one for each hook.
const PROGRAMS: [&[u8]; 3] = [b"wayleave", b"wayleave_frags", b"wayleave_tc"];

/// Kernel ids of maps and programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfObjects {
    pub maps: BTreeSet<u32>,
    pub programs: BTreeSet<u32>,
}

impl BpfObjects {
    /// Every object of wayleave in this kernel, whoever's: image maps, their outer maps and the programs.
    pub fn of_wayleave() -> Result<Self> {
        let mut objects = Self::default();
        for id in ids(BPF_MAP_GET_NEXT_ID) {
            // An object can go away between the list and the look at it.
            if let Some(map) = open(BPF_MAP_GET_FD_BY_ID, id)
                && info(&map)?.name(24).starts_with(b"wl_")
            {
                objects.maps.insert(id);
            }
        }
        for id in ids(BPF_PROG_GET_NEXT_ID) {
            if let Some(program) = open(BPF_PROG_GET_FD_BY_ID, id)
                && PROGRAMS.contains(&info(&program)?.name(64))
            {
                objects.programs.insert(id);
            }
        }
        Ok(objects)
    }

    /// Every object that is pinned below `directory`, or held by an outer map or a link there, whatever its name.
    pub fn pinned(directory: &Path) -> Result<Self> {
        let mut objects = Self::default();
        objects.walk(directory)?;
        Ok(objects)
    }

    /// Every object that hangs on a pin in any bpf file system of this mount namespace.
    pub fn pinned_anywhere() -> Result<Self> {
        let mut objects = Self::default();
        for line in fs::read_to_string("/proc/self/mounts")?.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            if let [_, at, "bpf", ..] = words[..] {
                objects.walk(Path::new(at))?;
            }
        }
        Ok(objects)
    }

    /// Every object that some process holds open; other users of this machine have theirs, too.
    pub fn held_open() -> Result<Self> {
        let mut objects = Self::default();
        for process in fs::read_dir("/proc")?.flatten() {
            // Not a process, or one that ended meanwhile.
            let Ok(descriptors) = fs::read_dir(process.path().join("fdinfo")) else { continue };
            for descriptor in descriptors.flatten() {
                let text = fs::read_to_string(descriptor.path()).unwrap_or_default();
                let id = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u32>().ok());
                objects.maps.extend(id("map_id:"));
                objects.programs.extend(id("prog_id:"));
            }
        }
        Ok(objects)
    }

    /// Those of `self` that still exist.
    #[must_use]
    pub fn alive(&self) -> Self {
        let alive = |ids: &BTreeSet<u32>, command| {
            let all: BTreeSet<u32> = self::ids(command).into_iter().collect();
            ids & &all
        };
        Self { maps: alive(&self.maps, BPF_MAP_GET_NEXT_ID), programs: alive(&self.programs, BPF_PROG_GET_NEXT_ID) }
    }

    /// Those of `self` that `other` does not have.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self { maps: &self.maps - &other.maps, programs: &self.programs - &other.programs }
    }

    pub fn is_empty(&self) -> bool {
        self.maps.is_empty() && self.programs.is_empty()
    }

    fn walk(&mut self, path: &Path) -> Result<()> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            // Somebody else's mount that went away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        for entry in entries {
            let Ok(entry) = entry else { continue };
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                self.walk(&entry.path())?;
            } else if kind.is_file() {
                self.add(&entry.path())?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let Some(object) = open_pin(path) else { return Ok(()) };
        let link = fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd()))?;
        let facts = info(&object)?;
        match link.to_string_lossy().as_ref() {
            "anon_inode:bpf-map" => {
                self.maps.insert(facts.word(4));
                if facts.word(0) == BPF_MAP_TYPE_ARRAY_OF_MAPS {
                    (0..facts.word(16)).for_each(|slot| self.maps.extend(inner(&object, slot)));
                }
            }
            "anon_inode:bpf-prog" => drop(self.programs.insert(facts.word(4))),
            "anon_inode:bpf_link" | "anon_inode:bpf-link" => drop(self.programs.insert(facts.word(8))),
            _ => {}
        }
        Ok(())
    }
}

/// `struct bpf_map_info`, `bpf_prog_info` or `bpf_link_info`: each begins with type and id.
struct Info([u8; 256]);

impl Info {
    fn word(&self, at: usize) -> u32 {
        self.0[at..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    /// The name of up to 15 bytes at `at`.
    fn name(&self, at: usize) -> &[u8] {
        self.0[at..at + 16].split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

fn info(object: &OwnedFd) -> Result<Info> {
    let mut info = Info([0; 256]);
    let mut words =
        [u64::from(object.as_raw_fd().cast_unsigned()) | 256 << 32, info.0.as_mut_ptr().expose_provenance() as u64];
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut words).context("BPF_OBJ_GET_INFO_BY_FD")?;
    Ok(info)
}

/// The id of the map in a slot of an outer map.
fn inner(outer: &OwnedFd, slot: u32) -> Option<u32> {
    let mut id = 0u32;
    let mut words = [
        outer.as_raw_fd().cast_unsigned().into(),
        (&raw const slot).expose_provenance() as u64,
        (&raw mut id).expose_provenance() as u64,
    ];
    bpf(BPF_MAP_LOOKUP_ELEM, &mut words).ok().map(|_| id)
}

fn ids(command: libc::c_long) -> Vec<u32> {
    let mut all = Vec::new();
    let mut last = 0u32;
    loop {
        // start_id and next_id, the kernel's answer.
        let mut words = [u64::from(last)];
        let next = bpf(command, &mut words).ok().and_then(|_| u32::try_from(words[0] >> 32).ok());
        let Some(next) = next else { return all };
        last = next;
        all.push(last);
    }
}

fn open(command: libc::c_long, id: u32) -> Option<OwnedFd> {
    bpf_fd(command, &mut [id.into()])
}

/// Opens what is pinned there.
pub(crate) fn open_pin(path: &Path) -> Option<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes()).ok()?;
    bpf_fd(BPF_OBJ_GET, &mut [name.as_ptr().expose_provenance() as u64])
}

fn bpf_fd(command: libc::c_long, words: &mut [u64]) -> Option<OwnedFd> {
    let fd = bpf(command, words).ok()?;
    // SAFETY: the kernel has just opened this descriptor for us.
    Some(unsafe { OwnedFd::from_raw_fd(fd.try_into().ok()?) })
}

/// bpf(2) with an attribute written as words.
pub(crate) fn bpf(command: libc::c_long, words: &mut [u64]) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads `words`, and for the NEXT_ID commands writes next_id into them; pointers in them are the
    // callers', to live buffers of the size that the command writes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_mut_ptr(), size_of_val(words)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
