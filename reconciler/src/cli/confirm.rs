//! `wayleave confirm`: a person says that a change is good; and the watcher that an `apply` leaves behind.

use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;

use super::node::{self, block_on};
use super::{Exit, Global, note};
use crate::daemon::node::Node;
use crate::daemon::probation::{self, Confirmed, Record, Standing};

/// How often the watcher looks for a change, and `apply` for what became of it.
const POLL: Duration = Duration::from_millis(50);
/// Pause after something failed.
const AGAIN: Duration = Duration::from_secs(1);

/// Keep a change that `apply --confirm-timeout` made
///
/// Exits with 1 when there is nothing to confirm, such as when the time is over and the change was rolled back.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Wait for the change on probation, and roll it back when it must be; `apply` starts this and leaves it behind
    #[arg(long, hide = true)]
    watch: bool,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let node = node::load(global)?;
    if args.watch {
        return watch(&node);
    }
    match probation::confirm(&node)? {
        Confirmed::Generation(generation) => {
            note(&format!("generation {generation} is confirmed"));
            Ok(Exit::Ok)
        }
        Confirmed::Nothing => {
            note("error: there is nothing to confirm");
            if let Some(record) = probation::last(&node)?.filter(|record| record.standing != Standing::Pending) {
                note(&format!("  {}", in_words(&record)));
            }
            Ok(Exit::Error)
        }
    }
}

/// The watcher of one `apply`: a process of its own, so that the change is rolled back though the terminal, the `apply` and the
/// daemon are gone.
pub(crate) struct Watcher {
    child: Child,
    /// Closed when the `apply` has ended, however it did.
    alive: Option<ChildStdin>,
}

impl Watcher {
    /// Starts it before anything is changed.
    pub(crate) fn start(global: &Global) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program cannot be found")?;
        let mut command = Command::new(program);
        command.arg("--config").arg(std::path::absolute(global.config_path())?).args(["confirm", "--watch"]);
        command.current_dir(Path::new("/")).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().context("the process that would roll the change back cannot be started")?;
        let alive = child.stdin.take();
        Ok(Self { child, alive })
    }

    /// Waits until the change is decided, or until the watcher is gone.
    pub(crate) fn follow(&mut self, node: &Node, generation: u64) -> anyhow::Result<Option<Record>> {
        loop {
            let record = probation::last(node)?.filter(|record| record.generation == generation);
            match record {
                Some(record) if record.standing == Standing::Pending => {}
                decided => return Ok(decided),
            }
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!(
                    "the process that watches the change ended with {status}; `wayleave run` goes on with it"
                );
            }
            thread::sleep(POLL);
        }
    }

    /// Lets it end by itself.
    pub(crate) fn release(mut self) -> io::Result<()> {
        self.alive = None;
        self.child.wait().map(drop)
    }
}

/// Until the change is decided; ends at once when there is none and the `apply` that wanted one is gone.
fn watch(node: &Node) -> anyhow::Result<Exit> {
    // The end of a terminal's session must not end this. It fails where it leads a session already.
    let _ = rustix::process::setsid();
    let gone = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&gone);
    thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        told.store(true, Ordering::Release);
    });
    loop {
        // In this order: a change that was begun before its `apply` ended is seen.
        let over = gone.load(Ordering::Acquire);
        let Some(record) = probation::pending(node)? else {
            if over {
                return Ok(Exit::Ok);
            }
            thread::sleep(POLL);
            continue;
        };
        let decided = block_on(async {
            let verdict = probation::wait(node, &record).await?;
            probation::conclude(node, record.generation, verdict).await
        })?;
        if decided.is_err() {
            // Another process has the lock, or the state directory is full: nobody else may be left to try again.
            thread::sleep(AGAIN);
        }
    }
}

/// How a change stands, in a sentence.
pub(crate) fn in_words(record: &Record) -> String {
    let why = record.why.as_deref().map_or_else(String::new, |why| format!(": {why}"));
    let generation = record.generation;
    match record.standing {
        Standing::Pending => match record.confirm_within() {
            Some(left) => format!(
                "generation {generation} is rolled back in {} s unless it is confirmed with `wayleave confirm`",
                left.as_millis().div_ceil(1000)
            ),
            None => format!("generation {generation} is on probation"),
        },
        Standing::Passed => format!("generation {generation} has proved itself"),
        Standing::Confirmed => format!("generation {generation} was kept{why}"),
        Standing::Superseded => format!("generation {generation} was superseded{why}"),
        Standing::RolledBack => format!("generation {generation} was rolled back{why}"),
        Standing::RolledBackUnhealthy => {
            let still: Vec<String> = record.unhealthy.iter().map(|(name, error)| format!("{name} ({error})")).collect();
            format!("generation {generation} was rolled back{why}; still failing: {}", still.join(", "))
        }
    }
}
