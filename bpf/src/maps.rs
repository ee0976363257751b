//! The maps beside the generation, and the node as they describe it.

use core::mem::MaybeUninit;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    bindings::bpf_fib_lookup as FibParams,
    btf_maps::{Array, DevMap, HashMap, PerCpuArray},
    helpers::bpf_fib_lookup,
    macros::btf_map,
};
use fib::layout::{NEXT_HOP_FAMILY, NEXT_HOP_IDS_MAX, NEXT_HOP_VIA, POLICY_IDS_MAX, PORT_IDS_MAX};
use fib::packet::Tags;
use fib::verdict::REASONS_MAX;
use fib::{Image, Ingress, Neighbour, Node, ReachWords};

/// `BPF_FIB_LOOKUP_OUTPUT`: look from the egress device.
const FIB_LOOKUP_OUTPUT: u32 = 1 << 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Devices by kernel index that can carry a port.
const DEVICES_MAX: usize = 1 << 16;

/// Egress devices by port id, for XDP.
#[btf_map]
pub(crate) static PORTS: DevMap<{ PORT_IDS_MAX as usize }> = DevMap::new();

/// The same for frames of several buffers: the kernel keeps a device map to programs of one kind.
#[btf_map]
pub(crate) static PORTS_FRAGS: DevMap<{ PORT_IDS_MAX as usize }> = DevMap::new();

/// Egress by port id: the device that sends in the low half of the first word, in its high half the device that has the
/// port's address (another one where the port is a VLAN); then the tags, outer in the low half.
#[btf_map]
pub(crate) static PORT_LINKS: Array<[u64; 2], { PORT_IDS_MAX as usize }> = Array::new();

/// Next hops by id, as `fib::Reach::encode` writes them.
#[btf_map]
static NEIGHBOURS: Array<ReachWords, { NEXT_HOP_IDS_MAX as usize }> = Array::new();

/// Ports that take untagged frames, by the kernel's index of their device, as `fib::Ingress::encode` writes them.
#[btf_map]
static DEVICES: Array<u64, DEVICES_MAX> = Array::new();

/// Ports that take tagged frames: the device's index in the high half, VLAN identifiers as `Tags::vids` in the low half.
#[btf_map]
static VLANS: HashMap<u64, u64, { PORT_IDS_MAX as usize * 2 }> = HashMap::new();

/// Packets and bytes by reason, but for forwarded packets: those count for their next hop alone, and what was forwarded in
/// all is the sum over next hops. So the path of a forwarded packet touches one counter.
#[btf_map]
static COUNTERS: PerCpuArray<[u64; 2], { REASONS_MAX as usize }> = PerCpuArray::new();

/// Packets and bytes by policy id: of every packet that met one of its routes and was not forwarded. The candidate's has no
/// entry for any id.
#[btf_map]
static POLICY_STAYED: PerCpuArray<[u64; 2], { POLICY_IDS_MAX as usize }> = PerCpuArray::new();

/// Packets and bytes by next-hop id: of those that were sent to it. The candidate's has no entry for any id.
#[btf_map]
static NEXT_HOP_COUNTERS: PerCpuArray<[u64; 2], { NEXT_HOP_IDS_MAX as usize }> = PerCpuArray::new();

/// The daemon's: packets and bytes that next hops which are gone have left to the policy with this id; at 0, those of all.
#[btf_map]
static CARRIED: Array<[u64; 2], { POLICY_IDS_MAX as usize }> = Array::new();

/// The daemon's: the count that is being moved there.
#[btf_map]
static CARRYING: Array<[u64; 5], 1> = Array::new();

/// The node, seen from a packet.
pub(crate) struct KernelNode {
    pub(crate) context: *mut core::ffi::c_void,
    /// Kernel index of the device that the packet came in by.
    pub(crate) device: u32,
}

impl Node for KernelNode {
    #[inline(always)]
    fn ingress(&self, tags: Tags) -> Option<Ingress> {
        let vids = tags.vids();
        let word = if vids == 0 {
            *DEVICES.get(self.device)?
        } else {
            let key = u64::from(self.device) << 32 | u64::from(vids);
            let word = VLANS.get_ptr(key)?;
            // SAFETY: entries are written whole, and stay readable while the program runs.
            unsafe { read_volatile(word) }
        };
        Ingress::decode(word)
    }

    #[inline(always)]
    fn reach(&self, id: u32) -> ReachWords {
        let Some(entry) = NEIGHBOURS.get_ptr(id) else { return [0; 4] };
        let entry = entry.cast::<u64>();
        // SAFETY: the entry is four words, of which three are used; each is read once and whole.
        unsafe { [read_volatile(entry), read_volatile(entry.add(1)), read_volatile(entry.add(2)), 0] }
    }

    /// Asks the kernel's own tables for a next hop that the daemon has not resolved: by the port's device only.
    #[inline(always)]
    fn ask<I: Image + ?Sized>(&self, image: &I, at: u32, port: u32) -> Option<Neighbour> {
        let [devices, tags] = *PORT_LINKS.get(port)?;
        let device = (devices >> 32) as u32;
        if device == 0 {
            return None;
        }
        let mut params = zeroed();
        params.ifindex = device;
        let low = image.u64(at.wrapping_add(NEXT_HOP_VIA))?;
        // The image holds `via` as the bytes that go on the wire, as the kernel's structure does.
        if image.u16(at.wrapping_add(NEXT_HOP_FAMILY))? as u8 == 4 {
            params.family = AF_INET;
            params.__bindgen_anon_4.ipv4_dst = low as u32;
        } else {
            let high = image.u64(at.wrapping_add(NEXT_HOP_VIA + 8))?;
            params.family = AF_INET6;
            params.__bindgen_anon_4.ipv6_dst = [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32];
        }
        // SAFETY: context and parameters are valid and of the stated size.
        let found =
            unsafe { bpf_fib_lookup(self.context, &raw mut params, size_of::<FibParams>() as i32, FIB_LOOKUP_OUTPUT) };
        // 0 is BPF_FIB_LKUP_RET_SUCCESS: MAC addresses are filled in.
        if found != 0 || params.ifindex != device {
            return None;
        }
        // SAFETY: on success the kernel has written the MTU into this field.
        let mtu = unsafe { params.__bindgen_anon_1.mtu_result };
        let tags = Tags { outer: tags as u32, inner: (tags >> 32) as u32 };
        // The driver's buffers are not known here: one is always right.
        Some(Neighbour { destination: mac(params.dmac), source: mac(params.smac), mtu, tags, one_buffer: true })
    }
}

/// Parameters of nothing, written word by word: a call of `memset` would be followed byte by byte by the verifier.
#[inline(always)]
fn zeroed() -> FibParams {
    const WORDS: usize = size_of::<FibParams>() / 8;
    #[repr(align(8))]
    struct Aligned(MaybeUninit<FibParams>);
    const { assert!(WORDS * 8 == size_of::<FibParams>()) };
    let mut params = Aligned(MaybeUninit::uninit());
    for word in 0..WORDS {
        // SAFETY: the words are those of the structure, which is aligned for them.
        unsafe { write_volatile(params.0.as_mut_ptr().cast::<u64>().add(word), 0) };
    }
    // SAFETY: all fields are integers, for which zero is a value.
    unsafe { params.0.assume_init() }
}

#[inline(always)]
fn mac(bytes: [u8; 6]) -> u64 {
    let [b0, b1, b2, b3, b4, b5] = bytes;
    u64::from_le_bytes([b0, b1, b2, b3, b4, b5, 0, 0])
}

/// Counts a packet of a reason; returns how many of them this CPU has seen.
#[inline(always)]
pub(crate) fn count(reason: u32, bytes: u64) -> u64 {
    add(COUNTERS.get_ptr_mut(reason), bytes)
}

/// Counts a packet that met a route of this policy and is not forwarded.
#[inline(always)]
pub(crate) fn count_policy(id: u32, bytes: u64) {
    add(POLICY_STAYED.get_ptr_mut(id), bytes);
}

/// Counts a packet that was sent to this next hop.
#[inline(always)]
pub(crate) fn count_next_hop(id: u32, bytes: u64) {
    add(NEXT_HOP_COUNTERS.get_ptr_mut(id), bytes);
}

#[inline(always)]
pub(crate) fn add(counter: Option<*mut [u64; 2]>, bytes: u64) -> u64 {
    let Some(counter) = counter else { return 0 };
    // SAFETY: the entry belongs to this CPU, and programs of one hook are not preempted by each other.
    unsafe {
        (*counter)[0] += 1;
        (*counter)[1] += bytes;
        (*counter)[0]
    }
}
