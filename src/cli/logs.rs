//! `plinth logs`: what `kubectl logs` shows, from the engine: without an API server, and without an agent.

mod choose;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use anyhow::anyhow;
use futures_util::StreamExt as _;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;

use self::choose::{Candidate, Question, choose};
use super::{Context, Failure, Outcome};
use crate::agent::client::AgentClient;
use crate::agent::source::file::recall_pod;
use crate::agent::step::uid_of;
use crate::config::{self, HostFacts};
use crate::error::Exit;
use crate::runtime::{Container, LogQuery, Runtime as _, labels};
use crate::takedown;
use crate::ui::Format;

/// Flags are kubectl's.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name of the pod, with or without the node's name at its end
    #[arg(value_name = "POD")]
    pod: String,
    /// Container; the only one, that of the annotation kubectl.kubernetes.io/default-container or the first one unless
    /// given
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Namespace of the pod; any unless given
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Show the instance that ended last
    #[arg(short, long)]
    previous: bool,
    /// Show so many lines from the end; all of them for -1
    #[arg(long, value_name = "LINES", default_value_t = -1, allow_negative_numbers = true)]
    tail: i64,
    /// Show only what is younger than this, like 5s, 2m or 3h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: Option<Duration>,
    /// Begin each line with when it was written
    #[arg(long)]
    timestamps: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    config::duration::parse(text).ok_or_else(|| "not a duration like 5s, 2m or 3h".to_owned())
}

pub(super) async fn run(args: Args, context: &Context) -> Outcome {
    if context.printer.mode().format == Format::Json {
        return Err(Failure::usage(anyhow!("`plinth logs` shows what containers wrote, which is no JSON document")));
    }
    let docker = context.docker()?;
    let (node, api) = match AgentClient::new(&context.layout)?.pods().await {
        Ok((node, pods)) => (node, pods),
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "no agent answers; the engine is asked alone");
            (HostFacts::collect([])?.hostname.to_lowercase(), Vec::new())
        }
    };
    let containers = match takedown::agent_id(&context.layout)? {
        Some(agent) => docker.list(&agent).await?,
        None => Vec::new(),
    };
    let recall = |uid: &str| recall_pod(&context.layout.pods(), uid, &node).map(|pod| pod.to_pod());
    let candidates = candidates(api, containers, recall);
    let question = Question {
        pod: &args.pod,
        namespace: args.namespace.as_deref(),
        container: args.container.as_deref(),
        previous: args.previous,
        node: &node.to_lowercase(),
    };
    let choice = choose(&candidates, question).map_err(|error| Failure::hinted(error, Exit::Failed))?;
    if let Some(note) = &choice.note {
        context.printer.line(note);
    }
    let since = args.since.and_then(|age| SignedDuration::try_from(age).ok());
    let query = LogQuery {
        tail: u64::try_from(args.tail).ok(),
        since: since.and_then(|age| context.clock.now().checked_sub(age).ok()),
        timestamps: args.timestamps,
        follow: args.follow,
    };
    // Nothing has to be put in order at the end: a signal may end this at any time.
    let mut log = docker.read_log(&choice.id, query);
    while let Some(part) = log.next().await {
        match context.printer.output(&part?) {
            // As `head` does when it has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            result => result?,
        }
    }
    Ok(Exit::Done)
}

/// What an agent knows and what the engine has, by pod. `recall` finds the manifest of a UID that no agent told.
fn candidates(api: Vec<Pod>, containers: Vec<Container>, recall: impl Fn(&str) -> Option<Pod>) -> Vec<Candidate> {
    let mut found: BTreeMap<(String, String), (Option<Pod>, Vec<Container>)> = BTreeMap::new();
    for pod in api {
        let key = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        if let (Some(namespace), Some(name)) = key {
            found.entry((namespace, name)).or_default().0 = Some(pod);
        }
    }
    for container in containers {
        let label = |label: &str| container.labels.get(label).cloned();
        if let (Some(namespace), Some(name)) = (label(labels::POD_NAMESPACE), label(labels::POD_NAME)) {
            found.entry((namespace, name)).or_default().1.push(container);
        }
    }
    found
        .into_iter()
        .map(|((namespace, name), (pod, containers))| {
            let newest = containers.iter().max_by_key(|container| container.created_at);
            let pod = pod.or_else(|| recall(uid_of(newest?)));
            Candidate { namespace, name, pod, containers }
        })
        .collect()
}
