//! The bpf(2) calls that aya does not have: one function makes every call.
//!
//! Map freeze, inner maps made at run time, object info and pins; all through [`bpf`]. Paths must lie on a bpf file
//! system, which refuses dots in names.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::{
    BPF_F_MMAPABLE, bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type, bpf_map_info, bpf_map_type, bpf_prog_info,
};

use super::KernelError;

/// A call failed: what was asked of the kernel, and what it said.
fn failed(call: &'static str, object: &str, source: io::Error) -> KernelError {
    KernelError::Syscall { call, object: object.to_owned(), source }
}

/// Makes one bpf(2) call.
fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: `attr` is a whole, initialised `bpf_attr`; pointers inside it are to buffers that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Makes a call that answers with a new file descriptor.
fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn zeroed() -> bpf_attr {
    // SAFETY: every variant of the union is made of integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// What the kernel calls the outer map.
pub(super) const GENERATIONS: &str = "wl_generations";

fn name(text: &str) -> [i8; 16] {
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().take(15).zip(text.bytes()) {
        *to = from.cast_signed();
    }
    name
}

fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

fn path(path: &Path) -> Result<CString, KernelError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|e| failed("BPF_OBJ_PIN", &path.display().to_string(), io::Error::new(io::ErrorKind::InvalidInput, e)))
}

/// A new inner map: one value of `capacity` bytes that user space can map.
pub(super) fn create_image_map(capacity: u32) -> Result<OwnedFd, KernelError> {
    let mut attr = zeroed();
    // SAFETY: the variant of BPF_MAP_CREATE.
    let u = unsafe { &mut attr.__bindgen_anon_1 };
    u.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    u.key_size = 4;
    u.value_size = capacity;
    u.max_entries = 1;
    u.map_flags = BPF_F_MMAPABLE;
    u.map_name = name("wl_image");
    bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attr).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOMEM) => KernelError::NoMemory { bytes: capacity },
        _ => failed("BPF_MAP_CREATE", "image map", e),
    })
}

/// A new outer map of so many slots whose images are like `template`.
pub(super) fn create_generations(template: BorrowedFd<'_>, slots: u32) -> Result<OwnedFd, KernelError> {
    let mut attr = zeroed();
    // SAFETY: the variant of BPF_MAP_CREATE.
    let u = unsafe { &mut attr.__bindgen_anon_1 };
    u.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32;
    u.key_size = 4;
    u.value_size = 4;
    u.max_entries = slots;
    u.inner_map_fd = raw(template);
    u.map_name = name(GENERATIONS);
    bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attr).map_err(|e| failed("BPF_MAP_CREATE", "generations map", e))
}

/// Makes a map unwritable for user space, for ever. `EBUSY` while a writable mapping exists.
pub(super) fn freeze(map: BorrowedFd<'_>) -> Result<(), KernelError> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = raw(map);
    bpf(bpf_cmd::BPF_MAP_FREEZE, &mut attr).map(drop).map_err(|e| failed("BPF_MAP_FREEZE", "image map", e))
}

/// Puts an image map into a slot of the outer map. For slot 0 this is the one write that makes a generation live; the
/// kernel waits for a grace period before it returns, so afterwards no program reads the map that was there before.
pub(super) fn set_slot(generations: BorrowedFd<'_>, slot: u32, image: BorrowedFd<'_>) -> Result<(), KernelError> {
    let value = raw(image);
    let mut attr = zeroed();
    // SAFETY: the variant of BPF_MAP_UPDATE_ELEM; key and value outlive the call.
    let u = unsafe { &mut attr.__bindgen_anon_2 };
    u.map_fd = raw(generations);
    u.key = address(&slot);
    u.__bindgen_anon_1.value = address(&value);
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop).map_err(|e| failed("BPF_MAP_UPDATE_ELEM", "generations", e))
}

/// Empties a slot of the outer map; an empty slot is no error.
pub(super) fn clear_slot(generations: BorrowedFd<'_>, slot: u32) -> Result<(), KernelError> {
    delete(generations, slot, "generations")
}

/// Deletes an element of an array of maps or devices; a missing one is no error.
pub(super) fn delete(map: BorrowedFd<'_>, slot: u32, name: &str) -> Result<(), KernelError> {
    let mut attr = zeroed();
    // SAFETY: the variant of BPF_MAP_DELETE_ELEM; the key outlives the call.
    let u = unsafe { &mut attr.__bindgen_anon_2 };
    u.map_fd = raw(map);
    u.key = address(&slot);
    match bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("BPF_MAP_DELETE_ELEM", name, e)),
    }
}

/// Id of the image map in a slot; `None` when it is empty.
pub(super) fn slot(generations: BorrowedFd<'_>, slot: u32) -> Result<Option<u32>, KernelError> {
    let mut value = 0u32;
    let mut attr = zeroed();
    // SAFETY: the variant of BPF_MAP_LOOKUP_ELEM; key and value outlive the call.
    let u = unsafe { &mut attr.__bindgen_anon_2 };
    u.map_fd = raw(generations);
    u.key = address(&slot);
    u.__bindgen_anon_1.value = std::ptr::from_mut(&mut value) as u64;
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) {
        Ok(_) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("BPF_MAP_LOOKUP_ELEM", "generations", e)),
    }
}

/// Opens a map by its id; needs `CAP_SYS_ADMIN`.
pub(super) fn map_by_id(id: u32) -> Result<OwnedFd, KernelError> {
    let mut attr = zeroed();
    attr.__bindgen_anon_6.__bindgen_anon_1.map_id = id;
    bpf_fd(bpf_cmd::BPF_MAP_GET_FD_BY_ID, &mut attr).map_err(|e| failed("BPF_MAP_GET_FD_BY_ID", &id.to_string(), e))
}

/// Pins a map, program or link.
pub(super) fn pin(object: BorrowedFd<'_>, at: &Path) -> Result<(), KernelError> {
    let name = path(at)?;
    let mut attr = zeroed();
    // SAFETY: the variant of BPF_OBJ_PIN; the name outlives the call.
    let u = unsafe { &mut attr.__bindgen_anon_4 };
    u.pathname = name.as_ptr() as u64;
    u.bpf_fd = raw(object);
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop).map_err(|e| failed("BPF_OBJ_PIN", &at.display().to_string(), e))
}

/// Opens a pinned object; `None` when nothing is pinned there.
pub(super) fn pinned(at: &Path) -> Result<Option<OwnedFd>, KernelError> {
    let name = path(at)?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = name.as_ptr() as u64;
    match bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("BPF_OBJ_GET", &at.display().to_string(), e)),
    }
}

/// Replaces the program of a link in one step: each packet meets the old program or the new one.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    // SAFETY: the variant of BPF_LINK_UPDATE.
    let u = unsafe { &mut attr.link_update };
    u.link_fd = raw(link);
    u.__bindgen_anon_1.new_prog_fd = raw(program);
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Attaches a program to a device; the link lives as long as its descriptor or a pin.
pub(super) fn create_xdp_link(program: BorrowedFd<'_>, device: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: the variant of BPF_LINK_CREATE.
    let u = unsafe { &mut attr.link_create };
    u.__bindgen_anon_1.prog_fd = raw(program);
    u.__bindgen_anon_2.target_ifindex = device;
    u.attach_type = aya_obj::generated::bpf_attach_type::BPF_XDP as u32;
    u.flags = flags;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Attaches a classifier to a device's ingress, behind those that are there; as [`create_xdp_link`]. From Linux 6.6.
pub(super) fn create_tcx_link(program: BorrowedFd<'_>, device: u32) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: the variant of BPF_LINK_CREATE.
    let u = unsafe { &mut attr.link_create };
    u.__bindgen_anon_1.prog_fd = raw(program);
    u.__bindgen_anon_2.target_ifindex = device;
    u.attach_type = aya_obj::generated::bpf_attach_type::BPF_TCX_INGRESS as u32;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Detaches a link wherever it is still held.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> Result<(), KernelError> {
    let mut attr = zeroed();
    attr.link_detach.link_fd = raw(link);
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop).map_err(|e| failed("BPF_LINK_DETACH", "link", e))
}

fn info<T>(object: BorrowedFd<'_>, what: &'static str) -> Result<T, KernelError> {
    // SAFETY: the info structures are made of integers, for which zero is a value.
    let mut info: T = unsafe { std::mem::zeroed() };
    fill_info(object, what, &mut info)?;
    Ok(info)
}

fn fill_info<T>(object: BorrowedFd<'_>, what: &'static str, info: &mut T) -> Result<(), KernelError> {
    let mut attr = zeroed();
    // SAFETY: the variant of BPF_OBJ_GET_INFO_BY_FD; `info` outlives the call.
    let u = unsafe { &mut attr.info };
    u.bpf_fd = raw(object);
    u.info_len = u32::try_from(size_of::<T>()).unwrap_or(u32::MAX);
    u.info = std::ptr::from_mut(info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop).map_err(|e| failed("BPF_OBJ_GET_INFO_BY_FD", what, e))
}

/// A map's id and the bytes of its value.
pub(super) fn map_facts(map: BorrowedFd<'_>) -> Result<(u32, u32), KernelError> {
    let info: bpf_map_info = info(map, "map")?;
    Ok((info.id, info.value_size))
}

/// How many entries a map has room for.
pub(super) fn map_entries(map: BorrowedFd<'_>) -> Result<u32, KernelError> {
    let info: bpf_map_info = info(map, "map")?;
    Ok(info.max_entries)
}

/// A program's id.
pub(super) fn program_id(program: BorrowedFd<'_>) -> Result<u32, KernelError> {
    let info: bpf_prog_info = info(program, "program")?;
    Ok(info.id)
}

/// Opens a program by its id; `None`: there is no such program any more.
fn program_by_id(id: u32) -> Result<Option<OwnedFd>, KernelError> {
    let mut attr = zeroed();
    attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    match bpf_fd(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr) {
        Ok(program) => Ok(Some(program)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("BPF_PROG_GET_FD_BY_ID", &id.to_string(), e)),
    }
}

/// What the kernel keeps of a name.
fn text(name: &[i8]) -> String {
    let bytes: Vec<u8> = name.iter().map(|c| c.cast_unsigned()).take_while(|c| *c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A program's name, of which the kernel keeps 15 bytes; `None`: there is no such program any more.
pub(super) fn program_name(id: u32) -> Result<Option<String>, KernelError> {
    let Some(program) = program_by_id(id)? else { return Ok(None) };
    let info: bpf_prog_info = info(program.as_fd(), "program")?;
    Ok(Some(text(&info.name)))
}

/// The maps that a program uses, each with the 15 bytes of its name that the kernel keeps; none of a program that is gone.
pub(super) fn maps_of_program(id: u32) -> Result<Vec<(String, OwnedFd)>, KernelError> {
    /// More than any version of the program has.
    const MAPS_MAX: u32 = 64;
    let Some(program) = program_by_id(id)? else { return Ok(Vec::new()) };
    let mut ids = [0u32; MAPS_MAX as usize];
    // SAFETY: the info structure is made of integers, for which zero is a value.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    info.nr_map_ids = MAPS_MAX;
    info.map_ids = ids.as_mut_ptr() as u64;
    fill_info(program.as_fd(), "program", &mut info)?;
    let used = info.nr_map_ids.min(MAPS_MAX) as usize;
    ids[..used]
        .iter()
        .map(|id| {
            let map = map_by_id(*id)?;
            let info: bpf_map_info = self::info(map.as_fd(), "map")?;
            Ok((text(&info.name), map))
        })
        .collect()
}

/// Whether nobody can write a map from user space any more.
pub(super) fn is_frozen(map: BorrowedFd<'_>) -> Result<bool, KernelError> {
    let path = format!("/proc/self/fdinfo/{}", map.as_raw_fd());
    let text = std::fs::read_to_string(&path).map_err(|e| failed("read", &path, e))?;
    Ok(text.lines().any(|line| line.strip_prefix("frozen:").is_some_and(|value| value.trim() == "1")))
}

/// The program and the device of a link, and whether it is of TC, else XDP; device 0: the device is gone.
pub(super) fn link_facts(link: BorrowedFd<'_>) -> Result<(u32, u32, bool), KernelError> {
    let info: bpf_link_info = info(link, "link")?;
    if info.type_ == bpf_link_type::BPF_LINK_TYPE_TCX as u32 {
        // SAFETY: the variant of a TCX link, whose type was checked.
        let device = unsafe { info.__bindgen_anon_1.tcx.ifindex };
        return Ok((info.prog_id, device, true));
    }
    if info.type_ != bpf_link_type::BPF_LINK_TYPE_XDP as u32 {
        return Err(failed("BPF_OBJ_GET_INFO_BY_FD", "link", io::Error::other("neither an XDP nor a TCX link")));
    }
    // SAFETY: the variant of an XDP link, whose type was checked.
    let device = unsafe { info.__bindgen_anon_1.xdp.ifindex };
    Ok((info.prog_id, device, false))
}

/// Maps the value of an image map for reading.
pub(super) fn map_read(map: BorrowedFd<'_>, bytes: u32) -> Result<memmap2::Mmap, KernelError> {
    // SAFETY: the map is frozen: nobody, root included, can write it while it is mapped.
    unsafe { memmap2::MmapOptions::new().len(bytes as usize).map(&map.as_fd()) }
        .map_err(|e| failed("mmap", "image map", e))
}

/// Maps the value of a new image map for filling.
pub(super) fn map_write(map: BorrowedFd<'_>, bytes: u32) -> Result<memmap2::MmapMut, KernelError> {
    // SAFETY: the map was created by this process and is not shared before it is frozen.
    unsafe { memmap2::MmapOptions::new().len(bytes as usize).map_mut(&map.as_fd()) }
        .map_err(|e| failed("mmap", "image map", e))
}
