//! `plinth agent`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use tokio_util::sync::CancellationToken;

use super::{Context, Failure, Outcome, interrupted};
use crate::agent::{self, Options};
use crate::config::HostFacts;
use crate::error::Exit;
use crate::journal::Journal;
use crate::release::{DEFAULT_IMAGE_REPOSITORY, DEFAULT_VERSION, KubernetesVersion};
use crate::service;

/// Flags are the kubelet's wherever it has them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory of static pod manifests, or a single manifest; /etc/kubernetes/manifests unless given
    #[arg(long, value_name = "PATH")]
    pod_manifest_path: Option<PathBuf>,
    /// Name of this node; its host name unless given
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// Image of the sandboxes of pods that need one
    #[arg(long, value_name = "IMAGE")]
    pod_infra_container_image: Option<String>,
    /// Address of the container engine; that of DOCKER_HOST unless given
    #[arg(long, value_name = "URL")]
    docker_host: Option<String>,
    /// Leave the session of the terminal
    #[arg(long, hide = true)]
    detached: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Outcome {
    if args.detached {
        service::leave_session();
    }
    let node_name = match args.hostname_override {
        Some(name) => name,
        None => HostFacts::collect([])?.hostname.to_lowercase(),
    };
    let pause = match args.pod_infra_container_image {
        Some(image) => image,
        None => default_pause_image()?,
    };
    let mut options = options(context, &node_name, &pause);
    if let Some(path) = args.pod_manifest_path {
        options.manifests = std::path::absolute(&path).context("cannot make the manifest path absolute")?;
    }
    let docker = match args.docker_host.as_deref() {
        Some(host) => crate::runtime::docker::Docker::connect(Some(host))
            .context("cannot use --docker-host")
            .map_err(Failure::usage)?
            .with_credentials(context.credentials()),
        None => context.docker()?,
    };
    let stop = CancellationToken::new();
    let ended = agent::run(options, docker, context.clock.clone(), stop.clone());
    tokio::pin!(ended);
    tokio::select! {
        result = &mut ended => result?,
        () = interrupted() => {
            stop.cancel();
            ended.await?;
        }
    }
    Ok(Exit::Done)
}

/// The agent's settings on this host.
pub(super) fn options(context: &Context, node_name: &str, pause_image: &str) -> Options {
    let mut options = Options::new(context.layout.clone(), node_name, pause_image);
    options.ledger = Arc::new(Journal::of(&context.layout));
    options
}

fn default_pause_image() -> Result<String, Failure> {
    let version: KubernetesVersion = DEFAULT_VERSION.parse().map_err(|error| anyhow!("{error}"))?;
    Ok(format!("{DEFAULT_IMAGE_REPOSITORY}/pause:{}", version.pause_tag()))
}
