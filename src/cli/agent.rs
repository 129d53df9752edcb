//! `plinth agent`.

mod kubelet_api;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use k8s_openapi::api::core::v1::Taint;
use tokio_util::sync::CancellationToken;

use super::{Context, Failure, Outcome, interrupted};
use crate::agent::kubelet_config::KubeletConfig;
use crate::agent::node::{Registration, flags};
use crate::agent::source::http::Endpoint;
use crate::agent::{self, Options};
use crate::config::{ConfigFile, HostFacts, duration};
use crate::error::Exit;
use crate::journal::Journal;
use crate::release::{DEFAULT_IMAGE_REPOSITORY, DEFAULT_VERSION, KubernetesVersion};
use crate::runtime::docker::Docker;
use crate::service;

/// Flags are the kubelet's wherever it has them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Settings in the kubelet's format (kubelet.config.k8s.io/v1beta1); flags win over them
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of static pod manifests, or a single manifest; /etc/kubernetes/manifests unless any source is given
    #[arg(long, value_name = "PATH")]
    pod_manifest_path: Option<PathBuf>,
    /// How often the manifests are read without an event
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    file_check_frequency: Option<Duration>,
    /// URL of further manifests: a Pod, or a list of kind `PodList`
    #[arg(long, value_name = "URL")]
    manifest_url: Option<Hidden>,
    /// Headers to send to it, as NAME:VALUE[,NAME:VALUE…]; can be repeated. A file is the better place for secrets
    #[arg(long, value_name = "HEADERS")]
    manifest_url_header: Vec<Hidden>,
    /// How often the URL is asked
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    http_check_frequency: Option<Duration>,
    /// Name of this node; its host name unless given
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// Image of the sandboxes of pods that need one
    #[arg(long, value_name = "IMAGE")]
    pod_infra_container_image: Option<String>,
    /// Address of the container engine; that of DOCKER_HOST unless given
    #[arg(long, value_name = "URL")]
    docker_host: Option<String>,
    /// Register this host as a node of its cluster, and show its static pods there
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    register_node: bool,
    /// How the API server is reached as a node; need not be there yet
    #[arg(long, value_name = "FILE", default_value = "/etc/kubernetes/kubelet.conf")]
    kubeconfig: PathBuf,
    /// Taints of the node when it is first registered, as KEY=VALUE:EFFECT[,…]
    #[arg(long, value_name = "TAINTS", value_delimiter = ',', value_parser = flags::taint)]
    register_with_taints: Vec<Taint>,
    /// Labels of the node, as KEY=VALUE[,…]
    #[arg(long, value_name = "LABELS", value_delimiter = ',', value_parser = flags::label)]
    node_labels: Vec<(String, String)>,
    /// Address of the node; that of its default route unless given
    #[arg(long, value_name = "IP")]
    node_ip: Option<IpAddr>,
    #[command(flatten)]
    kubelet_api: kubelet_api::Serving,
    /// Leave the session of the terminal
    #[arg(long, hide = true)]
    detached: bool,
}

/// What may hold a secret.
#[derive(Clone)]
struct Hidden(String);

impl From<String> for Hidden {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let found = duration::parse(text).filter(|duration| !duration.is_zero());
    found.ok_or_else(|| "expected a number with a unit, like `20s` or `1m30s`".to_owned())
}

pub(super) async fn run(args: Args, context: &Context) -> Outcome {
    if args.detached {
        service::leave_session();
    }
    let (options, docker) = prepare(&args, context)?;
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

/// What an agent with this command line, `agent` and its flags, works with.
pub(super) fn of_command_line(arguments: &[String], context: &Context) -> Result<(Options, Docker), Failure> {
    #[derive(clap::Parser)]
    #[command(no_binary_name = false)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }
    let line = <Line as clap::Parser>::try_parse_from(arguments).context("cannot read the agent's command line")?;
    prepare(&line.args, context)
}

/// Brings flags, file and host together.
fn prepare(args: &Args, context: &Context) -> Result<(Options, Docker), Failure> {
    let config = match &args.config {
        Some(path) => read_config(path)?,
        None => KubeletConfig::default(),
    };
    let node_name = match &args.hostname_override {
        Some(name) => name.trim().to_lowercase(),
        None => HostFacts::collect([])?.hostname.to_lowercase(),
    };
    let pause = match &args.pod_infra_container_image {
        Some(image) => image.clone(),
        None => default_pause_image()?,
    };
    let mut options = Options::new(context.layout.clone(), node_name, pause);
    options.ledger = Arc::new(Journal::of(&context.layout));
    settle(&mut options, args, config)?;
    options.node_address = args.node_ip;
    options.register = args.register_node.then(|| Registration {
        kubeconfig: context.layout.below_root(&args.kubeconfig),
        labels: args.node_labels.iter().cloned().collect(),
        taints: args.register_with_taints.clone(),
        kubelet_port: options.kubelet_api.as_ref().map(|settings| settings.listen.port()),
    });
    let docker = match args.docker_host.as_deref() {
        Some(host) => Docker::connect(Some(host))
            .context("cannot use --docker-host")
            .map_err(Failure::usage)?
            .with_credentials(context.credentials()),
        None => context.docker()?,
    };
    Ok((options, docker))
}

fn read_config(path: &Path) -> Result<KubeletConfig, Failure> {
    let name = path.display().to_string();
    let directory = std::path::absolute(path).ok().and_then(|path| path.parent().map(Path::to_path_buf));
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}")).map_err(Failure::usage)?;
    KubeletConfig::read(&ConfigFile { name: &name, text: &text }, &directory.unwrap_or_default())
        .map_err(|errors| Failure::hinted(errors, Exit::Usage))
}

/// Brings flags and file together: a flag wins over its field.
fn settle(options: &mut Options, args: &Args, config: KubeletConfig) -> Result<(), Failure> {
    let path = match &args.pod_manifest_path {
        Some(path) => Some(std::path::absolute(path).context("cannot make the manifest path absolute")?),
        None => config.static_pod_path.clone(),
    };
    let url = args.manifest_url.as_ref().map(|url| ("--manifest-url", &url.0));
    let url = url.or(config.static_pod_url.as_ref().map(|url| ("staticPodURL", url)));
    let headers = match args.manifest_url_header.as_slice() {
        [] => config.static_pod_url_header.clone(),
        given => headers(given).map_err(Failure::usage)?,
    };
    options.url = match url {
        None => None,
        Some((field, url)) => {
            let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let endpoint = Endpoint::new(url, headers);
            Some(endpoint.map_err(|error| Failure::usage(anyhow!("{field} {error}")))?)
        }
    };
    if path.is_some() || options.url.is_some() {
        options.manifests = path;
    }
    let period = |flag: Option<Duration>, field: Option<Duration>, usual: Duration| flag.or(field).unwrap_or(usual);
    options.file_check_period =
        period(args.file_check_frequency, config.file_check_frequency, options.file_check_period);
    options.http_check_period =
        period(args.http_check_frequency, config.http_check_frequency, options.http_check_period);
    options.kubelet_api = args.kubelet_api.settings(&options.layout, &config.server).map_err(Failure::usage)?;
    config.apply_back_off(&mut options.timings);
    options.log_limits = config.log_limits();
    if let Some(path) = &args.config {
        options.notes.extend(config.note(&path.display().to_string()));
    }
    if let Some(path) = config.pod_logs_dir {
        options.pod_logs = path;
    }
    Ok(())
}

/// Headers as the kubelet's flag has them: pairs with a colon between, several of them with commas.
fn headers(given: &[Hidden]) -> Result<Vec<(String, String)>, anyhow::Error> {
    let pairs = given.iter().flat_map(|Hidden(text)| text.split(',')).filter(|pair| !pair.trim().is_empty());
    pairs
        .enumerate()
        .map(|(index, pair)| {
            // The pair itself may hold a secret.
            let (name, value) = pair.split_once(':').ok_or_else(|| {
                anyhow!("--manifest-url-header: pair {} has no colon; expected NAME:VALUE", index + 1)
            })?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        })
        .collect()
}

fn default_pause_image() -> Result<String, Failure> {
    let version: KubernetesVersion = DEFAULT_VERSION.parse().map_err(|error| anyhow!("{error}"))?;
    Ok(format!("{DEFAULT_IMAGE_REPOSITORY}/pause:{}", version.pause_tag()))
}
