#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

fn codes(text: &str) -> Vec<&'static str> {
    parse("t.yaml", text).diagnostics.iter().map(|d| d.code.number()).collect()
}

#[test]
fn every_key_and_value_keeps_its_place_in_characters() {
    let root = parse("t.yaml", "größe: [ä, {b: \"ö\"}]\nc:\n  d: 7\n").root.unwrap();
    let Value::Map(entries) = &root.value else { panic!("{root:?}") };
    assert_eq!(entries[0].key_span, Span::new(1, 1, 1, 6));
    assert_eq!(root.place(&[Step::Key("größe"), Step::Item(0)]), Span::new(1, 9, 1, 10));
    assert_eq!(root.place(&[Step::Key("größe"), Step::Item(1), Step::Key("b")]), Span::new(1, 16, 1, 19));
    assert_eq!(root.place(&[Step::Key("größe"), Step::Item(1)]), Span::new(1, 12, 1, 20));
    assert_eq!(root.place(&[Step::Key("c"), Step::Key("d")]), Span::new(3, 6, 3, 7));
}

#[test]
fn scalars_follow_the_core_schema_of_yaml_1_2() {
    let check = |text: &str, expected: serde_json::Value| {
        let root = parse("t.yaml", &format!("v: {text}")).root.unwrap();
        assert_eq!(root.to_json()["v"], expected, "{text}");
    };
    check("no", "no".into());
    check("on", "on".into());
    check("true", true.into());
    check("'true'", "true".into());
    check("~", serde_json::Value::Null);
    check("12", 12.into());
    check("-3", (-3).into());
    check("0x1F", 31.into());
    check("0o17", 15.into());
    check("1.5", 1.5.into());
    check("1e3", 1000.0.into());
    check("12:30:45", "12:30:45".into());
    check("192.0.2.1", "192.0.2.1".into());
    check("10.0.0.0/8", "10.0.0.0/8".into());
    check("2001:db8::1", "2001:db8::1".into());
    check("::/0", "::/0".into());
    check("1_000", "1_000".into());
    check("inf", "inf".into());
}

#[test]
fn windows_line_ends_and_a_byte_order_mark_are_read() {
    let text = decode("t.yaml", b"\xef\xbb\xbfa: 1\r\nb: 2\r\n").unwrap();
    let parsed = parse("t.yaml", text);
    assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
    assert_eq!(parsed.root.unwrap().place(&[Step::Key("b")]), Span::new(2, 4, 2, 5));
}

#[test]
fn deep_nesting_is_a_diagnostic_whatever_its_size() {
    for bytes in [400, 40_000, 400_000, 4_000_000] {
        assert_eq!(codes(&"[".repeat(bytes)), ["WL0109"], "flow lists, {bytes}");
        assert_eq!(codes(&"{a: ".repeat(bytes / 4)).len(), 1, "flow maps, {bytes}");
        assert_eq!(codes(&"- ".repeat(bytes / 2)), ["WL0109"], "block lists, {bytes}");
    }
    let mut steps = String::new();
    for depth in 0..600 {
        writeln!(steps, "{}k:", " ".repeat(depth)).unwrap();
    }
    assert_eq!(codes(&steps), ["WL0109"]);
}

#[test]
fn an_alias_bomb_is_refused_without_being_expanded() {
    let mut bomb = String::from("a0: &a0 [x, x]\n");
    for n in 1..40 {
        writeln!(bomb, "a{n}: &a{n} [*a{0}, *a{0}]", n - 1).unwrap();
    }
    let parsed = parse("t.yaml", &bomb);
    assert!(parsed.root.is_none());
    assert!(parsed.diagnostics.iter().all(|d| d.code == Code::YamlAnchor));
    assert!(parsed.diagnostics.len() <= DIAGNOSTICS_PER_FILE_MAX + 1);
}

#[test]
fn many_values_and_many_faults_are_bounded() {
    assert_eq!(codes(&format!("[{}]", "1,".repeat(2_000_000))), ["WL0109"]);
    assert!(codes(&"a: 1\n".repeat(800_000)).len() <= DIAGNOSTICS_PER_FILE_MAX + 2);
    assert!(codes(&"\tx\n".repeat(800_000)).len() <= DIAGNOSTICS_PER_FILE_MAX + 2);
    assert!(!codes(&"\"".repeat(1_000_001)).is_empty());
    assert!(!codes(&"? ".repeat(1_000_000)).is_empty());
}

/// Pieces that mean something to a YAML scanner, so that random texts get past its first token.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a",
        "b: ",
        ": ",
        "- ",
        "? ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "\n",
        "\n  ",
        "\n    ",
        "\"",
        "'",
        "|\n",
        ">-\n",
        "&x ",
        "*x",
        "!t ",
        "!!str ",
        "# c",
        "---\n",
        "...\n",
        "%YAML 1.2\n",
        "<<: ",
        "\t",
        "ü",
        "\u{feff}",
        "\0",
        "\r",
        "~",
    ]);
    prop::collection::vec(piece, 0..60).prop_map(|p| p.concat())
}

proptest! {
    #[test]
    fn random_yaml_gives_a_tree_or_a_diagnostic(text in pieces()) {
        let parsed = parse("t.yaml", &text);
        prop_assert!(parsed.root.is_some() || !parsed.diagnostics.is_empty(), "{text:?}");
        let lines = u32::try_from(text.split('\n').count()).unwrap();
        for span in parsed.diagnostics.iter().filter_map(|d| d.span) {
            prop_assert!(span.start.line >= 1 && span.start.column >= 1 && span.start <= span.end);
            prop_assert!(span.start.line <= lines + 1, "{text:?} {span:?}");
        }
    }

    #[test]
    fn random_bytes_give_a_tree_or_a_diagnostic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(text) = decode("t.yaml", &bytes) {
            let parsed = parse("t.yaml", text);
            prop_assert!(parsed.root.is_some() || !parsed.diagnostics.is_empty());
        }
    }
}
