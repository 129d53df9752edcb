//! The configuration file: documents → wire types, with the lines of every field.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::{ConfigError, Place, Problem};
use super::wire::{self, ClusterConfiguration, InitConfiguration};
use super::{ConfigFile, defaults};
use crate::yaml::{self, Document, Node, Tree, YamlError};

/// What a configuration file says.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) init: InitConfiguration,
    pub(super) cluster: ClusterConfiguration,
    pub(super) errors: Vec<ConfigError>,
    pub(super) warnings: Vec<String>,
    pub(super) lines: Lines,
}

/// Where fields stand in the file.
#[derive(Debug, Default)]
pub(super) struct Lines {
    file: String,
    trees: Vec<Tree>,
}

impl Lines {
    /// Place of `field` in the file, if it is there. The top-level fields of the two kinds have different names.
    pub(super) fn place(&self, field: &str) -> Option<Place> {
        let top = field.split(['.', '[']).next().unwrap_or(field);
        let tree = self.trees.iter().find(|tree| tree.get(top).is_some())?;
        Some(Place::File { name: self.file.clone(), line: Some(tree.line_of(field)) })
    }
}

/// Reads a file. Never fails: what is wrong is in `errors`, and what could be read is there nevertheless.
pub(super) fn parse(file: &ConfigFile<'_>) -> Parsed {
    let mut reader = Reader { file, parsed: Parsed::default(), seen: Vec::new() };
    file.name.clone_into(&mut reader.parsed.lines.file);
    for document in yaml::documents(file.text) {
        reader.document(&document);
    }
    let understood = reader.seen.iter().any(|(kind, _)| kind == "InitConfiguration" || kind == "ClusterConfiguration");
    if !understood && reader.parsed.errors.is_empty() {
        reader.error(None, "", Problem::Empty);
    }
    reader.parsed
}

struct Reader<'a> {
    file: &'a ConfigFile<'a>,
    parsed: Parsed,
    /// Kinds so far and the lines where they begin.
    seen: Vec<(String, u64)>,
}

impl Reader<'_> {
    fn error(&mut self, line: Option<u64>, field: &str, problem: Problem) {
        let place = Place::File { name: self.file.name.to_owned(), line };
        self.parsed.errors.push(ConfigError { place, field: field.to_owned(), problem });
    }

    fn warn(&mut self, line: u64, text: &str) {
        self.parsed.warnings.push(format!("{}:{line}: {text}", self.file.name));
    }

    fn syntax(&mut self, error: &YamlError) {
        self.error(error.line(), "", Problem::Syntax(error.reason().to_owned()));
    }

    fn document(&mut self, document: &Document<'_>) {
        let tree = match document.tree() {
            Ok(tree) => tree,
            Err(error) => return self.syntax(&error),
        };
        let line = document.line();
        let named = |key: &str| tree.get(key).and_then(Tree::as_str).map(str::to_owned);
        let (api_version, kind) = (named("apiVersion"), named("kind"));
        if api_version.is_none() {
            self.error(Some(line), "", Problem::Untyped("apiVersion"));
        }
        if kind.is_none() {
            self.error(Some(line), "", Problem::Untyped("kind"));
        }
        let (Some(api_version), Some(kind)) = (api_version, kind) else { return };
        if let Some((_, first)) = self.seen.iter().find(|(seen, _)| *seen == kind) {
            let first = *first;
            return self.error(Some(line), "", Problem::DuplicateKind { kind, first });
        }
        self.seen.push((kind.clone(), line));
        match (api_version.as_str(), kind.as_str()) {
            (wire::API_VERSION, "InitConfiguration") => {
                if let Some(init) = self.typed(document, &tree) {
                    self.parsed.init = init;
                    self.ignored_fields_of_init(&tree);
                }
                self.parsed.lines.trees.push(tree);
            }
            (wire::API_VERSION, "ClusterConfiguration") => {
                if let Some(cluster) = self.typed(document, &tree) {
                    self.parsed.cluster = cluster;
                    self.unsupported_and_ignored_fields_of_cluster(&tree);
                }
                self.parsed.lines.trees.push(tree);
            }
            (wire::API_VERSION, "JoinConfiguration" | "ResetConfiguration" | "UpgradeConfiguration") => {
                self.warn(line, &format!("{kind} is ignored: it says nothing to init"));
            }
            (version, "KubeletConfiguration") if version.starts_with("kubelet.config.k8s.io/") => {
                self.warn(line, "KubeletConfiguration is ignored: plinth runs no kubelet");
            }
            (version, "KubeProxyConfiguration") if version.starts_with("kubeproxy.config.k8s.io/") => {
                self.warn(line, "KubeProxyConfiguration is ignored: plinth installs no kube-proxy");
            }
            (version, _) if version.starts_with("kubeadm.k8s.io/") && version != wire::API_VERSION => {
                let place = tree.line_of("apiVersion");
                self.error(Some(place), "apiVersion", Problem::OldVersion(api_version));
            }
            _ => self.error(Some(tree.line_of("kind")), "", Problem::UnknownKind { kind, api_version }),
        }
    }

    /// Reads `document` into its type and reports what the type does not know.
    fn typed<T: DeserializeOwned + Serialize>(&mut self, document: &Document<'_>, tree: &Tree) -> Option<T> {
        let before = self.parsed.errors.len();
        for component in ["apiServer", "controllerManager", "scheduler", "etcd.local"] {
            let args = component.split('.').try_fold(tree, |tree, key| tree.get(key)).and_then(|c| c.get("extraArgs"));
            if let Some(args) = args.filter(|args| matches!(args.node, Node::Mapping(_))) {
                self.error(Some(args.line), &format!("{component}.extraArgs"), Problem::ArgsAsMapping);
            }
        }
        if self.parsed.errors.len() > before {
            return None;
        }
        match document.parse::<T>() {
            Ok(value) => {
                let known = serde_json::to_value(&value).unwrap_or_default();
                self.unknown_fields(tree, &known, "");
                Some(value)
            }
            Err(error) => {
                let field = error.line().and_then(|line| tree.path_at(line)).unwrap_or_default();
                self.error(error.line(), &field, Problem::Syntax(error.reason().to_owned()));
                None
            }
        }
    }

    fn unknown_fields(&mut self, tree: &Tree, known: &Value, path: &str) {
        if let (Node::Sequence(items), Value::Array(known)) = (&tree.node, known) {
            for (index, (item, known)) in items.iter().zip(known).enumerate() {
                self.unknown_fields(item, known, &format!("{path}[{index}]"));
            }
        }
        let Value::Object(known) = known else { return };
        for (name, child) in tree.entries() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match known.get(name) {
                Some(known) => self.unknown_fields(child, known, &path),
                // Types of the Kubernetes API leave out what is null.
                None if child.node == Node::Scalar(Value::Null) && !known.values().any(Value::is_null) => {}
                None => {
                    let names: Vec<&str> = known.keys().map(String::as_str).collect();
                    let closest = similar::get_close_matches(name.as_str(), &names, 1, 0.75)
                        .first()
                        .map(|name| (*name).to_owned());
                    let known = names.into_iter().map(str::to_owned).collect();
                    self.error(Some(child.line), &path, Problem::UnknownField { closest, known });
                }
            }
        }
    }

    fn ignored_fields_of_init(&mut self, tree: &Tree) {
        for (field, why) in [
            ("bootstrapTokens", "plinth makes no bootstrap tokens yet"),
            ("certificateKey", "plinth uploads no certificates yet"),
            ("nodeRegistration.criSocket", "plinth runs containers with Docker"),
            ("nodeRegistration.imagePullPolicy", "images that are missing are pulled"),
            ("nodeRegistration.imagePullSerial", "images that are missing are pulled one by one"),
            ("timeouts.discovery", "it says nothing to init"),
            ("timeouts.etcdAPICall", "plinth changes no etcd members yet"),
            ("timeouts.kubeletHealthCheck", "plinth runs no kubelet"),
            ("timeouts.tlsBootstrap", "it says nothing to init"),
            ("timeouts.upgradeManifests", "it says nothing to init"),
        ] {
            self.ignored(tree, field, why);
        }
        let patches = self.parsed.init.patches.as_ref().and_then(|patches| patches.directory.as_deref());
        if patches.is_some_and(|directory| !directory.is_empty()) {
            let problem = Problem::Unsupported("use extraArgs, extraEnvs and extraVolumes instead of patches");
            self.error(Some(tree.line_of("patches.directory")), "patches.directory", problem);
        }
    }

    fn unsupported_and_ignored_fields_of_cluster(&mut self, tree: &Tree) {
        let cluster = self.parsed.cluster.clone();
        if cluster.etcd.is_some_and(|etcd| etcd.external.is_some()) {
            let problem = Problem::Unsupported("etcd runs on this host; remove the field or use `etcd.local`");
            self.error(Some(tree.line_of("etcd.external")), "etcd.external", problem);
        }
        if cluster.feature_gates.is_some_and(|gates| !gates.is_empty()) {
            let problem = Problem::Unsupported(
                "it has no feature gates; those of a component are set by its extraArgs, as `feature-gates`",
            );
            self.error(Some(tree.line_of("featureGates")), "featureGates", problem);
        }
        // `disabled: true` is what plinth does anyway.
        if cluster.dns.is_some_and(|dns| dns != wire::Dns::default() && dns.disabled != Some(true)) {
            self.ignored(tree, "dns", "plinth installs no DNS yet");
        }
        if cluster.proxy.is_some_and(|proxy| proxy.disabled == Some(false)) {
            self.ignored(tree, "proxy", "plinth installs no kube-proxy yet");
        }
    }

    fn ignored(&mut self, tree: &Tree, field: &str, why: &str) {
        let Some(found) = field.split('.').try_fold(tree, |tree, key| tree.get(key)) else { return };
        let says_nothing = match &found.node {
            Node::Scalar(value) => {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                value.is_null() || text.is_empty() || defaults::IGNORED.contains(&(field, text.as_str()))
            }
            Node::Sequence(_) | Node::Mapping(_) => false,
        };
        if !says_nothing {
            self.warn(found.line, &format!("{field} is ignored: {why}"));
        }
    }
}
