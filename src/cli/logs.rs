//! `plinth logs`: what `kubectl logs` shows, from the engine: without an API server, and without an agent.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use anyhow::anyhow;
use futures_util::StreamExt as _;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;

use super::{Context, Failure, Outcome};
use crate::agent::client::AgentClient;
use crate::agent::log_choice::{Candidate, Question, choose};
use crate::agent::source::memory::recall_pod;
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
    let recall = |uid: &str| {
        let mut pod = recall_pod(&context.layout.pods(), uid, &node)?.to_pod();
        // Where the node has another name than the agent gave it, the UID comes out as another one.
        pod.metadata.uid = Some(uid.to_owned());
        Some(pod)
    };
    let candidates = candidates(api, containers, &node, recall);
    let question = Question {
        pod: &args.pod,
        namespace: args.namespace.as_deref(),
        container: args.container.as_deref(),
        previous: args.previous,
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

/// What an agent knows and what the engine has, by pod. `recall` finds the manifest of a UID that no agent told, for
/// `node` as all of them.
fn candidates(
    api: Vec<Pod>,
    containers: Vec<Container>,
    node: &str,
    recall: impl Fn(&str) -> Option<Pod>,
) -> Vec<Candidate> {
    let suffix = format!("-{}", node.to_lowercase());
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
            let read = pod.as_ref().and_then(|pod| pod.metadata.name.as_deref()).unwrap_or(&name);
            let short_name = read.strip_suffix(&suffix).unwrap_or_default().to_owned();
            Candidate { namespace, name, short_name, pod, containers }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::runtime::State;

    fn container(name: &str, uid: &str, created_at: i64) -> Container {
        let labels = [(labels::POD_NAMESPACE, "ns"), (labels::POD_NAME, name), (labels::POD_UID, uid)];
        let created_at = Timestamp::from_second(created_at).unwrap();
        Container::bare(format!("{name}-{uid}"), &labels, State::Created { error: None }, created_at)
    }

    fn pod(name: &str, uid: &str) -> Pod {
        let text = serde_json::json!({ "metadata": { "namespace": "ns", "name": name, "uid": uid } });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn agent_engine_and_kept_manifests_are_put_together() {
        let containers =
            vec![container("told-node", "t", 0), container("kept-other", "k0", 0), container("kept-other", "k1", 1)];
        let containers = [containers, vec![container("left-node", "l", 0), container("strange", "s", 0)]].concat();
        // The agent of the kept one called the node otherwise.
        let recall = |uid: &str| (uid == "k1").then(|| pod("kept-node", uid));
        let found = candidates(vec![pod("told-node", "t"), pod("new-node", "n")], containers, "Node", recall);
        let found: Vec<_> = found
            .iter()
            .map(|one| {
                let uid = one.pod.as_ref().and_then(|pod| pod.metadata.uid.as_deref());
                (one.name.as_str(), one.short_name.as_str(), uid, one.containers.len())
            })
            .collect();
        assert_eq!(
            found,
            [
                ("kept-other", "kept", Some("k1"), 2),
                ("left-node", "left", None, 1),
                ("new-node", "new", Some("n"), 0),
                ("strange", "", None, 1),
                ("told-node", "told", Some("t"), 1),
            ]
        );
    }
}
