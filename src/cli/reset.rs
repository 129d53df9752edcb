//! `plinth reset`.

use anyhow::{Context as _, anyhow};

use super::{Context, Failure, Outcome, ledger};
use crate::apply::{Host, Launch};
use crate::error::Exit;
use crate::init;
use crate::journal::Journal;
use crate::reset::{self, Made, Options, Report, State, Thing};
use crate::service::{AgentCommand, Manager};
use crate::ui::{Answer, confirm, table};

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
    let options = Options { keep_etcd_data: args.keep_etcd_data, images: args.images };
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
    if !layout.state().exists() {
        printer.result(&Report { complete: true, ..Report::default() }, || NOTHING.to_owned())?;
        return Ok(Exit::Done);
    }
    if args.dry_run {
        let made = Made::find(layout, &docker, &ledger(&journal)?).await?;
        let things = reset::preview(&host, &made, options).await?;
        printer.result(&serde_json::json!({ "things": things }), || would_remove(&things))?;
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

    reset::unlock(layout)?;
    let _lock = init::lock(layout)?.map_err(|busy| Failure::hinted(busy, Exit::Failed))?;
    let made = Made::find(layout, &docker, &ledger(&journal)?).await?;
    let report = reset::run(&host, &made, options).await.map_err(|error| {
        Failure::failed(error).with_hints(vec!["run the same command again; it goes on where it stopped".to_owned()])
    })?;
    printer.result(&report, || text(&report))?;
    Ok(if report.complete { Exit::Done } else { Exit::Failed })
}

const NOTHING: &str = "nothing of plinth is on this host";

fn would_remove(things: &[Thing]) -> String {
    let then = |thing: &Thing| match thing.state {
        State::Gone => "is not there".to_owned(),
        State::Stays => format!("stays: {}", thing.why),
        State::There => "would be removed".to_owned(),
    };
    format!("nothing was removed\n\n{}", lines(things, "THEN", then))
}

fn text(report: &Report) -> String {
    let now = |thing: &Thing| match thing.state {
        State::Gone => "gone".to_owned(),
        State::Stays => format!("left: {}", thing.why),
        State::There if thing.why.is_empty() => "NOT REMOVED".to_owned(),
        State::There => format!("NOT REMOVED: {}", thing.why),
    };
    let count = |state| report.things.iter().filter(|thing| thing.state == state).count();
    let (gone, left, there) = (count(State::Gone), count(State::Stays), count(State::There));
    let verdict = if report.complete {
        format!("looked again: all {gone} that was to go is gone, {left} left on purpose")
    } else {
        format!(
            "looked again: {gone} gone, {left} left on purpose, {there} NOT REMOVED\n\
             mend what is named above, and run the same command again: it goes on from there"
        )
    };
    format!(
        "{}\n{verdict}\nplinth leaves Docker, images that it did not pull, and a plinth that it did not install",
        lines(&report.things, "NOW", now)
    )
}

fn lines(things: &[Thing], last: &str, cell: impl Fn(&Thing) -> String) -> String {
    let rows: Vec<_> = things.iter().map(|one| vec![one.kind.to_owned(), one.what.clone(), cell(one)]).collect();
    table(&["KIND", "WHAT", last], &rows, None)
}
