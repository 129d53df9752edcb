//! `plinth history`.

use serde::Serialize;

use super::{Context, Outcome};
use crate::error::Exit;
use crate::journal::Journal;
use crate::plan::Generation;
use crate::plan::generation::{self, Facts};
use crate::ui::table;

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// A generation for programs. Fields are only ever added.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    number: u32,
    /// It is the one that runs.
    current: bool,
    #[serde(flatten)]
    facts: Facts,
}

pub(super) fn run(context: &Context) -> Outcome {
    let ledger = super::ledger(&Journal::of(&context.layout))?;
    let current = ledger.committed.map(|(number, _)| number);
    let generations = generation::all(&context.layout, &ledger)?;
    let entry = |Generation { number, facts, .. }| Entry { number, current: Some(number) == current, facts };
    let entries: Vec<_> = generations.into_iter().map(entry).collect();
    context.printer.result(&serde_json::json!({ "generations": entries }), || text(&entries))?;
    Ok(Exit::Done)
}

fn text(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return "there is no generation: no init has succeeded on this host".to_owned();
    }
    let rows: Vec<_> = entries.iter().flat_map(rows).collect();
    table(&["GENERATION", "TIME", "VERSION", "CHANGES"], &rows, None)
}

/// One row per change, the first with the rest.
fn rows(entry: &Entry) -> Vec<Vec<String>> {
    let Entry { number, current, facts } = entry;
    // A fraction of a second tells nobody anything.
    let time = facts.at.map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default();
    let mark = if *current { " (current)" } else { "" };
    let mut changes = facts.changes.iter().cloned();
    let first =
        vec![format!("{number}{mark}"), time, facts.kubernetes_version.clone(), changes.next().unwrap_or_default()];
    let others = changes.map(|change| vec![String::new(), String::new(), String::new(), change]);
    std::iter::once(first).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_has_a_line() {
        let entry = |number, changes: &[&str]| Entry {
            number,
            current: number == 2,
            facts: Facts {
                at: Some("2026-11-21T08:00:00.5Z".parse().unwrap()),
                kubernetes_version: "v1.37.1".to_owned(),
                changes: changes.iter().map(|change| (*change).to_owned()).collect(),
                ..Facts::default()
            },
        };
        assert_eq!(
            text(&[entry(1, &["the first init"]), entry(2, &["a", "b"])]),
            "\
GENERATION    TIME                   VERSION   CHANGES
1             2026-11-21T08:00:00Z   v1.37.1   the first init
2 (current)   2026-11-21T08:00:00Z   v1.37.1   a
                                               b
"
        );
        assert!(text(&[]).contains("no generation"));
    }
}
