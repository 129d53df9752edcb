//! What the API server knows that speaks against another version of it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{GetParams, ListParams};
use kube::core::Request;
use kube::{Api, Client};

use super::{ClusterError, client};
use crate::release::Kubelet;

/// How long all of it may take. The metrics of a large cluster are some megabytes.
const ASK: Duration = Duration::from_secs(10);

/// Counter of kube-apiserver: one series for each deprecated resource that was asked for since it started.
const DEPRECATED: &str = "apiserver_requested_deprecated_apis";

/// What was found out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// The kubelets it knows, in order of their nodes' names.
    pub kubelets: Vec<Kubelet>,
    /// Deprecated resources that somebody asked for since it started, and that will be removed or have been.
    pub deprecated: Vec<DeprecatedApi>,
}

/// A deprecated resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeprecatedApi {
    /// The minor version without it: 37 for `1.37`.
    pub removed_in: u64,
    /// Group and version, e.g. `flowcontrol.apiserver.k8s.io/v1beta3`; `v1` for the core group.
    pub group_version: String,
    /// Name of the resource, e.g. `flowschemas` or `pods/status`.
    pub resource: String,
}

/// Asks once, with the text of the kubeconfig `file`, which has to be allowed to read nodes and `/metrics`.
pub async fn survey(file: &'static str, kubeconfig: &str) -> Result<Survey, ClusterError> {
    let client = client(file, kubeconfig).await?;
    let answer = tokio::time::timeout(ASK, async { tokio::try_join!(kubelets(&client), deprecated(&client)) }).await;
    let (kubelets, deprecated) =
        answer.map_err(|_| ClusterError::Survey(None))?.map_err(|error| ClusterError::Survey(Some(Box::new(error))))?;
    Ok(Survey { kubelets, deprecated })
}

async fn kubelets(client: &Client) -> kube::Result<Vec<Kubelet>> {
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?;
    // The Node of an agent of ours is no kubelet: it says that it is as old as its API server.
    let is_kubelet = |kubelet: &Kubelet| !kubelet.version.contains("+plinth.");
    let kubelet = |node: Node| {
        let info = node.status.and_then(|status| status.node_info);
        Kubelet {
            node: node.metadata.name.unwrap_or_default(),
            version: info.map(|info| info.kubelet_version).unwrap_or_default(),
        }
    };
    Ok(nodes.into_iter().map(kubelet).filter(is_kubelet).collect())
}

async fn deprecated(client: &Client) -> kube::Result<Vec<DeprecatedApi>> {
    let request = Request::new("").get("metrics", &GetParams::default()).map_err(kube::Error::BuildRequest)?;
    Ok(read(&client.request_text(request).await?))
}

/// Reads `apiserver_requested_deprecated_apis{group="…",removed_release="1.37",resource="…",subresource="",version="…"}`.
fn read(metrics: &str) -> Vec<DeprecatedApi> {
    let series = metrics.lines().filter_map(|line| line.strip_prefix(DEPRECATED)?.strip_prefix('{')?.split_once('}'));
    let mut found: Vec<_> = series.filter_map(|(labels, _)| one(labels)).collect();
    found.sort();
    found.dedup();
    found
}

fn one(labels: &str) -> Option<DeprecatedApi> {
    // None of these values has a quote or a comma in it.
    let value = |name: &str| {
        labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
    };
    let joined = |parts: [&str; 2]| parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
    Some(DeprecatedApi {
        removed_in: value("removed_release")?.strip_prefix("1.")?.parse().ok()?,
        group_version: joined([value("group").unwrap_or_default(), value("version")?]),
        resource: joined([value("resource")?, value("subresource").unwrap_or_default()]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deprecated_resources_are_read_from_the_metrics() {
        let metrics = r#"# HELP apiserver_requested_deprecated_apis [STABLE] Gauge of deprecated APIs
# TYPE apiserver_requested_deprecated_apis gauge
apiserver_requested_deprecated_apis{group="",removed_release="",resource="endpoints",subresource="",version="v1"} 1
apiserver_requested_deprecated_apis{group="g.k8s.io",removed_release="1.38",resource="b",subresource="status",version="v1beta1"} 1
apiserver_requested_deprecated_apis{group="",removed_release="1.37",resource="a",subresource="",version="v0"} 1
apiserver_requested_deprecated_apis_more{group="x",removed_release="1.37",resource="a",subresource="",version="v0"} 1
apiserver_request_total{group="x",removed_release="1.37",resource="a",subresource="",version="v0"} 1
"#;
        let api = |removed_in, group_version: &str, resource: &str| DeprecatedApi {
            removed_in,
            group_version: group_version.to_owned(),
            resource: resource.to_owned(),
        };
        assert_eq!(read(metrics), [api(37, "v0", "a"), api(38, "g.k8s.io/v1beta1", "b/status")]);
    }
}
