//! Any source: every fault is a diagnostic, and what has none compiles into an image that says the same.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use wayleave::cli::report;
use wayleave::compile::view::Match;
use wayleave::compile::{LiveIds, NodeFacts, compile};
use wayleave::policy::{Diagnostic, node_config, validate};
use wayleave::source::{Snapshot, SourceFile};

use super::headers::words;

/// Stands between the files of an input: no UTF-8 text has this byte.
pub(super) const SEPARATOR: u8 = 0xff;

/// What the files are called; the input's first one is also read as a node's configuration.
const FILES: [&str; 3] = ["a.yaml", "lists/a.txt", "b.yaml"];

/// The input is up to three files with [`SEPARATOR`] between them.
pub fn policy(bytes: &[u8]) {
    let texts: Vec<&[u8]> = bytes.splitn(FILES.len(), |byte| *byte == SEPARATOR).collect();
    let files: BTreeMap<String, SourceFile> = FILES
        .iter()
        .zip(&texts)
        .map(|(name, text)| ((*name).to_owned(), SourceFile::Content(Arc::from(*text))))
        .collect();
    let snapshot = Snapshot::of_directory(files);
    let validated = validate(&snapshot);
    show(&validated.diagnostics, &texts);
    if let Err(diagnostics) = node_config(texts[0], Path::new(FILES[0])) {
        assert!(!diagnostics.is_empty(), "a configuration is refused without a reason");
        show(&diagnostics, &texts);
    }
    let Some(policy) = validated.policy else {
        assert!(!validated.diagnostics.is_empty(), "a policy is refused without a reason");
        return;
    };
    // The only other end of a valid policy is an error that names what does not fit.
    let Ok(image) = compile(&policy, &NodeFacts::default(), &LiveIds::default()) else { return };
    let view = image.view().unwrap_or_else(|error| panic!("a compiled image is not readable: {error}"));
    let written: usize = policy.route_policies.iter().map(|one| one.routes.len()).sum();
    assert_eq!(view.routes_v4().len() + view.routes_v6().len(), written, "routes");
    for route in view.routes_v4().chain(view.routes_v6()).take(256) {
        let address = route.prefix.address();
        let [high, low] = words(address);
        let looked_up = match address {
            IpAddr::V4(address) => fib::lookup::v4(view.bytes(), address.to_bits()),
            IpAddr::V6(_) => fib::lookup::v6(view.bytes(), high, low),
        };
        let met = view.lookup(address);
        let target = looked_up.and_then(|target| view.target(target));
        assert!(matches!(met, Match::Route(_)), "{address} is inside {:?}", route.prefix);
        assert!(target.is_some_and(|target| target.agrees_with(&met)), "{address}: {met:?}, looked up {target:?}");
    }
}

/// Renders diagnostics in every way there is.
fn show(diagnostics: &[Diagnostic], texts: &[&[u8]]) {
    let mut shown = report::Texts::default();
    for (name, text) in FILES.iter().zip(texts) {
        shown.insert((*name).to_owned(), text);
    }
    std::hint::black_box((report::human(diagnostics, &shown, true), report::json(diagnostics)));
}
