//! `plinth reset`.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};

use super::{Context, Failure, Outcome, ledger};
use crate::apply::{Host, Launch};
use crate::error::Exit;
use crate::init;
use crate::journal::{Creation, Journal, Ledger};
use crate::reset::{self, Left, Options, Report};
use crate::service::{AgentCommand, Manager};
use crate::takedown::TakedownError;
use crate::ui::{Answer, confirm};

#[derive(Debug, Clone, Copy, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct Args {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Leave etcd's data where it is
    #[arg(long)]
    keep_etcd_data: bool,
    /// Remove the images that plinth pulled
    #[arg(long)]
    images: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Outcome {
    let Context { printer, layout, clock, .. } = context;
    let journal = Journal::of(layout);
    let ledger = ledger(&journal)?;
    let options = Options { keep_etcd_data: args.keep_etcd_data, images: args.images };
    let etcd_data = etcd_data(&ledger);
    let would_remove = reset::preview(layout, &ledger, options, &etcd_data);
    if would_remove.is_empty() {
        printer.result(&Report::default(), || "nothing of plinth is on this host".to_owned())?;
        return Ok(Exit::Done);
    }
    if args.dry_run {
        let text = || format!("would stop the agent and its containers, and remove:\n{}", indented(&would_remove));
        printer.result(&serde_json::json!({ "wouldRemove": would_remove }), text)?;
        return Ok(Exit::Done);
    }
    if !args.force {
        let question = if args.keep_etcd_data {
            "Remove the control plane from this host, and keep etcd's data?"
        } else {
            "Remove the control plane and all its data from this host?"
        };
        match confirm(printer, question)? {
            Answer::Yes => {}
            Answer::No => return Err(Failure::failed(anyhow!("nothing was removed"))),
            Answer::Nobody => {
                return Err(Failure::usage(anyhow!(
                    "`plinth reset` asks before it removes, and nobody is there to answer"
                ))
                .with_hints(vec!["use --force".to_owned()]));
            }
        }
    }

    let _lock = init::lock(layout)?.map_err(|busy| Failure::hinted(busy, Exit::Failed))?;
    let docker = context.docker()?;
    let program = std::env::current_exe().context("cannot find the path of plinth itself")?;
    let host = Host {
        layout,
        journal: &journal,
        runtime: &docker,
        clock,
        printer,
        launch: Launch::Service {
            manager: Manager::detect(layout),
            command: AgentCommand { program, arguments: Vec::new() },
        },
    };
    let report = reset::run(&host, options, &etcd_data).await.map_err(|error| {
        let hints = match &error {
            reset::ResetError::Takedown(TakedownError::Runtime(error)) if error.is_unreachable() => {
                vec!["start Docker and run the same command again: containers of ours may be in it".to_owned()]
            }
            _ => vec!["run the same command again; it goes on where it stopped".to_owned()],
        };
        Failure::failed(error).with_hints(hints)
    })?;
    printer.result(&report, || text(&report))?;
    Ok(if report.is_complete() { Exit::Done } else { Exit::Failed })
}

/// Every directory that may hold etcd's data: those the journal knows as somebody's data.
fn etcd_data(ledger: &Ledger) -> Vec<PathBuf> {
    let trees = ledger.creations().filter_map(|creation| match creation {
        Creation::Tree { path } => Some(path.clone()),
        _ => None,
    });
    trees.collect()
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "removed {} containers and {} files and directories; looked again: they are gone",
        report.containers,
        report.removed.len()
    );
    if !report.left.is_empty() {
        let lines: Vec<_> = report
            .left
            .iter()
            .map(|Left { what, why, failed }| format!("{}{what}: {why}", if *failed { "NOT REMOVED " } else { "" }))
            .collect();
        text.push_str(&format!("\nleft on this host:\n{}", indented(&lines)));
    }
    text.push_str("\nalso left: Docker, images that plinth did not pull, and the plinth binary");
    text
}
