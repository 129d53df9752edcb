//! `plinth config`: what the configuration gives, without touching the host.

use std::path::PathBuf;

use anyhow::Context as _;

use super::{Context, Failure, Outcome};
use crate::config::{self, ConfigFile, HostFacts, Overrides};
use crate::error::Exit;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Images of the control plane
    #[command(subcommand)]
    Images(Images),
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Images {
    /// List the images that `plinth init` uses
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// File with an InitConfiguration and a ClusterConfiguration of kubeadm.k8s.io/v1beta4
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Kubernetes version, like v1.37.1
    #[arg(long, value_name = "VERSION", conflicts_with = "config")]
    kubernetes_version: Option<String>,
    /// Registry and path that images come from
    #[arg(long, value_name = "REPOSITORY", conflicts_with = "config")]
    image_repository: Option<String>,
}

pub(super) fn run(command: &Command, context: &Context) -> Outcome {
    let Command::Images(Images::List(args)) = command;
    let overrides = Overrides {
        kubernetes_version: args.kubernetes_version.clone(),
        image_repository: args.image_repository.clone(),
        // Images depend on neither; a build machine may have no proper host name or route.
        node_name: Some("node".to_owned()),
        apiserver_advertise_address: args.config.is_none().then(|| "192.0.2.1".to_owned()),
        ..Overrides::default()
    };
    let text = args.config.as_deref().map(read).transpose()?;
    let file = text.as_ref().map(|(name, text)| ConfigFile { name, text });
    let host = HostFacts::collect(context.environment.variables.clone())?;
    let loaded = config::load(file, &overrides, &host).map_err(|errors| Failure::hinted(errors, Exit::Usage))?;
    let images = config::image_list(&loaded.cluster);
    context.printer.result(&serde_json::json!({ "images": images }), || images.join("\n"))?;
    Ok(Exit::Done)
}

/// Reads a configuration file; `-` is stdin.
pub(super) fn read(path: &std::path::Path) -> Result<(String, String), Failure> {
    let text = if path == std::path::Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.with_context(|| format!("cannot read the configuration `{}`", path.display()));
    Ok((path.display().to_string(), text.map_err(Failure::usage)?))
}
