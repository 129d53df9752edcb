//! Looks at the host: the impure half of the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::inventory::{Entry, Inventory, Kind};
use super::{EtcdData, Found, FoundManifest, Item, Observed, OpenSwap, Standing, generation};
use crate::cluster::node::NodeState;
use crate::config::{Cluster, KeyAlgorithm};
use crate::error::Hint;
use crate::fsx::{self, FsError};
use crate::journal::{Creation, Ledger, Operation};
use crate::kubeconfig;
use crate::layout::Layout;
use crate::manifests;
use crate::pki::{self, Authority, CertificateInfo};
use crate::release::Component;

/// What runs, found out by the caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Live {
    /// The agent of this root runs.
    pub agent_runs: bool,
    /// In what the agent that runs differs from the one that would be started.
    pub agent_outdated: Option<&'static str>,
    /// The unit of the agent, where plinth made one, starts it at boot.
    pub agent_starts_at_boot: bool,
    /// Containers of ours exist.
    pub has_containers: bool,
    /// Components of which a container runs.
    pub running: BTreeSet<Component>,
    /// Components that are not healthy, each with the reason.
    pub unhealthy: BTreeMap<Component, String>,
    /// Whether `admin.conf` has its rights; `None` where nobody could be asked.
    pub cluster_admins: Option<bool>,
    /// The Node of this host; `None` where nobody could be asked, and where it is not to be registered.
    pub node: Option<NodeState>,
}

/// Reads what is on the host. Nothing is written; what cannot be read is an error, what is wrong is a [`Found::Bad`].
pub fn observe(
    cluster: &Cluster,
    layout: &Layout,
    inventory: &Inventory,
    ledger: &Ledger,
    live: Live,
    now: Timestamp,
) -> Result<Observed, FsError> {
    let standing = standing(layout, ledger)?;
    let serials = standing.committed().map(|generation| &generation.facts.certificates);
    Ok(Observed {
        credentials: credentials(inventory, ledger, serials, now)?,
        standing,
        manifests: manifests(layout, ledger)?,
        etcd_data: etcd_data(&layout.below_root(&cluster.etcd.data_dir), ledger)?,
        agent_runs: live.agent_runs,
        agent_outdated: live.agent_outdated,
        agent_starts_at_boot: live.agent_starts_at_boot,
        unhealthy: live.unhealthy,
        has_containers: live.has_containers,
        running: live.running,
        cluster_admins: live.cluster_admins,
        node: live.node,
        node_kubeconfig: Some(layout.kubernetes().join(kubeconfig::KUBELET_FILE)).filter(|path| is_ours(path, ledger)),
        etcd_swap: OpenSwap::read(layout, ledger)?,
        etcd_copy: None,
    })
}

fn is_ours(path: &Path, ledger: &Ledger) -> bool {
    ledger.has_file(path) && path.exists()
}

/// How far earlier runs came, with what the one that succeeded last has left.
pub fn standing(layout: &Layout, ledger: &Ledger) -> Result<Standing, FsError> {
    Ok(match (generation::committed(layout, ledger)?, ledger.last_operation) {
        (Some(generation), _) => Standing::Committed(Box::new(generation)),
        (None, Some(Operation::Init)) => Standing::Unfinished,
        (None, _) => Standing::New,
    })
}

/// Whether the cluster's authority was brought without its key, so that it signs elsewhere.
pub fn external_ca(layout: &Layout, cluster: &Cluster, ledger: &Ledger) -> bool {
    let pki = layout.below_root(&cluster.cert_dir);
    let key = pki.join("ca.key");
    pki.join("ca.crt").exists() && !key.exists() && !is_unfinished(&key, ledger)
}

/// Whether a file that is not there was about to be written by an `init` that did not come to its end.
fn is_unfinished(missing: &Path, ledger: &Ledger) -> bool {
    ledger.committed.is_none() && ledger.has_file(missing)
}

/// Where the manifest of `component` is.
pub fn manifest_path(layout: &Layout, component: Component) -> PathBuf {
    layout.manifests().join(manifests::file_name(component))
}

/// The certificates of `inventory` that are on disk in files of their own and can be read.
pub fn certificates(inventory: &Inventory) -> Vec<(PathBuf, CertificateInfo)> {
    let files = inventory.entries().iter().flat_map(|entry| &entry.files);
    files
        .filter(|file| file.path.extension().is_some_and(|extension| extension == "crt"))
        .filter_map(|file| {
            let pem = fsx::read(&file.path).ok()?;
            let info = pki::inspect(&file.path.display().to_string(), &pem).ok()?;
            Some((file.path.clone(), info))
        })
        .collect()
}

/// Serial numbers of the certificates of `inventory` that are on disk, in files of their own or in kubeconfigs, by item.
pub fn serials(inventory: &Inventory) -> BTreeMap<String, String> {
    let serial = |entry: &Entry| Some((entry.credential.item.to_owned(), certificate(entry)?.serial));
    inventory.entries().iter().filter_map(serial).collect()
}

/// The certificate of `entry` that is on disk, in a file of its own or in a kubeconfig.
pub fn certificate(entry: &Entry) -> Option<CertificateInfo> {
    let name = entry.files.first()?.path.display().to_string();
    let content = fsx::read(&entry.files.first()?.path).ok()?;
    let pem = match &entry.kind {
        Kind::Certificate(_) => content,
        Kind::Kubeconfig(_) => {
            kubeconfig::credentials(&name, &String::from_utf8_lossy(&content)).ok()?.certificate_pem.into_bytes()
        }
        Kind::ServiceAccount => return None,
    };
    pki::inspect(&name, &pem).ok()
}

/// The authorities among `inventory` that are on disk and in order, by item.
pub fn authorities(inventory: &Inventory, now: Timestamp) -> Result<BTreeMap<Item, Authority>, FsError> {
    let mut found = BTreeMap::new();
    for entry in inventory.entries() {
        if let Kind::Certificate(spec) = &entry.kind
            && spec.is_authority()
            && let [Some(certificate), key] = &contents(entry)?[..]
            && let Ok(authority) = Authority::load(spec, certificate, key.as_deref(), now)
        {
            found.insert(entry.credential.item, authority);
        }
    }
    Ok(found)
}

/// `serials` are those that the control plane runs with, by item.
fn credentials(
    inventory: &Inventory,
    ledger: &Ledger,
    serials: Option<&BTreeMap<String, String>>,
    now: Timestamp,
) -> Result<BTreeMap<Item, Found>, FsError> {
    let authorities = authorities(inventory, now)?;
    let mut found = BTreeMap::new();
    let mut other_authorities = Vec::new();
    for entry in inventory.entries() {
        let contents = contents(entry)?;
        if contents.iter().all(Option::is_none) {
            continue;
        }
        let ours = entry.files.iter().any(|file| ledger.has_file(&file.path));
        let checked = check(entry, &contents, &authorities, inventory.algorithm(), now);
        let recorded = serials.and_then(|serials| serials.get(entry.credential.item));
        if let (Ok(Usable { serial: Some(serial), .. }), Some(recorded)) = (&checked, recorded)
            && serial != recorded
        {
            other_authorities.push((entry.credential.item, serial.clone(), recorded));
        }
        // A certificate whose key was to follow is no authority that somebody keeps elsewhere.
        let half = entry.files.iter().zip(&contents).find(|(file, content)| {
            content.is_none() && entry.credential.authority.is_none() && is_unfinished(&file.path, ledger)
        });
        let checked = checked.and_then(|usable| match half {
            Some((file, _)) => {
                Err(Wrong { reason: format!("`{}` is missing", file.path.display()), hints: Vec::new() })
            }
            None => Ok(usable),
        });
        let checked = checked.and_then(|usable| match usable.stale() {
            // Of an unfinished init with other flags. Once an init has succeeded, a kubeconfig is people's to edit, and
            // keys keep their algorithm until they are renewed.
            Some(reason) if ours && ledger.committed.is_none() => Err(Wrong { reason, hints: Vec::new() }),
            _ => Ok(usable),
        });
        let state = match checked {
            Ok(Usable { can_sign, other_server, .. }) => {
                let is_signed = entry.credential.authority.is_some();
                let as_committed =
                    is_signed && recorded.is_some() && recorded == certificate(entry).map(|info| info.serial).as_ref();
                Found::Good { can_sign, other_server, as_committed }
            }
            Err(Wrong { reason, hints }) => {
                let derivable = matches!((&entry.kind, &contents[..]), (Kind::ServiceAccount, [None, Some(private)])
                    if pki::service_account_public_key(private).is_ok());
                Found::Bad { reason, hints, ours, derivable }
            }
        };
        found.insert(entry.credential.item, state);
    }
    for (item, serial, recorded) in other_authorities {
        // Renewed with its key it still verifies what it signed. One that verifies nothing is a stranger: what it would
        // sign, nobody who is out there would believe.
        let signed = |entry: &&Entry| entry.credential.authority == Some(item);
        let is_good = |entry: &Entry| matches!(found.get(entry.credential.item), Some(Found::Good { .. }));
        if !inventory.entries().iter().filter(signed).any(is_good) {
            let reason =
                format!("{item} is not the authority of this control plane (its serial is {serial}, not {recorded})");
            let hints =
                vec!["put the old one back: authorities of a running control plane cannot be exchanged yet".to_owned()];
            found.insert(item, Found::Bad { reason, hints, ours: false, derivable: false });
        }
    }
    Ok(found)
}

/// A credential on disk that works.
#[derive(Default)]
struct Usable {
    /// It is an authority with its key.
    can_sign: bool,
    /// It leads to another server than one that would be made now.
    other_server: Option<String>,
    /// Its key is of another algorithm than one that would be made now.
    other_algorithm: Option<String>,
    /// Serial number of an authority.
    serial: Option<String>,
}

impl Usable {
    /// In what it differs from the one that would be made now.
    fn stale(&self) -> Option<String> {
        self.other_server.clone().or_else(|| self.other_algorithm.clone())
    }
}

/// Why a credential on disk is not the one that is wanted.
struct Wrong {
    reason: String,
    hints: Vec<String>,
}

impl<E: std::error::Error + Hint> From<E> for Wrong {
    fn from(error: E) -> Self {
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            reason = format!("{reason}: {error}");
            cause = error.source();
        }
        Self { reason, hints: error.hints() }
    }
}

/// What the credential is good for, or what is wrong with it.
fn check(
    entry: &Entry,
    contents: &[Option<Vec<u8>>],
    authorities: &BTreeMap<Item, Authority>,
    algorithm: KeyAlgorithm,
    now: Timestamp,
) -> Result<Usable, Wrong> {
    let other_algorithm = |info: &CertificateInfo| {
        let (found, wanted) = (&info.algorithm, algorithm.name());
        (found != wanted).then(|| format!("its key is {found}, not {wanted}"))
    };
    let missing = |index: usize| {
        let path = &entry.files[index].path;
        let other = &entry.files[1 - index].path;
        Wrong {
            reason: format!("`{}` is there, but `{}` is missing", other.display(), path.display()),
            hints: vec![format!("put it back, or remove `{}` to have both made anew", other.display())],
        }
    };
    let authority = || {
        let item = entry.credential.authority.unwrap_or_default();
        authorities.get(item).ok_or_else(|| Wrong {
            reason: format!("{} is there, but its authority ({item}) is missing or broken", entry.credential.item),
            hints: vec!["put the authority back, or remove what it signed".to_owned()],
        })
    };
    match (&entry.kind, contents) {
        (Kind::Certificate(spec), [Some(certificate), key]) if spec.is_authority() => {
            let authority = Authority::load(spec, certificate, key.as_deref(), now)?;
            let other_algorithm = other_algorithm(authority.info());
            let serial = Some(authority.info().serial.clone());
            Ok(Usable { can_sign: authority.can_sign(), other_algorithm, serial, ..Usable::default() })
        }
        (Kind::Certificate(spec), [Some(certificate), Some(key)]) => {
            let info = pki::check_leaf(spec, certificate, key, authority()?, now)?;
            Ok(Usable { other_algorithm: other_algorithm(&info), ..Usable::default() })
        }
        (Kind::ServiceAccount, [Some(public), Some(private)]) => {
            pki::check_service_account(private, public)?;
            Ok(Usable::default())
        }
        (Kind::Kubeconfig(spec), [Some(text)]) => {
            let info = kubeconfig::check(&String::from_utf8_lossy(text), spec, authority()?, now)?;
            let other_server = info.other_server.map(|server| format!("its server is {server}, not {}", spec.server));
            let other_algorithm = other_algorithm(&info.certificate);
            Ok(Usable { other_server, other_algorithm, ..Usable::default() })
        }
        (_, [Some(_), _]) => Err(missing(1)),
        _ => Err(missing(0)),
    }
}

fn contents(entry: &Entry) -> Result<Vec<Option<Vec<u8>>>, FsError> {
    entry.files.iter().map(|file| fsx::read_optional(&file.path)).collect()
}

fn manifests(layout: &Layout, ledger: &Ledger) -> Result<BTreeMap<Component, FoundManifest>, FsError> {
    let mut found = BTreeMap::new();
    for component in Component::ALL {
        let path = manifest_path(layout, component);
        if let Some(content) = fsx::read_optional(&path)? {
            let content = String::from_utf8_lossy(&content).into_owned();
            let ours = ledger.has_file(&path);
            found.insert(component, FoundManifest { path, content, ours });
        }
    }
    Ok(found)
}

fn etcd_data(path: &Path, ledger: &Ledger) -> Result<EtcdData, FsError> {
    let empty = match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(FsError::of("read directory", path)(error)),
    };
    Ok(match (empty, ledger.has(&Creation::Tree { path: path.to_path_buf() })) {
        (true, _) => EtcdData::Empty,
        (false, true) => EtcdData::Ours,
        (false, false) => EtcdData::Foreign,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    struct Host {
        _root: tempfile::TempDir,
        layout: Layout,
        inventory: Inventory,
        ledger: Ledger,
        /// Those that the control plane runs with.
        serials: Option<BTreeMap<String, String>>,
        now: Timestamp,
    }

    /// A host with the authority `ca` and the leaf `apiserver` on disk.
    fn host() -> Host {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let cluster = Cluster::example();
        let inventory = Inventory::of(&cluster, &layout);
        let now = Clock::system().now();
        let spec = |item| match &inventory.entry(item).unwrap().kind {
            Kind::Certificate(spec) => spec.clone(),
            other => panic!("{other:?}"),
        };
        let write = |item, issued: &pki::Issued| {
            let files = &inventory.entry(item).unwrap().files;
            fsx::create_directories(files[0].path.parent().unwrap(), 0o755).unwrap();
            fsx::write_atomic(&files[0].path, issued.certificate.as_bytes(), 0o644).unwrap();
            fsx::write_atomic(&files[1].path, issued.key.expose().as_bytes(), 0o600).unwrap();
        };
        let policy = &cluster.certificates;
        let ca = pki::issue_authority(&spec("certs/ca"), policy, now).unwrap();
        write("certs/ca", &ca);
        let authority =
            Authority::load(&spec("certs/ca"), ca.certificate.as_bytes(), Some(ca.key.expose().as_bytes()), now)
                .unwrap();
        write("certs/apiserver", &pki::issue_leaf(&spec("certs/apiserver"), &authority, policy, now).unwrap());
        Host { _root: root, layout, inventory, ledger: Ledger::default(), serials: None, now }
    }

    impl Host {
        fn found(&self) -> BTreeMap<Item, Found> {
            credentials(&self.inventory, &self.ledger, self.serials.as_ref(), self.now).unwrap()
        }

        fn file(&self, item: Item, index: usize) -> PathBuf {
            self.inventory.entry(item).unwrap().files[index].path.clone()
        }
    }

    const GOOD: Found = Found::Good { can_sign: false, other_server: None, as_committed: false };
    const GOOD_AUTHORITY: Found = Found::Good { can_sign: true, other_server: None, as_committed: false };

    fn reason(found: Option<&Found>) -> (&str, bool) {
        match found {
            Some(Found::Bad { reason, ours, .. }) => (reason, *ours),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_there_and_right_is_good_and_what_is_not_there_is_absent() {
        let found = host().found();
        assert_eq!(found.get("certs/ca"), Some(&GOOD_AUTHORITY));
        assert_eq!(found.get("certs/apiserver"), Some(&GOOD));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn half_a_pair_says_which_half_is_missing() {
        let host = host();
        fsx::remove_file(&host.file("certs/apiserver", 1)).unwrap();
        let found = host.found();
        let (reason, ours) = reason(found.get("certs/apiserver"));
        assert!(reason.ends_with("apiserver.key` is missing") && !ours, "{reason}");
    }

    #[test]
    fn an_authority_without_its_key_cannot_sign() {
        let host = host();
        fsx::remove_file(&host.file("certs/ca", 1)).unwrap();
        assert_eq!(host.found().get("certs/ca"), Some(&GOOD));
    }

    #[test]
    fn another_authority_than_the_one_that_runs_is_bad_unless_it_verifies_what_that_has_signed() {
        let mut host = host();
        host.serials = Some(serials(&host.inventory));
        assert_eq!(host.found().get("certs/ca"), Some(&GOOD_AUTHORITY));
        let as_committed = Found::Good { can_sign: false, other_server: None, as_committed: true };
        assert_eq!(host.found().get("certs/apiserver"), Some(&as_committed));
        host.serials = Some([("certs/ca".to_owned(), "01".to_owned())].into());
        assert_eq!(host.found().get("certs/ca"), Some(&GOOD_AUTHORITY));
        fsx::remove_file(&host.file("certs/apiserver", 0)).unwrap();
        let found = host.found();
        assert!(reason(found.get("certs/ca")).0.contains("not the authority of this control plane"));
    }

    #[test]
    fn the_public_half_of_a_key_pair_follows_from_the_private_one() {
        let host = host();
        let files = &host.inventory.entry("certs/sa").unwrap().files;
        let keys = pki::issue_service_account(KeyAlgorithm::EcdsaP256).unwrap();
        for (private, expected) in [(keys.private.expose(), true), ("nonsense", false)] {
            fsx::write_atomic(&files[1].path, private.as_bytes(), 0o600).unwrap();
            let found = host.found();
            assert!(
                matches!(found.get("certs/sa"), Some(Found::Bad { derivable, .. }) if *derivable == expected),
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_leaf_without_its_authority_is_bad() {
        let host = host();
        fsx::remove_file(&host.file("certs/ca", 0)).unwrap();
        fsx::remove_file(&host.file("certs/ca", 1)).unwrap();
        let found = host.found();
        assert!(reason(found.get("certs/apiserver")).0.contains("its authority (certs/ca) is missing"));
        assert!(!found.contains_key("certs/ca"));
    }

    #[test]
    fn etcd_data_is_ours_only_by_the_ledger() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("etcd");
        let mut ledger = Ledger::default();
        assert_eq!(etcd_data(&path, &ledger).unwrap(), EtcdData::Empty);
        std::fs::create_dir_all(path.join("member")).unwrap();
        assert_eq!(etcd_data(&path, &ledger).unwrap(), EtcdData::Foreign);
        ledger.insert(Creation::Tree { path: path.clone() });
        assert_eq!(etcd_data(&path, &ledger).unwrap(), EtcdData::Ours);
    }

    #[test]
    fn a_new_host_has_no_standing() {
        let host = host();
        assert_eq!(standing(&host.layout, &host.ledger).unwrap(), Standing::New);
    }
}
