//! What the demo says: numbered steps, the commands that a user would type, and what was checked.

use super::Outcome;
use crate::cli::print;

/// Writes the story to stdout and keeps count of what it claims.
#[derive(Debug)]
pub(super) struct Narration {
    /// Stands before every line.
    prefix: &'static str,
    steps: u32,
    held: u32,
    failed: Vec<String>,
}

impl Narration {
    pub(super) fn new(prefix: &'static str) -> Self {
        Self { prefix, steps: 0, held: 0, failed: Vec::new() }
    }

    /// Begins the next step.
    pub(super) fn step(&mut self, title: &str) -> anyhow::Result<()> {
        self.steps += 1;
        let steps = self.steps;
        self.lines(&format!("\n{steps}. {title}\n"))
    }

    /// Says something in the narrator's own words.
    pub(super) fn say(&self, text: &str) -> anyhow::Result<()> {
        for line in text.lines() {
            self.lines(&format!("   {line}"))?;
        }
        Ok(())
    }

    /// Shows what a user would type here.
    pub(super) fn command(&self, command: &str) -> anyhow::Result<()> {
        self.lines(&format!("   $ {command}"))
    }

    /// Shows what a command printed.
    pub(super) fn output(&self, text: &str) -> anyhow::Result<()> {
        for line in text.lines() {
            self.lines(&format!("     {line}"))?;
        }
        Ok(())
    }

    /// Claims something, and says whether it held.
    pub(super) fn check(&mut self, held: bool, claim: &str) -> anyhow::Result<()> {
        if held {
            self.held += 1;
        } else {
            self.failed.push(claim.to_owned());
        }
        self.lines(&format!("   {} {claim}", if held { "[ok]" } else { "[FAILED]" }))
    }

    /// Sums up.
    pub(super) fn end(self) -> anyhow::Result<Outcome> {
        if self.failed.is_empty() {
            self.lines(&format!("\nAll {} checks held.", self.held))?;
            return Ok(Outcome::Held);
        }
        self.lines(&format!("\n{} of {} checks FAILED:", self.failed.len(), self.failed.len() + self.held as usize))?;
        for claim in &self.failed {
            self.lines(&format!("   {claim}"))?;
        }
        Ok(Outcome::Failed)
    }

    fn lines(&self, text: &str) -> anyhow::Result<()> {
        for line in text.split('\n') {
            print(&format!("{}\n", format!("{}{line}", self.prefix).trim_end()))?;
        }
        Ok(())
    }
}
