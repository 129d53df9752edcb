//! Records in etcd's data where others would reach its one member: etcd takes it from its flags only when it makes the
//! data.

use k8s_openapi::api::core::v1::Pod;

use super::{ApplyError, Goal, Host, etcd_swap};
use crate::etcd::Member;
use crate::fsx;
use crate::plan;
use crate::release::Component;
use crate::yaml;

/// Flag of etcd that names the URLs.
const FLAG: &str = "--initial-advertise-peer-urls=";

/// Brings the record in line with the etcd that runs, which is healthy.
pub(super) async fn record<R>(goal: &Goal<'_>, host: &Host<'_, R>) -> Result<(), ApplyError> {
    let runs = fsx::read_to_string(&plan::manifest_path(host.layout, Component::Etcd))?;
    let urls = urls(&runs);
    let client = etcd_swap::client(&runs, goal)?;
    // Others have told each other where they are.
    if let [Member { id, peer_urls, .. }] = &client.members().await?[..]
        && *peer_urls != urls
        && !urls.is_empty()
    {
        client.update_peer_urls(*id, &urls).await?;
        tracing::info!(from = ?peer_urls, to = ?urls, "recorded the peer URL of etcd's member");
    }
    Ok(())
}

/// Where the etcd of a manifest is reached by others.
fn urls(manifest: &str) -> Vec<String> {
    let pod: Option<Pod> = yaml::manifest(manifest.as_bytes()).ok();
    let command = pod.and_then(|pod| pod.spec?.containers.into_iter().next()?.command).unwrap_or_default();
    let urls = command.iter().find_map(|flag| flag.strip_prefix(FLAG)).unwrap_or_default();
    urls.split(',').filter(|url| !url.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Cluster;
    use crate::layout::Layout;
    use crate::manifests;

    #[test]
    fn the_manifest_says_where_the_member_is() {
        let manifest = manifests::render(&Cluster::example(), Component::Etcd, &Layout::default()).unwrap();
        assert_eq!(urls(&manifest.yaml), ["https://192.0.2.10:2380"]);
        assert_eq!(urls("{"), [""; 0]);
    }
}
