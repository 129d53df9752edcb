//! Where each component is asked, and whom to believe there.

use std::fmt;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{HTTPGetAction, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use reqwest::Url;

use crate::release::Component;

/// Why a component cannot be asked for its health at all.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// No readiness, startup or liveness probe of the first container is an `httpGet`.
    #[error("the static pod of {0} has no HTTP probe to ask for its health")]
    NoHttpProbe(Component),
    /// The probe's port is neither a number nor the name of one of the container's ports.
    #[error("the probe of {component} names the port `{port}`, which its container does not have")]
    UnknownPort {
        /// Whose probe.
        component: Component,
        /// As the probe has it.
        port: String,
    },
    /// Host, port and path do not make a URL.
    #[error("the probe of {component} does not make a URL: `{url}`")]
    Url {
        /// Whose probe.
        component: Component,
        /// What they make.
        url: String,
    },
    /// The CA certificate, the client certificate or its key cannot be used.
    #[error("cannot build the client for {component}")]
    Client {
        /// Which component would have been asked.
        component: Component,
        /// What is wrong with it.
        #[source]
        source: reqwest::Error,
    },
}

/// A client certificate with its key, PEM, certificate first. Never shown in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity(String);

impl Identity {
    /// An identity of a PEM certificate (chain) and its PEM key.
    pub fn new(certificate: &str, key: &str) -> Self {
        Self(format!("{}\n{key}", certificate.trim_end()))
    }

    /// Certificate and key, PEM.
    pub(super) fn pem(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(..)")
    }
}

/// Whom to believe, and who to be. An identity is only ever shown to a verified peer, hence its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Plain HTTP: there is nothing to verify.
    Plain,
    /// HTTPS with a certificate the component signed itself: for questions to this host without any secret in them.
    Unverified,
    /// HTTPS with a certificate that this authority issued for the host asked.
    Authority {
        /// CA certificate, PEM.
        ca: String,
        /// Who asks; `None` asks anonymously.
        identity: Option<Identity>,
    },
}

/// What the API server's check needs of the control plane's PKI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The cluster's CA certificate, PEM.
    pub ca: String,
    /// A member of `system:masters`: without one the API server answers 403 until its RBAC roles are there, instead
    /// of telling which checks still fail.
    pub identity: Option<Identity>,
}

/// One health endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Whose.
    pub component: Component,
    /// What to GET.
    pub url: Url,
    /// Whom to believe.
    pub trust: Trust,
}

impl Target {
    /// The endpoint that the pod's readiness probe asks, or its startup or liveness probe where it has no readiness
    /// probe (kubeadm's kube-controller-manager).
    ///
    /// `node` is asked where the probe names no host, as the kubelet does for a pod on the host's network.
    pub fn from_pod(component: Component, pod: &Pod, node: IpAddr, trust: Trust) -> Result<Self, TargetError> {
        let container = pod.spec.iter().flat_map(|spec| &spec.containers).next();
        let probe = container
            .into_iter()
            .flat_map(|c| [&c.readiness_probe, &c.startup_probe, &c.liveness_probe])
            .flatten()
            .find_map(|probe| probe.http_get.as_ref())
            .ok_or(TargetError::NoHttpProbe(component))?;
        let port = match &probe.port {
            IntOrString::Int(number) => u16::try_from(*number).ok(),
            IntOrString::String(name) => container
                .into_iter()
                .flat_map(|c| c.ports.iter().flatten())
                .find(|port| port.name.as_ref() == Some(name))
                .and_then(|port| u16::try_from(port.container_port).ok())
                .or_else(|| name.parse().ok()),
        }
        .ok_or_else(|| TargetError::UnknownPort { component, port: port_text(&probe.port) })?;
        let text = url(probe, node, port);
        let url = Url::parse(&text).map_err(|_| TargetError::Url { component, url: text })?;
        Ok(Self { component, url, trust })
    }
}

fn port_text(port: &IntOrString) -> String {
    match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    }
}

fn url(probe: &HTTPGetAction, node: IpAddr, port: u16) -> String {
    let scheme = if is_https(probe) { "https" } else { "http" };
    let host = match probe.host.as_deref() {
        None | Some("") => node.to_string(),
        Some(host) => host.to_owned(),
    };
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host };
    let path = probe.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{scheme}://{host}:{port}{slash}{path}")
}

fn is_https(probe: &HTTPGetAction) -> bool {
    probe.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("HTTPS"))
}

/// The endpoints of a control plane's rendered static pods, in the given order.
///
/// The API server is verified against the cluster's CA; the others serve certificates of their own making on this
/// host, or plain HTTP.
pub fn targets<'a>(
    advertise_address: IpAddr,
    credentials: &Credentials,
    pods: impl IntoIterator<Item = (Component, &'a Pod)>,
) -> Result<Vec<Target>, TargetError> {
    pods.into_iter()
        .map(|(component, pod)| {
            let mut target = Target::from_pod(component, pod, advertise_address, Trust::Plain)?;
            target.trust = match (component, target.url.scheme()) {
                (_, "http") => Trust::Plain,
                (Component::KubeApiserver, _) => {
                    Trust::Authority { ca: credentials.ca.clone(), identity: credentials.identity.clone() }
                }
                _ => Trust::Unverified,
            };
            Ok(target)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pod in the shape that kubeadm 1.37 renders.
    fn pod(probes: &serde_json::Value) -> Pod {
        let mut container = serde_json::json!({
            "name": "c",
            "ports": [{ "name": "probe-port", "containerPort": 10259, "protocol": "TCP" }],
        });
        for (name, probe) in probes.as_object().unwrap() {
            container[name] = serde_json::json!({ "httpGet": probe });
        }
        serde_json::from_value(serde_json::json!({ "spec": { "containers": [container] } })).unwrap()
    }

    #[test]
    fn the_probe_says_where_to_ask() {
        let node: IpAddr = "192.0.2.10".parse().unwrap();
        let node6: IpAddr = "2001:db8::1".parse().unwrap();
        for (what, node, probes, expected) in [
            (
                "readiness wins",
                node,
                serde_json::json!({
                    "livenessProbe": { "path": "/livez", "port": "probe-port", "host": "127.0.0.1", "scheme": "HTTPS" },
                    "readinessProbe": { "path": "/readyz", "port": "probe-port", "host": "127.0.0.1", "scheme": "HTTPS" },
                }),
                "https://127.0.0.1:10259/readyz",
            ),
            (
                "no readiness: startup",
                node,
                serde_json::json!({
                    "startupProbe": { "path": "/healthz", "port": 10257, "host": "127.0.0.1", "scheme": "HTTPS" },
                    "livenessProbe": { "path": "/livez", "port": 10257, "host": "127.0.0.1", "scheme": "HTTPS" },
                }),
                "https://127.0.0.1:10257/healthz",
            ),
            (
                "only liveness, no scheme",
                node,
                serde_json::json!({ "livenessProbe": { "path": "/health?exclude=NOSPACE", "port": 2381, "host": "127.0.0.1" } }),
                "http://127.0.0.1:2381/health?exclude=NOSPACE",
            ),
            (
                "no host: the node",
                node,
                serde_json::json!({ "readinessProbe": { "path": "/readyz", "port": 6443, "scheme": "HTTPS" } }),
                "https://192.0.2.10:6443/readyz",
            ),
            (
                "no host: the node, IPv6",
                node6,
                serde_json::json!({ "readinessProbe": { "path": "readyz", "port": "6443", "scheme": "HTTPS" } }),
                "https://[2001:db8::1]:6443/readyz",
            ),
            (
                "loopback, IPv6",
                node6,
                serde_json::json!({ "readinessProbe": { "path": "/readyz", "port": 2381, "host": "::1", "scheme": "HTTP" } }),
                "http://[::1]:2381/readyz",
            ),
        ] {
            let target = Target::from_pod(Component::Etcd, &pod(&probes), node, Trust::Plain).unwrap();
            assert_eq!(target.url.as_str(), expected, "{what}");
        }
    }

    #[test]
    fn a_pod_that_cannot_be_asked_is_an_error() {
        let node: IpAddr = "192.0.2.10".parse().unwrap();
        for (probes, expected) in [
            (serde_json::json!({}), "the static pod of etcd has no HTTP probe to ask for its health"),
            (
                serde_json::json!({ "readinessProbe": { "port": "metrics" } }),
                "the probe of etcd names the port `metrics`, which its container does not have",
            ),
            (
                serde_json::json!({ "readinessProbe": { "port": 70000 } }),
                "the probe of etcd names the port `70000`, which its container does not have",
            ),
            (
                serde_json::json!({ "readinessProbe": { "port": 1, "host": "a b" } }),
                "the probe of etcd does not make a URL: `http://a b:1/`",
            ),
        ] {
            let error = Target::from_pod(Component::Etcd, &pod(&probes), node, Trust::Plain).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn only_the_api_server_sees_our_identity() {
        let https = pod(&serde_json::json!({ "readinessProbe": { "port": 1, "scheme": "HTTPS" } }));
        let http = pod(&serde_json::json!({ "readinessProbe": { "port": 1 } }));
        let identity = Some(Identity::new("CERTIFICATE", "KEY"));
        let credentials = Credentials { ca: "CA".into(), identity: identity.clone() };
        let pods = [
            (Component::Etcd, &http),
            (Component::KubeApiserver, &https),
            (Component::KubeControllerManager, &https),
            (Component::KubeScheduler, &https),
        ];
        let made = targets("192.0.2.10".parse().unwrap(), &credentials, pods).unwrap();
        let trust: Vec<_> = made.into_iter().map(|target| target.trust).collect();
        let authority = Trust::Authority { ca: "CA".into(), identity };
        assert_eq!(trust, [Trust::Plain, authority.clone(), Trust::Unverified, Trust::Unverified]);
        assert!(!format!("{authority:?}").contains("KEY"), "a key must not be printable");
    }
}
