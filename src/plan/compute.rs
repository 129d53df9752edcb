//! The decision: what is asked for and what is there → what differs and what is to be done. Pure.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, Taint};

use super::{
    AddressChange, Back, Cause, Change, Class, Credential, Desired, EtcdData, Found, Generation, ImageChange, Item,
    Observed, OpenSwap, Plan, Refusal, Step, VersionChange, manifest_phase,
};
use super::{change, etcd};
use crate::agent::pod::{SURGE, UPDATE};
use crate::cluster::node::{NodeState, text_of};
use crate::etcd::{Course, Prospect};
use crate::manifests::Manifest;
use crate::release::{self, Component};
use crate::yaml;

/// Flags of kube-apiserver that say where it listens, and where clients are told to find it.
const PLACE: [&str; 4] = ["advertise-address", "bind-address", "permit-port-sharing", "secure-port"];

/// Decides what is to be done; all refusals together where something stands in the way.
pub fn compute(desired: &Desired<'_>, observed: &Observed) -> Result<Plan, Vec<Refusal>> {
    let mut found = Differences::default();
    credentials(desired, observed, &mut found);
    manifests(desired, observed, &mut found);
    if let Some(before) = &desired.before {
        let (from, to) = (&before.cluster.version, &desired.cluster.version);
        found.refusals.extend(release::upgrade_path(from, to).err().map(Refusal::Skew));
        // The way back from a version must not lead to an address that is gone.
        if from != to && before.cluster.advertise_address != desired.cluster.advertise_address {
            let (from, to) = (from.clone(), to.clone());
            found.refusals.push(Refusal::VersionAndAddress { from, to, address: desired.cluster.advertise_address });
        }
    }
    let committed = observed.standing.committed();
    if committed.is_some() && observed.etcd_data == EtcdData::Empty {
        found.refusals.push(Refusal::EtcdDataLost { path: desired.etcd_data.clone() });
    }
    if !found.refusals.is_empty() {
        return Err(found.refusals);
    }
    let mut plan = match committed {
        Some(generation) => mend(desired, observed, generation, found),
        None => make(desired, observed, found),
    };
    plan.steps.sort_by_key(Step::rank);
    if let Some(before) = &desired.before {
        let (from, to) = (&before.cluster.version, &desired.cluster.version);
        let by_default = !desired.cluster.version_pinned;
        plan.version = (from != to).then(|| VersionChange { from: from.clone(), to: to.clone(), by_default });
        plan.address = AddressChange::between(before.cluster, desired.cluster);
    }
    Ok(plan)
}

/// What was found to differ, so far.
#[derive(Default)]
struct Differences {
    refusals: Vec<Refusal>,
    changes: Vec<Change>,
    issues: Vec<Step>,
    manifests: Vec<Step>,
}

/// The plan for a host where no `init` has succeeded yet.
fn make(desired: &Desired<'_>, observed: &Observed, found: Differences) -> Plan {
    let Differences { issues, mut manifests, .. } = found;
    let changes = !issues.is_empty() || !manifests.is_empty();
    let start_agent = !observed.agent_runs || !observed.agent_starts_at_boot;
    let unhealthy = !observed.unhealthy.is_empty() || start_agent;
    let takes_over = (observed.agent_runs || observed.has_containers) && (changes || unhealthy);
    let mut steps = Vec::new();
    // An etcd that was interrupted while it made its data never elects a leader from it, and other addresses or another
    // authority contradict it. A cluster that was never healthy has nothing to lose; its data is kept all the same.
    if observed.etcd_data == EtcdData::Ours && (changes || unhealthy) {
        steps.push(Step::SetEtcdDataAside { path: desired.etcd_data.clone() });
    }
    if takes_over {
        steps.push(Step::StopPods);
        // Stopping takes the manifests away, or the agent would run the old ones until the new ones are there.
        let replaces = |component| manifests.contains(&Step::WriteManifest { component, replaces: true });
        manifests = desired
            .manifests
            .iter()
            .map(|manifest| manifest.component)
            .map(|component| Step::WriteManifest { component, replaces: replaces(component) })
            .collect();
    }
    steps.extend(issues);
    steps.extend(manifests);
    if takes_over || start_agent {
        steps.push(Step::StartAgent);
    }
    if changes || unhealthy {
        steps.push(Step::Wait);
    }
    steps.push(Step::BindClusterAdmins);
    if desired.cluster.registration.is_some() {
        steps.push(Step::MarkControlPlane { lifted: Vec::new() });
    }
    steps.push(Step::Commit);
    let changes = steps.iter().filter_map(Change::of_new).collect();
    Plan { changes, steps, ..Plan::default() }
}

/// The plan for a control plane that runs.
fn mend(desired: &Desired<'_>, observed: &Observed, generation: &Generation, found: Differences) -> Plan {
    let Differences { mut changes, issues, manifests, .. } = found;
    let drift = |what: String, class, reason: String, phase| Change {
        what,
        class,
        cause: Cause::Drift,
        reason,
        image: None,
        diff: None,
        phase,
    };
    for (component, reason) in &observed.unhealthy {
        let name = component.name();
        if !changes.iter().any(|change| change.what == name) {
            let (class, reason) = if observed.running.contains(component) {
                (Class::None, format!("it is not healthy: {reason}"))
            } else {
                (change::exchange(*component, "", ""), "no container of it runs".to_owned())
            };
            changes.push(drift(name.to_owned(), class, reason, "wait-control-plane"));
        }
    }
    let recorded = |manifest: &Manifest| generation.manifests.get(&manifest.component) == Some(&manifest.yaml);
    let record = generation.config != desired.config
        || generation.facts.version_pinned != desired.cluster.version_pinned
        || !issues.is_empty()
        || !desired.manifests.iter().all(recorded);

    let mut steps = issues;
    steps.extend(manifests);
    let agent = match observed.agent_outdated {
        _ if !observed.agent_runs => Some("it does not run"),
        Some(reason) => Some(reason),
        None => (!observed.agent_starts_at_boot).then_some("a boot would not start it"),
    };
    if let Some(reason) = agent {
        changes.push(drift("agent".to_owned(), Class::Live, reason.to_owned(), Step::StartAgent.phase()));
        steps.push(Step::StartAgent);
    }
    if observed.cluster_admins == Some(false) {
        let reason = "rights of admin.conf or of the agent are missing".to_owned();
        changes.push(drift(change::BINDING.to_owned(), Class::Live, reason, Step::BindClusterAdmins.phase()));
        steps.push(Step::BindClusterAdmins);
    }
    if let Some((cause, reason, step)) = node(desired, observed) {
        changes.push(Change { cause, ..drift(change::NODE.to_owned(), Class::Live, reason.to_owned(), step.phase()) });
        steps.push(step);
    }
    if record || !steps.is_empty() || !observed.unhealthy.is_empty() {
        steps.push(Step::Wait);
    }
    if record {
        changes.extend(configuration(desired, generation));
        steps.push(Step::Commit);
    }
    Plan { changes, steps, ..Plan::default() }
}

/// What is to be done about the Node of this host.
fn node(desired: &Desired<'_>, observed: &Observed) -> Option<(Cause, &'static str, Step)> {
    let before = desired.before.as_ref().and_then(|before| before.cluster.registration.as_ref());
    let Some(wanted) = &desired.cluster.registration else {
        let cause = if before.is_some() { Cause::Configuration } else { Cause::Drift };
        let leaves = before.is_some() || observed.node_kubeconfig.is_some();
        return leaves.then_some((cause, "it is no longer registered", Step::RemoveNode));
    };
    let is_wanted = |taint: &&Taint| wanted.taints.contains(taint);
    let lifted: Vec<_> = before.iter().flat_map(|one| &one.taints).filter(|one| !is_wanted(one)).map(text_of).collect();
    let (cause, reason) = match observed.node {
        _ if before.is_none() => (Cause::Configuration, "it is to be registered"),
        _ if before != Some(wanted) => (Cause::Configuration, "other taints are asked for"),
        Some(NodeState::Absent) => (Cause::Drift, "it is not registered"),
        Some(NodeState::Unmarked) => (Cause::Drift, "labels or taints of a control plane are missing"),
        Some(NodeState::Marked) | None => return None,
    };
    Some((cause, reason, Step::MarkControlPlane { lifted }))
}

/// The configuration itself, where it is another one.
fn configuration(desired: &Desired<'_>, generation: &Generation) -> Option<Change> {
    let pinned = desired.cluster.version_pinned;
    let (reason, diff) = if generation.config != desired.config {
        ("other values are asked for", Some(diff(&generation.config, desired.config)))
    } else if generation.facts.version_pinned != pinned {
        (if pinned { "the version is named now" } else { "the version is no longer named" }, None)
    } else {
        return None;
    };
    Some(Change {
        what: change::CONFIGURATION.to_owned(),
        class: Class::None,
        cause: Cause::Configuration,
        reason: reason.to_owned(),
        image: None,
        diff,
        phase: Step::Commit.phase(),
    })
}

fn credentials(desired: &Desired<'_>, observed: &Observed, found: &mut Differences) {
    let committed = observed.standing.committed().is_some();
    let respecified = |item| desired.before.as_ref().is_some_and(|before| before.respecified.contains(item));
    // One that was interrupted does not renew again what it has renewed.
    let upgrades = desired.before.as_ref().is_some_and(|before| before.cluster.version < desired.cluster.version);
    let renews = |authority: Option<Item>| {
        let signer = authority.and_then(|authority| observed.credentials.get(authority));
        upgrades && desired.renew && matches!(signer, Some(Found::Good { can_sign: true, .. }))
    };
    let mut made: Vec<Item> = Vec::new();
    for credential in &desired.credentials {
        let Credential { item, authority, for_etcd } = *credential;
        let asked_for = respecified(item) || matches!(observed.credentials.get(item), Some(Found::Good { .. }));
        // What an authority signed goes with it. Its files then no longer verify, so they are `Bad`.
        let replaces = match observed.credentials.get(item) {
            Some(Found::Good { other_server: Some(server), .. }) if respecified(item) => Some(server.clone()),
            // One that leads elsewhere is people's, and they renew it.
            Some(Found::Good { as_committed: true, other_server: None, .. }) if renews(authority) => {
                Some(change::RENEWED.to_owned())
            }
            Some(Found::Good { .. }) => continue,
            Some(Found::Bad { reason, ours: true, derivable, .. })
                if !committed || authority.is_some() || *derivable =>
            {
                Some(reason.clone())
            }
            Some(Found::Bad { reason, hints, .. }) => {
                let unusable = Refusal::Unusable { item, reason: reason.clone(), hints: hints.clone() };
                found.refusals.push(unusable);
                continue;
            }
            None if committed && authority.is_none() => {
                found.refusals.push(Refusal::AuthorityLost { item });
                continue;
            }
            None => None,
        };
        if let Some(authority) = authority {
            let signs = match observed.credentials.get(authority) {
                Some(Found::Good { can_sign, .. }) => *can_sign,
                _ => made.contains(&authority),
            };
            if !signs {
                // Where the authority itself was refused, that is the one thing to say.
                if matches!(observed.credentials.get(authority), Some(Found::Good { .. })) {
                    found.refusals.push(Refusal::CannotSign { item, authority });
                }
                continue;
            }
        }
        made.push(item);
        found.changes.push(Change {
            what: item.to_owned(),
            class: Class::Live,
            cause: if asked_for { Cause::Configuration } else { Cause::Drift },
            reason: replaces.clone().unwrap_or_else(|| "it is missing".to_owned()),
            image: None,
            diff: None,
            phase: item,
        });
        found.issues.push(Step::Issue { item, replaces, for_etcd });
    }
}

fn manifests(desired: &Desired<'_>, observed: &Observed, found: &mut Differences) {
    for manifest in desired.manifests {
        let Some(from) = gives_way(manifest, observed, found) else { continue };
        if from.same && !from.asked {
            continue;
        }
        replace(manifest, &from, desired, observed, found);
    }
    if goes_down(desired, found) {
        backwards(observed, &mut found.manifests);
    }
}

/// What a manifest takes the place of, where a control plane ran before.
struct From<'a> {
    /// What is on disk, or what is taken for it: after a swap of etcd that is undone its old manifest, and for one that
    /// is missing the last one.
    text: &'a str,
    /// There is no file.
    missing: bool,
    /// It is what is wanted.
    same: bool,
    /// The last one that served, unless there was none.
    last: Option<&'a String>,
    /// That is not what is wanted.
    asked: bool,
}

/// What gives way to `manifest`; `None` where what there is to do needs no more than is decided here.
fn gives_way<'a>(manifest: &Manifest, observed: &'a Observed, found: &mut Differences) -> Option<From<'a>> {
    let component = manifest.component;
    let open = observed.etcd_swap.as_ref().filter(|_| component == Component::Etcd);
    if let Some(open) = open {
        let forward = open.course == Course::Forward && open.new == manifest.yaml;
        found.changes.push(interrupted_swap(open, forward, manifest));
        found.manifests.push(Step::FinishEtcdSwap { forward });
        if forward || open.old == manifest.yaml {
            return None;
        }
    }
    let file = observed.manifests.get(&component).filter(|_| open.is_none());
    let on_disk = open.map(|open| &open.old).or_else(|| file.map(|file| &file.content));
    let same = on_disk == Some(&manifest.yaml);
    if let Some(file) = file.filter(|file| !file.ours && !same) {
        found.refusals.push(Refusal::ForeignManifest { path: file.path.clone() });
        return None;
    }
    let Some(generation) = observed.standing.committed() else {
        if !same {
            found.manifests.push(Step::WriteManifest { component, replaces: on_disk.is_some() });
        }
        return None;
    };
    let last = generation.manifests.get(&component);
    let asked = last.is_some_and(|last| *last != manifest.yaml);
    // One that is missing gives way like the last one, with all that this takes, where another one is wanted.
    let Some(text) = on_disk.or(last.filter(|_| asked)) else {
        found.changes.push(Change {
            what: component.name().to_owned(),
            class: change::exchange(component, "", ""),
            cause: Cause::Drift,
            reason: "its manifest is missing".to_owned(),
            image: None,
            diff: None,
            phase: manifest_phase(component),
        });
        found.manifests.push(Step::WriteManifest { component, replaces: false });
        return None;
    };
    Some(From { text, missing: on_disk.is_none(), same, last, asked })
}

/// `manifest` takes the place of `from`.
fn replace(manifest: &Manifest, from: &From<'_>, desired: &Desired<'_>, observed: &Observed, found: &mut Differences) {
    let component = manifest.component;
    let From { text, missing, same, last, asked } = *from;
    let last = last.map(String::as_str);
    // An exchange that was interrupted has the new file in place, and nobody has seen it healthy.
    let old = last.filter(|_| same).unwrap_or(text);
    let rendered_anew = || {
        let before = desired.before.iter().flat_map(|before| before.manifests);
        before.filter(|before| before.component == component).any(|before| before.yaml == manifest.yaml)
    };
    let cause = match asked {
        false => Cause::Drift,
        true if rendered_anew() => Cause::Plinth,
        true => Cause::Configuration,
    };
    found.changes.push(exchange(manifest, old, cause));
    let readable = |text: &str| yaml::manifest::<Pod>(text.as_bytes()).is_ok();
    // A component may well be healthy beside a manifest that cannot be read: it runs with the one before.
    let healthy = !observed.unhealthy.contains_key(&component) || observed.etcd_swap.is_some();
    let back = match (same, healthy && readable(old), asked) {
        (false, true, _) if !missing => Back::OnDisk,
        (_, _, true) => Back::LastGeneration,
        _ => Back::Nothing,
    };
    // What cannot be read nobody runs.
    let ran = Some(old).filter(|old| readable(old)).or(last).unwrap_or(old);
    let tag = |text: &str| etcd::image_of(text).map(|image| etcd::tag(&image).to_owned());
    let swaps = component == Component::Etcd && tag(ran) != tag(&manifest.yaml);
    if swaps && !same {
        found.refusals.extend(against_swap(ran, manifest, observed.etcd_copy.as_ref()));
    }
    found.manifests.push(if swaps { Step::SwapEtcd { back } } else { Step::Exchange { component, back } });
}

/// Whether the way leads back. The versions say so; where they are the same, what is on disk does: an upgrade may have
/// been interrupted.
fn goes_down(desired: &Desired<'_>, found: &Differences) -> bool {
    let from = desired.before.as_ref().map_or(&desired.cluster.version, |before| &before.cluster.version);
    match desired.cluster.version.cmp(from) {
        Ordering::Less => true,
        Ordering::Greater => false,
        Ordering::Equal => found.changes.iter().filter_map(|change| change.image.as_ref()).any(goes_back),
    }
}

/// On the way back what depends on others goes first, so that nothing is ever older than what uses it.
fn backwards(observed: &Observed, steps: &mut [Step]) {
    steps.reverse();
    // Nobody is started before the API server that it relies on is ready, so one that is broken is mended first.
    let broken = |component| observed.unhealthy.contains_key(&component);
    steps.sort_by_key(|step| match step {
        Step::SwapEtcd { .. } | Step::Exchange { component: Component::Etcd, .. } if broken(Component::Etcd) => 0,
        Step::Exchange { component: api @ Component::KubeApiserver, .. } if broken(*api) => 1,
        _ => 2,
    });
}

/// Whether the tags are versions, and that of the new image is lower.
fn goes_back(image: &ImageChange) -> bool {
    let version = |image: &str| semver::Version::parse(etcd::tag(image).trim_start_matches('v')).ok();
    version(&image.old).zip(version(&image.new)).is_some_and(|(old, new)| new < old)
}

/// Whatever speaks against replacing the etcd of the manifest `old` by that of `new`.
fn against_swap(old: &str, new: &Manifest, copy: Option<&Result<Prospect, String>>) -> Vec<Refusal> {
    let old: Option<Pod> = yaml::manifest(old.as_bytes()).ok();
    let [(from, old_flags), (to, new_flags)] = [old.as_ref(), Some(&new.pod)].map(image_and_flags);
    let mut refusals = Vec::new();
    if matches!(etcd::change_between(&from, &to), None | Some(etcd::Change::Unsupported)) {
        refusals.push(Refusal::EtcdVersion { from, to });
    }
    if old_flags.union(&new_flags).any(|flag| name_of(flag) == "wal-dir") {
        refusals.push(Refusal::EtcdLogElsewhere);
    }
    let mib = |bytes: u64| bytes.div_ceil(1024 * 1024);
    let why = match copy {
        Some(Ok(prospect)) if !prospect.fits() => {
            let needed = prospect.needed();
            Some((format!("it needs {} MiB, and {} MiB are free", mib(needed), prospect.free / (1024 * 1024)), true))
        }
        Some(Err(why)) => Some((why.clone(), false)),
        _ => None,
    };
    refusals.extend(why.map(|(reason, room)| Refusal::EtcdCopy { reason, room }));
    refusals
}

/// The swap that has not ended.
fn interrupted_swap(open: &OpenSwap, forward: bool, wanted: &Manifest) -> Change {
    let (old, new) = (&open.old_image, &open.new_image);
    let (cause, reason, to) = if forward {
        (Cause::Configuration, "its replacement was interrupted, and goes on", &wanted.yaml)
    } else {
        (Cause::Drift, "its replacement was interrupted, and is undone", &open.old)
    };
    Change {
        what: Component::Etcd.name().to_owned(),
        class: change::exchange(Component::Etcd, old, if forward { new } else { old }),
        cause,
        reason: reason.to_owned(),
        image: forward.then(|| ImageChange { old: old.clone(), new: new.clone() }),
        diff: Some(diff(&open.old, to)).filter(|diff| !diff.is_empty()),
        phase: manifest_phase(Component::Etcd),
    }
}

/// `old` gives way to `manifest`.
fn exchange(manifest: &Manifest, old: &str, cause: Cause) -> Change {
    let component = manifest.component;
    let pod: Option<Pod> = yaml::manifest(old.as_bytes()).ok();
    let same = pod.as_ref() == Some(&manifest.pod);
    let [(old_image, old_flags), (new_image, new_flags)] = [pod.as_ref(), Some(&manifest.pod)].map(image_and_flags);
    let mut parts = Vec::new();
    if old_image != new_image {
        parts.push("another image".to_owned());
    }
    let flags: BTreeSet<_> = old_flags.symmetric_difference(&new_flags).map(|flag| name_of(flag)).collect();
    if !flags.is_empty() && pod.is_some() {
        parts.push(format!("other flags: {}", flags.into_iter().collect::<Vec<_>>().join(", ")));
    }
    let parts = match (parts.is_empty(), same) {
        (false, _) => parts.join("; "),
        (true, true) => "nothing that means anything".to_owned(),
        (true, false) => "another manifest".to_owned(),
    };
    let class = match pod {
        _ if same => Class::None,
        Some(pod) if is_replaced_new_first(&pod, &manifest.pod) => Class::Restart(component),
        _ => change::exchange(component, &old_image, &new_image),
    };
    Change {
        what: component.name().to_owned(),
        class,
        cause,
        reason: match cause {
            Cause::Configuration | Cause::New => parts,
            Cause::Plinth => format!("this plinth renders the same configuration otherwise: {parts}"),
            Cause::Drift => format!("edited by hand: {parts}"),
        },
        image: (old_image != new_image && !old_image.is_empty())
            .then_some(ImageChange { old: old_image, new: new_image }),
        diff: Some(diff(old, &manifest.yaml)),
        phase: manifest_phase(component),
    }
}

/// Whether the agent starts and proves the new one beside the old one, so that somebody serves all the time: both say so,
/// and listen at the same place.
fn is_replaced_new_first(old: &Pod, new: &Pod) -> bool {
    let surges = |pod: &Pod| {
        let annotations = pod.metadata.annotations.as_ref();
        annotations.and_then(|all| all.get(UPDATE)).is_some_and(|update| update == SURGE)
    };
    let place = |pod: &Pod| {
        let (_, flags) = image_and_flags(Some(pod));
        flags.into_iter().filter(|flag| PLACE.contains(&name_of(flag))).collect::<BTreeSet<_>>()
    };
    surges(old) && surges(new) && place(old) == place(new)
}

/// Image and command line of the one container of a control-plane pod.
fn image_and_flags(pod: Option<&Pod>) -> (String, BTreeSet<String>) {
    let container = pod.and_then(|pod| pod.spec.as_ref()).and_then(|spec| spec.containers.first());
    let image = container.and_then(|container| container.image.clone()).unwrap_or_default();
    let command = container.into_iter().flat_map(|container| [&container.command, &container.args]).flatten().flatten();
    (image, command.cloned().collect())
}

/// `v` of `--v=4`.
fn name_of(flag: &str) -> &str {
    flag.trim_start_matches('-').split('=').next().unwrap_or_default()
}

fn diff(old: &str, new: &str) -> String {
    similar::TextDiff::from_lines(old, new).unified_diff().context_radius(1).to_string()
}
