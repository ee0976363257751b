//! YAML text in, a tree with the place of every key and value out.
//!
//! Only the part of YAML that a reviewer can read literally: no anchors, aliases, merge keys, tags, directives, duplicate
//! keys or second documents. Depth and number of values are bounded, and so is the memory for any input.

use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError, Span as YamlSpan, StructureStyle};

use super::codes::Code;
use super::diagnostic::{Diagnostic, Span};
use super::limits::{DIAGNOSTICS_PER_FILE_MAX, YAML_DEPTH_MAX, YAML_VALUES_MAX};

/// A value and where it is written. A mapping in block style spans its first key, a list in block style its first dash.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a mapping with its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_span: Span,
    pub(super) value: Node,
}

/// One step on the way down a tree.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    Key(&'a str),
    Item(usize),
}

impl Node {
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key),
            _ => None,
        }
    }

    pub(super) fn entry_mut(&mut self, key: &str) -> Option<&mut Node> {
        match &mut self.value {
            Value::Map(entries) => entries.iter_mut().find(|e| e.key == key).map(|e| &mut e.value),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The place of the value at `path`, or of the deepest value on the way there.
    pub(super) fn place(&self, path: &[Step]) -> Span {
        let mut node = self;
        for step in path {
            let next = match (step, &node.value) {
                (Step::Key(key), Value::Map(_)) => node.entry(key).map(|e| &e.value),
                (Step::Item(index), Value::List(items)) => items.get(*index),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.span
    }

    /// The first number in the tree that is written with a point or an exponent.
    pub(super) fn first_fraction(&self) -> Option<&Self> {
        match &self.value {
            Value::Number(number) if number.is_f64() => Some(self),
            Value::List(items) => items.iter().find_map(Self::first_fraction),
            Value::Map(entries) => entries.iter().find_map(|e| e.value.first_fraction()),
            _ => None,
        }
    }

    pub(super) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(b) => (*b).into(),
            Value::Number(n) => n.clone().into(),
            Value::Text(t) => t.as_str().into(),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(entries) => entries.iter().map(|e| (e.key.clone(), e.value.to_json())).collect(),
        }
    }
}

/// What came of a text: a tree when it could be read to its end, and every fault found on the way.
pub(super) struct Parsed {
    pub(super) root: Option<Node>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// The text of a file, without a byte-order mark; the place where it stops being UTF-8 otherwise.
pub(super) fn decode<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a str, Diagnostic> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(error) => {
            let good = error.valid_up_to();
            let before = &bytes[..good];
            let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            let line = to_u32(before.split(|b| *b == b'\n').count());
            let column = to_u32(String::from_utf8_lossy(&before[line_start..]).chars().count()) + 1;
            let message = format!("the text is not UTF-8: byte {:#04x} at offset {good}", bytes[good]);
            let help = match bytes {
                [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "this looks like UTF-16; save the file as UTF-8",
                _ => "save the file as UTF-8",
            };
            Err(Diagnostic::new(Code::NotUtf8, file, Some(Span::new(line, column, line, column + 1)), message)
                .help(help))
        }
    }
}

/// Reads one document.
pub(super) fn parse(file: &str, text: &str) -> Parsed {
    let diagnostics = unreadable_lines(file, text);
    if !diagnostics.is_empty() {
        return Parsed { root: None, diagnostics };
    }
    let mut options = granit_parser::Options::default();
    options.disallow_directives = true;
    options.emit_unresolved_aliases = true;
    options.emit_anchor_events = true;
    options.flow_nesting_limit = YAML_DEPTH_MAX;
    options.block_nesting_limit = YAML_DEPTH_MAX;
    let mut builder = Builder { file, diagnostics, open: Vec::new(), root: None, values: 0, complete: true };
    let mut documents = 0;
    let mut read_to = 0;
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                builder.fail(scan_fault(file, text, &error, read_to));
                break;
            }
        };
        read_to = span.end.byte_offset().unwrap_or(read_to).max(read_to);
        if matches!(event, Event::DocumentStart(..)) {
            documents += 1;
            if documents == 2 {
                let diagnostic =
                    Diagnostic::new(Code::SeveralDocuments, file, Some(place(span)), "a second document begins here");
                builder.diagnostics.push(diagnostic.help("move it to a file of its own"));
                break;
            }
        }
        if !builder.take(event, span) {
            break;
        }
    }
    builder.finish()
}

struct Builder<'a> {
    file: &'a str,
    diagnostics: Vec<Diagnostic>,
    open: Vec<Open>,
    root: Option<Node>,
    values: usize,
    /// Nothing stands in for a value that could not be read.
    complete: bool,
}

/// A list or mapping whose end was not seen yet.
struct Open {
    span: Span,
    flow: bool,
    content: OpenContent,
}

enum OpenContent {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        /// Where each key was first written, by its index in `entries`.
        seen: HashMap<String, usize>,
        key: Option<(String, Span)>,
    },
}

impl Builder<'_> {
    fn push(&mut self, code: Code, span: Span, message: impl Into<String>, help: &str) {
        if self.diagnostics.len() <= DIAGNOSTICS_PER_FILE_MAX {
            self.diagnostics.push(Diagnostic::new(code, self.file, Some(span), message).help(help));
        }
    }

    fn fail(&mut self, diagnostic: Diagnostic) {
        self.complete = false;
        self.diagnostics.push(diagnostic);
    }

    /// Takes one event; false when reading on makes no sense.
    fn take(&mut self, event: Event<'_>, span: YamlSpan) -> bool {
        if let Some(tag) = event.tag() {
            let at = span.tag_span().map_or_else(|| place(span), place);
            let message = format!("the tag `{}` is refused", tag.original());
            self.push(Code::YamlTag, at, message, "leave the tag out; quotes make a text of a number");
        }
        match event {
            Event::Scalar(text, style, ..) => {
                let node_span = place(span);
                if self.wants_key() {
                    self.key(text.into_owned(), node_span);
                } else {
                    self.value(Node { span: node_span, value: scalar(&text, style) });
                }
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                let help = "write the value where it is used; a text that begins with `*` needs quotes";
                self.push(Code::YamlAnchor, place(span), "aliases are refused", help);
                self.complete = false;
                let stand_in = Node { span: place(span), value: Value::Null };
                if self.wants_key() { self.key(String::new(), stand_in.span) } else { self.value(stand_in) }
            }
            Event::Anchor(_, name) => {
                let help = "write the value where it is used; a text that begins with `&` needs quotes";
                self.push(Code::YamlAnchor, place(span), format!("the anchor `&{name}` is refused"), help);
            }
            Event::SequenceStart(style, ..) => self.begin(span, style, OpenContent::List(Vec::new())),
            Event::MappingStart(style, ..) => {
                let content = OpenContent::Map { entries: Vec::new(), seen: HashMap::new(), key: None };
                self.begin(span, style, content);
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(span),
            _ => {}
        }
        if self.open.len() > YAML_DEPTH_MAX || self.values > YAML_VALUES_MAX {
            let message = if self.values > YAML_VALUES_MAX {
                format!("the document has more than {YAML_VALUES_MAX} values")
            } else {
                too_deep()
            };
            let help = "tables of this size belong in a list that `prefixesFrom` names";
            self.fail(Diagnostic::new(Code::YamlTooDeep, self.file, Some(place(span)), message).help(help));
            return false;
        }
        true
    }

    fn wants_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { content: OpenContent::Map { key: None, .. }, .. }))
    }

    fn begin(&mut self, span: YamlSpan, style: StructureStyle, content: OpenContent) {
        if self.wants_key() {
            let help = "write `key: value` with a text as the key";
            self.push(Code::YamlKey, place(span), "a list or mapping is used as a key", help);
            self.complete = false;
            self.key(String::new(), place(span));
        }
        self.open.push(Open { span: place(span), flow: style == StructureStyle::Flow, content });
    }

    fn end(&mut self, span: YamlSpan) {
        let Some(open) = self.open.pop() else { return };
        let mut whole = open.span;
        if open.flow {
            whole.end = place(span).end;
        } else if let OpenContent::Map { entries, .. } = &open.content
            && let Some(first) = entries.first()
        {
            whole = first.key_span;
        }
        let value = match open.content {
            OpenContent::List(items) => Value::List(items),
            OpenContent::Map { entries, .. } => Value::Map(entries),
        };
        self.value(Node { span: whole, value });
    }

    fn key(&mut self, text: String, span: Span) {
        if text == "<<" {
            let help = "write the keys where they are used";
            self.push(Code::YamlMergeKey, span, "the merge key `<<` is refused", help);
            self.complete = false;
        }
        let Some(Open { content: OpenContent::Map { entries, seen, key }, .. }) = self.open.last_mut() else { return };
        if let Some(first) = seen.get(&text) {
            let diagnostic = Diagnostic::new(
                Code::DuplicateKey,
                self.file,
                Some(span),
                format!("the key `{text}` is written twice"),
            )
            .related(self.file, entries[*first].key_span, "first written here");
            if self.diagnostics.len() <= DIAGNOSTICS_PER_FILE_MAX {
                self.diagnostics.push(diagnostic);
            }
        }
        *key = Some((text, span));
    }

    fn value(&mut self, node: Node) {
        self.values += 1;
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open { content: OpenContent::List(items), .. }) => items.push(node),
            Some(Open { content: OpenContent::Map { entries, seen, key }, .. }) => {
                // A complex key's own value ends here with no key waiting; it was reported when it began.
                let Some((text, key_span)) = key.take() else { return };
                if !seen.contains_key(&text) {
                    seen.insert(text.clone(), entries.len());
                    entries.push(Entry { key: text, key_span, value: node });
                }
            }
        }
    }

    fn finish(mut self) -> Parsed {
        let empty = match &self.root {
            None => self.complete,
            Some(root) => root.value == Value::Null && self.complete,
        };
        if empty {
            let diagnostic = Diagnostic::new(Code::EmptyDocument, self.file, None, "the file holds no document");
            self.diagnostics.push(diagnostic.help("delete the file if its rules are to go"));
        }
        let root = self.root.filter(|_| self.complete && !empty);
        Parsed { root, diagnostics: self.diagnostics }
    }
}

/// The value of a scalar by the core schema of YAML 1.2 (section 10.3.2).
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::Text(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    number(text).map_or_else(|| Value::Text(text.to_owned()), Value::Number)
}

fn number(text: &str) -> Option<serde_json::Number> {
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+')).map(Into::into);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return u64::from_str_radix(digits, 8).ok().filter(|_| !digits.starts_with('+')).map(Into::into);
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    if !text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-')) {
        return None;
    }
    if let Ok(n) = text.parse::<u64>() {
        return Some(n.into());
    }
    if let Ok(n) = text.parse::<i64>() {
        return Some(n.into());
    }
    text.parse::<f64>().ok().and_then(serde_json::Number::from_f64)
}

fn place(span: YamlSpan) -> Span {
    let (start, end) = (span.start, span.end);
    let mut span = Span::new(to_u32(start.line()), column(start), to_u32(end.line()), column(end));
    if span.end <= span.start {
        span.end = super::diagnostic::Position { line: span.start.line, column: span.start.column + 1 };
    }
    span
}

/// granit-parser counts columns from zero.
fn column(marker: Marker) -> u32 {
    to_u32(marker.col()) + 1
}

fn to_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn too_deep() -> String {
    format!("the document is nested more than {YAML_DEPTH_MAX} levels deep")
}

/// What makes a text unreadable whatever stands around it: conflict markers, tabs as indentation, control characters.
fn unreadable_lines(file: &str, text: &str) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for (index, line) in text.split('\n').enumerate() {
        if found.len() > DIAGNOSTICS_PER_FILE_MAX {
            break;
        }
        let number = to_u32(index + 1);
        let content = line.strip_suffix('\r').unwrap_or(line);
        if ["<<<<<<< ", "||||||| ", ">>>>>>> "].iter().any(|m| content.starts_with(m)) || content == "=======" {
            let span = Span::new(number, 1, number, 8);
            let help = "keep one side of the conflict and remove the lines with markers";
            found.push(
                Diagnostic::new(Code::ConflictMarker, file, Some(span), "a git conflict marker is left").help(help),
            );
        }
        let trimmed = content.trim_start_matches([' ', '\t']);
        let indent = &content[..content.len() - trimmed.len()];
        if let Some(tab) = indent.find('\t').filter(|_| !trimmed.is_empty()) {
            let at = to_u32(tab) + 1;
            let span = Span::new(number, at, number, to_u32(indent.len()) + 1);
            found.push(
                Diagnostic::new(Code::YamlTab, file, Some(span), "a tab is used as indentation").help("use spaces"),
            );
        }
        if let Some((column, c)) = content.chars().enumerate().find(|(_, c)| c.is_control() && *c != '\t') {
            let at = to_u32(column) + 1;
            let span = Span::new(number, at, number, at + 1);
            let message = format!("the text holds the control character U+{:04X}", u32::from(c));
            found.push(Diagnostic::new(Code::ControlCharacter, file, Some(span), message).help("remove it"));
        }
    }
    found
}

/// A parser's error in our words; `read_to` is the byte offset up to which everything was understood.
fn scan_fault(file: &str, text: &str, error: &ScanError, read_to: usize) -> Diagnostic {
    let marker = *error.marker();
    let line = to_u32(marker.line()).max(1);
    let span = Span::new(line, column(marker), line, column(marker) + 1);
    let fault = |code: Code, message: String| Diagnostic::new(code, file, Some(span), message);
    match error.kind() {
        ErrorKind::UnclosedQuotedScalar | ErrorKind::DocumentIndicatorInQuotedScalar => {
            let span = opening_quote(text, read_to).unwrap_or(span);
            Diagnostic::new(Code::YamlUnclosedQuote, file, Some(span), "the quote is not closed")
                .help("close it on the same line")
        }
        ErrorKind::RecursionLimitExceeded => fault(Code::YamlTooDeep, too_deep()),
        ErrorKind::DirectiveDisallowed => {
            fault(Code::YamlDirective, "YAML directives are refused".to_owned()).help("remove the line")
        }
        ErrorKind::TabNotAllowed
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabInIndentation
        | ErrorKind::TabAtBlockScalarStart
        | ErrorKind::TabInPlainScalar => {
            fault(Code::YamlTab, "a tab is used as indentation".to_owned()).help("use spaces")
        }
        ErrorKind::MissingAnchorOrAliasName => fault(Code::YamlAnchor, "anchors and aliases are refused".to_owned())
            .help("a text that begins with `*` or `&` needs quotes"),
        ErrorKind::UnclosedFlowCollection { open } => {
            fault(Code::YamlSyntax, format!("the bracket `{open}` is not closed"))
        }
        other => fault(Code::YamlSyntax, format!("the YAML cannot be read: {other}")),
    }
}

/// The place of the first quote that begins a value at or after byte `from`.
fn opening_quote(text: &str, from: usize) -> Option<Span> {
    let rest = text.get(from..)?;
    let at = from + rest.find(['"', '\''])?;
    let line_start = text[..at].rfind('\n').map_or(0, |n| n + 1);
    let line = to_u32(text[..at].matches('\n').count()) + 1;
    let column = to_u32(text[line_start..at].chars().count()) + 1;
    Some(Span::new(line, column, line, column + 1))
}

#[cfg(test)]
mod tests;
