//! TC ingress without TCX (before Linux 6.6): a `bpf` filter with direct action on a device's `clsact` qdisc, by rtnetlink.
//!
//! Our filter is told from others by its priority and handle. A filter is no BPF link and cannot be pinned, so a symbolic link
//! beside the pins of links says which device has one, and whether the qdisc was made for it. It is written first: what a killed
//! process left is found by it.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::netlink::{Attributes, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, ask, attribute};

// linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const TC_H_MAJ_MASK: u32 = 0xffff_0000;
const TC_H_MIN_INGRESS: u32 = 0xfff2;
const TC_H_MIN_EGRESS: u32 = 0xfff3;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// Every protocol.
const ETH_P_ALL: u16 = 3;

/// Bytes of `tcmsg`: family u8, zero [u8; 3], device i32, handle u32, parent u32, and u32 of priority and protocol.
const TCMSG_BYTES: usize = 20;
const INGRESS: u32 = TC_H_CLSACT & TC_H_MAJ_MASK | TC_H_MIN_INGRESS;
const EGRESS: u32 = TC_H_CLSACT & TC_H_MAJ_MASK | TC_H_MIN_EGRESS;

/// Behind the priorities that people write by hand, before those that the kernel gives out (49,152 and below it): `wa`.
const PRIORITY: u16 = 0x7761;
/// `way`, 1: nobody else's at this priority.
const HANDLE: u32 = 0x7761_7901;

fn tcmsg(device: u32, handle: u32, parent: u32, priority: u16) -> [u8; TCMSG_BYTES] {
    let protocol = if priority == 0 { 0 } else { ETH_P_ALL.to_be() };
    let mut bytes = [0; TCMSG_BYTES];
    let words = [device, handle, parent, u32::from(priority) << 16 | u32::from(protocol)];
    for (to, word) in bytes.chunks_exact_mut(4).skip(1).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Device, handle, parent, and priority with protocol of an answer.
fn read(answer: &[u8]) -> Option<[u32; 4]> {
    let mut words =
        answer.get(4..TCMSG_BYTES)?.chunks_exact(4).map(|b| b.first_chunk().map(|b| u32::from_ne_bytes(*b)));
    Some([words.next()??, words.next()??, words.next()??, words.next()??])
}

/// Whether the device has the qdisc that filters for arriving packets hang on.
pub(super) fn has_qdisc(device: u32) -> io::Result<bool> {
    let all = ask(None, RTM_GETQDISC, NLM_F_DUMP, &tcmsg(device, 0, 0, 0), &Attributes::default())?;
    Ok(all.iter().filter_map(|answer| read(answer)).any(|[of, _, parent, _]| of == device && parent == TC_H_CLSACT))
}

/// Makes the qdisc; one that is there already stays.
pub(super) fn make_qdisc(device: u32) -> io::Result<()> {
    let attributes = Attributes::default().with(TCA_KIND, b"clsact\0");
    let header = tcmsg(device, TC_H_CLSACT & TC_H_MAJ_MASK, TC_H_CLSACT, 0);
    match ask(None, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &header, &attributes) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result.map(drop),
    }
}

/// Removes the qdisc unless somebody else's filter hangs on it.
pub(super) fn remove_idle_qdisc(device: u32) -> io::Result<()> {
    for parent in [INGRESS, EGRESS] {
        if !filters(device, parent)?.is_empty() {
            return Ok(());
        }
    }
    let header = tcmsg(device, TC_H_CLSACT & TC_H_MAJ_MASK, TC_H_CLSACT, 0);
    ask(None, RTM_DELQDISC, 0, &header, &Attributes::default()).map(drop)
}

fn filters(device: u32, parent: u32) -> io::Result<Vec<Vec<u8>>> {
    match ask(None, RTM_GETTFILTER, NLM_F_DUMP, &tcmsg(device, 0, parent, 0), &Attributes::default()) {
        // Without the qdisc there are none.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => Ok(Vec::new()),
        result => result,
    }
}

/// Gives arriving packets of the device to a program; where our filter is there, its program is replaced in one step.
pub(super) fn set_filter(device: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let options = Attributes::default()
        .with(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes())
        .with(TCA_BPF_NAME, b"wayleave\0")
        .with(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    let attributes = Attributes::default().with(TCA_KIND, b"bpf\0").with_nested(TCA_OPTIONS, &options);
    let header = tcmsg(device, HANDLE, INGRESS, PRIORITY);
    ask(None, RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_REPLACE, &header, &attributes).map(drop)
}

/// Id of the program that our filter gives packets to; `None`: our filter is not there.
pub(super) fn filter_program(device: u32) -> io::Result<Option<u32>> {
    let ours = |answer: &Vec<u8>| {
        let [of, handle, _, priority] = read(answer)?;
        let attributes = answer.get(TCMSG_BYTES..)?;
        let mine = of == device && handle == HANDLE && priority >> 16 == u32::from(PRIORITY);
        if !mine || attribute(attributes, TCA_KIND)? != b"bpf\0" {
            return None;
        }
        attribute(attribute(attributes, TCA_OPTIONS)?, TCA_BPF_ID)?.first_chunk().map(|id| u32::from_ne_bytes(*id))
    };
    Ok(filters(device, INGRESS)?.iter().find_map(ours))
}

/// Removes our filter; a missing one, and a missing device, are no error.
pub(super) fn remove_filter(device: u32) -> io::Result<()> {
    let attributes = Attributes::default().with(TCA_KIND, b"bpf\0");
    match ask(None, RTM_DELTFILTER, 0, &tcmsg(device, HANDLE, INGRESS, PRIORITY), &attributes) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => Ok(()),
        result => result.map(drop),
    }
}
