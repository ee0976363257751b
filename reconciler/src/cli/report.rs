//! Diagnostics as people and programs read them.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::IsTerminal;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Element, Group, Level, Origin, Renderer, Snippet};
use serde_json::{Value as Json, json};

use crate::policy::{Diagnostic, Position, Severity, Span};

/// Lines longer than this are named, not shown.
const SHOWN_CHARACTERS_MAX: usize = 400;
/// A span over more lines than this is shown by its first line.
const SHOWN_LINES_MAX: u32 = 6;

/// The texts that diagnostics point into, by the file's name in them.
#[derive(Default)]
pub struct Texts<'a> {
    texts: HashMap<String, Text<'a>>,
}

struct Text<'a> {
    text: &'a str,
    /// Byte offset of every line, found when the first diagnostic points into the text.
    line_starts: Vec<usize>,
}

impl<'a> Texts<'a> {
    /// Adds a file; one that is not UTF-8 is named but not shown.
    pub fn insert(&mut self, file: String, bytes: &'a [u8]) {
        if let Ok(text) = std::str::from_utf8(bytes) {
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
            self.texts.insert(file, Text { text, line_starts });
        }
    }
}

impl Text<'_> {
    /// The lines that `span` touches, and the byte range of the span in them.
    fn excerpt(&self, span: Span) -> Option<(&str, std::ops::Range<usize>)> {
        let first = self.line_start(span.start.line)?;
        let mut end = span.end;
        if end.line - span.start.line > SHOWN_LINES_MAX || (end.column == 1 && end.line > span.start.line) {
            end = Position { line: span.start.line, column: u32::MAX };
        }
        let after = self.line_start(end.line + 1).unwrap_or(self.text.len());
        let lines = self.text.get(first..after)?;
        if lines.lines().any(|line| line.len() > SHOWN_CHARACTERS_MAX) {
            return None;
        }
        let from = self.offset(span.start)?.checked_sub(first)?;
        let to = self.offset(end)?.checked_sub(first)?;
        let lines = lines.trim_end_matches(['\n', '\r']);
        let from = from.min(lines.len());
        Some((lines, from..to.clamp(from, lines.len())))
    }

    fn line_start(&self, line: u32) -> Option<usize> {
        self.line_starts.get(line.checked_sub(1)? as usize).copied()
    }

    fn offset(&self, position: Position) -> Option<usize> {
        let start = self.line_start(position.line)?;
        let line = self.text.get(start..)?.split('\n').next()?;
        let column = position.column.saturating_sub(1) as usize;
        Some(start + line.char_indices().nth(column).map_or(line.len(), |(at, _)| at))
    }
}

/// The diagnostics as rustc would print them.
pub fn human(diagnostics: &[Diagnostic], texts: &Texts<'_>, colour: bool) -> String {
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
    let renderer = renderer.decor_style(DecorStyle::Ascii).term_width(120);
    let mut out = String::new();
    for diagnostic in diagnostics {
        let level = match diagnostic.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(&diagnostic.message).id(diagnostic.code.number());
        let mut group = Group::with_title(title);
        group = group.element(place(&diagnostic.file, diagnostic.span, None, texts));
        for related in &diagnostic.related {
            group = group.element(place(&related.file, Some(related.span), Some(&related.label), texts));
        }
        if let Some(help) = &diagnostic.help {
            group = group.element(Level::HELP.message(help));
        }
        let _ = write!(out, "{}\n\n", renderer.render(&[group]));
    }
    out
}

fn place<'a>(file: &'a str, span: Option<Span>, label: Option<&'a str>, texts: &'a Texts<'_>) -> Element<'a> {
    let Some(span) = span else { return Origin::path(file).into() };
    match texts.texts.get(file).and_then(|text| text.excerpt(span)) {
        Some((lines, range)) => {
            let kind = if label.is_some() { AnnotationKind::Context } else { AnnotationKind::Primary };
            let annotation = kind.span(range).label(label);
            Snippet::source(lines).line_start(span.start.line as usize).path(file).annotation(annotation).into()
        }
        None => Origin::path(file).line(span.start.line as usize).char_column(span.start.column as usize).into(),
    }
}

/// The diagnostics as one JSON document.
pub fn json(diagnostics: &[Diagnostic]) -> String {
    let (errors, warnings) = count(diagnostics);
    let document = json!({"format_version": 1, "diagnostics": entries(diagnostics),
        "summary": {"errors": errors, "warnings": warnings}});
    format!("{document:#}\n")
}

/// Each diagnostic as JSON.
pub(crate) fn entries(diagnostics: &[Diagnostic]) -> Vec<Json> {
    let place = |span: Option<Span>| {
        let at = |p: fn(Span) -> u32| span.map_or(Json::Null, |s| p(s).into());
        [at(|s| s.start.line), at(|s| s.start.column), at(|s| s.end.line), at(|s| s.end.column)]
    };
    diagnostics
        .iter()
        .map(|d| {
            let [line, column, end_line, end_column] = place(d.span);
            let related: Vec<Json> = d
                .related
                .iter()
                .map(|r| {
                    let [line, column, end_line, end_column] = place(Some(r.span));
                    json!({"label": r.label, "file": r.file, "line": line, "column": column,
                        "end_line": end_line, "end_column": end_column})
                })
                .collect();
            json!({"code": d.code.number(), "severity": d.severity.as_str(), "message": d.message, "file": d.file,
                "line": line, "column": column, "end_line": end_line, "end_column": end_column,
                "help": d.help, "related": related})
        })
        .collect()
}

/// Errors and warnings.
pub(crate) fn count(diagnostics: &[Diagnostic]) -> (usize, usize) {
    let errors = diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
    (errors, diagnostics.len() - errors)
}

/// Whether stdout takes colour: a terminal, and no `NO_COLOR` (<https://no-color.org>).
pub(crate) fn stdout_takes_colour() -> bool {
    takes_colour(&std::io::stdout())
}

/// The same for stderr.
pub(crate) fn stderr_takes_colour() -> bool {
    takes_colour(&std::io::stderr())
}

fn takes_colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}
