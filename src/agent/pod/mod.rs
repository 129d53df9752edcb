//! A static pod: from the text of a manifest to the pod that is run.
//!
//! # Guarantees
//! - The UID is a function of the effective pod, the node's name and the absolute path of the file, and of nothing
//!   else: comments, key order, spelled-out defaults and the age of the file do not change it. For a pod from a URL it
//!   is one of the pod and the URL alone, the same on every node. It is versioned ([`identity`]) and pinned by a golden
//!   test, so that a new plinth takes over what the last one runs.
//! - A [`StaticPod`] has all API defaults filled in and contains nothing that the agent would silently ignore where
//!   that changes the meaning: such manifests are refused with a reason.
//!
//! Rules are the kubelet's (`pkg/kubelet/config/common.go`) unless a comment says otherwise.

mod defaults;
pub mod identity;
mod refuse;
pub(super) use defaults::DEFAULT_GRACE;
pub(super) use refuse::is_below;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::logline::in_one_line;
use crate::yaml::{self, YamlError};

/// Annotation: pods that must answer their readiness handler before this one is first started, comma separated.
pub const AFTER: &str = "plinth.dev/after";
/// Annotation: pods without which this one crashes, comma separated. It is not held for them, but its back-off ends when
/// one of them becomes ready.
pub const USES: &str = "plinth.dev/uses";
/// Annotation: how the pod is replaced. The one value is [`SURGE`]; without it the old one goes first.
pub const UPDATE: &str = "plinth.dev/update";
/// Value of [`UPDATE`]: the new one starts first and is proven beside the old one, see [`surge`](super::surge).
pub const SURGE: &str = "surge";
/// Annotation: the configuration hash, equal to the UID of the pod.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Annotation: which kind of source the pod comes from, `file` or `http`.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Annotation: when this agent first saw the pod. Added where a pod is published, it is no part of the identity.
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";

/// How long a pod without start-up and liveness probe may take until it answers.
pub const DEFAULT_BUDGET: Duration = Duration::from_mins(5);

/// Where a manifest was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin<'a> {
    /// In the file of this absolute path.
    File(&'a Path),
    /// At this URL, without credentials and query: renewing a signature makes no other pod of it.
    Url(&'a str),
}

impl<'a> From<&'a Path> for Origin<'a> {
    fn from(path: &'a Path) -> Self {
        Self::File(path)
    }
}

impl<'a> From<&'a PathBuf> for Origin<'a> {
    fn from(path: &'a PathBuf) -> Self {
        Self::File(path)
    }
}

impl<'a> Origin<'a> {
    /// The origin whose text this is: that of a file begins with `/`.
    pub fn of(text: &'a str) -> Self {
        if text.starts_with('/') { Self::File(Path::new(text)) } else { Self::Url(text) }
    }

    /// What kind of source has it.
    pub fn source(self) -> SourceKind {
        match self {
            Self::File(_) => SourceKind::File,
            Self::Url(_) => SourceKind::Http,
        }
    }
}

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// A kind of source. Of two pods with one name, that of the lesser kind runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceKind {
    /// A directory, or one file.
    File,
    /// A URL.
    Http,
}

impl SourceKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::File, Self::Http];

    /// As `kubernetes.io/config.source` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Http => "http",
        }
    }

    /// The kind that [`SourceKind::as_str`] calls so.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// Why a manifest is not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    /// It is neither YAML nor JSON, or a value has the wrong type.
    #[error("cannot be parsed as a Pod: {}", in_one_line(.0))]
    Parse(String),
    /// It is another kind of object.
    #[error("is a {} ({}); only Pods (v1) are run here", in_one_line(.kind), in_one_line(.api_version))]
    Kind {
        /// `kind` of the object.
        kind: String,
        /// `apiVersion` of the object.
        api_version: String,
    },
    /// It has no `metadata.name`.
    #[error("has no metadata.name")]
    NoName,
    /// It is a Pod that cannot be run as it is written; every reason.
    #[error("{}", in_one_line(&.0.join("; ")))]
    Refused(Vec<String>),
    /// One pod of a list cannot be run, and so none is.
    #[error("items[{index}]{} {reason}", name.as_ref().map_or_else(String::new, |name| format!(" ({})", in_one_line(name))))]
    Item {
        /// Its place, counted from 0.
        index: usize,
        /// Its `metadata.name`, if it has one.
        name: Option<String>,
        /// What is wrong with it.
        reason: Box<Self>,
    },
}

/// As many unknown fields are named, each in a warning of its own.
const MOST_UNKNOWN: usize = 20;

/// What is wrong with the text of a manifest, and where.
fn said(error: &YamlError) -> String {
    match error.line() {
        Some(line) => format!("line {line}: {}", error.reason()),
        None => error.reason().to_owned(),
    }
}

/// What a pod is known by: two pods of one key never run at the same time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    /// Namespace.
    pub namespace: String,
    /// Name with the node's name appended.
    pub name: String,
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod that can be run.
#[derive(Debug, Clone, PartialEq)]
pub struct StaticPod {
    /// Namespace and name.
    pub key: PodKey,
    /// `metadata.uid` of the manifest, or [`StaticPod::hash`].
    pub uid: String,
    /// Hash of everything that matters, 32 hexadecimal digits; containers carry it as `plinth.dev/spec-hash`.
    pub hash: String,
    /// Absolute path of the file, or the URL without credentials and query.
    pub origin: String,
    /// What kind of source it comes from.
    pub source: SourceKind,
    /// Metadata with name, namespace, UID and annotations filled in.
    pub metadata: ObjectMeta,
    /// Spec with defaults filled in.
    pub spec: PodSpec,
    /// The pods of `plinth.dev/after`.
    pub after: Vec<PodKey>,
    /// The pods of `plinth.dev/uses`.
    pub uses: Vec<PodKey>,
    /// What is accepted, but not as its author may think.
    pub warnings: Vec<String>,
    /// The text it was read from.
    pub manifest: String,
}

impl StaticPod {
    /// Reads the manifest `text` of `origin` for the node `node`.
    pub fn read<'a>(text: &str, origin: impl Into<Origin<'a>>, node: &str) -> Result<Self, PodError> {
        let object = Object::read(text)?;
        object.expect("Pod")?;
        Self::from_object(object, Some(text), origin.into(), node)
    }

    /// Reads what a URL answers: a Pod, or a `PodList`, of which either all pods are good or none counts.
    pub fn read_all(text: &str, origin: Origin<'_>, node: &str) -> Result<Vec<Self>, PodError> {
        let mut object = Object::read(text)?;
        if object.kind != "PodList" {
            object.expect("Pod")?;
            return Ok(vec![Self::from_object(object, Some(text), origin, node)?]);
        }
        object.expect("PodList")?;
        let items = match object.tree.get_mut("items").map(Value::take) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => return Err(PodError::Parse("`items` is no list".to_owned())),
        };
        let read = |(index, tree): (usize, Value)| {
            let name = tree.pointer("/metadata/name").and_then(Value::as_str).map(str::to_owned);
            Object::item(tree)
                .and_then(|object| Self::from_object(object, None, origin, node))
                .map_err(|reason| PodError::Item { index, name, reason: Box::new(reason) })
        };
        items.into_iter().enumerate().map(read).collect()
    }

    /// `text` is what `object` was read from; an item of a list has none of its own.
    fn from_object(object: Object, text: Option<&str>, origin: Origin<'_>, node: &str) -> Result<Self, PodError> {
        let Object { mut tree, mut warnings, .. } = object;
        let manifest = text.map_or_else(|| tree.to_string(), str::to_owned);
        quantities_to_strings(&mut tree);
        let pod: Pod = serde_json::from_value(tree.clone()).map_err(|error| {
            // Once more from the text, for an error that names the line.
            let placed = text.and_then(|text| yaml::manifest::<Pod>(text.as_bytes()).err());
            PodError::Parse(placed.map_or_else(|| error.to_string(), |error| said(&error)))
        })?;
        warnings.extend(unknown_fields(&tree, &serde_json::to_value(&pod).unwrap_or_default()));
        let mut pod = Self::from_pod(pod, origin, node)?;
        warnings.append(&mut pod.warnings);
        pod.warnings = warnings;
        pod.manifest = manifest;
        Ok(pod)
    }

    fn from_pod(pod: Pod, origin: Origin<'_>, node: &str) -> Result<Self, PodError> {
        let mut metadata = pod.metadata;
        let mut spec = pod.spec.unwrap_or_default();
        let name = metadata.name.clone().filter(|name| !name.is_empty()).ok_or(PodError::NoName)?;
        let namespace =
            metadata.namespace.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned());
        let suffix = node.to_lowercase();
        let key = PodKey { name: format!("{name}-{suffix}"), namespace };
        let source = origin.source();

        let mut warnings = Vec::new();
        // It is also what a pod has that says nothing.
        let wants_cluster_dns = match spec.dns_policy.as_deref() {
            Some("ClusterFirst") => spec.host_network != Some(true),
            policy => policy == Some("ClusterFirstWithHostNet"),
        };
        if wants_cluster_dns {
            warnings.push("spec.dnsPolicy: there is no cluster DNS for static pods; it is the node's".to_owned());
        }
        defaults::fill(&mut spec);
        metadata.namespace = Some(key.namespace.clone());
        // Overwritten anyway, and what a URL answers is to be the same pod on every node.
        spec.node_name = None;
        let everywhere = (source == SourceKind::Http).then(|| identity::hash(&metadata, &spec, origin));
        spec.node_name = Some(node.to_owned());
        if source == SourceKind::File {
            spec.tolerations.get_or_insert_default().push(Toleration {
                effect: Some("NoExecute".to_owned()),
                operator: Some("Exists".to_owned()),
                ..Toleration::default()
            });
        }
        metadata.name = Some(key.name.clone());

        refuse::check(&key, &metadata, &spec, &mut warnings).map_err(PodError::Refused)?;

        let hash = everywhere.unwrap_or_else(|| identity::hash(&metadata, &spec, origin));
        let uid = metadata.uid.clone().filter(|uid| !uid.is_empty()).unwrap_or_else(|| hash.clone());
        let named = |annotation: &str| -> Vec<PodKey> {
            let names = metadata.annotations.as_ref().and_then(|annotations| annotations.get(annotation));
            names
                .into_iter()
                .flat_map(|names| names.split(','))
                .map(str::trim)
                .filter(|name| !name.is_empty())
                .map(|name| PodKey { namespace: key.namespace.clone(), name: format!("{name}-{suffix}") })
                .collect()
        };
        let (after, uses) = (named(AFTER), named(USES));
        metadata.uid = Some(uid.clone());
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(CONFIG_HASH.to_owned(), uid.clone());
        annotations.insert(CONFIG_SOURCE.to_owned(), source.as_str().to_owned());
        let (origin, manifest) = (origin.to_string(), String::new());
        Ok(Self { key, uid, hash, origin, source, metadata, spec, after, uses, warnings, manifest })
    }

    /// The regular containers.
    pub fn containers(&self) -> &[Container] {
        &self.spec.containers
    }

    /// The init containers, in order.
    pub fn init_containers(&self) -> &[Container] {
        self.spec.init_containers.as_deref().unwrap_or_default()
    }

    /// Whether the container called `name` is a sidecar: an init container that goes on running beside the regular ones.
    pub fn is_sidecar(&self, name: &str) -> bool {
        self.init_containers().iter().any(|container| container.name == name && is_sidecar(container))
    }

    /// Init containers that run to their end.
    pub fn plain_init_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers().iter().filter(|container| !is_sidecar(container))
    }

    /// Sidecars and regular containers: those that are probed, and that the pod's readiness depends on.
    pub fn lasting_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers().iter().filter(|container| is_sidecar(container)).chain(self.containers())
    }

    /// Init containers and regular ones.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers().iter().chain(self.containers())
    }

    /// The container called `name`, of either kind.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.all_containers().find(|container| container.name == name)
    }

    /// Whether the pod uses the node's network.
    pub fn host_network(&self) -> bool {
        self.spec.host_network == Some(true)
    }

    /// Whether the pod is replaced new-first.
    pub fn surges(&self) -> bool {
        self.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(UPDATE))
    }

    /// Whether the pod needs a sandbox: not when it is on the host's network, has one container that lasts and shares
    /// no process namespace, because then its containers have nothing in common.
    pub fn needs_sandbox(&self) -> bool {
        let alone = self.lasting_containers().count() == 1;
        !(self.host_network() && alone && self.spec.share_process_namespace != Some(true))
    }

    /// How long its containers may take to stop. At least 2 s per container, as the kubelet has it.
    pub fn grace(&self) -> Duration {
        grace(self.spec.termination_grace_period_seconds)
    }

    /// When containers of this pod are started again.
    pub fn restart_policy(&self) -> RestartPolicy {
        match self.spec.restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }

    /// When the container called `name` is started again: a sidecar always.
    pub fn restart_policy_of(&self, name: &str) -> RestartPolicy {
        if self.is_sidecar(name) { RestartPolicy::Always } else { self.restart_policy() }
    }

    /// How long the pod may take from the start of its containers until it answers: the longest start-up probe of its
    /// containers (or liveness probe, where there is none), and [`DEFAULT_BUDGET`] where there is neither.
    pub fn start_up_budget(&self) -> Duration {
        self.containers()
            .iter()
            .filter_map(|container| container.startup_probe.as_ref().or(container.liveness_probe.as_ref()))
            .map(|probe| {
                let [delay, period, failures] = [
                    probe.initial_delay_seconds.unwrap_or(0),
                    probe.period_seconds.unwrap_or(10),
                    probe.failure_threshold.unwrap_or(3),
                ]
                .map(i64::from);
                let whole = delay + period * failures;
                Duration::from_secs(u64::try_from(whole).unwrap_or(0))
            })
            .max()
            .unwrap_or(DEFAULT_BUDGET)
    }

    /// The API object, without status.
    pub fn to_pod(&self) -> Pod {
        Pod { metadata: self.metadata.clone(), spec: Some(self.spec.clone()), status: None }
    }
}

/// When containers are started again after they ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever the exit code was.
    Always,
    /// Only after a failure.
    OnFailure,
    /// Not at all.
    Never,
}

impl RestartPolicy {
    /// Whether a container that ended with `exit_code` is started again.
    pub fn restarts(self, exit_code: i64) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// Of an init container.
fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// How much time is always left between SIGTERM and SIGKILL (kubelet: `minimumGracePeriodInSeconds`).
pub const LEAST_GRACE: Duration = Duration::from_secs(2);

/// A negative value counts as 1, as for the kubelet.
pub(super) fn grace(seconds: Option<i64>) -> Duration {
    Duration::from_secs(u64::try_from(seconds.unwrap_or(30)).unwrap_or(0)).max(LEAST_GRACE)
}

/// A manifest of which only the kind is known.
struct Object {
    tree: Value,
    kind: String,
    api_version: String,
    warnings: Vec<String>,
}

impl Object {
    fn read(text: &str) -> Result<Self, PodError> {
        let tree = yaml::manifest(text.as_bytes()).map_err(|error| PodError::Parse(said(&error)))?;
        Self::of(tree)
    }

    fn of(mut tree: Value) -> Result<Self, PodError> {
        let mut warnings = Vec::new();
        // Go's decoder, which looks for these two keys, ignores case, and some published examples rely on it.
        for right in ["kind", "apiVersion"] {
            if let Some(object) = tree.as_object_mut()
                && !object.contains_key(right)
                && let Some(wrong) = object.keys().find(|key| key.eq_ignore_ascii_case(right)).cloned()
                && let Some(value) = object.remove(&wrong)
            {
                warnings.push(format!("the key `{wrong}` is read as `{right}`"));
                object.insert(right.to_owned(), value);
            }
        }
        let text = |key: &str| tree.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (kind, api_version) = (text("kind"), text("apiVersion"));
        if kind.is_empty() {
            return Err(PodError::Parse("it has no `kind`".to_owned()));
        }
        Ok(Self { tree, kind, api_version, warnings })
    }

    /// An item of a list: its kind goes without saying.
    fn item(mut tree: Value) -> Result<Self, PodError> {
        let Some(object) = tree.as_object_mut() else {
            return Err(PodError::Parse("it is no object".to_owned()));
        };
        object.entry("kind").or_insert("Pod".into());
        object.entry("apiVersion").or_insert("v1".into());
        let object = Self::of(tree)?;
        object.expect("Pod")?;
        Ok(object)
    }

    /// Refuses everything but a `kind` of `v1`.
    fn expect(&self, kind: &str) -> Result<(), PodError> {
        if (self.kind.as_str(), self.api_version.as_str()) == (kind, "v1") {
            return Ok(());
        }
        Err(PodError::Kind { kind: self.kind.clone(), api_version: self.api_version.clone() })
    }
}

/// Quantities may be written as numbers (`cpu: 1`); the typed object has strings only.
fn quantities_to_strings(tree: &mut Value) {
    const MAPS: [&str; 3] = ["limits", "requests", "overhead"];
    const SCALARS: [&str; 2] = ["sizeLimit", "divisor"];
    match tree {
        Value::Object(object) => {
            for (key, value) in object {
                if MAPS.contains(&key.as_str())
                    && let Value::Object(quantities) = value
                {
                    quantities.values_mut().for_each(number_to_string);
                } else if SCALARS.contains(&key.as_str()) {
                    number_to_string(value);
                } else {
                    quantities_to_strings(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(quantities_to_strings),
        _ => {}
    }
}

fn number_to_string(value: &mut Value) {
    if let Value::Number(number) = value {
        *value = Value::String(number.to_string());
    }
}

/// Fields of the manifest that the typed object does not have: dropped, as the kubelet drops them, but not in silence.
fn unknown_fields(written: &Value, read: &Value) -> Vec<String> {
    fn walk(path: &str, written: &Value, read: &Value, found: &mut Vec<String>) {
        match (written, read) {
            (Value::Object(written), Value::Object(read)) => {
                for (key, value) in written {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    match read.get(key) {
                        Some(read) => walk(&path, value, read, found),
                        None if value.is_null() || key == "status" => {}
                        None => found.push(format!("unknown field `{}` is ignored", in_one_line(&path))),
                    }
                }
            }
            (Value::Array(written), Value::Array(read)) => {
                for (index, (written, read)) in written.iter().zip(read).enumerate() {
                    walk(&format!("{path}[{index}]"), written, read, found);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk("", written, read, &mut found);
    if found.len() > MOST_UNKNOWN {
        let more = found.len() - MOST_UNKNOWN;
        found.truncate(MOST_UNKNOWN);
        found.push(format!("{more} more unknown fields are ignored"));
    }
    found
}

/// What `plinth.dev/after` and `plinth.dev/uses` come to in a complete set of pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    /// Pods to wait for.
    pub wait_for: Vec<PodKey>,
    /// Pods whose becoming ready ends a back-off, besides those.
    pub uses: Vec<PodKey>,
    /// Names that are not waited for, each with its reason.
    pub problems: Vec<String>,
}

/// Resolves `plinth.dev/after` and `plinth.dev/uses`: names that do not exist and edges that are part of a cycle are reported and do not
/// hold anything.
pub fn resolve_order<'a>(pods: impl IntoIterator<Item = &'a StaticPod>) -> BTreeMap<PodKey, Order> {
    let pods: BTreeMap<&PodKey, &StaticPod> = pods.into_iter().map(|pod| (&pod.key, pod)).collect();
    let reaches = |from: &PodKey, to: &PodKey| {
        let mut seen = vec![from];
        let mut next = 0;
        while let Some(key) = seen.get(next).copied() {
            if key == to {
                return true;
            }
            for key in pods.get(key).map(|pod| pod.after.as_slice()).unwrap_or_default() {
                if !seen.contains(&key) {
                    seen.push(key);
                }
            }
            next += 1;
        }
        false
    };
    pods.iter()
        .map(|(key, pod)| {
            let mut order = Order::default();
            for other in &pod.uses {
                if pods.contains_key(other) {
                    order.uses.push(other.clone());
                } else {
                    order.problems.push(format!("{USES} names {other}, which does not exist"));
                }
            }
            for other in &pod.after {
                if !pods.contains_key(other) {
                    order.problems.push(format!("{AFTER} names {other}, which does not exist; it is not waited for"));
                } else if reaches(other, key) {
                    order.problems.push(format!("{AFTER} of {other} leads back here; it is not waited for"));
                } else {
                    order.wait_for.push(other.clone());
                }
            }
            ((*key).clone(), order)
        })
        .collect()
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn pod(text: &str) -> StaticPod {
        StaticPod::read(text, Path::new("/etc/kubernetes/manifests/web.yaml"), "Node-1").unwrap()
    }

    pub(crate) fn error(text: &str) -> String {
        StaticPod::read(text, Path::new("/m/web.yaml"), "n").unwrap_err().to_string()
    }

    const WEB: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  hostNetwork: true
  containers:
  - name: c
    image: registry.k8s.io/web:1.2
    command: [web, --port=80]
    resources: {requests: {cpu: 1}}
    livenessProbe: {httpGet: {path: /livez, port: 80}, periodSeconds: 3}
";

    #[test]
    fn identity_is_the_kubelets_in_everything_visible() {
        let pod = pod(WEB);
        assert_eq!(pod.key.to_string(), "default/web-node-1");
        assert_eq!(pod.spec.node_name.as_deref(), Some("Node-1"));
        let annotations = pod.metadata.annotations.clone().unwrap();
        assert_eq!(annotations[CONFIG_HASH], pod.uid);
        assert_eq!(annotations[CONFIG_SOURCE], "file");
        let toleration = &pod.spec.tolerations.as_ref().unwrap()[0];
        assert_eq!((toleration.operator.as_deref(), toleration.effect.as_deref()), (Some("Exists"), Some("NoExecute")));
        assert_eq!(toleration.key, None);
    }

    /// If this fails, every container on every host would be restarted by the next plinth: make a new version in
    /// `identity` that still knows the old one instead of changing this value.
    #[test]
    fn the_uid_is_pinned() {
        assert_eq!(pod(WEB).uid, "b62188d3ec764007194e47d16456d11b");
    }

    #[test]
    fn the_uid_ignores_how_the_pod_is_written() {
        let json = r#"{"kind":"Pod","apiVersion":"v1","spec":{"restartPolicy":"Always","hostNetwork":true,
            "containers":[{"image":"registry.k8s.io/web:1.2","name":"c","command":["web","--port=80"],"env":[],
            "resources":{"requests":{"cpu":"1"}},"livenessProbe":{"periodSeconds":3,"failureThreshold":3,
            "httpGet":{"port":80,"path":"/livez"}}}]},"metadata":{"labels":{"app":"web"},"name":"web",
            "namespace":"default"}}"#;
        assert_eq!(pod(json).uid, pod(WEB).uid);
        assert_eq!(pod(&format!("# a comment\n{WEB}")).uid, pod(WEB).uid);
    }

    #[test]
    fn the_uid_changes_with_spec_path_and_node() {
        let uid = |text: &str, path: &str, node: &str| StaticPod::read(text, Path::new(path), node).unwrap().uid;
        let uids = [
            uid(WEB, "/m/a", "n"),
            uid(&WEB.replace("1.2", "1.3"), "/m/a", "n"),
            uid(&WEB.replace("app: web", "app: other"), "/m/a", "n"),
            uid(WEB, "/m/b", "n"),
            uid(WEB, "/m/a", "o"),
        ];
        let distinct: std::collections::BTreeSet<_> = uids.iter().collect();
        assert_eq!(distinct.len(), uids.len());
        assert!(uids.iter().all(|uid| uid.len() == 32 && uid.bytes().all(|b| b.is_ascii_hexdigit())));
    }

    #[test]
    fn a_pinned_uid_is_kept_and_edits_are_still_seen() {
        let pinned = WEB.replace("name: web\n", "name: web\n  uid: my-uid\n");
        assert_eq!(pod(&pinned).uid, "my-uid");
        assert_ne!(pod(&pinned).hash, pod(&pinned.replace("1.2", "1.3")).hash);
    }

    #[test]
    fn other_kinds_and_broken_files_are_refused_with_a_reason() {
        assert!(error("kind: Deployment\napiVersion: apps/v1\n").contains("Deployment (apps/v1)"));
        assert!(error("kind: Pod\napiVersion: v1\nspec: {containers: []}").contains("metadata.name"));
        assert!(error("").contains("cannot be parsed"));
        assert!(error("a: [").contains("cannot be parsed"));
        let wrong_type = error(&WEB.replace("path: /livez", "path: 5"));
        assert!(wrong_type.contains("line 14"), "{wrong_type}");
        assert!(error("kind: Pod\napiVersion: v1\nmetadata: {name: a}\n").contains("no containers"));
    }

    #[test]
    fn unknown_fields_are_dropped_with_a_warning() {
        let pod = pod(&WEB.replace("  hostNetwork: true\n", "  hostNetwork: true\n  hostnetwork: true\n"));
        assert_eq!(pod.warnings, ["unknown field `spec.hostnetwork` is ignored"]);
    }

    #[test]
    fn what_kubeadm_writes_is_accepted_without_a_word() {
        let pod = pod("
apiVersion: v1
kind: Pod
metadata:
  annotations: {kubeadm.kubernetes.io/etcd.advertise-client-urls: 'https://192.0.2.2:2379'}
  creationTimestamp: null
  labels: {component: etcd, tier: control-plane}
  name: etcd
  namespace: kube-system
spec:
  containers:
  - command: [etcd, '--name=node']
    image: registry.k8s.io/etcd:3.7.0-0
    imagePullPolicy: IfNotPresent
    livenessProbe:
      failureThreshold: 8
      httpGet: {host: 127.0.0.1, path: /livez, port: probe-port, scheme: HTTP}
      initialDelaySeconds: 10
      periodSeconds: 10
      timeoutSeconds: 15
    name: etcd
    ports: [{containerPort: 2381, name: probe-port, protocol: TCP}]
    readinessProbe:
      failureThreshold: 3
      httpGet: {host: 127.0.0.1, path: /readyz, port: probe-port, scheme: HTTP}
      periodSeconds: 1
      timeoutSeconds: 15
    resources: {requests: {cpu: 100m, memory: 100Mi}}
    startupProbe:
      failureThreshold: 24
      httpGet: {host: 127.0.0.1, path: /readyz, port: probe-port, scheme: HTTP}
      initialDelaySeconds: 10
      periodSeconds: 10
      timeoutSeconds: 15
    volumeMounts: [{mountPath: /var/lib/etcd, name: etcd-data}]
  hostNetwork: true
  priority: 2000001000
  priorityClassName: system-node-critical
  securityContext: {seccompProfile: {type: RuntimeDefault}}
  volumes:
  - hostPath: {path: /var/lib/etcd, type: DirectoryOrCreate}
    name: etcd-data
status: {}
");
        assert_eq!(pod.warnings, Vec::<String>::new());
        assert!(!pod.needs_sandbox());
        assert_eq!(pod.start_up_budget(), Duration::from_secs(250));
    }

    fn named(name: &str, after: &str) -> StaticPod {
        pod(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  annotations: {{plinth.dev/after: '{after}'}}\n\
             spec: {{containers: [{{name: c, image: i}}]}}"
        ))
    }

    #[test]
    fn unknown_names_and_cycles_are_reported_and_not_waited_for() {
        let pods = [named("a", "b"), named("b", "c"), named("c", "b, d"), named("e", "b,nope"), named("d", "")];
        let order = resolve_order(&pods);
        let of = |name: &str| {
            let order = &order[&PodKey { namespace: "default".into(), name: format!("{name}-node-1") }];
            (order.wait_for.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), order.problems.len())
        };
        assert_eq!(of("a"), (vec!["b-node-1"], 0));
        assert_eq!(of("b"), (vec![], 1));
        assert_eq!(of("c"), (vec!["d-node-1"], 1));
        assert_eq!(of("e"), (vec!["b-node-1"], 1));
        assert_eq!(of("d"), (vec![], 0));
    }

    #[test]
    fn used_pods_are_not_waited_for() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {plinth.dev/uses: 'b, nope'}}\n\
                    spec: {containers: [{name: c, image: i}]}";
        let order = &resolve_order(&[pod(text), named("b", "")])
            [&PodKey { namespace: "default".into(), name: "a-node-1".into() }];
        assert_eq!(order.uses.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["b-node-1"]);
        assert_eq!((order.wait_for.len(), order.problems.len()), (0, 1));
    }
}
