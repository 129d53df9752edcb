//! Which container's log is meant, as `kubectl logs` and the kubelet decide it: for `plinth logs`, and for the kubelet's
//! `/containerLogs`. Pure.

use k8s_openapi::api::core::v1::{Container as Spec, Pod};

use super::step::{SANDBOX, attempt_of, name_of, uid_of};
use crate::error::Hint;
use crate::runtime::{Container, State};

/// Annotation that names the container to show unless another one is asked for (kubectl's).
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// There is no such log. The words are those of kubectl, the API server and the kubelet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChoiceError {
    /// Nothing is known of such a pod.
    #[error("pods \"{name}\" not found")]
    NoSuchPod { name: String, there: Vec<String> },
    /// The name is taken in several namespaces.
    #[error("pods \"{name}\" are in several namespaces: {}", namespaces.join(", "))]
    Ambiguous { name: String, namespaces: Vec<String> },
    /// The pod has no such container.
    #[error("container {container} is not valid for pod {pod}")]
    NoSuchContainer { container: String, pod: String, there: String },
    /// It has not been started.
    #[error("container \"{container}\" in pod \"{pod}\" is waiting to start: {why}")]
    Waiting { container: String, pod: String, why: String, details: String },
    /// It has not ended, or what had ended is removed.
    #[error("previous terminated container \"{container}\" in pod \"{pod}\" not found")]
    NoPrevious { container: String, pod: String },
}

impl Hint for ChoiceError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::NoSuchPod { there, .. } if there.is_empty() => Vec::new(),
            Self::NoSuchPod { there, .. } => vec![format!("the pods here are: {}", there.join(", "))],
            Self::Ambiguous { .. } => vec!["name the one: -n NAMESPACE".to_owned()],
            Self::NoSuchContainer { there, .. } => vec![format!("its containers are: {there}")],
            Self::Waiting { details, .. } if !details.is_empty() => vec![details.clone()],
            Self::Waiting { .. } | Self::NoPrevious { .. } => Vec::new(),
        }
    }
}

/// A pod of which there may be logs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Candidate {
    /// Namespace.
    pub(crate) namespace: String,
    /// Name, with that of the node at its end.
    pub(crate) name: String,
    /// Name without that of the node, as the manifest has it; empty where nobody knows it.
    pub(crate) short_name: String,
    /// Its specification, and its status where an agent told it. Unknown for what is left of a pod whose manifest is
    /// gone.
    pub(crate) pod: Option<Pod>,
    /// Its containers in the engine.
    pub(crate) containers: Vec<Container>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Question<'a> {
    /// Of the pod, with or without that of the node at its end.
    pub(crate) pod: &'a str,
    /// Any when `None`.
    pub(crate) namespace: Option<&'a str>,
    /// The default one when `None`.
    pub(crate) container: Option<&'a str>,
    /// Of the instance before the present one.
    pub(crate) previous: bool,
}

/// The log to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Id of the container.
    pub(crate) id: String,
    /// What to tell besides.
    pub(crate) note: Option<String>,
}

/// A container of a pod, instances oldest first.
struct Part<'a> {
    name: &'a str,
    init: bool,
    spec: Option<&'a Spec>,
    instances: Vec<&'a Container>,
}

/// Decides whose log is shown.
pub(crate) fn choose(candidates: &[Candidate], question: Question<'_>) -> Result<Choice, ChoiceError> {
    let candidate = find(candidates, question)?;
    let parts = parts(candidate);
    let mut note = None;
    let part = |name: &str| parts.iter().find(|part| part.name == name);
    let annotation = candidate.pod.as_ref().and_then(|pod| pod.metadata.annotations.as_ref()?.get(DEFAULT_CONTAINER));
    let chosen = match (question.container, annotation.map(|name| (name, part(name)))) {
        (Some(name), _) => part(name),
        (None, Some((_, Some(part)))) => Some(part),
        (None, annotated) => {
            let first = parts.iter().find(|part| !part.init);
            note = match (annotated, first) {
                (Some((name, _)), _) => {
                    Some(format!("Default container name {name:?} not found in pod {}", candidate.name))
                }
                (None, Some(first)) if parts.len() > 1 => {
                    Some(format!("Defaulted container {:?} out of: {}", first.name, all(&parts)))
                }
                _ => None,
            };
            first
        }
    };
    let Some(chosen) = chosen else {
        return Err(ChoiceError::NoSuchContainer {
            container: question.container.unwrap_or_default().to_owned(),
            pod: candidate.name.clone(),
            there: all(&parts),
        });
    };
    Ok(Choice { id: instance(candidate, chosen, question.previous)?, note })
}

fn find<'a>(candidates: &'a [Candidate], question: Question<'_>) -> Result<&'a Candidate, ChoiceError> {
    let in_namespace = |one: &&Candidate| question.namespace.is_none_or(|namespace| one.namespace == namespace);
    let there = || candidates.iter().filter(in_namespace);
    for name_of in [|one: &'a Candidate| &one.name, |one: &'a Candidate| &one.short_name] {
        let named: Vec<_> = there().filter(|one| !question.pod.is_empty() && name_of(one) == question.pod).collect();
        match named[..] {
            [] => {}
            [one] => return Ok(one),
            _ => {
                let namespaces = named.iter().map(|one| one.namespace.clone()).collect();
                return Err(ChoiceError::Ambiguous { name: question.pod.to_owned(), namespaces });
            }
        }
    }
    let there = there().map(|one| format!("{}/{}", one.namespace, one.name)).collect();
    Err(ChoiceError::NoSuchPod { name: question.pod.to_owned(), there })
}

/// The containers of a pod: the regular ones, then init containers, as kubectl lists them. Without a specification
/// those that were made, in that order.
fn parts(candidate: &Candidate) -> Vec<Part<'_>> {
    let spec = candidate.pod.as_ref().and_then(|pod| pod.spec.as_ref());
    let mut uid = candidate.pod.as_ref().and_then(|pod| pod.metadata.uid.as_deref());
    let mut found: Vec<_> = candidate.containers.iter().filter(|container| name_of(container) != SANDBOX).collect();
    found.sort_by_key(|container| (container.created_at, attempt_of(container)));
    if spec.is_none() {
        uid = found.last().map(|newest| uid_of(newest));
    }
    found.retain(|container| Some(uid_of(container)) == uid);
    found.sort_by_key(|container| attempt_of(container));
    let part = |name: &str| found.iter().copied().filter(|container| name_of(container) == name).collect::<Vec<_>>();
    if let Some(spec) = spec {
        let regular = spec.containers.iter().map(|spec| (spec, false));
        let init = spec.init_containers.iter().flatten().map(|spec| (spec, true));
        return regular
            .chain(init)
            .map(|(spec, init)| Part { name: &spec.name, init, spec: Some(spec), instances: part(&spec.name) })
            .collect();
    }
    let mut names: Vec<&str> = Vec::new();
    for container in &found {
        if !names.contains(&name_of(container)) {
            names.push(name_of(container));
        }
    }
    names.into_iter().map(|name| Part { name, init: false, spec: None, instances: part(name) }).collect()
}

fn all(parts: &[Part<'_>]) -> String {
    let name = |part: &Part<'_>| if part.init { format!("{} (init)", part.name) } else { part.name.to_owned() };
    parts.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// The kubelet's `validateContainerLogStatus`.
fn instance(candidate: &Candidate, part: &Part<'_>, previous: bool) -> Result<String, ChoiceError> {
    let (container, pod) = (part.name.to_owned(), candidate.name.clone());
    let has_ended = |container: &&&Container| matches!(container.state, State::Exited(_));
    let (newest, older) = match part.instances.split_last() {
        Some((newest, older)) => (Some(*newest), older),
        None => (None, &part.instances[..]),
    };
    let before = older.iter().rev().find(has_ended);
    let id = match newest.map(|newest| (newest, &newest.state)) {
        // One that is going to be restarted is the previous one already.
        Some((newest, State::Exited(end))) if !previous || restarts(candidate, part, end.exit_code) => {
            Some(newest.id.clone())
        }
        Some((newest, State::Running { .. })) if !previous => Some(newest.id.clone()),
        _ => before.map(|container| container.id.clone()),
    };
    match (id, previous) {
        (Some(id), _) => Ok(id),
        (None, true) => Err(ChoiceError::NoPrevious { container, pod }),
        (None, false) => {
            let (reason, details) = waiting(candidate, part, newest);
            let why = match reason.as_str() {
                "ErrImagePull" => "image can't be pulled".to_owned(),
                "ImagePullBackOff" => "trying and failing to pull image".to_owned(),
                _ => reason,
            };
            Err(ChoiceError::Waiting { container, pod, why, details })
        }
    }
}

/// Why it does not run, and details: the engine's words of a start that failed, or else what the agent says.
fn waiting(candidate: &Candidate, part: &Part<'_>, newest: Option<&Container>) -> (String, String) {
    let status = candidate.pod.as_ref().and_then(|pod| pod.status.as_ref());
    let statuses = status
        .into_iter()
        .flat_map(|status| status.container_statuses.iter().chain(&status.init_container_statuses).flatten());
    let told = statuses.into_iter().find(|status| status.name == part.name).and_then(|status| {
        let waiting = status.state.as_ref()?.waiting.as_ref()?;
        Some((waiting.reason.clone()?, waiting.message.clone().unwrap_or_default()))
    });
    match (newest.map(|newest| &newest.state), told) {
        (Some(State::Created { error: Some(error) }), told) => {
            (told.map_or_else(|| "RunContainerError".to_owned(), |(reason, _)| reason), error.clone())
        }
        (_, told) => told.unwrap_or_else(|| ("ContainerCreating".to_owned(), String::new())),
    }
}

fn restarts(candidate: &Candidate, part: &Part<'_>, exit_code: i64) -> bool {
    let spec = candidate.pod.as_ref().and_then(|pod| pod.spec.as_ref());
    let sidecar = part.spec.and_then(|spec| spec.restart_policy.as_deref()) == Some("Always");
    match spec.and_then(|spec| spec.restart_policy.as_deref()) {
        _ if sidecar => true,
        Some("Never") => false,
        Some("OnFailure") => exit_code != 0,
        _ => !part.init || exit_code != 0,
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::runtime::{Termination, labels};

    fn container(name: &str, attempt: u32, state: State) -> Container {
        let count = attempt.to_string();
        let labels = [(labels::CONTAINER_NAME, name), (labels::POD_UID, "u1"), (labels::RESTART_COUNT, &count)];
        let created_at = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(attempt.into());
        Container::bare(format!("{name}{attempt}"), &labels, state, created_at)
    }

    fn exited(exit_code: i64) -> State {
        State::Exited(Termination {
            exit_code,
            oom_killed: false,
            error: String::new(),
            started_at: Timestamp::UNIX_EPOCH,
            finished_at: Timestamp::UNIX_EPOCH,
        })
    }

    const RUNNING: State = State::Running { pid: 1, started_at: Timestamp::UNIX_EPOCH };
    const CREATED: State = State::Created { error: None };

    fn candidate(namespace: &str, name: &str, pod: &str, containers: Vec<Container>) -> Candidate {
        let pod = crate::yaml::manifest(format!("---\n{pod}").as_bytes()).unwrap();
        let pod = serde_json::from_value(pod).unwrap();
        Candidate {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            short_name: name.strip_suffix("-node").unwrap_or_default().to_owned(),
            pod: Some(pod),
            containers,
        }
    }

    fn question(pod: &str) -> Question<'_> {
        Question { pod, ..Question::default() }
    }

    const TWO: &str = "{metadata: {uid: u1}, spec: {containers: [{name: a}, {name: b}], initContainers: [{name: i}]}}";

    #[test]
    fn pods_are_found_with_and_without_the_name_of_the_node() {
        let one = |namespace: &str, name: &str| {
            let pod = format!("{{metadata: {{uid: u1}}, spec: {{containers: [{{name: {namespace}}}]}}}}");
            candidate(namespace, name, &pod, vec![container(namespace, 0, RUNNING)])
        };
        let there =
            [one("x", "web-node"), one("w", "web-node"), one("x", "api-node"), one("z", "api"), one("x", "a-b-node")];
        let table: [(&str, Option<&str>, Result<&str, &str>); 10] = [
            ("web", Some("x"), Ok("x0")),
            ("web-node", Some("w"), Ok("w0")),
            ("web", None, Err("pods \"web\" are in several namespaces: x, w")),
            ("web", Some("z"), Err("pods \"web\" not found")),
            // The whole name counts before the shortened one.
            ("api", None, Ok("z0")),
            ("api", Some("x"), Ok("x0")),
            ("api-node", None, Ok("x0")),
            ("a", None, Err("pods \"a\" not found")),
            ("a-b", None, Ok("x0")),
            ("", None, Err("pods \"\" not found")),
        ];
        for (name, namespace, expected) in table {
            let chosen = choose(&there, Question { namespace, ..question(name) });
            let chosen = chosen.map(|choice| choice.id).map_err(|error| error.to_string());
            assert_eq!(chosen.as_deref().map_err(String::as_str), expected, "{name} in {namespace:?}");
        }
        let hint = choose(&there, Question { namespace: Some("z"), ..question("web") }).unwrap_err().hints();
        assert_eq!(hint, ["the pods here are: z/api"]);
    }

    #[test]
    fn the_default_container_is_kubectls() {
        type Row<'a> = (&'a str, Option<&'a str>, Result<(&'a str, Option<&'a str>), &'a str>);

        let containers = ["a", "b", "i"].map(|name| container(name, 0, RUNNING)).to_vec();
        let annotated =
            |name: &str| TWO.replace("uid: u1", &format!("uid: u1, annotations: {{{DEFAULT_CONTAINER}: {name}}}"));
        let table: [Row<'_>; 8] = [
            ("{metadata: {uid: u1}, spec: {containers: [{name: a}]}}", None, Ok(("a0", None))),
            (TWO, None, Ok(("a0", Some("Defaulted container \"a\" out of: a, b, i (init)")))),
            (TWO, Some("b"), Ok(("b0", None))),
            (TWO, Some("i"), Ok(("i0", None))),
            (TWO, Some("c"), Err("container c is not valid for pod web-node")),
            (&annotated("b"), None, Ok(("b0", None))),
            (&annotated("b"), Some("a"), Ok(("a0", None))),
            (&annotated("c"), None, Ok(("a0", Some("Default container name \"c\" not found in pod web-node")))),
        ];
        for (pod, name, expected) in table {
            let there = [candidate("ns", "web-node", pod, containers.clone())];
            let chosen = choose(&there, Question { container: name, ..question("web") });
            let chosen = chosen.map_err(|error| error.to_string());
            let chosen = chosen.as_ref().map(|one| (one.id.as_str(), one.note.as_deref()));
            assert_eq!(chosen.map_err(String::as_str), expected, "{name:?} of {pod}");
        }
    }

    #[test]
    fn the_instance_is_the_kubelets_choice() {
        let failed_to_start = || State::Created { error: Some("no such file".to_owned()) };
        let waits = |why: &str| Err(format!("container \"a\" in pod \"web-node\" is waiting to start: {why}"));
        let no_previous = || Err("previous terminated container \"a\" in pod \"web-node\" not found".to_owned());
        let id = |attempt: u32| Ok(format!("a{attempt}"));
        let table = [
            ("runs", "Always", vec![RUNNING], id(0), no_previous()),
            ("runs again", "Always", vec![exited(1), RUNNING], id(1), id(0)),
            ("backs off", "Always", vec![exited(1), exited(1)], id(1), id(1)),
            ("backs off the first time", "Always", vec![exited(0)], id(0), id(0)),
            ("is being started again", "Always", vec![exited(1), CREATED], id(0), id(0)),
            ("could not be started again", "Always", vec![exited(1), failed_to_start()], id(0), id(0)),
            ("is over", "Never", vec![exited(1)], id(0), no_previous()),
            ("has succeeded", "OnFailure", vec![exited(1), exited(0)], id(1), id(0)),
            ("has failed", "OnFailure", vec![exited(1)], id(0), id(0)),
            ("is not made", "Always", vec![], waits("ContainerCreating"), no_previous()),
            ("is being started", "Always", vec![CREATED], waits("ContainerCreating"), no_previous()),
            ("cannot be started", "Always", vec![failed_to_start()], waits("RunContainerError"), no_previous()),
        ];
        for (what, policy, states, now, before) in table {
            let pod =
                format!("{{metadata: {{uid: u1}}, spec: {{restartPolicy: {policy}, containers: [{{name: a}}]}}}}");
            let containers = states.into_iter().zip(0..).map(|(state, attempt)| container("a", attempt, state));
            let mut containers: Vec<_> = containers.collect();
            // The engine lists them in no particular order.
            containers.reverse();
            let there = [candidate("ns", "web-node", &pod, containers)];
            for (previous, expected) in [(false, now), (true, before)] {
                let chosen = choose(&there, Question { previous, ..question("web") });
                let chosen = chosen.map(|choice| choice.id).map_err(|error| error.to_string());
                assert_eq!(chosen, expected, "{what}, previous: {previous}");
            }
        }
    }

    #[test]
    fn why_a_container_waits_is_said_in_the_kubelets_words() {
        for (reason, words) in [
            ("ErrImagePull", "image can't be pulled"),
            ("ImagePullBackOff", "trying and failing to pull image"),
            ("PodInitializing", "PodInitializing"),
            ("CreateContainerConfigError", "CreateContainerConfigError"),
        ] {
            let pod = format!(
                "{{metadata: {{uid: u1}}, spec: {{containers: [{{name: a}}]}}, status: {{containerStatuses: \
                 [{{name: a, image: i, imageID: '', ready: false, restartCount: 0, \
                 state: {{waiting: {{reason: {reason}, message: the details}}}}}}]}}}}"
            );
            let error = choose(&[candidate("ns", "web-node", &pod, vec![])], question("web")).unwrap_err();
            assert_eq!(error.to_string(), format!("container \"a\" in pod \"web-node\" is waiting to start: {words}"));
            assert_eq!(error.hints(), ["the details"]);
        }
    }

    #[test]
    fn init_containers_and_sidecars_have_policies_of_their_own() {
        let pod = "{metadata: {uid: u1}, spec: {containers: [{name: a}], initContainers: [{name: i}, \
                   {name: s, restartPolicy: Always}]}}";
        for (name, exit_code, expected) in [("i", 0, None), ("i", 1, Some("i0")), ("s", 0, Some("s0"))] {
            let there = [candidate("ns", "web-node", pod, vec![container(name, 0, exited(exit_code))])];
            let asked = Question { container: Some(name), previous: true, ..question("web") };
            assert_eq!(choose(&there, asked).ok().map(|choice| choice.id).as_deref(), expected, "{name} {exit_code}");
        }
    }

    #[test]
    fn without_a_manifest_the_containers_of_the_newest_pod_count() {
        let mut old = container("z", 7, exited(0));
        old.labels.insert(labels::POD_UID.to_owned(), "u0".to_owned());
        old.created_at = Timestamp::UNIX_EPOCH - SignedDuration::from_secs(1);
        let containers = vec![
            container("b", 1, RUNNING),
            old,
            container(SANDBOX, 0, RUNNING),
            container("a", 0, RUNNING),
            container("b", 0, exited(1)),
        ];
        let there = [Candidate { pod: None, ..candidate("ns", "web-node", TWO, containers) }];
        let chosen = choose(&there, question("web")).unwrap();
        assert_eq!(
            (chosen.id.as_str(), chosen.note.unwrap().as_str()),
            ("a0", "Defaulted container \"a\" out of: a, b")
        );
        let chosen = choose(&there, Question { container: Some("b"), previous: true, ..question("web") }).unwrap();
        assert_eq!(chosen.id, "b0");
        let there = [Candidate { containers: vec![], ..there[0].clone() }];
        assert!(choose(&there, question("web")).is_err());
    }
}
