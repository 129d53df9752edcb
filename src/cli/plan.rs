//! `plinth plan`.

use std::path::PathBuf;

use anyhow::Context as _;

use super::init::{self, Asked, Flags};
use super::{Context, Failure, Outcome};
use crate::error::Exit;
use crate::init::Planned;
use crate::plan::PlanFile;

#[derive(Debug, clap::Args)]
#[command(after_help = init::phases())]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Keep the plan in a file, for `plinth init --plan FILE`
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Exit with 10 instead of 0 when something would change
    #[arg(long)]
    detailed_exitcode: bool,
}

pub(super) async fn run(args: &Args, context: &Context) -> Outcome {
    let out = args.out.as_ref().map(std::path::absolute).transpose();
    let out = out.context("cannot make the path of the plan absolute").map_err(Failure::usage)?;
    let asked = Asked::by_flags(&args.flags, false, context)?;
    let init = asked.init(asked.service(context)?, context)?;
    let planned = init.plan().await.map_err(|error| init::failure(error, &context.printer))?;
    let Planned { plan, observed } = &planned;
    if let Some(path) = &out {
        let file = PlanFile::new(&init.inputs(), observed, plan, context.clock.now());
        file.write(path).map_err(|error| Failure::hinted(error, Exit::Failed))?;
    }
    let text = || {
        let mut text = init::text(&planned, &asked.loaded.cluster);
        if let Some(path) = &out {
            text.push_str(&format!("\n\n`plinth init --plan {}` does exactly that", path.display()));
        }
        text
    };
    context.printer.result(&init::document(&init, &planned), text)?;
    Ok(if args.detailed_exitcode && !plan.is_empty() { Exit::Differs } else { Exit::Done })
}
