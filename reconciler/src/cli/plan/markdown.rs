//! A plan as a comment on a pull request: the summary line first, the rest folded, and never too long to be posted.

use std::fmt::Write as _;

use super::beside::Beside;
use crate::plan::{Action, Plan};

/// GitHub takes comments of 65,535 characters; bytes are never fewer.
pub(super) const BYTES_MAX: usize = 65_535;
/// What folded warnings may take.
const WARNING_BYTES_MAX: usize = 8_000;
/// One line, so that no single text can crowd out the summary.
const LINE_BYTES_MAX: usize = 1_000;
/// Marks the comment, for whoever wants to replace it by the next one.
const MARKER: &str = "<!-- wayleave plan -->\n";

/// At most `bytes_max` bytes; what does not fit is cut from the folded lists, and said.
pub(super) fn markdown(plan: &Plan, beside: &Beside, bytes_max: usize) -> String {
    let refusals = beside.refusals();
    let (failures, more_failures) = beside.failures();
    let mut out = format!("**{}**", plan.summary_line());
    let mut refused: Vec<&str> = refusals.iter().map(|(guard, _)| *guard).collect();
    if !failures.is_empty() {
        refused.push("policy tests");
    }
    if !refused.is_empty() {
        let _ = write!(out, " **Apply would be refused: {}.**", refused.join(", "));
    }
    out.push_str("\n\n");
    let side = |side: Option<&crate::plan::Side>| match side {
        Some(side) if side.generation != 0 => format!("generation {}, {}", side.generation, code(&side.revision)),
        Some(side) => code(&side.revision),
        None => "nothing".to_owned(),
    };
    let node = match beside.get("node").as_str().or(beside.get("made_for")["node"].as_str()) {
        Some(node) => format!(" on {}", code(node)),
        None => String::new(),
    };
    let _ = writeln!(out, "{} → {}{node}\n", side(plan.from()), side(Some(plan.to())));
    if plan.is_empty() {
        out.push_str("Every packet meets the same rules.\n");
    } else {
        for line in plan.effect_lines() {
            let _ = writeln!(out, "- {line}");
        }
    }
    for (guard, text) in &refusals {
        block(&mut out, &format!("Refused by the guard `{guard}`"), text.lines());
    }
    if !failures.is_empty() {
        let more = format!("… and {more_failures} more");
        let lines = failures.iter().flat_map(|f| f.lines()).chain((more_failures > 0).then_some(more.as_str()));
        block(&mut out, "Policy tests that fail", lines);
    }

    let warnings = beside.warnings();
    let reserved = if warnings.is_empty() { 0 } else { WARNING_BYTES_MAX };
    let changes = plan.changes().iter().map(|change| match change.action {
        // The sign that `diff` has a colour for.
        Action::Change => change.to_string().replacen('~', "!", 1),
        _ => change.to_string(),
    });
    let room = bytes_max.saturating_sub(out.len() + reserved + MARKER.len());
    fold(&mut out, "Changes", plan.changes().len(), changes, "diff", room);
    let room = bytes_max.saturating_sub(out.len() + MARKER.len());
    fold(&mut out, "Warnings", warnings.len(), warnings.iter().cloned(), "", room);
    out.push_str(MARKER);
    out
}

/// Lines that are always there: few, and none long.
fn block<'l>(out: &mut String, title: &str, lines: impl Iterator<Item = &'l str>) {
    let lines: Vec<String> = lines.map(|line| cut(line.to_owned())).collect();
    let fence = fence(lines.iter());
    let _ = write!(out, "\n{title}:\n\n{fence}\n");
    for line in &lines {
        let _ = writeln!(out, "{line}");
    }
    let _ = writeln!(out, "{fence}");
}

/// A folded list of at most `room` bytes.
fn fold(out: &mut String, title: &str, total: usize, lines: impl Iterator<Item = String>, language: &str, room: usize) {
    // The frame around the lines, and the words about what was cut.
    const FRAME_BYTES: usize = 300;
    if total == 0 {
        return;
    }
    let mut left = room.saturating_sub(FRAME_BYTES);
    let mut shown = Vec::new();
    for line in lines.map(cut) {
        if line.len() + 1 > left {
            break;
        }
        left -= line.len() + 1;
        shown.push(line);
    }
    let mut fence = fence(shown.iter());
    if fence.len() > 20 {
        // Only a file name made on purpose needs so many.
        shown.clear();
        "```".clone_into(&mut fence);
    }
    let _ = write!(out, "\n<details><summary>{title} ({total})</summary>\n\n{fence}{language}\n");
    for line in &shown {
        let _ = writeln!(out, "{line}");
    }
    let _ = writeln!(out, "{fence}");
    let missing = total - shown.len();
    if missing > 0 {
        let words = title.to_lowercase();
        let _ = write!(out, "\n{missing} of {total} {words} were cut; `wayleave plan --format json` lists all.\n");
    }
    out.push_str("\n</details>\n");
}

fn cut(mut line: String) -> String {
    if line.len() > LINE_BYTES_MAX {
        let at = line.floor_char_boundary(LINE_BYTES_MAX);
        line.truncate(at);
        line.push('…');
    }
    line
}

/// A fence longer than any run of backticks in the lines.
fn fence<'l>(lines: impl Iterator<Item = &'l String>) -> String {
    let runs = lines.flat_map(|line| line.split(|c| c != '`').map(str::len));
    "`".repeat(runs.max().unwrap_or(0).max(2) + 1)
}

/// Inline code; what would end it is left out.
fn code(text: &str) -> String {
    let text: String = text.chars().filter(|c| *c != '`' && !c.is_control()).take(200).collect();
    format!("`{text}`")
}
