//! `plinth rollback`.

use anyhow::anyhow;

use super::init::{self, Asked};
use super::{Context, Failure, Outcome, ledger};
use crate::config::{ConfigFile, Overrides};
use crate::fsx;
use crate::journal::Journal;
use crate::plan::{self, Generation, generation};
use crate::release::Component;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Generation to go back to, see `plinth history`; the last one before the current one that differs from it unless
    /// given
    generation: Option<u32>,
    /// Let etcd stay at the version that runs
    #[arg(long)]
    keep_etcd: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Preflight checks whose errors are only warnings; `all` is all of them
    #[arg(long, value_name = "CHECK", value_delimiter = ',')]
    ignore_preflight_errors: Option<Vec<String>>,
}

/// An `init` with the configuration of an earlier generation.
pub(super) async fn run(args: &Args, context: &Context) -> Outcome {
    let journal = Journal::of(&context.layout);
    let generations = generation::all(&context.layout, &ledger(&journal)?)?;
    let target = target(&generations, args.generation).map_err(Failure::usage)?;
    let overrides = Overrides {
        dry_run: args.dry_run.then_some(true),
        ignore_preflight_errors: args.ignore_preflight_errors.clone(),
        ..Overrides::default()
    };
    let name = format!("the configuration of generation {}", target.number);
    let file = ConfigFile { name: &name, text: &target.config };
    let mut asked = Asked::load(Some(file), &overrides, None, target.host.clone(), context)?;
    if args.keep_etcd {
        asked.loaded.cluster.etcd.image_tag = Some(etcd_tag(&asked, context)?);
    }
    context.printer.line(&format!("going back to generation {} ({})", target.number, target.facts.kubernetes_version));
    Box::pin(init::perform(&asked, false, context)).await
}

/// The generation to go back to; the last of `generations` is the current one.
fn target(generations: &[Generation], wanted: Option<u32>) -> Result<&Generation, anyhow::Error> {
    let Some((current, earlier)) = generations.split_last() else {
        return Err(anyhow!("there is no generation: no init has succeeded on this host"));
    };
    if let Some(number) = wanted {
        let found = generations.iter().find(|generation| generation.number == number);
        return found.ok_or_else(|| anyhow!("there is no generation {number}; `plinth history` lists them"));
    }
    let found = earlier.iter().rev().find(|generation| generation.config != current.config);
    found.ok_or_else(|| anyhow!("no earlier generation differs from generation {}", current.number))
}

/// Tag of the etcd that runs: the manifest says so, or else the current generation.
fn etcd_tag(asked: &Asked, context: &Context) -> Result<String, Failure> {
    let on_disk = fsx::read_optional(&plan::manifest_path(&context.layout, Component::Etcd))?;
    let on_disk = on_disk.and_then(|text| plan::image_of(&String::from_utf8_lossy(&text)));
    let running = asked.loaded.running.as_ref().map(|cluster| cluster.image(Component::Etcd));
    let image = on_disk.or(running).unwrap_or_default();
    let tag = image.rsplit_once(':').map(|(_, tag)| tag.to_owned());
    tag.ok_or_else(|| Failure::failed(anyhow!("the image of etcd has no tag: `{image}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unless_named_it_is_the_last_one_that_differs() {
        let generation = |number, config: &str| Generation { number, config: config.into(), ..Generation::default() };
        let three = [generation(1, "a"), generation(2, "b"), generation(4, "c"), generation(5, "c")];
        for (generations, wanted, expected) in [
            (&three[..], None, Ok(2)),
            (&three[..3], None, Ok(2)),
            (&three[..], Some(1), Ok(1)),
            (&three[..], Some(5), Ok(5)),
            (&three[..], Some(3), Err("there is no generation 3; `plinth history` lists them")),
            (&three[2..], None, Err("no earlier generation differs from generation 5")),
            (&[], None, Err("there is no generation: no init has succeeded on this host")),
        ] {
            let found = target(generations, wanted).map(|generation| generation.number);
            assert_eq!(found.map_err(|error| error.to_string()), expected.map_err(str::to_owned), "{wanted:?}");
        }
    }
}
