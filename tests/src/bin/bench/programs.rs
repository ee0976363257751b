//! The benchmark's BPF programs, loaded beside a published generation and sharing its image.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::xdp::DevMap;
use aya::maps::{Array, LpmTrie, Map, MapData, lpm_trie::Key};
use aya::programs::Xdp;
use aya::programs::xdp::XdpMode;
use aya::{Ebpf, EbpfLoader, TestRun as _, TestRunAttrs, TestRunOptions};
use wayleave::policy::Prefix;

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WAYLEAVE_BENCH_OBJECT"));

/// Lookups of one run of a program.
const LOOKUPS: u32 = 64;
/// The same of searches of filters.
const FILTER_LOOKUPS: u32 = 16;
/// Addresses in the list.
pub(crate) const ADDRESSES: u32 = 1 << 20;
/// Frames that the generator sends at a time.
const BATCH: u32 = 64;
/// With the four bytes of checksum that a wire adds: 64.
const FRAME_BYTES: usize = 60;

/// What one pass over addresses gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pass {
    /// Nanoseconds of one lookup.
    pub(crate) ns: f64,
    pub(crate) sum: u64,
    /// Lookups that found something.
    pub(crate) found: u64,
}

/// What differs from frame to frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Generator {
    /// The destination is the next address of the list.
    To,
    /// The source is.
    From,
    /// Source and port are the next flow's, and the destination the next address of the list.
    Flows,
}

impl Generator {
    const fn program(self) -> &'static str {
        match self {
            Self::To => "generate_v4",
            Self::From => "generate_from_v4",
            Self::Flows => "generate_flows_v4",
        }
    }
}

pub(crate) struct Programs(Ebpf);

impl Programs {
    /// Loads all programs. `generations` is the pin of the outer map, `capacity` the bytes of its images, `device` the
    /// kernel index of the device that `bpf_fib_lookup` looks from.
    pub(crate) fn load(generations: &Path, capacity: u32, device: u32) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.override_global("CAPACITY", &capacity, true).override_global("DEVICE", &device, true);
        loader.map_pin_path("GENERATIONS", generations.to_owned());
        let mut object = loader.load(OBJECT).context("loading the benchmark's BPF object")?;
        for (name, program) in object.programs_mut() {
            let program: &mut Xdp = program.try_into()?;
            program.load().with_context(|| format!("loading {name}"))?;
        }
        Ok(Self(object))
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.0.map_mut(name).with_context(|| format!("the benchmark's BPF object has no map {name}"))
    }

    pub(crate) fn program(&mut self, name: &str) -> Result<&mut Xdp> {
        let program = self.0.program_mut(name).with_context(|| format!("no benchmark program {name}"))?;
        Ok(program.try_into()?)
    }

    pub(crate) fn set_addresses_v4(&mut self, addresses: &[u32]) -> Result<()> {
        let mut map: Array<_, u32> = self.map("ADDRESSES_V4")?.try_into()?;
        addresses.iter().zip(0..).try_for_each(|(address, at)| Ok(map.set(at, address, 0)?))
    }

    pub(crate) fn set_addresses_v6(&mut self, addresses: &[[u64; 2]]) -> Result<()> {
        let mut map: Array<_, [u64; 2]> = self.map("ADDRESSES_V6")?.try_into()?;
        addresses.iter().zip(0..).try_for_each(|(address, at)| Ok(map.set(at, address, 0)?))
    }

    /// Runs one program over so many addresses, from the first on.
    pub(crate) fn pass(&mut self, program: &str, addresses: u32) -> Result<Pass> {
        Array::<_, [u64; 3]>::try_from(self.map("STATE")?)?.set(0, [0; 3], 0)?;
        let frame = [0; FRAME_BYTES];
        let lookups = if program.contains("filter") { FILTER_LOOKUPS } else { LOOKUPS };
        let options = TestRunOptions { data_in: Some(&frame), repeat: addresses / lookups, ..TestRunOptions::new() };
        let run = self.program(program)?.test_run(options).with_context(|| format!("running {program}"))?;
        ensure!(run.return_value == 2, "{program} returned {} instead of XDP_PASS", run.return_value);
        let [_, sum, found] = Array::<_, [u64; 3]>::try_from(self.map("STATE")?)?.get(&0, 0)?;
        let ns = run.duration.as_secs_f64() * 1e9 / f64::from(lookups);
        Ok(Pass { ns, sum, found })
    }

    /// Fills the tries, one update a route; returns how long the IPv4 part took.
    pub(crate) fn fill_tries(&mut self, routes: impl Iterator<Item = (Prefix, u16)>) -> Result<std::time::Duration> {
        let routes: Vec<_> = routes.collect();
        let v4: Vec<(Key<[u8; 4]>, u32)> = routes
            .iter()
            .filter_map(|&(prefix, target)| match prefix {
                Prefix::V4(address, length) => {
                    Some((Key::new(length.into(), Ipv4Addr::octets(&address)), target.into()))
                }
                Prefix::V6(..) => None,
            })
            .collect();
        let mut trie: LpmTrie<_, [u8; 4], u32> = self.map("TRIE_V4")?.try_into()?;
        let begin = Instant::now();
        for (key, target) in &v4 {
            trie.insert(key, target, 0)?;
        }
        let time = begin.elapsed();
        let mut trie: LpmTrie<_, [u8; 16], u32> = self.map("TRIE_V6")?.try_into()?;
        for (prefix, target) in routes {
            if let Prefix::V6(address, length) = prefix {
                let key = Key::new(length.into(), Ipv6Addr::octets(&address));
                trie.insert(&key, u32::from(target), 0)?;
            }
        }
        Ok(time)
    }

    /// Builds DIR-24-8 (Gupta and others, INFOCOM 1998) of IPv4 routes; returns the bytes in use.
    pub(crate) fn fill_dir(&mut self, routes: impl Iterator<Item = (Prefix, u16)>) -> Result<usize> {
        const LONG: u32 = 1 << 31;
        const FIRST: usize = 1 << 24;
        let Map::Array(data) = self.map("DIR")? else { bail!("DIR is not an array") };
        // SAFETY: the map was made by this process, and its programs do not run while it is filled.
        let mut bytes = unsafe { memmap2::MmapOptions::new().len(1 << 27).map_mut(&data.fd().as_fd())? };
        let mut put = |entry: usize, value: u32| {
            let at = entry * 4;
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        };
        let mut v4: Vec<(u8, u32, u16)> = routes
            .filter_map(|(prefix, target)| match prefix {
                Prefix::V4(address, length) => Some((length, address.to_bits(), target)),
                Prefix::V6(..) => None,
            })
            .collect();
        // Shorter first: longer ones then overwrite them.
        v4.sort_unstable();
        let mut first = vec![0u32; FIRST];
        let mut blocks: Vec<[u32; 256]> = Vec::new();
        for (length, address, target) in v4 {
            let target = u32::from(target);
            let start = (address >> 8) as usize;
            if length <= 24 {
                first[start..start + (1 << (24 - length))].fill(target);
                continue;
            }
            let above = first[start];
            let block = if above & LONG == 0 {
                first[start] = LONG | u32::try_from(blocks.len())?;
                blocks.push([above; 256]);
                blocks.len() - 1
            } else {
                (above & !LONG) as usize
            };
            let low = (address & 0xff) as usize;
            blocks[block][low..low + (1 << (32 - length))].fill(target);
        }
        for (entry, value) in first.iter().chain(blocks.iter().flatten()).enumerate() {
            put(entry, *value);
        }
        Ok((FIRST + blocks.len() * 256) * 4)
    }

    /// Kernel memory of a map, as the kernel accounts for it.
    pub(crate) fn memory(&mut self, name: &str) -> Result<u64> {
        let data: &MapData = match self.map(name)? {
            Map::Array(data) | Map::LpmTrie(data) => data,
            _ => bail!("{name} is of another kind"),
        };
        let facts = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd()))?;
        let bytes = facts.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
        bytes.context("the kernel does not say how much memory a map takes")
    }

    /// Says what forwarders write and where frames leave; call it in the namespace of the device.
    pub(crate) fn set_egress(&mut self, device: u32, macs: [u8; 12]) -> Result<()> {
        let mut words = [0; 16];
        words[..12].copy_from_slice(&macs);
        let [low, high] = [0, 8].map(|at| u64::from_ne_bytes(std::array::from_fn(|i| words[at + i])));
        Array::<_, [u64; 2]>::try_from(self.map("MACS")?)?.set(0, [low, high], 0)?;
        Ok(DevMap::try_from(self.map("EGRESS")?)?.set(0, device, None, 0)?)
    }

    /// Gives the generators their frame: UDP between these MAC addresses and these IPv4 addresses, port 9. An address that the
    /// generator writes itself is zero.
    pub(crate) fn set_frame(&mut self, macs: [u8; 12], source: Ipv4Addr, destination: Ipv4Addr) -> Result<()> {
        let mut frame = [0; 40];
        frame[..12].copy_from_slice(&macs);
        let udp_bytes = u8::try_from(FRAME_BYTES - 34)?;
        frame[12..26].copy_from_slice(&[0x08, 0, 0x45, 0, 0, 20 + udp_bytes, 0, 0, 0, 0, 64, 17, 0, 0]);
        frame[26..30].copy_from_slice(&source.octets());
        frame[30..34].copy_from_slice(&destination.octets());
        frame[34..40].copy_from_slice(&[0x30, 0x39, 0, 9, 0, udp_bytes]);
        let mut words = [0; 6];
        for (word, bytes) in words.iter_mut().zip(frame.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into()?);
        }
        words[5] = frame[14..34].chunks_exact(2).map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        Ok(Array::<_, [u64; 6]>::try_from(self.map("FRAME")?)?.set(0, words, 0)?)
    }

    /// How many flows [`Generator::Flows`] sends in turn.
    pub(crate) fn set_flows(&mut self, flows: u64) -> Result<()> {
        Array::<_, [u64; 3]>::try_from(self.map("STATE")?)?.set(0, [0; 3], 0)?;
        Ok(Array::<_, u64>::try_from(self.map("FLOWS")?)?.set(0, flows, 0)?)
    }

    /// Sends so many frames out of `device` of the calling thread's namespace.
    pub(crate) fn generate(&mut self, generator: Generator, device: u32, frames: u32) -> Result<()> {
        let data = [0; FRAME_BYTES];
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&u32::try_from(FRAME_BYTES)?.to_ne_bytes());
        context[12..16].copy_from_slice(&device.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(&data),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        };
        self.program(generator.program())?.test_run(options).context("sending live frames")?;
        Ok(())
    }

    /// Attaches a forwarder to a device of the calling thread's namespace.
    pub(crate) fn attach(&mut self, program: &str, device: &str) -> Result<()> {
        self.program(program)?
            .attach(device, XdpMode::Driver)
            .with_context(|| format!("attaching {program} to {device}"))?;
        Ok(())
    }

    /// Detaches a program everywhere.
    pub(crate) fn detach(&mut self, program: &str) -> Result<()> {
        let program = self.program(program)?;
        program.unload()?;
        Ok(program.load()?)
    }
}
