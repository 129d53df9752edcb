//! Static pods of the control plane: a [`Cluster`] → manifests. Pure.
//!
//! What varies is computed here, flags in `flags`, volumes in `volumes`; how it is laid out stands in
//! `templates/control-plane`. The result is what kubeadm 1.37 writes, with the annotations of the start order in
//! addition. What was rendered is read back as a Pod before it is returned.

mod flags;
mod volumes;

pub use flags::etcd_client_url;

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::{EnvVar, Pod};
use serde::Serialize;

use crate::config::{Cluster, loopback_of};
use crate::layout::Layout;
use crate::release::Component;
use crate::yaml::{self, YamlError};
use volumes::Volume;

/// The templates by name; each component has its own, which fills the blocks of `pod.yaml`.
const TEMPLATES: [(&str, &str); 5] = [
    ("pod.yaml", include_str!("../../templates/control-plane/pod.yaml")),
    ("etcd.yaml", include_str!("../../templates/control-plane/etcd.yaml")),
    ("kube-apiserver.yaml", include_str!("../../templates/control-plane/kube-apiserver.yaml")),
    ("kube-controller-manager.yaml", include_str!("../../templates/control-plane/kube-controller-manager.yaml")),
    ("kube-scheduler.yaml", include_str!("../../templates/control-plane/kube-scheduler.yaml")),
];

/// Seconds between two start-up probes; fixed in `pod.yaml` (kubeadm: `StartupProbe`).
const STARTUP_PERIOD_SECONDS: u64 = 10;

/// A manifest, as text and as what it means.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Whose it is.
    pub component: Component,
    /// The Pod that the text holds.
    pub pod: Pod,
    /// What is written to [`file_name`] below [`Layout::manifests`], 0600.
    pub yaml: String,
}

/// Why there is no manifest: a template and the code do not fit together.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The template cannot be rendered.
    #[error("cannot render the template of {component}")]
    Render {
        /// Whose template.
        component: Component,
        /// Why.
        #[source]
        source: tera::Error,
    },
    /// What the template gave is no Pod.
    #[error("the template of {component} does not give a Pod")]
    Reread {
        /// Whose template.
        component: Component,
        /// Why.
        #[source]
        source: YamlError,
    },
}

/// Name of the file below [`Layout::manifests`]: `etcd.yaml`.
pub fn file_name(component: Component) -> String {
    format!("{component}.yaml")
}

/// Renders the manifest of `component`.
pub fn render(cluster: &Cluster, component: Component, layout: &Layout) -> Result<Manifest, ManifestError> {
    let yaml = text(cluster, component, layout).map_err(|source| ManifestError::Render { component, source })?;
    let pod = yaml::manifest(yaml.as_bytes()).map_err(|source| ManifestError::Reread { component, source })?;
    Ok(Manifest { component, pod, yaml })
}

fn text(cluster: &Cluster, component: Component, layout: &Layout) -> tera::TeraResult<String> {
    let mut tera = tera::Tera::default();
    tera.register_filter("quote", quote);
    tera.add_raw_templates(TEMPLATES)?;
    tera.render(&file_name(component), &tera::Context::from_serialize(&View::new(cluster, component, layout))?)
}

/// A JSON string is a YAML scalar that no reader takes for anything but that string.
fn quote(text: String, _: tera::Kwargs, _: &tera::State<'_>) -> String {
    escape(&serde_json::Value::from(text).to_string())
}

/// JSON with those characters escaped too that YAML does not allow. They can stand only within strings.
fn escape(json: &str) -> String {
    let forbidden =
        |c: char| c.is_control() || matches!(c, '\u{feff}' | '\u{2028}' | '\u{2029}' | '\u{fffe}' | '\u{ffff}');
    json.chars().map(|c| if forbidden(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() }).collect()
}

/// What the templates name.
#[derive(Serialize)]
struct View {
    name: &'static str,
    command: Vec<String>,
    env: Vec<Variable>,
    image: String,
    /// For the annotation: where others find it. For the two that nobody looks for, where they find the API server: they
    /// read their kubeconfig at their start only, so another server in it has to be another pod.
    endpoint: String,
    probe: Probe,
    volumes: Vec<Volume>,
}

#[derive(Serialize)]
struct Variable {
    name: String,
    value: Option<String>,
    /// JSON, which is YAML in flow style.
    value_from: Option<String>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Probe {
    /// `None` where the component listens everywhere: the agent then asks the pod's own address.
    host: Option<String>,
    port: u16,
    scheme: &'static str,
    startup_failures: u64,
}

impl View {
    fn new(cluster: &Cluster, component: Component, layout: &Layout) -> Self {
        let address = cluster.advertise_address;
        Self {
            name: component.name(),
            command: flags::command(cluster, component, layout),
            env: variables(cluster, component),
            image: cluster.image(component),
            endpoint: match component {
                Component::Etcd => flags::etcd_client_url(address),
                _ => SocketAddr::new(address, cluster.bind_port).to_string(),
            },
            probe: Probe::new(cluster, component),
            volumes: volumes::volumes(cluster, component, layout),
        }
    }
}

/// The proxy variables of the host, but not for etcd, and the user's; sorted, the user's win (kubeadm:
/// `MergeKubeadmEnvVars`).
fn variables(cluster: &Cluster, component: Component) -> Vec<Variable> {
    let proxies = cluster.host.proxy_variables.iter().filter(|_| component != Component::Etcd);
    let proxies =
        proxies.map(|(name, value)| EnvVar { name: name.clone(), value: Some(value.clone()), value_from: None });
    let all = proxies.chain(cluster.options(component).extra_envs.iter().cloned());
    let by_name: std::collections::BTreeMap<_, _> = all.map(|variable| (variable.name.clone(), variable)).collect();
    by_name
        .into_values()
        .map(|EnvVar { name, value, value_from }| Variable {
            name,
            value,
            value_from: value_from.and_then(|source| serde_json::to_string(&source).ok()).map(|json| escape(&json)),
        })
        .collect()
}

impl Probe {
    fn new(cluster: &Cluster, component: Component) -> Self {
        let (host, port, scheme) = match component {
            Component::Etcd => etcd_probe(cluster),
            Component::KubeApiserver => (cluster.advertise_address.to_string(), cluster.bind_port, "HTTPS"),
            Component::KubeControllerManager => {
                (bind_address(cluster, component), flags::CONTROLLER_MANAGER_PORT, "HTTPS")
            }
            Component::KubeScheduler => (bind_address(cluster, component), flags::SCHEDULER_PORT, "HTTPS"),
        };
        let budget = cluster.timeouts.control_plane_component_health_check.as_secs_f64();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        // positive, and far below 2⁵²: the configuration's durations end at 292 years
        let startup_failures = (budget / STARTUP_PERIOD_SECONDS as f64).ceil() as u64;
        Self { host: Some(host).filter(|host| host != "0.0.0.0" && host != "::"), port, scheme, startup_failures }
    }
}

fn bind_address(cluster: &Cluster, component: Component) -> String {
    flags::extra_arg(cluster, component, "bind-address").unwrap_or("127.0.0.1").to_owned()
}

/// Follows the first of the user's `listen-metrics-urls` (kubeadm: `GetEtcdProbeEndpoint`).
fn etcd_probe(cluster: &Cluster) -> (String, u16, &'static str) {
    let loopback = loopback_of(cluster.advertise_address).to_string();
    let urls = flags::extra_arg(cluster, Component::Etcd, "listen-metrics-urls").unwrap_or_default();
    let first = urls.split(',').next().unwrap_or_default();
    let Some((scheme, rest)) = first.split_once("://") else { return (loopback, flags::ETCD_METRICS_PORT, "HTTP") };
    let authority = rest.split('/').next().unwrap_or_default();
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    (
        if host.is_empty() { loopback } else { host.to_owned() },
        port.and_then(|port| port.parse().ok()).filter(|port| *port > 0).unwrap_or(flags::ETCD_METRICS_PORT),
        if scheme == "https" { "HTTPS" } else { "HTTP" },
    )
}
