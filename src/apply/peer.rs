//! Records in etcd's data where others would reach its one member: etcd takes it from its flags only when it makes the
//! data.

use super::{ApplyError, Goal, Host, etcd_swap};
use crate::etcd::Member;
use crate::fsx;
use crate::plan;
use crate::release::Component;

/// Flag of etcd that names the URLs.
const FLAG: &str = "--initial-advertise-peer-urls=";

/// Brings the record in line with the etcd that runs, which is healthy.
pub(super) async fn record<R>(goal: &Goal<'_>, host: &Host<'_, R>) -> Result<(), ApplyError> {
    let runs = fsx::read_to_string(&plan::manifest_path(host.layout, Component::Etcd))?;
    let urls = etcd_swap::urls(&runs, FLAG);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Cluster;
    use crate::layout::Layout;
    use crate::manifests;

    #[test]
    fn the_manifest_says_where_the_member_is() {
        let manifest = manifests::render(&Cluster::example(), Component::Etcd, &Layout::default()).unwrap();
        assert_eq!(etcd_swap::urls(&manifest.yaml, FLAG), ["https://192.0.2.10:2380"]);
        assert_eq!(etcd_swap::urls("{", FLAG), [""; 0]);
    }
}
