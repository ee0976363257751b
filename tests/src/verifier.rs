//! What the kernel's verifier says of every program of the product's BPF object: how much work it was, how large it became.
//!
//! aya keeps the verifier's log only of a program that was refused, so the programs are loaded once more here: aya makes
//! the maps, `aya-obj` relocates the instructions as aya does, and one bpf(2) call loads them with a log.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use anyhow::{Context, Result, bail, ensure};
use aya::EbpfLoader;
use aya::maps::MapData;
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_info, bpf_prog_type};
use aya_obj::{Object, Program, ProgramSection};
use fib::layout::CAPACITY_MIN;
use serde_json::{Value, json};

use crate::Bpffs;

/// The product's compiled BPF object, as `reconciler/build.rs` made it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WAYLEAVE_BPF_OBJECT"));

// linux/bpf.h and linux/bpf_verifier.h
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const BPF_LOG_LEVEL1: u32 = 1;
const BPF_LOG_STATS: u32 = 4;

/// A log of statistics is a few lines.
const STATISTICS_LOG_BYTES: usize = 64 << 10;
/// A log of every instruction; the kernel takes up to 1 GiB.
const FULL_LOG_BYTES: usize = 64 << 20;
/// So much of the log's end is shown of a program that was refused.
const SHOWN_LINES: usize = 60;

/// What the verifier and the compiler of one kernel made of one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Instructions that the verifier followed, over all paths; the kernel's limit is a million.
    pub instructions: u64,
    /// Most verifier states held at once.
    pub peak_states: u64,
    /// States held in all.
    pub states: u64,
    /// Bytes of stack, of the program and each of its subprograms.
    pub stack_bytes: u64,
    /// Bytes of the program after the verifier's rewrites.
    pub translated_bytes: u64,
    /// Bytes of machine code; 0 without the JIT.
    pub jited_bytes: u64,
}

/// Loads every program of the object for the smallest capacity class. A program that the kernel refuses is an error that
/// names it and shows the end of the verifier's log.
pub fn measure() -> Result<BTreeMap<String, Statistics>> {
    let bpffs = Bpffs::mount()?;
    let (slot, capacity) = (0u32, CAPACITY_MIN);
    // Makes the maps, those of constants filled and frozen, which the verifier takes for known values.
    let maps = EbpfLoader::new()
        .override_global("SLOT", &slot, true)
        .override_global("CAPACITY", &capacity, true)
        .load(OBJECT)
        .context("making the maps of the BPF object")?;
    let mut opened = BTreeMap::new();
    for (number, (name, map)) in maps.maps().enumerate() {
        // The only way to the descriptor of whatever kind of map. A bpffs refuses names such as `.rodata`.
        let pin = bpffs.path().join(number.to_string());
        map.pin(&pin).with_context(|| format!("pinning the map {name}"))?;
        opened.insert(name.to_owned(), MapData::from_pin(&pin).with_context(|| format!("opening the map {name}"))?);
        fs::remove_file(&pin)?;
    }
    let mut object = Object::parse(OBJECT).context("reading the BPF object")?;
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let declared = std::mem::take(&mut object.maps);
    let pairs = declared
        .iter()
        .map(|(name, map)| {
            let data = opened.get(name).with_context(|| format!("the loader has made no map {name}"))?;
            Ok((name.as_str(), data.fd().as_fd().as_raw_fd(), map))
        })
        .collect::<Result<Vec<(&str, RawFd, &aya_obj::Map)>>>()?;
    object.relocate_maps(pairs.into_iter(), &sections).context("relocating maps")?;
    object.relocate_calls(&sections).context("relocating calls")?;
    let mut measured = BTreeMap::new();
    let mut refused = Vec::new();
    for (name, program) in &object.programs {
        match measure_one(&object, program) {
            Ok(statistics) => drop(measured.insert(name.clone(), statistics)),
            Err(error) => refused.push(format!("program `{name}`: {error:#}")),
        }
    }
    ensure!(refused.is_empty(), "{}", refused.join("\n"));
    Ok(measured)
}

fn measure_one(object: &Object, program: &Program) -> Result<Statistics> {
    let mut log = Vec::new();
    let loaded = match load(object, program, BPF_LOG_STATS, STATISTICS_LOG_BYTES, &mut log)? {
        Ok(loaded) => loaded,
        Err(refused) => {
            let again = load(object, program, BPF_LOG_LEVEL1 | BPF_LOG_STATS, FULL_LOG_BYTES, &mut log)?;
            let log = text(&log);
            let lines: Vec<&str> = log.lines().collect();
            let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            let unsure = if again.is_ok() { " (and took it with a full log)" } else { "" };
            bail!("the kernel refuses it: {refused}{unsure}. The verifier's log ends with\n{shown}");
        }
    };
    let log = text(&log);
    let after = |key: &str| {
        let mut words = log.split_whitespace().skip_while(|word| *word != key).skip(1);
        words.next().and_then(|word| word.parse().ok()).with_context(|| format!("no `{key}` in the log:\n{log}"))
    };
    // "stack depth 200+16": one number for each subprogram.
    let stack = log.lines().find_map(|line| line.strip_prefix("stack depth ")).context("no stack depth in the log")?;
    let info = info(loaded.as_fd()).context("BPF_OBJ_GET_INFO_BY_FD")?;
    Ok(Statistics {
        instructions: after("processed")?,
        peak_states: after("peak_states")?,
        states: after("total_states")?,
        stack_bytes: stack.split('+').map(|depth| depth.trim().parse::<u64>()).sum::<Result<_, _>>()?,
        translated_bytes: info.xlated_prog_len.into(),
        jited_bytes: info.jited_prog_len.into(),
    })
}

/// Loads a program; the outer error is ours, the inner one the kernel's.
fn load(
    object: &Object,
    program: &Program,
    log_level: u32,
    log_bytes: usize,
    log: &mut Vec<u8>,
) -> Result<io::Result<OwnedFd>> {
    let (kind, attach, flags) = match &program.section {
        ProgramSection::Xdp { frags, .. } => (
            bpf_prog_type::BPF_PROG_TYPE_XDP,
            bpf_attach_type::BPF_XDP as u32,
            if *frags { BPF_F_XDP_HAS_FRAGS } else { 0 },
        ),
        ProgramSection::SchedClassifier => (bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, 0, 0),
        other => bail!("programs of the section {other:?} cannot be measured yet"),
    };
    let function = object.functions.get(&program.function_key()).context("the object has no instructions for it")?;
    log.clear();
    log.resize(log_bytes, 0);
    let mut attr = zeroed();
    // SAFETY: the variant of BPF_PROG_LOAD; instructions, licence and log outlive the call.
    let u = unsafe { &mut attr.__bindgen_anon_3 };
    u.prog_type = kind as u32;
    u.expected_attach_type = attach;
    u.prog_flags = flags;
    u.insns = function.instructions.as_ptr() as u64;
    u.insn_cnt = u32::try_from(function.instructions.len())?;
    u.license = program.license.as_ptr() as u64;
    u.log_level = log_level;
    u.log_size = u32::try_from(log.len())?;
    u.log_buf = log.as_mut_ptr() as u64;
    Ok(bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).map(|fd| {
        // SAFETY: the kernel has just opened this descriptor for us; nobody else owns it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }))
}

fn info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    // SAFETY: the structure is made of integers, for which zero is a value.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attr = zeroed();
    // SAFETY: the variant of BPF_OBJ_GET_INFO_BY_FD; `info` outlives the call.
    let u = unsafe { &mut attr.info };
    u.bpf_fd = program.as_raw_fd().cast_unsigned();
    u.info_len = u32::try_from(size_of::<bpf_prog_info>()).map_err(io::Error::other)?;
    u.info = (&raw mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<RawFd> {
    // SAFETY: `attr` is a whole, initialised `bpf_attr`; pointers inside it are to buffers that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { RawFd::try_from(result).map_err(io::Error::other) }
}

fn zeroed() -> bpf_attr {
    // SAFETY: every variant of the union is made of integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// What the kernel wrote before the first zero.
fn text(log: &[u8]) -> String {
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    String::from_utf8_lossy(&log[..end]).into_owned()
}

impl Statistics {
    pub fn to_json(self) -> Value {
        json!([
            self.instructions,
            self.peak_states,
            self.states,
            self.stack_bytes,
            self.translated_bytes,
            self.jited_bytes
        ])
    }

    /// Reads what [`Self::to_json`] wrote.
    pub fn from_json(value: &Value) -> Option<Self> {
        let numbers: Vec<u64> = value.as_array()?.iter().map(Value::as_u64).collect::<Option<_>>()?;
        let [instructions, peak_states, states, stack_bytes, translated_bytes, jited_bytes] = numbers[..] else {
            return None;
        };
        Some(Self { instructions, peak_states, states, stack_bytes, translated_bytes, jited_bytes })
    }
}
