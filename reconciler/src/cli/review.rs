//! Diagnostics as code review tools show them: SARIF, GitHub's annotations, GitLab's code quality.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::report::count;
use crate::policy::{Code, Diagnostic, Severity, Span};

/// What GitHub shows of one step; of a job it shows 50.
const ANNOTATIONS_MAX: usize = 10;

/// Paths below the current directory, which is the repository in CI: what the tools link to.
pub(super) fn below_here(mut diagnostics: Vec<Diagnostic>) -> Vec<Diagnostic> {
    let here = std::env::current_dir().unwrap_or_default();
    let below = |file: &mut String| {
        if let Ok(rest) = std::path::Path::new(file.as_str()).strip_prefix(&here) {
            *file = rest.display().to_string();
        }
    };
    for diagnostic in &mut diagnostics {
        below(&mut diagnostic.file);
        diagnostic.related.iter_mut().for_each(|related| below(&mut related.file));
    }
    diagnostics
}

/// One SARIF 2.1.0 log (OASIS, section 3) with every code that occurs as a rule.
pub(super) fn sarif(diagnostics: &[Diagnostic]) -> String {
    let codes: BTreeSet<Code> = diagnostics.iter().map(|d| d.code).collect();
    let rules: Vec<Value> = codes
        .iter()
        .map(|code| {
            let entry = code.entry();
            json!({"id": entry.number, "name": format!("{code:?}"),
                "shortDescription": {"text": entry.title}, "fullDescription": {"text": entry.explain},
                "defaultConfiguration": {"level": entry.severity.as_str()}})
        })
        .collect();
    let results: Vec<Value> = diagnostics
        .iter()
        .zip(fingerprints(diagnostics))
        .map(|(d, fingerprint)| {
            let text = match &d.help {
                Some(help) => format!("{}; {help}", d.message),
                None => d.message.clone(),
            };
            let mut result = json!({"ruleId": d.code.number(), "ruleIndex": codes.iter().position(|c| *c == d.code),
                "level": d.severity.as_str(), "message": {"text": text},
                "locations": [{"physicalLocation": physical(&d.file, d.span)}],
                "partialFingerprints": {"wayleave/v1": fingerprint}});
            if !d.related.is_empty() {
                let related: Vec<Value> = d
                    .related
                    .iter()
                    .enumerate()
                    .map(|(id, r)| {
                        json!({"id": id, "physicalLocation": physical(&r.file, Some(r.span)), "message": {"text": r.label}})
                    })
                    .collect();
                result["relatedLocations"] = related.into();
            }
            result
        })
        .collect();
    let log = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "wayleave", "semanticVersion": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    });
    format!("{log:#}\n")
}

fn physical(file: &str, span: Option<Span>) -> Value {
    let mut place = json!({"artifactLocation": {"uri": uri(file), "uriBaseId": "%SRCROOT%"}});
    if let Some(span) = span {
        place["region"] = json!({"startLine": span.start.line, "startColumn": span.start.column,
            "endLine": span.end.line, "endColumn": span.end.column});
    }
    place
}

/// A path as a relative reference (RFC 3986): what has a meaning of its own there is escaped.
fn uri(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => _ = write!(out, "%{byte:02X}"),
        }
    }
    out
}

/// Workflow commands, errors first. GitHub drops what is above its limit without a word: then the last one counts the rest.
pub(super) fn github(diagnostics: &[Diagnostic]) -> String {
    let mut sorted: Vec<&Diagnostic> = diagnostics.iter().collect();
    sorted.sort_by_key(|d| d.severity);
    let shown = if sorted.len() > ANNOTATIONS_MAX { ANNOTATIONS_MAX - 1 } else { sorted.len() };
    let (shown, rest) = sorted.split_at(shown);
    let mut out = String::new();
    for d in shown {
        let _ = write!(out, "::{} file={}", d.severity.as_str(), property(&d.file));
        if let Some(Span { start, end }) = d.span {
            let _ = write!(out, ",line={}", start.line);
            // Columns are for one line only; a whole line has none.
            if end.line == start.line {
                let _ = write!(out, ",endLine={},col={},endColumn={}", end.line, start.column, end.column);
            }
        }
        let mut message = d.message.clone();
        for related in &d.related {
            let _ = write!(message, "\n{}: {}:{}", related.label, related.file, related.span.start.line);
        }
        if let Some(help) = &d.help {
            let _ = write!(message, "\nhelp: {help}");
        }
        let _ = writeln!(out, ",title={}::{}", property(d.code.number()), data(&message));
    }
    if !rest.is_empty() {
        let rest: Vec<Diagnostic> = rest.iter().map(|d| (*d).clone()).collect();
        let (errors, warnings) = count(&rest);
        let message =
            format!("and {} more: {errors} errors, {warnings} warnings; `wayleave validate` lists all", rest.len());
        let _ = writeln!(out, "::notice title=wayleave::{}", data(&message));
    }
    out
}

/// The message of a workflow command.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// A property of a workflow command.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// GitLab's code quality report: the part of Code Climate's format that it reads.
pub(super) fn gitlab(diagnostics: &[Diagnostic]) -> String {
    let issues: Vec<Value> = diagnostics
        .iter()
        .zip(fingerprints(diagnostics))
        .map(|(d, fingerprint)| {
            let severity = match d.severity {
                Severity::Error => "major",
                Severity::Warning => "minor",
            };
            json!({"description": d.message, "check_name": d.code.number(), "fingerprint": fingerprint,
                "severity": severity,
                "location": {"path": d.file, "lines": {"begin": d.span.map_or(1, |span| span.start.line)}}})
        })
        .collect();
    format!("{:#}\n", Value::from(issues))
}

/// One identity a diagnostic, which stays when lines move: code, file, message, and which of equal ones it is.
fn fingerprints(diagnostics: &[Diagnostic]) -> Vec<String> {
    let mut seen: BTreeMap<(&str, &str, &str), u32> = BTreeMap::new();
    diagnostics
        .iter()
        .map(|d| {
            let key = (d.code.number(), d.file.as_str(), d.message.as_str());
            let nth = seen.entry(key).or_default();
            *nth += 1;
            let text = format!("{}\0{}\0{}\0{nth}", key.0, key.1, key.2);
            blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests;
