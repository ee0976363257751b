//! What is said beside a plan: what an apply would refuse, which tests fail, and warnings.
//!
//! Kept as the JSON that it becomes, so that a saved plan is shown as it was.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::guard::Refusal;
use crate::plan::Plan;
use crate::policy::Diagnostic;
use crate::policy_test::{Ended, Outcome};
use crate::reconcile::Step;
use crate::reconcile::hold::Hold;

/// Failing tests that are listed before the rest is counted.
const TESTS_LISTED_MAX: usize = 10;

#[derive(Clone, Debug, Default)]
pub(super) struct Beside(Map<String, Value>);

impl Beside {
    pub(super) fn new(refusals: &[Refusal], outcomes: &[Outcome], warnings: &[Diagnostic]) -> Self {
        let mut all = Map::new();
        all.insert("refusals".to_owned(), refusals.iter().map(Refusal::to_json).collect());
        let count = |which: fn(&Ended) -> bool| outcomes.iter().filter(|outcome| which(&outcome.ended)).count();
        let failures: Vec<Value> = outcomes.iter().filter(|o| o.failed()).map(Outcome::to_json).collect();
        all.insert(
            "tests".to_owned(),
            json!({"passed": count(|e| *e == Ended::Passed), "failed": failures.len(),
                "left_out": count(|e| matches!(e, Ended::LeftOut { .. })), "failures": failures}),
        );
        all.insert("diagnostics".to_owned(), super::super::report::entries(warnings).into());
        Self(all)
    }

    /// The entries of a plan's JSON that are not the plan's own.
    pub(super) fn of_json(json: Map<String, Value>) -> Self {
        let own = ["format_version", "from", "to", "changes", "summary", "effect"];
        Self(json.into_iter().filter(|(key, _)| !own.contains(&key.as_str())).collect())
    }

    pub(super) fn set(&mut self, key: &str, value: Value) {
        self.0.insert(key.to_owned(), value);
    }

    pub(super) fn get(&self, key: &str) -> &Value {
        self.0.get(key).unwrap_or(&Value::Null)
    }

    pub(super) fn steps(&mut self, steps: &[Step]) {
        self.set("steps", steps.iter().map(ToString::to_string).collect());
    }

    /// What would keep an apply from being made now; said only where there is anything.
    pub(super) fn holds(&mut self, holds: &[Hold]) {
        if !holds.is_empty() {
            let hold = |h: &Hold| json!({"hold": h.name(), "message": h.message(), "help": h.help()});
            self.set("held", holds.iter().map(hold).collect());
        }
    }

    pub(super) fn has_steps(&self) -> bool {
        !self.list("steps").is_empty()
    }

    pub(super) fn json(&self) -> &Map<String, Value> {
        &self.0
    }

    fn list(&self, key: &str) -> &[Value] {
        self.get(key).as_array().map_or(&[], Vec::as_slice)
    }

    /// Each refusal: its guard, and what it says in lines.
    pub(super) fn refusals(&self) -> Vec<(&str, String)> {
        let refusal = |refusal: &Value| -> String {
            let mut text = text(&refusal["message"]).to_owned();
            for route in refusal["routes"].as_array().into_iter().flatten() {
                let _ = write!(text, "\n    {}{}", text_of(route, "prefix"), place(route));
            }
            if let Some(more) = refusal["more"].as_u64().filter(|more| *more > 0) {
                let _ = write!(text, "\n    … and {more} more");
            }
            let _ = write!(text, "\n  {}", text_of(refusal, "help"));
            text
        };
        self.list("refusals").iter().map(|r| (text_of(r, "guard"), refusal(r))).collect()
    }

    /// The tests that fail, in lines each; at most [`TESTS_LISTED_MAX`] and how many more there are.
    pub(super) fn failures(&self) -> (Vec<String>, usize) {
        let all = self.get("tests")["failures"].as_array().map_or(&[][..], Vec::as_slice);
        let line = |failure: &Value| {
            let case = failure["case"].as_str().map(|case| format!(": {case}")).unwrap_or_default();
            format!(
                "{}{case}{}: {}\n    expected  {}\n    got       {}",
                text_of(failure, "test"),
                place(failure),
                text_of(failure, "packet"),
                text_of(failure, "expected"),
                text_of(failure, "got")
            )
        };
        let listed = all.iter().take(TESTS_LISTED_MAX).map(line).collect();
        (listed, all.len().saturating_sub(TESTS_LISTED_MAX))
    }

    /// Warnings in one line each.
    pub(super) fn warnings(&self) -> Vec<String> {
        let other = |d: &Value| match d["related"].get(0) {
            Some(related) => format!(" ({}{})", text_of(related, "label"), place(related)),
            None => String::new(),
        };
        let line = |d: &Value| format!("{}: {}{}{}", text_of(d, "code"), text_of(d, "message"), place(d), other(d));
        self.list("diagnostics").iter().map(line).collect()
    }

    /// What the human form says after the plan.
    pub(super) fn human(&self, plan: &Plan) -> String {
        let mut out = String::new();
        if plan.is_empty() && self.has_steps() {
            out.push_str("An apply would still:\n");
            for step in self.list("steps") {
                let _ = writeln!(out, "  {}", text(step));
            }
        }
        let (failures, more) = self.failures();
        for hold in self.list("held") {
            let _ = writeln!(out, "Apply would be held now: {}\n  {}", text_of(hold, "message"), text_of(hold, "help"));
        }
        for (guard, refusal) in self.refusals() {
            let _ = writeln!(out, "Apply would be refused by the guard {guard}: {refusal}");
        }
        if !failures.is_empty() {
            let _ = writeln!(out, "Apply would be refused, since policy tests fail:");
            for failure in failures {
                let _ = writeln!(out, "  {failure}");
            }
            if more > 0 {
                let _ = writeln!(out, "  … and {more} more; `wayleave test` lists all");
            }
        }
        out
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn text_of<'v>(value: &'v Value, key: &str) -> &'v str {
    text(&value[key])
}

/// `  [file:line]`, where there is one.
fn place(value: &Value) -> String {
    match (value["file"].as_str(), value["line"].as_u64()) {
        (Some(file), Some(line)) => format!("  [{file}:{line}]"),
        (Some(file), None) => format!("  [{file}]"),
        _ => String::new(),
    }
}
