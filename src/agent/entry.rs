//! The entry of the Service `kubernetes`, by which pods find the API server.
//!
//! A kube-apiserver that ends takes its host's address out of it, even where another one serves there by then, and that
//! one looks only every 10 s (`EndpointReconcilerType` lease). [`Keeper`] puts the address back at once.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::PostParams;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cluster::agent::{NAMESPACE, SERVICE};
use crate::cluster::{self, ClusterError};
use crate::kubeconfig::{self, KubeconfigError};

/// How often the entry is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How long one question may take.
const ASK: Duration = Duration::from_secs(2);
/// How long the entry is looked after when the old one has gone; until then the new one has looked itself.
const AFTERWARDS: Duration = Duration::from_secs(10);

/// Why nobody looks after the entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The agent's kubeconfig cannot be read.
    #[error("cannot read the agent's kubeconfig")]
    Read(#[source] std::io::Error),
    /// It cannot be used.
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// It cannot be used.
    #[error(transparent)]
    Client(#[from] ClusterError),
    /// The API server did not show the entry.
    #[error("cannot read the entry of the Service `{SERVICE}`")]
    Ask(#[source] Box<kube::Error>),
    /// It did not answer at all.
    #[error("no answer within {} s", ASK.as_secs())]
    Silent,
}

/// Keeps this host's address in the entry until some seconds after it is dropped.
#[derive(Debug)]
pub struct Keeper {
    _over: DropGuard,
}

impl Keeper {
    /// Reads the entry with the kubeconfig at `path`, through the API server that is to stay, and looks after it from
    /// now on.
    pub async fn start(path: &Path) -> Result<Self, EntryError> {
        let text = std::fs::read_to_string(path).map_err(EntryError::Read)?;
        let server = kubeconfig::credentials(kubeconfig::AGENT_FILE, &text)?.server;
        let client = cluster::client(kubeconfig::AGENT_FILE, &text).await?;
        let entry = Entry {
            address: host_of(&server).to_owned(),
            endpoints: Api::namespaced(client.clone(), NAMESPACE),
            slices: Api::namespaced(client, NAMESPACE),
        };
        let before = timeout(ASK, entry.read()).await.map_err(|_| EntryError::Silent)?;
        let before = before.map_err(|error| EntryError::Ask(Box::new(error)))?;
        let over = CancellationToken::new();
        tokio::spawn(entry.keep(before, over.clone()));
        Ok(Self { _over: over.drop_guard() })
    }
}

struct Entry {
    address: String,
    endpoints: Api<Endpoints>,
    slices: Api<EndpointSlice>,
}

impl Entry {
    async fn read(&self) -> kube::Result<(Endpoints, EndpointSlice)> {
        Ok((self.endpoints.get(SERVICE).await?, self.slices.get(SERVICE).await?))
    }

    async fn keep(self, before: (Endpoints, EndpointSlice), over: CancellationToken) {
        let mut until = None;
        while until.is_none_or(|until| Instant::now() < until) {
            match timeout(ASK, self.mend(&before)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "cannot look after the entry of the Service `{SERVICE}`"),
                Err(_) => tracing::debug!("no answer about the entry of the Service `{SERVICE}`"),
            }
            if until.is_none() && over.is_cancelled() {
                until = Some(Instant::now() + AFTERWARDS);
            }
            sleep(LOOK).await;
        }
    }

    /// An update names the version that it is made from: whoever writes in between wins, and is looked at again.
    async fn mend(&self, (endpoints, slice): &(Endpoints, EndpointSlice)) -> kube::Result<()> {
        let how = PostParams::default();
        if let Some(mended) = mended_slice(&self.address, slice, &self.slices.get(SERVICE).await?) {
            self.slices.replace(SERVICE, &how, &mended).await?;
            tracing::info!(address = self.address, "put back into the EndpointSlice `{SERVICE}`");
        }
        if let Some(mended) = mended_endpoints(&self.address, endpoints, &self.endpoints.get(SERVICE).await?) {
            self.endpoints.replace(SERVICE, &how, &mended).await?;
            tracing::info!(address = self.address, "put back into the Endpoints `{SERVICE}`");
        }
        Ok(())
    }
}

/// `now` with `address` as it was in `before`; `None` where it is there, or was not there before.
fn mended_slice(address: &str, before: &EndpointSlice, now: &EndpointSlice) -> Option<EndpointSlice> {
    let of = |slice: &EndpointSlice| {
        let mut endpoints = slice.endpoints.iter().flatten();
        endpoints.find(|endpoint| endpoint.addresses.iter().any(|one| one == address)).cloned()
    };
    let own = of(before).filter(|_| of(now).is_none())?;
    let mut mended = now.clone();
    mended.endpoints.get_or_insert_default().push(own);
    if mended.ports.as_ref().is_none_or(Vec::is_empty) {
        mended.ports.clone_from(&before.ports);
    }
    Some(mended)
}

/// The same for Endpoints, where addresses that share ports are one subset.
fn mended_endpoints(address: &str, before: &Endpoints, now: &Endpoints) -> Option<Endpoints> {
    let of = |endpoints: &Endpoints| {
        endpoints.subsets.iter().flatten().find_map(|subset| {
            let own = subset.addresses.iter().flatten().find(|own| own.ip == address)?;
            Some((own.clone(), subset.clone()))
        })
    };
    let (own, mut subset) = of(before).filter(|_| of(now).is_none())?;
    let mut mended = now.clone();
    let subsets = mended.subsets.get_or_insert_default();
    if let Some(there) = subsets.iter_mut().find(|there| there.ports == subset.ports) {
        there.addresses.get_or_insert_default().push(own);
    } else {
        subset.addresses = Some(vec![own]);
        subset.not_ready_addresses = None;
        subsets.push(subset);
    }
    Some(mended)
}

/// `192.0.2.10` of `https://192.0.2.10:6443`, `2001:db8::10` of `https://[2001:db8::10]:6443`.
fn host_of(url: &str) -> &str {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const OWN: &str = "192.0.2.10";

    fn slice(addresses: &[&str]) -> EndpointSlice {
        let endpoint = |address: &&str| json!({ "addresses": [address], "conditions": { "ready": true } });
        let ports = json!([{ "name": "https", "port": 6443, "protocol": "TCP" }]);
        serde_json::from_value(json!({
            "metadata": { "name": "kubernetes", "resourceVersion": addresses.len().to_string() },
            "addressType": "IPv4",
            "endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>(),
            // Of one without addresses the API server removes the ports.
            "ports": if addresses.is_empty() { Value::Null } else { ports },
        }))
        .unwrap()
    }

    fn endpoints(addresses: &[&str], port: u16) -> Endpoints {
        let addresses: Vec<_> = addresses.iter().map(|address| json!({ "ip": address })).collect();
        let subset = json!({ "addresses": addresses, "ports": [{ "name": "https", "port": port }] });
        let subsets = if addresses.is_empty() { Value::Null } else { json!([subset]) };
        serde_json::from_value(json!({ "metadata": { "name": "kubernetes" }, "subsets": subsets })).unwrap()
    }

    #[test]
    fn the_own_address_comes_back_and_no_other() {
        let cases = [
            (&[OWN][..], &[OWN][..], None),
            (&[OWN], &[], Some(&[OWN][..])),
            (&[OWN, "192.0.2.11"], &["192.0.2.11"], Some(&["192.0.2.11", OWN])),
            (&[OWN, "192.0.2.11"], &[], Some(&[OWN])),
            (&[OWN, "192.0.2.11"], &[OWN], None),
            (&["192.0.2.11"], &[], None),
            (&[], &[], None),
        ];
        for (before, now, expected) in cases {
            let mended = mended_slice(OWN, &slice(before), &slice(now));
            let expected_slice = expected.map(|addresses: &[&str]| {
                let mut expected = slice(addresses);
                // The one that was read, so that an update of another one fails.
                expected.metadata.resource_version = Some(now.len().to_string());
                expected
            });
            assert_eq!(mended, expected_slice, "{before:?} {now:?}");
            let mended = mended_endpoints(OWN, &endpoints(before, 6443), &endpoints(now, 6443));
            assert_eq!(mended, expected.map(|addresses| endpoints(addresses, 6443)), "{before:?} {now:?}");
        }
        // Another API server on another port is another subset.
        let mended = mended_endpoints(OWN, &endpoints(&[OWN], 6443), &endpoints(&["192.0.2.11"], 443)).unwrap();
        let subsets = [endpoints(&["192.0.2.11"], 443), endpoints(&[OWN], 6443)].map(|one| one.subsets.unwrap());
        assert_eq!(mended.subsets.unwrap(), subsets.concat());
    }

    #[test]
    fn the_own_address_is_that_of_the_kubeconfig() {
        for (url, host) in [("https://192.0.2.10:6443", OWN), ("https://[2001:db8::10]:6443", "2001:db8::10")] {
            assert_eq!(host_of(url), host);
        }
    }
}
