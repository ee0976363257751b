//! Attaching the program to devices, so that it outlives the process: by BPF links and their pins, or by a TC filter.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use super::pins::{Classifier, Pins};
use super::program::{Entry, Programs};
use super::xdp_features::XdpFeatures;
use super::{KernelError, clsact, sys};

/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` of the kernel's `if_link.h`.
const GENERIC: u32 = 1 << 1;
const NATIVE: u32 = 1 << 2;

/// Devices with larger packets are first tried with the program for frames of several buffers. What fits one buffer is the
/// driver's to say: a page, less 256 bytes before the frame and 320 behind it, in most.
pub const ONE_BUFFER_MTU_MAX: u32 = 3_498;

/// How a program may be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Native where the driver can, else by TC, else generic.
    Auto,
    /// In the driver, before the kernel makes a buffer for the packet.
    Native,
    /// After the kernel has made one, before TC: works on every device, on a copy of most packets.
    Generic,
    /// By TC ingress: a TCX link from Linux 6.6, a filter of a `clsact` qdisc before.
    Tc,
}

impl Mode {
    /// As a node's configuration says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tc => "tc",
        }
    }
}

/// Where in the receive path a program is attached: each device has both places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    Xdp,
    Tc,
}

impl Hook {
    pub const ALL: [Self; 2] = [Self::Xdp, Self::Tc];

    /// The directory of its pins.
    pub fn word(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
        }
    }
}

/// What is to be attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub device: String,
    /// Kernel index of the device.
    pub index: u32,
    pub mode: Mode,
    pub mtu: u32,
    /// What the driver can do, where the kernel says it.
    pub driver: Option<XdpFeatures>,
    /// Why `auto` must not take native XDP.
    pub not_native: Option<String>,
    /// Why `auto` must take TC, and nothing else.
    pub only_tc: Option<String>,
}

/// How a program was attached, and why so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Never `Auto`.
    pub mode: Mode,
    pub why: String,
}

/// An attachment, seen from its pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) hook: Hook,
    /// Kernel index of the device; 0: it is gone.
    pub(super) index: u32,
    /// 0: nothing is attached any more.
    pub(super) program: u32,
}

/// Attaches the live program to a device and pins the link.
pub fn attach(pins: &Pins, programs: &Programs, target: &Target) -> Result<Attached, KernelError> {
    match target.mode {
        Mode::Auto => auto(pins, programs, target),
        Mode::Native => native(pins, programs, target)?.map_err(|refused| failed(target, refused)),
        Mode::Generic => {
            let said = "the configuration says so".to_owned();
            generic(pins, programs, target, said)?.map_err(|refused| failed(target, refused))
        }
        Mode::Tc => {
            let said = "the configuration says so".to_owned();
            tc(pins, programs, target, said)?.map_err(|refused| failed(target, refused))
        }
    }
}

/// What the kernel said when it refused, in a way that another mode may not be.
struct Refused {
    mode: Mode,
    why: String,
    error: io::Error,
}

fn failed(target: &Target, Refused { mode, error, .. }: Refused) -> KernelError {
    let detail = match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) if mode == Mode::Tc => {
            "another filter has the place of ours; remove that first"
        }
        Some(libc::EBUSY | libc::EEXIST) => "another XDP program is attached to it; remove that first",
        Some(libc::EOPNOTSUPP) if mode == Mode::Native => "its driver has no native XDP; use `attach: auto` or `tc`",
        Some(libc::ERANGE | libc::EINVAL) if mode == Mode::Native => {
            "its driver takes no XDP program as the device is set up; a smaller MTU or fewer queues may help, or `attach: auto`"
        }
        Some(libc::ENOENT | libc::EOPNOTSUPP) if mode == Mode::Tc => {
            "the kernel has neither TCX links (Linux 6.6) nor the modules sch_ingress and cls_bpf"
        }
        Some(libc::EPERM | libc::EACCES) => "this needs root, or CAP_BPF and CAP_NET_ADMIN",
        _ => "the kernel refused",
    };
    KernelError::Attach { device: target.device.clone(), detail: detail.to_owned(), source: error }
}

fn auto(pins: &Pins, programs: &Programs, target: &Target) -> Result<Attached, KernelError> {
    if let Some(why) = &target.only_tc {
        return tc(pins, programs, target, why.clone())?.map_err(|refused| failed(target, refused));
    }
    let mut why = match &target.not_native {
        Some(why) => why.clone(),
        None => match native(pins, programs, target)? {
            Ok(attached) => return Ok(attached),
            // The driver has no XDP; or it has, but not as the device is set up now.
            Err(refused)
                if matches!(refused.error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE)) =>
            {
                refused.why
            }
            Err(refused) => return Err(failed(target, refused)),
        },
    };
    match tc(pins, programs, target, why.clone())? {
        Ok(attached) => return Ok(attached),
        Err(refused) => {
            why.push_str("; ");
            why.push_str(&refused.why);
        }
    }
    generic(pins, programs, target, why)?.map_err(|refused| failed(target, refused))
}

/// Outer errors are ours, inner ones the kernel's answer.
type Tried = Result<Result<Attached, Refused>, KernelError>;

fn native(pins: &Pins, programs: &Programs, target: &Target) -> Tried {
    let mtu = target.mtu;
    let mut refusal = None;
    for entry in xdp_entries(target) {
        match sys::create_xdp_link(programs.live_fd(entry)?, target.index, NATIVE) {
            Ok(link) => {
                sys::pin(link.as_fd(), &pins.link(Hook::Xdp, &target.device))?;
                let why = match (entry, target.mode) {
                    (Entry::XdpFrags, _) => format!("the driver takes XDP in frames of several buffers, at MTU {mtu}"),
                    (_, Mode::Auto) => "the driver takes XDP".to_owned(),
                    _ => "the configuration says so".to_owned(),
                };
                return Ok(Ok(Attached { mode: Mode::Native, why }));
            }
            Err(error) => {
                let may_take_another = match error.raw_os_error() {
                    Some(libc::EOPNOTSUPP) => target.driver.is_some_and(|driver| driver.native_frags),
                    Some(libc::EINVAL | libc::ERANGE) => true,
                    _ => false,
                };
                refusal.get_or_insert(error);
                if !may_take_another {
                    break;
                }
            }
        }
    }
    let error = refusal.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    let why = match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => format!("the driver has no XDP ({})", words(&error)),
        _ => format!("the driver refuses XDP as the device is set up, at MTU {mtu} ({})", words(&error)),
    };
    Ok(Err(Refused { mode: Mode::Native, why, error }))
}

/// The programs to try in the driver, in this order.
fn xdp_entries(target: &Target) -> [Entry; 2] {
    if target.mtu > ONE_BUFFER_MTU_MAX && target.driver.is_some_and(|driver| driver.native_frags) {
        [Entry::XdpFrags, Entry::Xdp]
    } else {
        // Of a veth it is the peer's MTU that counts, which nobody here knows.
        [Entry::Xdp, Entry::XdpFrags]
    }
}

fn generic(pins: &Pins, programs: &Programs, target: &Target, why: String) -> Tried {
    match sys::create_xdp_link(programs.live_fd(Entry::Xdp)?, target.index, GENERIC) {
        Ok(link) => {
            sys::pin(link.as_fd(), &pins.link(Hook::Xdp, &target.device))?;
            Ok(Ok(Attached { mode: Mode::Generic, why }))
        }
        Err(error) => {
            let why = format!("generic XDP: {}", words(&error));
            Ok(Err(Refused { mode: Mode::Generic, why, error }))
        }
    }
}

fn tc(pins: &Pins, programs: &Programs, target: &Target, why: String) -> Tried {
    let program = programs.live_fd(Entry::Tc)?;
    match sys::create_tcx_link(program, target.index) {
        Ok(link) => {
            sys::pin(link.as_fd(), &pins.link(Hook::Tc, &target.device))?;
            return Ok(Ok(Attached { mode: Mode::Tc, why }));
        }
        // An attach type that the kernel does not know.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        Err(error) => {
            let why = format!("TC: {}", words(&error));
            return Ok(Err(Refused { mode: Mode::Tc, why, error }));
        }
    }
    let Err(error) = classify(pins, target, program) else { return Ok(Ok(Attached { mode: Mode::Tc, why })) };
    let error = error?;
    // What was begun is taken back, as far as the kernel lets us.
    detach(&pins.link(Hook::Tc, &target.device))?;
    let why = format!("TC: {}", words(&error));
    Ok(Err(Refused { mode: Mode::Tc, why, error }))
}

/// Attaches by a filter. The inner error is the kernel's answer.
fn classify(pins: &Pins, target: &Target, program: BorrowedFd<'_>) -> Result<(), Result<io::Error, KernelError>> {
    let made_qdisc = !clsact::has_qdisc(target.index).map_err(Ok)?;
    let classifier = Classifier { index: target.index, made_qdisc };
    pins.set_classifier(&pins.link(Hook::Tc, &target.device), classifier).map_err(Err)?;
    clsact::make_qdisc(target.index).map_err(Ok)?;
    clsact::set_filter(target.index, program).map_err(Ok)
}

/// Gives an attachment, wherever it is pinned, the live program, in one step.
pub fn update(programs: &Programs, pin: &Path) -> Result<(), KernelError> {
    if let Some(classifier) = Classifier::read(pin)? {
        let set = || -> io::Result<()> {
            clsact::make_qdisc(classifier.index)?;
            clsact::set_filter(classifier.index, programs.live_fd(Entry::Tc).map_err(io::Error::other)?)
        };
        return set().map_err(|source| refused("RTM_NEWTFILTER", pin, source));
    }
    let Some(link) = sys::pinned(pin)? else { return Ok(()) };
    let (runs, _, tc) = sys::link_facts(link.as_fd())?;
    if tc {
        return sys::update_link(link.as_fd(), programs.live_fd(Entry::Tc)?)
            .map_err(|source| refused("BPF_LINK_UPDATE", pin, source));
    }
    // The same kind as it has. Where the device has changed since, the driver may only take the other.
    let frags = sys::program_name(runs)?.is_some_and(|name| Entry::XdpFrags.is_called(&name));
    let [first, second] = if frags { [Entry::XdpFrags, Entry::Xdp] } else { [Entry::Xdp, Entry::XdpFrags] };
    sys::update_link(link.as_fd(), programs.live_fd(first)?)
        .or_else(|error| {
            let second = programs.live_fd(second).map_err(io::Error::other)?;
            sys::update_link(link.as_fd(), second).map_err(|_| error)
        })
        .map_err(|source| refused("BPF_LINK_UPDATE", pin, source))
}

/// Takes an attachment over from another layout's pin: pins it here, too, then gives it the live program. The other pin stays.
pub fn take(pins: &Pins, programs: &Programs, device: &str, from: &Path) -> Result<(), KernelError> {
    let to = if let Some(classifier) = Classifier::read(from)? {
        let to = pins.link(Hook::Tc, device);
        pins.set_classifier(&to, classifier)?;
        to
    } else {
        let Some(link) = sys::pinned(from)? else { return Ok(()) };
        let (_, _, tc) = sys::link_facts(link.as_fd())?;
        let to = pins.link(if tc { Hook::Tc } else { Hook::Xdp }, device);
        sys::pin(link.as_fd(), &to)?;
        to
    };
    update(programs, &to)
}

/// Detaches what is pinned, and removes the pin; a missing one is no error.
pub fn detach(pin: &Path) -> Result<(), KernelError> {
    if let Some(Classifier { index, made_qdisc }) = Classifier::read(pin)? {
        let remove = || -> io::Result<()> {
            clsact::remove_filter(index)?;
            if made_qdisc && clsact::has_qdisc(index)? {
                clsact::remove_idle_qdisc(index)?;
            }
            Ok(())
        };
        remove().map_err(|source| refused("RTM_DELTFILTER", pin, source))?;
    } else if let Some(link) = sys::pinned(pin)? {
        let (_, index, _) = sys::link_facts(link.as_fd())?;
        // A link whose device is gone is detached already.
        if index != 0 {
            sys::detach_link(link.as_fd())?;
        }
    }
    match std::fs::remove_file(pin) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::Directory { path: pin.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}

/// What a pin holds; `None`: nothing of ours.
pub(super) fn facts(pin: &Path) -> Result<Option<Facts>, KernelError> {
    if let Some(Classifier { index, .. }) = Classifier::read(pin)? {
        let facts = match clsact::filter_program(index) {
            Ok(program) => Facts { hook: Hook::Tc, index, program: program.unwrap_or(0) },
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Facts { hook: Hook::Tc, index: 0, program: 0 },
            Err(source) => return Err(refused("RTM_GETTFILTER", pin, source)),
        };
        return Ok(Some(facts));
    }
    let Some(link) = sys::pinned(pin)? else { return Ok(None) };
    let (program, index, tc) = sys::link_facts(link.as_fd())?;
    Ok(Some(Facts { hook: if tc { Hook::Tc } else { Hook::Xdp }, index, program }))
}

fn refused(call: &'static str, pin: &Path, source: io::Error) -> KernelError {
    KernelError::Syscall { call, object: pin.display().to_string(), source }
}

/// An error in words, without its number.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
