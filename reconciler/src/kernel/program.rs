//! The programs: for the live slot, once for each hook that is used, and for the candidate; kept by pins.

use std::cell::{OnceCell, RefCell};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::thread;

use aya::maps::{Array, HashMap as AyaHashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::{ProgramError, ProgramFd, SchedClassifier, TestRunOptions, TestRunResult, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader, TestRun as _};
use aya_obj::Object;
use aya_obj::programs::XdpAttachType;
use fib::Reason;
use fib::filter::has_filters;
use fib::service::{FlowKey, FlowWords, HalfOpenWords, has_services};

use crate::compile::View;

use super::pins::Pins;
use super::{KernelError, counters, sys};

/// The compiled BPF object, as `build.rs` made it.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WAYLEAVE_BPF_OBJECT"));

/// The program's name in the object.
pub(super) const ENTRY: &str = "wayleave";

/// The same program for the places where a device may hand packets over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// XDP, for frames that lie in one buffer.
    Xdp,
    /// XDP, for frames that may lie in several.
    XdpFrags,
    Tc,
}

impl Entry {
    pub const ALL: [Self; 3] = [Self::Xdp, Self::XdpFrags, Self::Tc];

    /// Its name in the object.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Xdp => ENTRY,
            Self::XdpFrags => "wayleave_frags",
            Self::Tc => "wayleave_tc",
        }
    }

    /// Whether the kernel, which keeps 15 bytes of a name, calls this program so.
    pub(super) fn is_called(self, name: &str) -> bool {
        self.name() == name
    }

    /// Name of the live instance's pin, in its class.
    pub(super) fn live_pin(self, stages: Stages) -> String {
        let kind = match self {
            Self::Xdp => "",
            Self::XdpFrags => "frags-",
            Self::Tc => "tc-",
        };
        format!("live-{}{kind}{}", stages.prefix(), object_id())
    }
}

/// What a program can do with a packet beside routing it.
///
/// The verifier follows filters and services ten times as long as routes, so programs have them only where an image does. A node
/// that had them once keeps programs that have them: with those for routes alone, no packet of an image with filters or
/// services may be decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stages {
    #[default]
    Routes,
    All,
}

impl Stages {
    pub const ALL: [Self; 2] = [Self::Routes, Self::All];

    /// What an image needs.
    pub fn of(view: &View<'_>) -> Self {
        if has_filters(view.bytes()) || has_services(view.bytes()) { Self::All } else { Self::Routes }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Routes => "routes-",
            Self::All => "",
        }
    }

    /// Whether live programs have this map in more than name.
    fn makes(self, map: &str) -> bool {
        self == Self::All || !COUNTERS_OF_STAGES.contains(&map)
    }

    /// Name of the pin of the instance under test.
    fn candidate_pin(self) -> String {
        format!("candidate-{}{}", self.prefix(), object_id())
    }

    /// Names of all pins of programs.
    pub fn pins(self) -> impl Iterator<Item = String> {
        Entry::ALL.into_iter().map(move |entry| entry.live_pin(self)).chain([self.candidate_pin()])
    }
}

/// Maps that every class and every version of the program shares.
const SHARED_MAPS: [&str; 4] = ["PORTS", "PORTS_FRAGS", "PORT_LINKS", "NEIGHBOURS"];

/// Maps that belong to live packets alone: the candidate has its own, beside its program.
const LIVE_MAPS: [&str; 6] = ["DEVICES", "VLANS", "COUNTERS", "FLOWS", "HALF_OPEN", "BACKEND_HEALTH"];

/// Entries of the candidate's tables of flows: what tests put there.
const CANDIDATE_FLOWS: u32 = 64;

/// Backends of which the candidate can be told that they are down: tests have few. All others are up for it.
const CANDIDATE_BACKENDS: u32 = 64;

/// Maps of live packets that the candidate has only in name, with so many entries: none of its packets has an index that
/// they hold, so it counts nothing there, and nobody listens to it.
const LIVE_ONLY_MAPS: [(&str, u32); 13] = [
    ("POLICY_STAYED", 1),
    ("NEXT_HOP_COUNTERS", 1),
    ("CARRIED", 1),
    ("FILTER_COUNTERS", 1),
    ("FILTER_BUCKETS", 64),
    ("CARRYING", 1),
    ("SAMPLING", 1),
    ("EVENTS_LOST", 1),
    ("EVENTS", PAGE_BYTES_MAX),
    ("FLOW_LIMITS", 1),
    ("FLOW_EVENTS", 1),
    ("SERVICE_COUNTERS", 1),
    ("BACKEND_COUNTERS", 1),
];

/// Name of the outer map.
pub(super) const GENERATIONS: &str = "GENERATIONS";

/// Maps among these that programs for routes alone have only in name, too: to make them takes longer than anything else in
/// the first apply.
const COUNTERS_OF_STAGES: [&str; 3] = ["FILTER_COUNTERS", "SERVICE_COUNTERS", "BACKEND_COUNTERS"];

/// Names of the maps that outlive every generation and program.
pub(super) fn map_names(stages: Stages) -> impl Iterator<Item = &'static str> {
    let live_only = LIVE_ONLY_MAPS.into_iter().map(|(name, _)| name).filter(move |name| stages.makes(name));
    SHARED_MAPS.into_iter().chain(LIVE_MAPS).chain(live_only)
}

/// Where the instance under test and its own maps are pinned.
pub(super) fn candidate_pins(pins: &Pins, bits: u32, stages: Stages) -> impl Iterator<Item = PathBuf> {
    let program = pins.class(bits).join(stages.candidate_pin());
    [program].into_iter().chain(LIVE_MAPS.map(|name| Programs::candidate_map(pins, bits, name)))
}

/// Largest page of any architecture: a ring buffer is a multiple of pages.
const PAGE_BYTES_MAX: u32 = 1 << 16;

/// `LOOPBACK_IFINDEX` of the kernel: test runs come in by this device.
const LOOPBACK: u32 = 1;

/// `XDP_REDIRECT` and `TC_ACT_REDIRECT` of the kernel.
const REDIRECTS: [u32; 2] = [4, 7];

/// Slot of the published generation.
pub(super) const LIVE: u32 = 0;
/// Slot of the generation under test.
pub(super) const CANDIDATE: u32 = 1;
/// Slot of the generation before the published one.
pub(super) const PREVIOUS: u32 = 2;
/// Slots of `GENERATIONS`.
pub(super) const SLOTS: u32 = 3;

/// First hexadecimal digits of the object's digest: tells one version of the program from another.
pub fn object_id() -> String {
    // Every look at the pins asks for it many times, and the object is megabytes long.
    static ID: LazyLock<String> = LazyLock::new(|| blake3::hash(OBJECT).to_hex().as_str()[..16].to_owned());
    ID.clone()
}

/// Bytes by which a test run can make a frame longer: the headers of IPv6 and ICMP, and two VLAN tags.
const ROOM_BYTES_MAX: usize = 40 + 8 + 8;

/// The port that test runs come in by: the address of the loopback device is all zeros.
pub const TEST_INGRESS: fib::Ingress = fib::Ingress { mac: 0, port: 0 };

/// What a test run of the candidate gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRunOutcome {
    /// `XDP_*` action.
    pub action: u32,
    /// Number of the `fib::Reason`: that of the counter that went up. None does for a forwarded packet, which counts for its
    /// next hop alone.
    pub reason: u32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
}

/// Both instances of the program for one capacity class.
pub struct Programs {
    pub(super) bits: u32,
    pub(super) stages: Stages,
    generations: OwnedFd,
    pins: Pins,
    live: OwnedFd,
    /// The object with the live slot's maps, once a program of it had to be loaded: to make one takes 45 ms, most of which is
    /// aya's reading of the kernel's types.
    live_object: RefCell<Option<Ebpf>>,
    /// Loaded when the first device needs them.
    live_frags: OnceCell<OwnedFd>,
    live_tc: OnceCell<OwnedFd>,
    candidate: Xdp,
    candidate_counters: PerCpuArray<MapData, [u64; 2]>,
    candidate_devices: RefCell<Array<MapData, u64>>,
    candidate_vlans: RefCell<AyaHashMap<MapData, u64, u64>>,
    candidate_flows: RefCell<AyaHashMap<MapData, FlowKey, FlowWords>>,
    candidate_half_open: RefCell<AyaHashMap<MapData, FlowKey, HalfOpenWords>>,
    candidate_backends: RefCell<Array<MapData, u32>>,
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs").field("bits", &self.bits).field("stages", &self.stages).finish_non_exhaustive()
    }
}

/// Makes the object's maps and programs for a slot of a class; no program is loaded yet.
pub(super) fn load_object(pins: &Pins, bits: u32, stages: Stages, slot: u32) -> Result<Ebpf, KernelError> {
    let settings = Settings::new(bits, stages);
    let mut loader = loader();
    settings.configure(&mut loader, pins, slot, None)?;
    loader.load(OBJECT).map_err(object_error)
}

/// The same for both slots, the candidate's first. A loader reads all types of the kernel when it is made, which takes longer than
/// the rest and more memory: so there is one for both.
fn load_objects(pins: &Pins, bits: u32, stages: Stages) -> Result<(Ebpf, Ebpf), KernelError> {
    let own = Object::parse(OBJECT).map_err(|error| object_error(error.into()))?;
    let settings = Settings::new(bits, stages);
    let mut loader = loader();
    settings.configure(&mut loader, pins, CANDIDATE, None)?;
    let candidate = loader.load(OBJECT).map_err(object_error)?;
    settings.configure(&mut loader, pins, LIVE, Some(&own))?;
    Ok((candidate, loader.load(OBJECT).map_err(object_error)?))
}

fn object_error(source: EbpfError) -> KernelError {
    KernelError::Object { source: Box::new(source) }
}

/// A loader that keeps nothing of the kernel's types: the programs look into no structure of the kernel.
fn loader<'s>() -> EbpfLoader<'s> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    loader
}

/// What a loader is told for programs of a class.
struct Settings {
    bits: u32,
    stages: Stages,
    capacity: u32,
    has_all_stages: u32,
}

impl Settings {
    fn new(bits: u32, stages: Stages) -> Self {
        Self { bits, stages, capacity: 1 << bits, has_all_stages: u32::from(stages == Stages::All) }
    }

    /// `own`: the loader has been told of the candidate before, so that the maps' own sizes must be told, too.
    fn configure<'s>(
        &'s self,
        loader: &mut EbpfLoader<'s>,
        pins: &Pins,
        slot: u32,
        own: Option<&Object>,
    ) -> Result<(), KernelError> {
        let is_live = slot == LIVE;
        loader.override_global("SLOT", if is_live { &LIVE } else { &CANDIDATE }, true).override_global(
            "CAPACITY",
            &self.capacity,
            true,
        );
        loader.override_global("STAGES", &self.has_all_stages, true);
        loader.map_pin_path(GENERATIONS, pins.generations(self.bits));
        let mut entries = |name: &'static str, candidate: Option<u32>| {
            if let Some(entries) = candidate {
                loader.map_max_entries(name, entries);
            } else if let Some(own) = own {
                let map = own.maps.get(name).ok_or(KernelError::NoMap { map: name })?;
                loader.map_max_entries(name, map.max_entries());
            }
            Ok(())
        };
        for name in ["FLOWS", "HALF_OPEN"] {
            entries(name, (!is_live).then_some(CANDIDATE_FLOWS))?;
        }
        entries("BACKEND_HEALTH", (!is_live).then_some(CANDIDATE_BACKENDS))?;
        for (name, candidate_entries) in LIVE_ONLY_MAPS {
            entries(name, (!is_live || !self.stages.makes(name)).then_some(candidate_entries))?;
        }
        for name in SHARED_MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
        for name in LIVE_MAPS {
            let path = if is_live { pins.map(name) } else { Programs::candidate_map(pins, self.bits, name) };
            loader.map_pin_path(name, path);
        }
        for (name, _) in LIVE_ONLY_MAPS.iter().filter(|(name, _)| is_live && self.stages.makes(name)) {
            loader.map_pin_path(name, pins.map(name));
        }
        Ok(())
    }
}

/// Has the kernel verify one program of an object.
fn load(object: &mut Ebpf, entry: Entry) -> Result<&ProgramFd, KernelError> {
    let name = entry.name();
    let program = object.program_mut(name).ok_or(KernelError::NoProgram { name })?;
    match entry {
        Entry::Xdp | Entry::XdpFrags => {
            let program: &mut Xdp = program.try_into().map_err(KernelError::program("find"))?;
            program.load().map_err(KernelError::program("load"))?;
            program.fd()
        }
        Entry::Tc => {
            let program: &mut SchedClassifier = program.try_into().map_err(KernelError::program("find"))?;
            program.load().map_err(KernelError::program("load"))?;
            program.fd()
        }
    }
    .map_err(KernelError::program("load"))
}

impl Programs {
    /// Opens the pinned instances of a class, or makes its outer map and loads and pins them.
    pub fn ensure(pins: &Pins, bits: u32, stages: Stages) -> Result<Self, KernelError> {
        let class = pins.class(bits);
        std::fs::create_dir_all(&class).map_err(|source| KernelError::Directory { path: class.clone(), source })?;
        let generations = if let Some(generations) = sys::pinned(&pins.generations(bits))? {
            generations
        } else {
            let template = sys::create_image_map(1 << bits)?;
            let generations = sys::create_generations(template.as_fd(), SLOTS)?;
            sys::pin(generations.as_fd(), &pins.generations(bits))?;
            generations
        };
        let is_missing = |pin: String| !class.join(pin).exists();
        let (mut object, candidate_object) =
            match (is_missing(stages.candidate_pin()), is_missing(Entry::Xdp.live_pin(stages))) {
                (true, true) => {
                    let (candidate, live) = load_objects(pins, bits, stages)?;
                    (Some(live), Some(candidate))
                }
                (true, false) => (None, Some(load_object(pins, bits, stages, CANDIDATE)?)),
                (false, true) => (Some(load_object(pins, bits, stages, LIVE)?), None),
                (false, false) => (None, None),
            };
        // The verifier takes as long for each, and does both at once. A kill between two pins leaves something that the next start completes.
        let (live, candidate) = thread::scope(|scope| {
            let candidate = scope.spawn(|| Self::candidate(pins, bits, stages, candidate_object));
            let live = Self::live(pins, bits, stages, Entry::Xdp, &mut object);
            (live, candidate.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        let (live, candidate) = (live?, candidate?);
        let own = |name: &'static str| {
            MapData::from_pin(Self::candidate_map(pins, bits, name)).map_err(KernelError::map(name))
        };
        let candidate_counters =
            PerCpuArray::try_from(Map::PerCpuArray(own("COUNTERS")?)).map_err(KernelError::map("COUNTERS"))?;
        let candidate_vlans = AyaHashMap::try_from(Map::HashMap(own("VLANS")?)).map_err(KernelError::map("VLANS"))?;
        let candidate_flows =
            AyaHashMap::try_from(Map::LruHashMap(own("FLOWS")?)).map_err(KernelError::map("FLOWS"))?;
        let candidate_half_open =
            AyaHashMap::try_from(Map::LruHashMap(own("HALF_OPEN")?)).map_err(KernelError::map("HALF_OPEN"))?;
        let candidate_backends =
            Array::try_from(Map::Array(own("BACKEND_HEALTH")?)).map_err(KernelError::map("BACKEND_HEALTH"))?;
        let candidate_devices = Array::try_from(Map::Array(own("DEVICES")?)).map_err(KernelError::map("DEVICES"))?;
        let programs = Self {
            bits,
            stages,
            generations,
            pins: pins.clone(),
            live,
            live_object: RefCell::new(object),
            live_frags: OnceCell::new(),
            live_tc: OnceCell::new(),
            candidate,
            candidate_counters,
            candidate_devices: RefCell::new(candidate_devices),
            candidate_vlans: RefCell::new(candidate_vlans),
            candidate_flows: RefCell::new(candidate_flows),
            candidate_half_open: RefCell::new(candidate_half_open),
            candidate_backends: RefCell::new(candidate_backends),
        };
        programs.set_test_ingress(0, Some(&TEST_INGRESS))?;
        Ok(programs)
    }

    /// Where a map of the candidate's own is pinned.
    fn candidate_map(pins: &Pins, bits: u32, name: &str) -> PathBuf {
        pins.class(bits).join(format!("CANDIDATE_{name}-{}", object_id()))
    }

    fn candidate(pins: &Pins, bits: u32, stages: Stages, object: Option<Ebpf>) -> Result<Xdp, KernelError> {
        let path = pins.class(bits).join(stages.candidate_pin());
        if let Some(mut object) = object {
            sys::pin(load(&mut object, Entry::Xdp)?.as_fd(), &path)?;
        }
        Xdp::from_pin(&path, XdpAttachType::Interface).map_err(KernelError::program("open"))
    }

    /// Opens the live instance for a hook; loads and pins it where it is not there yet.
    fn live(
        pins: &Pins,
        bits: u32,
        stages: Stages,
        entry: Entry,
        object: &mut Option<Ebpf>,
    ) -> Result<OwnedFd, KernelError> {
        let path = pins.class(bits).join(entry.live_pin(stages));
        if let Some(program) = sys::pinned(&path)? {
            return Ok(program);
        }
        let object = match object {
            Some(object) => object,
            None => object.insert(load_object(pins, bits, stages, LIVE)?),
        };
        sys::pin(load(object, entry)?.as_fd(), &path)?;
        sys::pinned(&path)?.ok_or(KernelError::NoProgram { name: entry.name() })
    }

    pub(super) fn generations(&self) -> BorrowedFd<'_> {
        self.generations.as_fd()
    }

    /// The live program for a hook; those for frames of several buffers and for TC are loaded and pinned at the first call.
    pub(super) fn live_fd(&self, entry: Entry) -> Result<BorrowedFd<'_>, KernelError> {
        let cell = match entry {
            Entry::Xdp => return Ok(self.live.as_fd()),
            Entry::XdpFrags => &self.live_frags,
            Entry::Tc => &self.live_tc,
        };
        if cell.get().is_none() {
            let program = Self::live(&self.pins, self.bits, self.stages, entry, &mut self.live_object.borrow_mut())?;
            let _ = cell.set(program);
        }
        cell.get().map(OwnedFd::as_fd).ok_or(KernelError::NoProgram { name: entry.name() })
    }

    /// Runs the candidate on one frame that came in by the loopback device, and says what became of it.
    ///
    /// Nothing is sent and no counter of live traffic moves. The caller holds the lock: two runs at once would mix their
    /// counters.
    pub fn test_run(&self, frame: &[u8]) -> Result<TestRunOutcome, KernelError> {
        self.counted_run(frame, |options| self.candidate.test_run(options))
    }

    /// Makes a test run of an instance that reads the candidate's slot and counts beside it.
    pub(super) fn counted_run(
        &self,
        frame: &[u8],
        run: impl FnOnce(TestRunOptions<'_>) -> Result<TestRunResult, ProgramError>,
    ) -> Result<TestRunOutcome, KernelError> {
        let before = self.candidate_packets()?;
        // Room for the tags of the egress port, or for the headers of an answer.
        let mut out = vec![0; frame.len() + ROOM_BYTES_MAX];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), repeat: 1, ..TestRunOptions::default() };
        let result = run(options).map_err(KernelError::program("test"))?;
        out.truncate(result.data_size_out as usize);
        let after = self.candidate_packets()?;
        let reason = match before.iter().zip(&after).position(|(b, a)| b != a) {
            Some(reason) => reason,
            None if REDIRECTS.contains(&result.return_value) => Reason::Forwarded as usize,
            None => return Err(KernelError::NotCounted),
        };
        Ok(TestRunOutcome {
            action: result.return_value,
            reason: u32::try_from(reason).unwrap_or(u32::MAX),
            frame: out,
        })
    }

    /// The port that test runs come in by with VLAN tags of these identifiers (`Tags::vids`; 0: without tags). At first
    /// that is [`TEST_INGRESS`] without tags, and none with tags.
    pub fn set_test_ingress(&self, vids: u32, ingress: Option<&fib::Ingress>) -> Result<(), KernelError> {
        if vids == 0 {
            let word = ingress.map_or(0, fib::Ingress::encode);
            return self.candidate_devices.borrow_mut().set(LOOPBACK, word, 0).map_err(KernelError::map("DEVICES"));
        }
        let key = u64::from(LOOPBACK) << 32 | u64::from(vids);
        let result = match ingress {
            Some(ingress) => self.candidate_vlans.borrow_mut().insert(key, ingress.encode(), 0),
            None => match self.candidate_vlans.borrow_mut().remove(&key) {
                Err(MapError::KeyNotFound) => Ok(()),
                result => result,
            },
        };
        result.map_err(KernelError::map("VLANS"))
    }

    /// Gives the candidate's flow table an entry, or takes it away; test runs write none.
    pub fn set_test_flow(&self, key: &FlowKey, entry: Option<&FlowWords>) -> Result<(), KernelError> {
        set(&mut self.candidate_flows.borrow_mut(), key, entry).map_err(KernelError::map("FLOWS"))
    }

    /// The same for its table of half-open flows.
    pub fn set_test_half_open(&self, key: &FlowKey, entry: Option<&HalfOpenWords>) -> Result<(), KernelError> {
        set(&mut self.candidate_half_open.borrow_mut(), key, entry).map_err(KernelError::map("HALF_OPEN"))
    }

    /// Tells the candidate how a backend is, in a word as `BACKEND_HEALTH` has it.
    pub fn set_test_health(&self, backend: u32, word: u32) -> Result<(), KernelError> {
        self.candidate_backends.borrow_mut().set(backend, word, 0).map_err(KernelError::map("BACKEND_HEALTH"))
    }

    fn candidate_packets(&self) -> Result<Vec<u64>, KernelError> {
        counters::packets(&self.candidate_counters).map(|all| all.iter().map(|c| c.packets).collect())
    }
}

fn set<W: aya::Pod>(
    flows: &mut AyaHashMap<MapData, FlowKey, W>,
    key: &FlowKey,
    entry: Option<&W>,
) -> Result<(), MapError> {
    match entry {
        Some(entry) => flows.insert(key, entry, 0),
        None => flows.remove(key),
    }
}
