//! What the tools' own documentation asks for.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;

fn diagnostic(code: Code, file: &str, line: u32, message: &str) -> Diagnostic {
    Diagnostic::new(code, file, Some(Span::new(line, 5, line, 9)), message)
}

/// What the published schema of SARIF 2.1.0 (OASIS) says of the properties that these logs have.
const SARIF_SHAPE: &str = include_str!("sarif-shape.json");

#[test]
fn a_sarif_log_has_the_shape_of_the_standard() {
    let twice = diagnostic(Code::DuplicatePrefix, "policies/a b.yaml", 7, "the prefix 10.0.0.0/8 is written twice")
        .related("policies/b.yaml", Span::line(3), "first written here")
        .help("remove one of the two");
    let unused = diagnostic(Code::UnusedNextHop, "policies/a.yaml", 2, "the next hop `x` is used by no route");
    let whole = Diagnostic::new(Code::NoPolicy, ".", None, "the source holds no policy document");
    let validator = jsonschema::draft7::new(&serde_json::from_str(SARIF_SHAPE).unwrap()).unwrap();
    for diagnostics in [&[][..], &[twice, unused, whole]] {
        let log: Value = serde_json::from_str(&sarif(diagnostics)).unwrap();
        let faults: Vec<String> = validator.iter_errors(&log).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(faults.is_empty(), "{faults:?}\n{log:#}");
        let run = &log["runs"][0];
        for (result, d) in run["results"].as_array().unwrap().iter().zip(diagnostics) {
            let rule = &run["tool"]["driver"]["rules"][usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap()];
            assert_eq!(
                (rule["id"].as_str(), result["ruleId"].as_str()),
                (Some(d.code.number()), Some(d.code.number()))
            );
        }
    }
    let mut broken: Value = serde_json::from_str(&sarif(&[])).unwrap();
    broken["runs"][0].as_object_mut().unwrap().remove("tool");
    assert!(!validator.is_valid(&broken), "the shape checks nothing");
}

#[test]
fn paths_in_sarif_are_references() {
    assert_eq!(uri("policies/a b#1%.yaml"), "policies/a%20b%231%25.yaml");
    assert_eq!(uri("büro.yaml"), "b%C3%BCro.yaml");
}

#[test]
fn annotations_escape_what_would_end_them() {
    let d = diagnostic(Code::NotAPrefix, "a,b:c%.yaml", 3, "50% of\r\nthis, and: that");
    assert_eq!(
        github(&[d]),
        "::error file=a%2Cb%3Ac%25.yaml,line=3,endLine=3,col=5,endColumn=9,title=WL0301::50%25 of%0D%0Athis, and: that\n"
    );
    let list =
        Diagnostic::new(Code::RedundantRoute, "l.txt", Some(Span::line(4)), "x").related("m.txt", Span::line(2), "y");
    assert_eq!(github(&[list]), "::warning file=l.txt,line=4,title=WL0314::x%0Ay: m.txt:2\n");
}

#[test]
fn annotations_stop_at_what_github_shows_and_count_the_rest() {
    let warning = |n: u32| diagnostic(Code::UnusedNextHop, "a.yaml", n, "unused");
    let error = |n: u32| diagnostic(Code::NotAPrefix, "b.yaml", n, "no prefix");
    let ten: Vec<Diagnostic> = (1..=10).map(warning).collect();
    assert_eq!(github(&ten).lines().count(), 10);
    assert!(!github(&ten).contains("::notice"));
    let mixed: Vec<Diagnostic> = (1..=8).map(warning).chain((1..=5).map(error)).collect();
    let text = github(&mixed);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 10);
    assert!(lines[..5].iter().all(|line| line.starts_with("::error file=b.yaml")), "{text}");
    assert!(lines[5..9].iter().all(|line| line.starts_with("::warning file=a.yaml")), "{text}");
    assert_eq!(lines[9], "::notice title=wayleave::and 4 more: 0 errors, 4 warnings; `wayleave validate` lists all");
    assert_eq!(github(&[]), "");
}

#[test]
fn fingerprints_stay_when_lines_move_and_differ_for_equal_faults() {
    let check = |diagnostics: &[Diagnostic]| -> Vec<String> {
        let report: Value = serde_json::from_str(&gitlab(diagnostics)).unwrap();
        let all = report.as_array().unwrap();
        for issue in all {
            assert!(["info", "minor", "major", "critical", "blocker"].contains(&issue["severity"].as_str().unwrap()));
            for key in ["description", "check_name", "fingerprint"] {
                assert!(issue[key].as_str().is_some_and(|text| !text.is_empty()), "{issue}");
            }
            assert!(issue["location"]["lines"]["begin"].as_u64().is_some_and(|line| line >= 1), "{issue}");
            assert!(issue["location"]["path"].is_string(), "{issue}");
        }
        all.iter().map(|issue| issue["fingerprint"].as_str().unwrap().to_owned()).collect()
    };
    let at = |line| diagnostic(Code::NotAPrefix, "a.yaml", line, "`x` is not an IP prefix");
    let here = check(&[at(3), at(4), diagnostic(Code::NotAPrefix, "b.yaml", 3, "`x` is not an IP prefix")]);
    assert_eq!(here.iter().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(check(&[at(13), at(14)]), here[..2]);
    assert_eq!(check(&[]), [""; 0]);
}
