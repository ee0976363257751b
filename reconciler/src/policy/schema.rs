//! The published JSON Schemas, and the check of a tree against them.
//!
//! Dispatches on `apiVersion` and `kind` first: a document is only ever compared with the schema of its own kind, so no
//! message begins with "is not valid under any of".

use std::sync::LazyLock;

use jsonschema::Validator;
use jsonschema::error::ValidationErrorKind as Kind;
use jsonschema::paths::{Location, LocationSegment};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use super::codes::Code;
use super::diagnostic::{Diagnostic, Span, suggestion};
use super::document;
use super::limits::DIAGNOSTICS_PER_FILE_MAX;
use super::yaml::{Node, Value};

const API_VERSION: &str = "wayleave/v1";

/// A published schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// Every kind of document that a source may hold.
    Policy,
    /// A node's own configuration.
    Config,
}

impl Published {
    /// The committed text: what editors load is what the binary carries.
    pub fn text(self) -> &'static str {
        match self {
            Self::Policy => include_str!("../../../schema/policy.schema.json"),
            Self::Config => include_str!("../../../schema/config.schema.json"),
        }
    }

    /// The schema made anew from the types; equal to [`Self::text`] as long as that is not stale.
    pub fn generate(self) -> Json {
        let (title, description, kinds) = match self {
            Self::Policy => ("wayleave policy", "A policy document of wayleave.", POLICY_KINDS),
            Self::Config => ("wayleave node configuration", "A node's own configuration of wayleave.", CONFIG_KINDS),
        };
        let names: Vec<&str> = kinds.iter().map(|k| k.name).collect();
        let cases: Vec<Json> = kinds
            .iter()
            .map(|k| json!({"if": {"properties": {"kind": {"const": k.name}}, "required": ["kind"]}, "then": (k.schema)()}))
            .collect();
        json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "title": title,
            "description": description,
            "type": "object",
            "required": ["apiVersion", "kind"],
            "properties": {
                "apiVersion": {"description": "The version of the document format.", "enum": [API_VERSION]},
                "kind": {"description": "What the document holds.", "enum": names},
            },
            "allOf": cases,
        })
    }
}

/// A kind of document with its schema.
pub(super) struct DocumentKind {
    pub(super) name: &'static str,
    schema: fn() -> Json,
    validator: fn() -> &'static Checked,
}

/// The kinds that a source may hold.
pub(super) const POLICY_KINDS: &[DocumentKind] = &[
    DocumentKind { name: "RoutePolicy", schema: schema_of::<document::RoutePolicy>, validator: || &ROUTE_POLICY },
    DocumentKind {
        name: FILTER_POLICY,
        schema: schema_of::<document::FilterPolicy>,
        validator: || &FILTER_POLICY_CHECK,
    },
    DocumentKind {
        name: SERVICE_POLICY,
        schema: schema_of::<document::ServicePolicy>,
        validator: || &SERVICE_POLICY_CHECKED,
    },
    DocumentKind { name: POLICY_TEST, schema: schema_of::<document::PolicyTest>, validator: || &TEST },
];

/// The kind of filters.
pub(super) const FILTER_POLICY: &str = "FilterPolicy";

/// The kind that holds no rules.
pub(super) const POLICY_TEST: &str = "PolicyTest";

/// The kind that holds a service.
pub(super) const SERVICE_POLICY: &str = "ServicePolicy";

/// The kinds that a node's configuration may have.
pub(super) const CONFIG_KINDS: &[DocumentKind] =
    &[DocumentKind { name: "NodeConfig", schema: schema_of::<document::NodeConfig>, validator: || &NODE_CONFIG }];

static ROUTE_POLICY: LazyLock<Checked> = LazyLock::new(|| Checked::new(schema_of::<document::RoutePolicy>()));
static FILTER_POLICY_CHECK: LazyLock<Checked> = LazyLock::new(|| Checked::new(schema_of::<document::FilterPolicy>()));
static SERVICE_POLICY_CHECKED: LazyLock<Checked> =
    LazyLock::new(|| Checked::new(schema_of::<document::ServicePolicy>()));
static TEST: LazyLock<Checked> = LazyLock::new(|| Checked::new(schema_of::<document::PolicyTest>()));
static NODE_CONFIG: LazyLock<Checked> = LazyLock::new(|| Checked::new(schema_of::<document::NodeConfig>()));

/// A schema ready for use; kept beside its validator to look up which keys a place knows.
struct Checked {
    schema: Json,
    validator: Validator,
}

impl Checked {
    fn new(schema: Json) -> Self {
        let validator = jsonschema::draft7::new(&schema).expect("the generated schema is valid, a test makes sure");
        Self { schema, validator }
    }
}

/// Draft-07, everything in place: a path into the schema then names the rule that was broken.
fn schema_of<T: JsonSchema>() -> Json {
    let mut settings = SchemaSettings::draft07();
    settings.inline_subschemas = true;
    settings.meta_schema = None;
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("title");
    }
    schema
}

/// The kind of `root`, when `allowed` has it and the document obeys its schema; every fault otherwise.
pub(super) fn check<'k>(
    file: &str,
    root: &Node,
    allowed: &'k [DocumentKind],
    elsewhere: &[DocumentKind],
) -> Result<&'k DocumentKind, Vec<Diagnostic>> {
    let kind = dispatch(file, root, allowed, elsewhere)?;
    let instance = root.to_json();
    let checked = (kind.validator)();
    let mut found = Vec::new();
    for error in checked.validator.iter_errors(&instance) {
        translate(file, root, &checked.schema, &error, &mut found);
        if found.len() > DIAGNOSTICS_PER_FILE_MAX {
            break;
        }
    }
    if found.is_empty() { Ok(kind) } else { Err(found) }
}

/// The typed form of a tree that [`check`] found no fault in.
///
/// JSON Schema takes 2.0 for a whole number and serde does not; whatever else the two see differently is shown as well.
pub(super) fn typed<T: DeserializeOwned>(file: &str, root: &Node) -> Result<T, Diagnostic> {
    serde_json::from_value(root.to_json()).map_err(|error| match root.first_fraction() {
        Some(node) => {
            let message = format!("{} must be written without a fraction", describe(node));
            Diagnostic::new(Code::SchemaOther, file, Some(node.span), message)
        }
        None => Diagnostic::new(Code::SchemaOther, file, Some(root.span), error.to_string()),
    })
}

fn dispatch<'k>(
    file: &str,
    root: &Node,
    allowed: &'k [DocumentKind],
    elsewhere: &[DocumentKind],
) -> Result<&'k DocumentKind, Vec<Diagnostic>> {
    let Value::Map(_) = root.value else {
        let message = format!("a document is a mapping, this is {}", describe(root));
        return Err(vec![Diagnostic::new(Code::WrongType, file, Some(root.span), message)]);
    };
    let mut found = Vec::new();
    match root.entry("apiVersion") {
        None => found.push(
            Diagnostic::new(Code::ApiVersion, file, Some(anchor(root)), "the key `apiVersion` is missing")
                .help(format!("write `apiVersion: {API_VERSION}`")),
        ),
        Some(entry) if entry.value.text() != Some(API_VERSION) => {
            let message = format!("unknown apiVersion: {}", describe(&entry.value));
            found.push(
                Diagnostic::new(Code::ApiVersion, file, Some(entry.value.span), message)
                    .help(format!("write `apiVersion: {API_VERSION}`")),
            );
        }
        Some(_) => {}
    }
    let names = || allowed.iter().map(|k| k.name);
    let Some(entry) = root.entry("kind") else {
        let known = names().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
        found.push(
            Diagnostic::new(Code::Kind, file, Some(anchor(root)), "the key `kind` is missing")
                .help(format!("known here: {known}")),
        );
        return Err(found);
    };
    let written = entry.value.text().unwrap_or_default();
    let Some(kind) = allowed.iter().find(|k| k.name == written) else {
        let span = Some(entry.value.span);
        found.push(if elsewhere.iter().any(|k| k.name == written) {
            let help = if written == "NodeConfig" {
                "keep it on the node, as /etc/wayleave/config.yaml"
            } else {
                "keep policies in the source directory"
            };
            Diagnostic::new(Code::KindElsewhere, file, span, format!("a {written} does not belong here")).help(help)
        } else {
            Diagnostic::new(Code::Kind, file, span, format!("unknown kind: {}", describe(&entry.value)))
                .maybe_help(suggestion(written, names()))
        });
        return Err(found);
    };
    if found.is_empty() { Ok(kind) } else { Err(found) }
}

/// Where to point for something that is missing in `node`: its first key, or its own place.
fn anchor(node: &Node) -> Span {
    match &node.value {
        Value::Map(entries) => entries.first().map_or(node.span, |e| e.key_span),
        _ => node.span,
    }
}

fn describe(node: &Node) -> String {
    match &node.value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(b) => format!("`{b}`"),
        Value::Number(n) => format!("the number {n}"),
        Value::Text(t) => format!("the text `{}`", shorten(t)),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a mapping".to_owned(),
    }
}

/// At most 60 characters of a value, for a message.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

/// The value that a schema error is about, the key it stands under, and its name for messages.
struct Target<'a> {
    node: &'a Node,
    key_span: Option<Span>,
    name: String,
}

fn target<'a>(root: &'a Node, path: &Location) -> Target<'a> {
    let mut found = Target { node: root, key_span: None, name: "the document".to_owned() };
    for segment in path {
        match (segment, &found.node.value) {
            (LocationSegment::Property(key), Value::Map(_)) => {
                let Some(entry) = found.node.entry(&key) else { break };
                found = Target { node: &entry.value, key_span: Some(entry.key_span), name: format!("`{key}`") };
            }
            (LocationSegment::Index(index), Value::List(items)) => {
                let Some(item) = items.get(index) else { break };
                let name = format!("entry {} of {}", index + 1, found.name);
                found = Target { node: item, key_span: None, name };
            }
            _ => break,
        }
    }
    found
}

fn translate(
    file: &str,
    root: &Node,
    schema: &Json,
    error: &jsonschema::ValidationError<'_>,
    found: &mut Vec<Diagnostic>,
) {
    let Target { node, key_span, name } = target(root, error.instance_path());
    let at = Some(node.span);
    let fault = |code: Code, message: String| Diagnostic::new(code, file, at, message);
    let diagnostic = match error.kind() {
        Kind::AdditionalProperties { unexpected } => {
            let known = known_keys(schema, error.schema_path());
            for key in unexpected {
                let span = node.entry(key).map_or(node.span, |e| e.key_span);
                let message = format!("unknown key `{}` in {name}", shorten(key));
                let help = suggestion(key, known.iter().copied());
                found.push(Diagnostic::new(Code::UnknownKey, file, Some(span), message).maybe_help(help));
            }
            return;
        }
        Kind::Required { property } => {
            let key = property.as_str().unwrap_or_default();
            let span = key_span.unwrap_or_else(|| anchor(node));
            Diagnostic::new(Code::MissingKey, file, Some(span), format!("{name} needs the key `{key}`"))
        }
        Kind::Type { .. } => {
            let wanted = match rule(schema, error.schema_path()) {
                Some(Json::String(one)) => type_words(one),
                Some(Json::Array(two)) if two.iter().any(|one| one == "integer") => "a whole number or a text",
                // The only other place that takes two.
                Some(Json::Array(_)) => "a text or a list",
                _ => "another type",
            };
            let diagnostic = fault(Code::WrongType, format!("{name} must be {wanted}, this is {}", describe(node)));
            match (&node.value, wanted) {
                (Value::Number(_) | Value::Bool(_), "a text") => diagnostic.help("put it in quotes"),
                (Value::Map(_), "a list") => {
                    diagnostic.help("put `[` and `]` around it, or begin each entry with `- `")
                }
                _ => diagnostic,
            }
        }
        Kind::Enum { options } => {
            let options: Vec<&str> =
                options.as_array().map(|o| o.iter().filter_map(Json::as_str).collect()).unwrap_or_default();
            fault(Code::NotAChoice, format!("{name} cannot be {}", describe(node)))
                .maybe_help(suggestion(node.text().unwrap_or_default(), options.iter().copied()))
        }
        Kind::Constant { expected_value } => {
            let expected = expected_value.as_str().unwrap_or_default();
            fault(Code::NotAChoice, format!("{name} must be `{expected}`, this is {}", describe(node)))
        }
        Kind::Minimum { limit } => fault(Code::OutOfRange, format!("{name} must be at least {limit}")),
        Kind::Maximum { limit } => fault(Code::OutOfRange, format!("{name} must be at most {limit}")),
        Kind::MinLength { limit } => fault(Code::OutOfRange, format!("{name} must have at least {limit} characters")),
        Kind::MaxLength { limit } => fault(Code::OutOfRange, format!("{name} must have at most {limit} characters")),
        Kind::MinItems { limit } | Kind::MinProperties { limit } => {
            fault(Code::OutOfRange, format!("{name} must have at least {limit} entries"))
        }
        Kind::MaxItems { limit } | Kind::MaxProperties { limit } => {
            fault(Code::OutOfRange, format!("{name} must have at most {limit} entries"))
        }
        Kind::Pattern { pattern } => {
            let help = if pattern.starts_with("^[a-z0-9]") {
                "use lower-case letters, digits and `-`, beginning and ending with a letter or digit".to_owned()
            } else {
                format!("it must match {pattern}")
            };
            fault(Code::MalformedValue, format!("{name} cannot be {}", describe(node))).help(help)
        }
        _ => fault(Code::SchemaOther, format!("{name}: {}", error.masked())),
    };
    found.push(diagnostic);
}

/// The rule itself: what stands in the schema at `path`.
fn rule<'s>(schema: &'s Json, path: &Location) -> Option<&'s Json> {
    schema.pointer(path.as_str())
}

fn type_words(name: &str) -> &str {
    match name {
        "string" => "a text",
        "object" => "a mapping",
        "array" => "a list",
        "integer" => "a whole number",
        other => other,
    }
}

/// The keys that a mapping may have, from the path of its `additionalProperties`.
fn known_keys<'s>(schema: &'s Json, path: &Location) -> Vec<&'s str> {
    path.as_str()
        .rsplit_once('/')
        .and_then(|(parent, _)| schema.pointer(parent))
        .and_then(|parent| parent.get("properties"))
        .and_then(Json::as_object)
        .map(|properties| properties.keys().map(String::as_str).collect())
        .unwrap_or_default()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#[expect(clippy::disallowed_methods, reason = "the golden test can rewrite its files")]
mod tests {
    use super::*;

    /// `WAYLEAVE_BLESS=1` rewrites the committed files instead.
    #[test]
    fn the_committed_schemas_are_those_of_the_types() {
        for (schema, name) in [(Published::Policy, "policy"), (Published::Config, "config")] {
            let path = format!("{}/../schema/{name}.schema.json", env!("CARGO_MANIFEST_DIR"));
            let fresh = format!("{:#}\n", schema.generate());
            if std::env::var_os("WAYLEAVE_BLESS").is_some() {
                std::fs::write(&path, &fresh).unwrap();
            } else {
                assert_eq!(schema.text(), fresh, "{path} is stale: run the tests with WAYLEAVE_BLESS=1");
            }
        }
    }

    #[test]
    fn the_published_schemas_are_valid_and_check_whole_documents() {
        let check = |schema: Published, document: &Json, expected: bool| {
            let validator = jsonschema::draft7::new(&schema.generate()).unwrap();
            assert_eq!(validator.is_valid(document), expected, "{document}");
        };
        let route = json!({"apiVersion": "wayleave/v1", "kind": "RoutePolicy", "metadata": {"name": "a"},
            "spec": {"routes": [{"prefix": "10.0.0.0/8", "action": "drop"}]}});
        check(Published::Policy, &route, true);
        check(Published::Config, &route, false);
        let mut wrong = route.clone();
        wrong["spec"]["routes"][0]["weight"] = 3.into();
        check(Published::Policy, &wrong, false);
        check(Published::Policy, &json!({"apiVersion": "wayleave/v1", "kind": "Other"}), false);
    }
}
