//! Certificates, keys and kubeconfigs of a cluster with the files they live in.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::phase::INIT;
use super::{Credential, Item};
use crate::config::{Cluster, KeyAlgorithm};
use crate::layout::Layout;
use crate::{kubeconfig, pki};

/// Mode of certificates (kubeadm: `certutil.WriteCert`).
const CERTIFICATE_MODE: u32 = 0o644;
/// Mode of keys, kubeconfigs and `sa.pub` (kubeadm writes the latter through its key writer).
const KEY_MODE: u32 = 0o600;

/// Every credential of a cluster, authorities before what they sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    entries: Vec<Entry>,
    algorithm: KeyAlgorithm,
}

/// One credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What the plan needs to know of it.
    pub credential: Credential,
    /// What it is.
    pub kind: Kind,
    /// Its files: public part first, and the private part where there are two.
    pub files: Vec<CredentialFile>,
}

/// What a credential is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A certificate with its key.
    Certificate(pki::Spec),
    /// The key pair of service-account tokens.
    ServiceAccount,
    /// A kubeconfig.
    Kubeconfig(kubeconfig::Spec),
}

/// A file of a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialFile {
    /// Where.
    pub path: PathBuf,
    /// With which mode.
    pub mode: u32,
}

impl Inventory {
    /// The credentials of `cluster`.
    pub fn of(cluster: &Cluster, layout: &Layout) -> Self {
        let certificates = layout.below_root(&cluster.cert_dir);
        let file = |name: &str, mode| CredentialFile { path: certificates.join(name), mode };

        let mut entries = Vec::new();
        for spec in pki::specifications(cluster) {
            entries.push(Entry {
                credential: Credential {
                    item: item("certs", spec.name),
                    authority: spec.authority.map(|name| item("certs", name)),
                    for_etcd: ETCDS_OWN.contains(&spec.name),
                },
                files: vec![file(&spec.certificate_file(), CERTIFICATE_MODE), file(&spec.key_file(), KEY_MODE)],
                kind: Kind::Certificate(spec),
            });
        }
        entries.push(Entry {
            credential: Credential { item: item("certs", "sa"), authority: None, for_etcd: false },
            files: vec![
                file(pki::SERVICE_ACCOUNT_PUBLIC_FILE, KEY_MODE),
                file(pki::SERVICE_ACCOUNT_KEY_FILE, KEY_MODE),
            ],
            kind: Kind::ServiceAccount,
        });
        for spec in kubeconfig::specifications(cluster) {
            entries.push(Entry {
                credential: Credential {
                    item: item("kubeconfig", spec.name),
                    authority: spec.certificate.authority.map(|name| item("certs", name)),
                    for_etcd: false,
                },
                files: vec![CredentialFile { path: layout.kubernetes().join(spec.file), mode: KEY_MODE }],
                kind: Kind::Kubeconfig(spec),
            });
        }
        Self { entries, algorithm: cluster.certificates.algorithm }
    }

    /// All entries, authorities before what they sign.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Algorithm of new keys.
    pub fn algorithm(&self) -> KeyAlgorithm {
        self.algorithm
    }

    /// The entry of `item`.
    pub fn entry(&self, item: Item) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.credential.item == item)
    }

    /// Items that `other` specifies otherwise.
    pub fn respecified(&self, other: &Self) -> BTreeSet<Item> {
        let differs = |entry: &&Entry| other.entry(entry.credential.item).is_none_or(|one| one.kind != entry.kind);
        self.entries.iter().filter(differs).map(|entry| entry.credential.item).collect()
    }

    /// What the plan needs to know of each.
    pub fn credentials(&self) -> Vec<Credential> {
        self.entries.iter().map(|entry| entry.credential).collect()
    }
}

/// Certificates that etcd's manifest mounts and its flags name.
const ETCDS_OWN: [&str; 4] = ["etcd-ca", "etcd-server", "etcd-peer", "etcd-healthcheck-client"];

/// The phase `group/name`, which names the item too.
fn item(group: &str, name: &str) -> Item {
    INIT.iter().map(|phase| phase.name).find(|phase| phase.split_once('/') == Some((group, name))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_credential_has_a_phase_of_its_own_and_comes_after_its_authority() {
        let registered = Some(crate::config::Registration { taints: Vec::new() });
        let cluster = Cluster::example_registered(registered);
        let inventory = Inventory::of(&cluster, &Layout::default());
        let mut seen: Vec<Item> = Vec::new();
        for Credential { item, authority, .. } in inventory.credentials() {
            assert!(!item.is_empty() && !seen.contains(&item), "{item}");
            assert!(authority.is_none_or(|authority| seen.contains(&authority)), "{item}");
            seen.push(item);
        }
        let phases: Vec<_> =
            INIT.iter().map(|p| p.name).filter(|n| n.starts_with("certs/") || n.starts_with("kubeconfig/")).collect();
        seen.sort_by_key(|item| phases.iter().position(|phase| phase == item));
        assert_eq!(seen, phases);
    }

    #[test]
    fn another_name_of_the_api_server_is_another_certificate_and_nothing_else() {
        let inventory = |cluster: &Cluster| Inventory::of(cluster, &Layout::default());
        let mut named = Cluster::example();
        named.api_server.cert_sans.push(crate::config::San::Dns("api.example.com".to_owned()));
        let respecified = inventory(&named).respecified(&inventory(&Cluster::example()));
        assert_eq!(respecified.into_iter().collect::<Vec<_>>(), ["certs/apiserver"]);
    }

    #[test]
    fn files_and_modes_are_kubeadms() {
        let inventory = Inventory::of(&Cluster::example(), &Layout::default());
        let files = |item| -> Vec<(String, u32)> {
            let entry = inventory.entry(item).unwrap();
            entry.files.iter().map(|file| (file.path.display().to_string(), file.mode)).collect()
        };
        assert_eq!(
            files("certs/etcd-server"),
            [
                ("/etc/kubernetes/pki/etcd/server.crt".to_owned(), 0o644),
                ("/etc/kubernetes/pki/etcd/server.key".to_owned(), 0o600)
            ]
        );
        assert_eq!(files("certs/sa")[0], ("/etc/kubernetes/pki/sa.pub".to_owned(), 0o600));
        assert_eq!(files("kubeconfig/admin"), [("/etc/kubernetes/admin.conf".to_owned(), 0o600)]);
    }
}
