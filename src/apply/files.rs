//! Makes certificates, keys, kubeconfigs and manifests.

use std::collections::BTreeMap;

use super::{ApplyError, Goal, Host};
use crate::fsx::{self, NewFile};
use crate::journal::Ledger;
use crate::pki::{self, Authority};
use crate::plan::{self, Entry, Item, Kind, Step, generation};
use crate::release::Component;
use crate::{config::CertificatePolicy, kubeconfig};

/// Mode of the directories of kubeconfigs and certificates; the keys in them are 0600.
const DIRECTORY_MODE: u32 = 0o755;
/// Mode of the manifests directory (kubeadm: `phases/etcd`, `phases/controlplane`).
pub(super) const MANIFESTS_MODE: u32 = 0o700;
/// Mode of etcd's data directory (kubeadm: `CreateLocalEtcdStaticPodManifestFile`).
const ETCD_DATA_MODE: u32 = 0o700;
/// Mode of a manifest (kubeadm: `WriteStaticPodToDisk`).
pub(super) const MANIFEST_MODE: u32 = 0o600;

/// Performs `steps`, all of them `Issue` or `WriteManifest`: makes everything in memory, then writes it, what others
/// refer to first.
pub(super) fn write<R>(steps: &[Step], goal: &Goal<'_>, host: &Host<'_, R>) -> Result<(), ApplyError> {
    let mut files = issue(steps, goal, host)?;
    for step in steps {
        if matches!(step, Step::WriteManifest { component: Component::Etcd, .. }) {
            let data = host.layout.below_root(&goal.cluster.etcd.data_dir);
            fsx::create_directories(&data, ETCD_DATA_MODE)?;
        }
        if let Step::WriteManifest { component, .. } = step
            && let Some(manifest) = goal.manifest(*component)
        {
            files.push(NewFile {
                path: plan::manifest_path(host.layout, *component),
                content: manifest.yaml.clone().into_bytes(),
                mode: MANIFEST_MODE,
            });
        }
    }
    fsx::create_directories(&host.layout.kubernetes(), DIRECTORY_MODE)?;
    fsx::create_directories(&host.layout.manifests(), MANIFESTS_MODE)?;
    for file in &files {
        if let Some(directory) = file.path.parent() {
            fsx::create_directories(directory, DIRECTORY_MODE)?;
        }
    }
    fsx::write_batch(&files)?;
    report(steps, host);
    Ok(())
}

/// What `steps` are about to replace of that which the control plane of the last generation runs with, and could run
/// with again.
pub(super) fn replaced<R>(
    steps: &[Step],
    goal: &Goal<'_>,
    host: &Host<'_, R>,
    ledger: &Ledger,
) -> Result<Vec<NewFile>, ApplyError> {
    let Some(generation) = generation::committed(host.layout, ledger)? else { return Ok(Vec::new()) };
    let now = host.clock.now();
    let mut files = Vec::new();
    for step in steps {
        let Step::Issue { item, replaces: Some(_), .. } = step else { continue };
        let Some(entry) = goal.inventory.entry(item) else { continue };
        let serial = plan::certificate(entry).filter(|info| info.not_after > now).map(|info| info.serial);
        if serial.is_none() || generation.facts.certificates.get(*item) != serial.as_ref() {
            continue;
        }
        for file in &entry.files {
            let content = fsx::read_optional(&file.path)?;
            files.extend(content.map(|content| NewFile { path: file.path.clone(), content, mode: file.mode }));
        }
    }
    Ok(files)
}

/// One line per phase.
fn report<R>(steps: &[Step], host: &Host<'_, R>) {
    let mut phases: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for step in steps {
        let (phase, part) = step.phase().split_once('/').unwrap_or((step.phase(), ""));
        phases.entry(phase).or_default().push(part);
    }
    for (phase, parts) in phases {
        host.printer.phase(phase).done(&format!("wrote {}", parts.join(", ")));
    }
}

/// What one entry becomes: contents in the order of its files.
type Contents = Vec<Vec<u8>>;

fn issue<R>(steps: &[Step], goal: &Goal<'_>, host: &Host<'_, R>) -> Result<Vec<NewFile>, ApplyError> {
    let now = host.clock.now();
    let policy = &goal.cluster.certificates;
    let entries: Vec<&Entry> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Issue { item, .. } => goal.inventory.entry(item),
            _ => None,
        })
        .collect();
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let (own, signed): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.credential.authority.is_none());
    let mut files = Vec::new();

    // Keys take their time where they are RSA, so they are made side by side: first what signs itself, …
    let made = side_by_side(&own, |entry| self_made(entry, policy, now))?;
    let mut authorities = plan::authorities(goal.inventory, now)?;
    for (entry, contents) in own.iter().zip(&made) {
        if let (Kind::Certificate(spec), [certificate, key]) = (&entry.kind, &contents[..]) {
            authorities.insert(entry.credential.item, Authority::load(spec, certificate, Some(key), now)?);
        }
    }
    add(&mut files, &own, made);

    // … then what an authority signs.
    let made = side_by_side(&signed, |entry| signed_by(entry, &authorities, policy, now))?;
    add(&mut files, &signed, made);
    Ok(files)
}

fn self_made(entry: &Entry, policy: &CertificatePolicy, now: jiff::Timestamp) -> Result<Contents, ApplyError> {
    Ok(match &entry.kind {
        Kind::ServiceAccount => {
            // What the private half has signed is believed for as long as it stays.
            if let [_, private] = &entry.files[..]
                && let Some(private) = fsx::read_optional(&private.path)?
                && let Ok(public) = pki::service_account_public_key(&private)
            {
                return Ok(vec![public.into_bytes(), private]);
            }
            let keys = pki::issue_service_account(policy.algorithm)?;
            vec![keys.public.into_bytes(), keys.private.expose().into()]
        }
        Kind::Certificate(spec) => {
            let issued = pki::issue_authority(spec, policy, now)?;
            vec![issued.certificate.into_bytes(), issued.key.expose().into()]
        }
        // Every kubeconfig has an authority.
        Kind::Kubeconfig(_) => Vec::new(),
    })
}

fn signed_by(
    entry: &Entry,
    authorities: &BTreeMap<Item, Authority>,
    policy: &CertificatePolicy,
    now: jiff::Timestamp,
) -> Result<Contents, ApplyError> {
    let item = entry.credential.authority.unwrap_or_default();
    // The plan issues a leaf only where its authority can sign; it may have gone since.
    let missing = || pki::PkiError::AuthorityKeyMissing {
        wanted: entry.credential.item.to_owned(),
        key_file: format!("{item} (its key)"),
    };
    let authority = authorities.get(item).ok_or_else(missing)?;
    Ok(match &entry.kind {
        Kind::Certificate(spec) => {
            let issued = pki::issue_leaf(spec, authority, policy, now)?;
            vec![issued.certificate.into_bytes(), issued.key.expose().into()]
        }
        Kind::Kubeconfig(spec) => vec![kubeconfig::build(spec, authority, policy, now)?.expose().into()],
        Kind::ServiceAccount => Vec::new(),
    })
}

fn add(files: &mut Vec<NewFile>, entries: &[&Entry], made: Vec<Contents>) {
    for (entry, contents) in entries.iter().zip(made) {
        let new = entry.files.iter().zip(contents);
        files.extend(new.map(|(file, content)| NewFile { path: file.path.clone(), content, mode: file.mode }));
    }
}

/// `make` for each entry, in threads of their own; results in order.
fn side_by_side(
    entries: &[&Entry],
    make: impl Fn(&Entry) -> Result<Contents, ApplyError> + Sync,
) -> Result<Vec<Contents>, ApplyError> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = entries.iter().map(|entry| scope.spawn(|| make(entry))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}
