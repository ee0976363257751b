//! The demo: policies, plan, publish, change and rollback, with real packets between namespaces of its own.
//!
//! What it does to the kernel lives in network and mount namespaces that have no name and hang on this process: when it
//! ends, killed or not, the kernel takes everything back. Where that is not allowed, the same story is told by the
//! library alone, every line marked.

mod narration;
mod network;
mod repository;
mod simulation;
mod story;
mod traffic;

use crate::kernel::probe;

use narration::Narration;

/// How a demo went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that the story claims was seen.
    Held,
    /// Something was not as the policies say.
    Failed,
}

/// Tells the story on stdout; `simulate` leaves the kernel out.
pub fn run(simulate: bool) -> anyhow::Result<Outcome> {
    let reason = if simulate { Some("--simulate was given".to_owned()) } else { impossible() };
    let mut tell = Narration::new(if reason.is_some() { "SIMULATED  " } else { "" });
    match reason {
        Some(reason) => simulation::tell(&mut tell, &reason)?,
        None => story::tell(&mut tell)?,
    }
    tell.end()
}

/// Why the demo cannot use the kernel, if it cannot.
fn impossible() -> Option<String> {
    let missing: Vec<&str> = probe::capabilities().ok()?.into_iter().filter(|c| !c.effective).map(|c| c.name).collect();
    if !missing.is_empty() {
        return Some(format!("run it as root to see the kernel do it; missing here: {}", missing.join(", ")));
    }
    probe::image_maps().err().map(|error| format!("this kernel cannot: {:#}", anyhow::Error::new(error)))
}
