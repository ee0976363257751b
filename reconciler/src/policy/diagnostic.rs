//! Diagnostics: what is wrong, where, and what to do; collected without rendering.

use std::collections::BTreeMap;

use super::codes::Code;
use super::limits;

/// A place between two characters: 1-based line, 1-based column counted in Unicode characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

/// From `start` up to, not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    pub start: Position,
    pub end: Position,
}

impl Span {
    pub fn new(line: u32, column: u32, end_line: u32, end_column: u32) -> Self {
        Self { start: Position { line, column }, end: Position { line: end_line, column: end_column } }
    }

    /// The whole of `line`.
    pub fn line(line: u32) -> Self {
        Self::new(line, 1, line + 1, 1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// No `Policy` comes of it.
    Error,
    Warning,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Another place that belongs to a fault, such as the first of two equal prefixes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Related {
    pub file: String,
    pub span: Span,
    pub label: String,
}

/// One fault of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub code: Code,
    pub severity: Severity,
    /// Source-relative path; `.` for the source as a whole.
    pub file: String,
    /// `None`: the file as a whole.
    pub span: Option<Span>,
    /// One sentence without a full stop.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    pub related: Vec<Related>,
}

impl Diagnostic {
    /// A fault of `code`'s usual severity.
    pub fn new(code: Code, file: &str, span: Option<Span>, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: code.entry().severity,
            file: file.to_owned(),
            span,
            message: message.into(),
            help: None,
            related: Vec::new(),
        }
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds the help only when there is one.
    #[must_use]
    pub fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help = help.or(self.help);
        self
    }

    #[must_use]
    pub fn related(mut self, file: &str, span: Span, label: impl Into<String>) -> Self {
        self.related.push(Related { file: file.to_owned(), span, label: label.into() });
        self
    }
}

/// Collects diagnostics; beyond [`limits::DIAGNOSTICS_PER_FILE_MAX`] a file's are only counted.
#[derive(Debug, Default)]
pub(super) struct Faults {
    kept: Vec<Diagnostic>,
    per_file: BTreeMap<String, Seen>,
    errors: usize,
}

/// How many faults of a file there were, and how many of them were errors.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    all: usize,
    errors: usize,
}

impl Faults {
    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        let error = usize::from(diagnostic.severity == Severity::Error);
        self.errors += error;
        let seen = if let Some(seen) = self.per_file.get_mut(&diagnostic.file) {
            seen
        } else {
            self.per_file.entry(diagnostic.file.clone()).or_default()
        };
        seen.all += 1;
        seen.errors += error;
        if seen.all <= limits::DIAGNOSTICS_PER_FILE_MAX {
            self.kept.push(diagnostic);
        }
    }

    /// Whether another fault of `file` would only be counted: spares building its message.
    pub(super) fn is_full(&self, file: &str) -> bool {
        self.per_file.get(file).is_some_and(|seen| seen.all >= limits::DIAGNOSTICS_PER_FILE_MAX)
    }

    /// Counts an error of a file that [`Self::is_full`].
    pub(super) fn count_error(&mut self, file: &str) {
        self.errors += 1;
        if let Some(seen) = self.per_file.get_mut(file) {
            seen.all += 1;
            seen.errors += 1;
        }
    }

    pub(super) fn extend(&mut self, diagnostics: impl IntoIterator<Item = Diagnostic>) {
        diagnostics.into_iter().for_each(|d| self.push(d));
    }

    pub(super) fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// All of them, by file, place, code and message.
    pub(super) fn finish(mut self) -> Vec<Diagnostic> {
        for (file, seen) in &self.per_file {
            if let Some(more) = seen.all.checked_sub(limits::DIAGNOSTICS_PER_FILE_MAX).filter(|more| *more > 0) {
                let message = format!("and at least {more} more faults in this file");
                let mut diagnostic = Diagnostic::new(Code::MoreFaults, file, None, message);
                if seen.errors == 0 {
                    diagnostic.severity = Severity::Warning;
                }
                self.kept.push(diagnostic);
            }
        }
        sort(&mut self.kept);
        self.kept
    }
}

/// By file, place, code and message.
pub fn sort(diagnostics: &mut [Diagnostic]) {
    diagnostics.sort_by(|a, b| {
        // A file's own note on how many faults were left out comes after those that were not.
        let key = |d: &Diagnostic| (d.code == Code::MoreFaults, d.span);
        (&a.file, key(a), a.code, &a.message).cmp(&(&b.file, key(b), b.code, &b.message))
    });
}

/// The entry of `known` that `word` was probably meant to be.
pub(super) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Comparing is quadratic: a word longer than any name is no slip of the finger.
    if word.len() > 64 {
        return None;
    }
    let folded = word.to_lowercase();
    let distance = |k: &str| strsim::damerau_levenshtein(&folded, &k.to_lowercase());
    let (best, distance) = known.into_iter().map(|k| (k, distance(k))).min_by_key(|(_, distance)| *distance)?;
    let tolerated = (word.chars().count() / 3).max(1);
    (distance <= tolerated).then_some(best)
}

/// "did you mean `x`?", or else the known words when they are few.
pub(super) fn suggestion<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    if let Some(best) = did_you_mean(word, known.clone()) {
        return Some(format!("did you mean `{best}`?"));
    }
    let words: Vec<&str> = known.into_iter().take(13).collect();
    match words.len() {
        0 | 13 => None,
        _ => Some(format!("known here: {}", words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_recognized_and_another_word_is_not() {
        let known = ["prefix", "prefixesFrom", "nextHops", "action"];
        let check = |word: &str, expected: Option<&str>| assert_eq!(did_you_mean(word, known), expected, "{word}");
        check("prefx", Some("prefix"));
        check("nexthops", Some("nextHops"));
        check("next_hops", Some("nextHops"));
        check("acton", Some("action"));
        check("weight", None);
        check(&"x".repeat(1 << 20), None);
    }

    #[test]
    fn faults_above_the_limit_of_a_file_are_counted_not_kept() {
        let mut faults = Faults::default();
        for n in 0..u32::try_from(limits::DIAGNOSTICS_PER_FILE_MAX).unwrap_or(0) + 7 {
            faults.push(Diagnostic::new(Code::NotAPrefix, "list.txt", Some(Span::line(n + 1)), "x"));
        }
        let all = faults.finish();
        assert_eq!(all.len(), limits::DIAGNOSTICS_PER_FILE_MAX + 1);
        assert_eq!(all.last().map(|d| d.message.as_str()), Some("and at least 7 more faults in this file"));
    }
}
