use k8s_openapi::api::core::v1::Taint;

use super::*;
use crate::config::Registration;
use crate::error::Hint as _;
use crate::etcd::{Course, Prospect};
use crate::yaml;

const CA: Item = "certs/ca";
const LEAF: Item = "certs/apiserver";
const ETCD_CA: Item = "certs/etcd-ca";
const ETCD_LEAF: Item = "certs/etcd-server";

/// Two authorities with a leaf each and two manifests: enough for every rule.
pub(super) fn desired() -> Vec<Manifest> {
    [Component::Etcd, Component::KubeApiserver].map(|component| rendered(component, "new")).into()
}

/// A manifest with this flag.
fn rendered(component: Component, flag: &str) -> Manifest {
    let yaml = text(component, flag);
    Manifest { component, pod: yaml::manifest(yaml.as_bytes()).unwrap(), yaml }
}

fn text(component: Component, flag: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {component}\nspec:\n  containers:\n  - name: {component}\n    \
         image: x/{component}:v1\n    command:\n    - {component}\n    - --flag={flag}\n"
    )
}

fn credential(item: Item, authority: Option<Item>) -> Credential {
    Credential { item, authority, for_etcd: item.contains("etcd") }
}

fn plan(observed: &Observed) -> Result<Vec<Step>, Vec<Refusal>> {
    Asked::default().plan(observed).map(|plan| plan.steps)
}

/// What is asked for over a control plane that runs with [`Cluster::example`].
struct Asked {
    running: Cluster,
    cluster: Cluster,
    config: &'static str,
    manifests: Vec<Manifest>,
    /// What this plinth renders for the configuration that runs.
    before: Vec<Manifest>,
    respecified: BTreeSet<Item>,
    renew: bool,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            running: Cluster::example(),
            cluster: Cluster::example(),
            config: "config\n",
            manifests: desired(),
            before: desired(),
            respecified: BTreeSet::new(),
            renew: true,
        }
    }
}

impl Asked {
    /// The API server with another flag, and nothing else.
    fn another_flag() -> Self {
        let manifests = vec![rendered(Component::Etcd, "new"), rendered(Component::KubeApiserver, "newer")];
        Self { config: "other\n", manifests, ..Self::default() }
    }

    fn plan(&self, observed: &Observed) -> Result<Plan, Vec<Refusal>> {
        let desired = Desired {
            cluster: &self.cluster,
            config: self.config,
            manifests: &self.manifests,
            credentials: vec![
                credential(CA, None),
                credential(LEAF, Some(CA)),
                credential(ETCD_CA, None),
                credential(ETCD_LEAF, Some(ETCD_CA)),
            ],
            etcd_data: "/var/lib/etcd".into(),
            before: observed.standing.committed().map(|_| Before {
                cluster: &self.running,
                manifests: &self.before,
                respecified: self.respecified.clone(),
            }),
            renew: self.renew,
        };
        compute(&desired, observed)
    }
}

pub(super) fn empty() -> Observed {
    Observed {
        standing: Standing::New,
        credentials: BTreeMap::new(),
        manifests: BTreeMap::new(),
        etcd_data: EtcdData::Empty,
        agent_runs: false,
        agent_outdated: None,
        agent_starts_at_boot: true,
        unhealthy: BTreeMap::from([(Component::Etcd, "connection refused".to_owned())]),
        has_containers: false,
        running: BTreeSet::new(),
        cluster_admins: None,
        node: None,
        node_kubeconfig: None,
        etcd_swap: None,
        etcd_copy: None,
    }
}

pub(super) fn manifest(content: &str, ours: bool) -> FoundManifest {
    FoundManifest { path: "/m.yaml".into(), content: content.into(), ours }
}

const GOOD: Found = Found::Good { can_sign: true, other_server: None, as_committed: false };

pub(super) fn whole(standing: Standing) -> Observed {
    Observed {
        standing,
        credentials: [CA, LEAF, ETCD_CA, ETCD_LEAF].map(|item| (item, GOOD)).into(),
        manifests: desired().into_iter().map(|one| (one.component, manifest(&one.yaml, true))).collect(),
        etcd_data: EtcdData::Ours,
        agent_runs: true,
        agent_outdated: None,
        agent_starts_at_boot: true,
        unhealthy: BTreeMap::new(),
        has_containers: true,
        running: BTreeSet::from([Component::Etcd, Component::KubeApiserver]),
        cluster_admins: Some(true),
        node: None,
        node_kubeconfig: None,
        etcd_swap: None,
        etcd_copy: None,
    }
}

pub(super) fn committed() -> Standing {
    Standing::Committed(Box::new(Generation {
        number: 1,
        config: "config\n".into(),
        manifests: desired().into_iter().map(|manifest| (manifest.component, manifest.yaml)).collect(),
        facts: generation::Facts { version_pinned: false, ..generation::Facts::default() },
        ..Generation::default()
    }))
}

fn bad(ours: bool) -> Found {
    Found::Bad { reason: "no good".into(), hints: vec!["mend it".into()], ours, derivable: false }
}

fn issue(item: Item) -> Step {
    Step::Issue { item, replaces: None, for_etcd: item.contains("etcd") }
}

fn reissue(item: Item) -> Step {
    Step::Issue { item, replaces: Some("no good".into()), for_etcd: item.contains("etcd") }
}

fn write(component: Component, replaces: bool) -> Step {
    Step::WriteManifest { component, replaces }
}

#[test]
fn on_an_empty_host_everything_is_made_and_etcd_first() {
    assert_eq!(
        plan(&empty()).unwrap(),
        [
            issue(ETCD_CA),
            issue(ETCD_LEAF),
            write(Component::Etcd, false),
            Step::StartAgent,
            issue(CA),
            issue(LEAF),
            write(Component::KubeApiserver, false),
            Step::Wait,
            Step::BindClusterAdmins,
            Step::Commit,
        ]
    );
}

#[test]
fn a_healthy_committed_host_needs_nothing() {
    assert_eq!(plan(&whole(committed())).unwrap(), []);
}

#[test]
fn a_committed_host_is_repaired_where_something_is_gone() {
    let mut observed = whole(committed());
    observed.credentials.remove(LEAF);
    observed.manifests.remove(&Component::KubeApiserver);
    observed.agent_runs = false;
    assert_eq!(
        plan(&observed).unwrap(),
        [Step::StartAgent, issue(LEAF), write(Component::KubeApiserver, false), Step::Wait, Step::Commit]
    );
}

#[test]
fn an_agent_that_a_boot_would_lose_is_started_for_good() {
    let mut observed = whole(committed());
    observed.agent_starts_at_boot = false;
    assert_eq!(plan(&observed).unwrap(), [Step::StartAgent, Step::Wait]);
}

#[test]
fn an_unhealthy_committed_host_is_waited_for_and_not_restarted() {
    let mut observed = whole(committed());
    observed.unhealthy.insert(Component::KubeApiserver, "connection refused".into());
    let plan = Asked::default().plan(&observed).unwrap();
    assert_eq!(plan.steps, [Step::Wait]);
    assert_eq!(plan.summary(), ["kube-apiserver: it is not healthy: connection refused [none]"]);

    observed.running.remove(&Component::KubeApiserver);
    let plan = Asked::default().plan(&observed).unwrap();
    assert_eq!(plan.steps, [Step::Wait]);
    assert_eq!(
        plan.summary(),
        ["kube-apiserver: no container of it runs [restart of kube-apiserver, API gap expected]"]
    );
}

#[test]
fn each_kind_of_drift_is_shown_and_repaired_by_itself() {
    type Harm = fn(&mut Observed);
    let api = Component::KubeApiserver;
    let rows: [(&str, Harm, Vec<Step>); 7] = [
        (
            "kube-apiserver: edited by hand: other flags: flag [restart of kube-apiserver, API gap expected]",
            |o| {
                o.manifests.get_mut(&Component::KubeApiserver).unwrap().content = text(Component::KubeApiserver, "x");
            },
            vec![Step::Exchange { component: api, back: Back::OnDisk }, Step::Wait],
        ),
        (
            "kube-apiserver: edited by hand: nothing that means anything [none]",
            |o| o.manifests.get_mut(&Component::KubeApiserver).unwrap().content.push_str("# a comment\n"),
            vec![Step::Exchange { component: api, back: Back::OnDisk }, Step::Wait],
        ),
        (
            "certs/apiserver: it is missing [live]",
            |o| drop(o.credentials.remove(LEAF)),
            vec![issue(LEAF), Step::Wait, Step::Commit],
        ),
        (
            "certs/apiserver: no good [live]",
            |o| drop(o.credentials.insert(LEAF, bad(true))),
            vec![reissue(LEAF), Step::Wait, Step::Commit],
        ),
        ("agent: it does not run [live]", |o| o.agent_runs = false, vec![Step::StartAgent, Step::Wait]),
        ("agent: it is old [live]", |o| o.agent_outdated = Some("it is old"), vec![Step::StartAgent, Step::Wait]),
        (
            "clusterrolebinding/kubeadm:cluster-admins: rights of admin.conf or of the agent are missing [live]",
            |o| o.cluster_admins = Some(false),
            vec![Step::Wait, Step::BindClusterAdmins],
        ),
    ];
    for (summary, harm, steps) in rows {
        let mut observed = whole(committed());
        harm(&mut observed);
        let plan = Asked::default().plan(&observed).unwrap();
        assert_eq!((plan.summary(), plan.steps), (vec![summary.to_owned()], steps));
        assert!(plan.changes.iter().all(|change| change.cause == Cause::Drift), "{:?}", plan.changes);
    }
}

#[test]
fn the_node_is_registered_marked_and_removed() {
    let role = Taint { key: "role".into(), effect: "NoSchedule".into(), ..Taint::default() };
    let one = std::slice::from_ref(&role);
    let with = |taints: &[Taint]| Some(Registration { taints: taints.to_vec() });
    let mark = |lifted: &[&str]| {
        let lifted = lifted.iter().map(|taint| (*taint).to_owned()).collect();
        (Some("node"), Some(Step::MarkControlPlane { lifted }))
    };
    let (nothing, remove) = ((None, None), (Some("node"), Some(Step::RemoveNode)));
    let (asked, drift) = (Cause::Configuration, Cause::Drift);
    for (before, wanted, state, kubeconfig, (what, step), cause) in [
        (None, None, None, false, nothing.clone(), None),
        (None, None, None, true, remove.clone(), Some(drift)),
        (with(&[]), None, None, true, remove, Some(asked)),
        (None, with(&[]), Some(NodeState::Absent), false, mark(&[]), Some(asked)),
        (with(one), with(&[]), Some(NodeState::Marked), true, mark(&["role:NoSchedule"]), Some(asked)),
        (with(one), with(one), Some(NodeState::Absent), true, mark(&[]), Some(drift)),
        (with(one), with(one), Some(NodeState::Unmarked), true, mark(&[]), Some(drift)),
        (with(one), with(one), Some(NodeState::Marked), true, nothing.clone(), None),
        (with(one), with(one), None, true, nothing, None),
    ] {
        let asked = Asked {
            running: Cluster::example_registered(before),
            cluster: Cluster::example_registered(wanted),
            ..Asked::default()
        };
        let plan = asked
            .plan(&Observed { node: state, node_kubeconfig: kubeconfig.then(|| "/k".into()), ..whole(committed()) })
            .unwrap();
        let steps: Vec<_> = step.clone().into_iter().chain(step.map(|_| Step::Wait)).collect();
        let found = plan.changes.first().map(|change| (change.what.as_str(), change.cause));
        assert_eq!(found, what.zip(cause), "{steps:?}");
        assert!(
            steps.iter().all(|step| plan.steps.contains(step)) && plan.steps.len() == steps.len(),
            "{:?}",
            plan.steps
        );
    }
    let first = Asked { cluster: Cluster::example_registered(with(&[])), ..Asked::default() };
    assert_eq!(
        first.plan(&empty()).unwrap().steps[8..],
        [Step::BindClusterAdmins, Step::MarkControlPlane { lifted: Vec::new() }, Step::Commit,]
    );
}

#[test]
fn an_edit_of_a_broken_component_is_not_gone_back_to() {
    let mut observed = whole(committed());
    observed.manifests.insert(Component::KubeApiserver, manifest("broken", true));
    observed.unhealthy.insert(Component::KubeApiserver, "connection refused".into());
    let plan = Asked::default().plan(&observed).unwrap();
    assert_eq!(plan.steps, [Step::Exchange { component: Component::KubeApiserver, back: Back::Nothing }, Step::Wait]);
}

#[test]
fn another_flag_exchanges_its_component_alone_and_is_recorded() {
    let plan = Asked::another_flag().plan(&whole(committed())).unwrap();
    assert_eq!(
        plan.steps,
        [Step::Exchange { component: Component::KubeApiserver, back: Back::OnDisk }, Step::Wait, Step::Commit]
    );
    assert_eq!(
        plan.summary(),
        [
            "kube-apiserver: other flags: flag [restart of kube-apiserver, API gap expected]",
            "configuration: other values are asked for [none]",
        ]
    );
    assert_eq!(plan.class(), Class::ApiGap(Component::KubeApiserver));
    let diffs: Vec<_> = plan.changes.iter().filter_map(|change| change.diff.as_deref()).collect();
    assert!(diffs[0].contains("-    - --flag=new\n+    - --flag=newer"), "{}", diffs[0]);
    assert!(diffs[1].contains("-config\n+other"), "{}", diffs[1]);
}

#[test]
fn an_api_server_that_is_replaced_new_first_leaves_no_gap() {
    let surging = |flags: &str| {
        let annotated = text(Component::KubeApiserver, flags)
            .replace("metadata:\n", "metadata:\n  annotations: {plinth.dev/update: surge}\n");
        Manifest {
            component: Component::KubeApiserver,
            pod: yaml::manifest(annotated.as_bytes()).unwrap(),
            yaml: annotated,
        }
    };
    let with = |flag: &str| surging(&format!("x\n    - {flag}"));
    let plain = rendered(Component::KubeApiserver, "new");
    let [restart, gap] = [Class::Restart, Class::ApiGap].map(|class| class(Component::KubeApiserver));
    let told = |name: &str, old: &Manifest, new: Manifest, expected| {
        let asked = Asked { manifests: vec![rendered(Component::Etcd, "new"), new], ..Asked::another_flag() };
        let mut observed = whole(committed());
        observed.manifests.insert(Component::KubeApiserver, manifest(&old.yaml, true));
        assert_eq!(asked.plan(&observed).unwrap().class(), expected, "{name}");
    };
    told("both", &with("--v=2"), with("--v=3"), restart);
    told("the new one only", &plain, with("--v=3"), gap);
    told("the old one only", &with("--v=3"), plain, gap);
    for (name, old, new) in [
        ("another port", "--secure-port=6443", "--secure-port=7443"),
        ("another address", "--advertise-address=192.0.2.1", "--advertise-address=192.0.2.2"),
        ("shared from now on", "--v=2", "--permit-port-sharing=true"),
    ] {
        told(name, &with(old), with(new), gap);
    }
}

#[test]
fn exchanges_follow_the_dependencies_and_come_after_what_they_need() {
    let manifests = vec![rendered(Component::Etcd, "newer"), rendered(Component::KubeApiserver, "newer")];
    let asked = Asked { manifests, ..Asked::another_flag() };
    let mut observed = whole(committed());
    observed.agent_runs = false;
    observed.credentials.remove(LEAF);
    let back = Back::OnDisk;
    assert_eq!(
        asked.plan(&observed).unwrap().steps,
        [
            Step::StartAgent,
            issue(LEAF),
            Step::Exchange { component: Component::Etcd, back },
            Step::Exchange { component: Component::KubeApiserver, back },
            Step::Wait,
            Step::Commit,
        ]
    );
}

#[test]
fn an_exchange_that_was_interrupted_is_gone_on_with() {
    let mut observed = whole(committed());
    let newer = text(Component::KubeApiserver, "newer");
    observed.manifests.insert(Component::KubeApiserver, manifest(&newer, true));
    observed.unhealthy.insert(Component::KubeApiserver, "connection refused".into());
    let exchange = |back| Step::Exchange { component: Component::KubeApiserver, back };
    // By the same command: nobody has seen it healthy, and the last generation is the way back.
    let plan = Asked::another_flag().plan(&observed).unwrap();
    assert_eq!(plan.steps, [exchange(Back::LastGeneration), Step::Wait, Step::Commit]);
    assert_eq!(plan.changes[0].cause, Cause::Configuration);
    // By one that asks for nothing: the old one comes back.
    let plan = Asked::default().plan(&observed).unwrap();
    assert_eq!(plan.steps, [exchange(Back::Nothing), Step::Wait]);
    assert_eq!(plan.changes[0].cause, Cause::Drift);
}

#[test]
fn what_a_newer_plinth_renders_otherwise_is_told_from_what_is_asked_for() {
    let manifests = vec![rendered(Component::Etcd, "new"), rendered(Component::KubeApiserver, "newer")];
    let asked = Asked { before: manifests.clone(), manifests, ..Asked::default() };
    let plan = asked.plan(&whole(committed())).unwrap();
    assert_eq!(plan.changes.len(), 1);
    assert_eq!(plan.changes[0].cause, Cause::Plinth);
    assert_eq!(
        plan.steps,
        [Step::Exchange { component: Component::KubeApiserver, back: Back::OnDisk }, Step::Wait, Step::Commit]
    );
}

#[test]
fn a_configuration_that_changes_no_component_is_only_recorded() {
    let asked = Asked { config: "other\n", ..Asked::default() };
    let plan = asked.plan(&whole(committed())).unwrap();
    assert_eq!((plan.steps.as_slice(), plan.class()), (&[Step::Wait, Step::Commit][..], Class::None));

    let mut asked = Asked::default();
    asked.cluster.version_pinned = true;
    let plan = asked.plan(&whole(committed())).unwrap();
    assert_eq!(plan.steps, [Step::Wait, Step::Commit]);
    assert_eq!(plan.summary(), ["configuration: the version is named now [none]"]);
}

#[test]
fn another_name_renews_the_certificate_because_it_is_asked_for() {
    let mut observed = whole(committed());
    observed.credentials.insert(LEAF, bad(true));
    let asked = Asked { config: "other\n", respecified: BTreeSet::from([LEAF]), ..Asked::default() };
    let plan = asked.plan(&observed).unwrap();
    assert_eq!(plan.steps, [reissue(LEAF), Step::Wait, Step::Commit]);
    assert_eq!((plan.changes[0].cause, plan.changes[0].class), (Cause::Configuration, Class::Live));
}

#[test]
fn a_kubeconfig_that_leads_elsewhere_is_peoples_until_the_configuration_moves() {
    let mut observed = whole(committed());
    let elsewhere =
        Found::Good { can_sign: false, other_server: Some("its server is a, not b".into()), as_committed: false };
    observed.credentials.insert(LEAF, elsewhere);
    assert_eq!(plan(&observed).unwrap(), []);
    let asked = Asked { config: "other\n", respecified: BTreeSet::from([LEAF]), ..Asked::default() };
    let steps = asked.plan(&observed).unwrap().steps;
    let replaces = Some("its server is a, not b".to_owned());
    assert_eq!(steps, [Step::Issue { item: LEAF, replaces, for_etcd: false }, Step::Wait, Step::Commit]);
}

/// All four of a release, with the etcd that is named.
fn release(tag: &str, etcd: &str) -> Vec<Manifest> {
    let image = |component| match component {
        Component::Etcd => format!("r/etcd:{etcd}"),
        _ => format!("r/{component}:{tag}"),
    };
    let manifest = |component| {
        let yaml = text(component, "new").replace(&format!("x/{component}:v1"), &image(component));
        Manifest { component, pod: yaml::manifest(yaml.as_bytes()).unwrap(), yaml }
    };
    Component::ALL.map(manifest).into()
}

const OLD: (&str, &str) = ("v1.36.3", "3.6.8-0");
const NEW: (&str, &str) = ("v1.37.1", "3.7.0-0");

/// The plan from a control plane of the release `from` to that of `to`; `harm` is what the host looks like meanwhile.
fn change(from: (&str, &str), to: (&str, &str), harm: impl FnOnce(&mut Observed)) -> Result<Plan, Vec<Refusal>> {
    let (old, new) = (release(from.0, from.1), release(to.0, to.1));
    let cluster = |tag: &str| {
        let mut cluster = Cluster::example();
        cluster.version = tag.parse().unwrap();
        cluster
    };
    let by_component = |manifests: &[Manifest]| {
        manifests.iter().map(|one| (one.component, one.yaml.clone())).collect::<BTreeMap<_, _>>()
    };
    let generation =
        Generation { number: 1, config: "old\n".into(), manifests: by_component(&old), ..Generation::default() };
    let mut observed = Observed {
        manifests: old.iter().map(|one| (one.component, manifest(&one.yaml, true))).collect(),
        running: Component::ALL.into(),
        ..whole(Standing::Committed(Box::new(generation)))
    };
    harm(&mut observed);
    let (running, wanted) = (cluster(from.0), cluster(to.0));
    let desired = Desired {
        renew: false,
        cluster: &wanted,
        config: "new\n",
        manifests: &new,
        credentials: Vec::new(),
        etcd_data: "/var/lib/etcd".into(),
        before: Some(Before { cluster: &running, manifests: &old, respecified: BTreeSet::new() }),
    };
    compute(&desired, &observed)
}

fn exchange(component: Component) -> Step {
    Step::Exchange { component, back: Back::OnDisk }
}

const SWAP: Step = Step::SwapEtcd { back: Back::OnDisk };

#[test]
fn what_is_signed_is_renewed_once_when_the_version_goes_up() {
    let signed = |as_committed, other_server| Found::Good { can_sign: false, other_server, as_committed };
    let elsewhere = || Some("its server is a, not b".to_owned());
    let no_key = Found::Good { can_sign: false, other_server: None, as_committed: false };
    for (name, version, renew, leaf, authority, expected) in [
        ("up", "v1.37.99", true, signed(true, None), GOOD, true),
        ("the same", "v1.37.1", true, signed(true, None), GOOD, false),
        ("down", "v1.37.0", true, signed(true, None), GOOD, false),
        ("opted out", "v1.37.99", false, signed(true, None), GOOD, false),
        ("renewed by the attempt before", "v1.37.99", true, signed(false, None), GOOD, false),
        ("leads elsewhere", "v1.37.99", true, signed(true, elsewhere()), GOOD, false),
        ("signed elsewhere", "v1.37.99", true, signed(true, None), no_key, false),
    ] {
        let mut asked = Asked { config: "other\n", renew, ..Asked::default() };
        asked.cluster.version = version.parse().unwrap();
        let mut observed = whole(committed());
        observed.credentials.insert(CA, authority);
        observed.credentials.insert(LEAF, leaf);
        let plan = asked.plan(&observed).unwrap();
        let replaces = Some("renewed with the upgrade".to_owned());
        let issued = plan.steps.contains(&Step::Issue { item: LEAF, replaces, for_etcd: false });
        assert_eq!(issued, expected, "{name}: {:?}", plan.steps);
        assert_eq!(
            plan.steps.iter().filter(|step| matches!(step, Step::Issue { .. })).count(),
            usize::from(issued),
            "{name}"
        );
    }
}

#[test]
fn a_version_goes_up_from_etcd_on_and_down_in_reverse() {
    use Component::{KubeApiserver, KubeControllerManager, KubeScheduler};
    let [api, controllers, scheduler] = [KubeApiserver, KubeControllerManager, KubeScheduler].map(exchange);
    let end = [Step::Wait, Step::Commit];
    for (what, from, to, expected) in [
        ("up", OLD, NEW, vec![SWAP, api.clone(), controllers.clone(), scheduler.clone()]),
        ("down", NEW, OLD, vec![scheduler.clone(), controllers.clone(), api.clone(), SWAP]),
        ("down, etcd stays", NEW, (OLD.0, NEW.1), vec![scheduler.clone(), controllers.clone(), api.clone()]),
        ("a patch", ("v1.37.0", NEW.1), NEW, vec![api.clone(), controllers.clone(), scheduler.clone()]),
        ("a patch back", NEW, ("v1.37.0", NEW.1), vec![scheduler, controllers, api]),
        ("etcd's patch", NEW, (NEW.0, "3.7.1-0"), vec![SWAP]),
    ] {
        let plan = change(from, to, |_| {}).unwrap();
        assert_eq!(plan.steps, expected.into_iter().chain(end.clone()).collect::<Vec<_>>(), "{what}");
        assert_eq!(plan.version.is_some(), from.0 != to.0, "{what}");
    }
    let broken = |those: &'static [Component]| {
        let harm = |observed: &mut Observed| {
            observed.unhealthy.extend(those.iter().map(|component| (*component, "no answer".to_owned())));
        };
        change(NEW, OLD, harm).unwrap().steps
    };
    let is_of = |step: &Step, component| matches!(step, Step::Exchange { component: one, .. } if *one == component);
    let down = broken(&[KubeApiserver, KubeControllerManager]);
    assert!(is_of(&down[0], KubeApiserver) && is_of(&down[1], KubeScheduler), "{down:?}");
    assert!(matches!(down[3], Step::SwapEtcd { .. }), "{down:?}");
    let down = broken(&[KubeApiserver, Component::Etcd]);
    assert!(matches!(down[0], Step::SwapEtcd { .. }) && is_of(&down[1], KubeApiserver), "{down:?}");
    assert_eq!(broken(&[KubeScheduler])[3], SWAP);

    let plan = change(OLD, NEW, |_| {}).unwrap();
    assert_eq!(plan.class(), Class::Irreversible(Component::Etcd));
    let said = plan.version.map(|version| version.to_string());
    assert_eq!(said.as_deref(), Some("Kubernetes v1.36.3 → v1.37.1, the newer default of this plinth"));
}

#[test]
fn a_version_that_cannot_follow_is_refused_with_the_path_to_take() {
    let prospect =
        |free, bytes| Some(Ok(Prospect { bytes, free, shares_blocks: false, time: std::time::Duration::ZERO }));
    let refused = |from, to, harm: &dyn Fn(&mut Observed)| {
        let refusals = change(from, to, harm).unwrap_err();
        assert!(refusals.iter().all(|refusal| !refusal.hints().is_empty()), "{refusals:?}");
        refusals.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let skips = change(("v1.35.4", "3.6.6-0"), NEW, |_| {}).unwrap_err();
    assert_eq!(
        skips[0].hints(),
        ["plinth init --kubernetes-version v1.36.3", "plinth init --kubernetes-version v1.37.1"]
    );
    let too_far = refused(NEW, ("v1.35.4", "3.6.6-0"), &|_| {});
    assert_eq!(too_far, ["v1.37.1 cannot go back to v1.35.4: one minor version at most, to v1.36.x"]);
    let unknown = refused(OLD, (NEW.0, "mine"), &|_| {});
    assert_eq!(
        unknown,
        [
            "etcd cannot go from r/etcd:3.6.8-0 to r/etcd:mine: one minor version at a time, told by the tags of the images"
        ]
    );
    let full = refused(OLD, NEW, &|observed| observed.etcd_copy = prospect(300 << 20, 100 << 20));
    assert_eq!(
        full,
        [
            "etcd's data cannot be copied, and without a copy etcd is not replaced: it needs 356 MiB, and 300 MiB are free"
        ]
    );
    let elsewhere = refused(OLD, NEW, &|observed| {
        let etcd = observed.manifests.get_mut(&Component::Etcd).unwrap();
        etcd.content = etcd.content.replace("--flag=new", "--wal-dir=/fast");
    });
    assert_eq!(elsewhere.len(), 1);
    change(OLD, NEW, |observed| observed.etcd_copy = prospect(400 << 20, 100 << 20)).unwrap();
}

#[test]
fn an_upgrade_that_was_interrupted_goes_on_or_is_undone() {
    use Component::{KubeApiserver, KubeControllerManager, KubeScheduler};
    let [api, controllers, scheduler] = [KubeApiserver, KubeControllerManager, KubeScheduler].map(exchange);
    let etcd = |of: (&str, &str)| release(of.0, of.1).remove(0).yaml;
    let open = |course| OpenSwap {
        id: "7".into(),
        old: etcd(OLD),
        new: etcd(NEW),
        old_image: "r/etcd:3.6.8-0".into(),
        new_image: "r/etcd:3.7.0-0".into(),
        course,
    };
    let away = |course| {
        move |observed: &mut Observed| {
            observed.manifests.remove(&Component::Etcd);
            observed.etcd_swap = Some(open(course));
            observed.unhealthy.insert(Component::Etcd, "connection refused".into());
        }
    };
    let finish = |forward| Step::FinishEtcdSwap { forward };
    let up = [api.clone(), controllers.clone(), scheduler.clone(), Step::Wait, Step::Commit];
    let steps = |plan: Plan| plan.steps;

    // By the same command, by one that asks for nothing, and once it was on its way back.
    let again = steps(change(OLD, NEW, away(Course::Forward)).unwrap());
    assert_eq!(again, [&[finish(true)][..], &up].concat());
    let nothing = steps(change(OLD, OLD, away(Course::Forward)).unwrap());
    assert_eq!(nothing[0], finish(false));
    assert!(!nothing.contains(&SWAP), "{nothing:?}");
    for course in [Course::Back, Course::Served] {
        let back = steps(change(OLD, NEW, away(course)).unwrap());
        assert_eq!(back, [&[finish(false), SWAP][..], &up].concat(), "{course:?}");
    }

    // etcd has been replaced, and the rest has not.
    let done = |observed: &mut Observed| {
        observed.manifests.insert(Component::Etcd, manifest(&etcd(NEW), true));
    };
    let again = steps(change(OLD, NEW, done).unwrap());
    assert_eq!(again, [&[Step::SwapEtcd { back: Back::LastGeneration }][..], &up].concat());
    let nothing = steps(change(OLD, OLD, done).unwrap());
    assert_eq!(nothing[..2], [SWAP, Step::Wait]);
}

#[test]
fn a_missing_manifest_opens_no_way_around_the_checks_and_the_way_back() {
    let gone = |observed: &mut Observed| {
        observed.manifests.clear();
        observed.unhealthy.extend(Component::ALL.map(|component| (component, "connection refused".to_owned())));
    };
    let back = Back::LastGeneration;
    let exchanges = Component::ALL.into_iter().skip(1).map(|component| Step::Exchange { component, back });
    let expected: Vec<_> = [Step::SwapEtcd { back }].into_iter().chain(exchanges).collect();
    let plan = change(OLD, NEW, gone).unwrap();
    assert_eq!(plan.steps[..4], expected);
    let full = Prospect { bytes: 100 << 20, free: 0, shares_blocks: false, time: std::time::Duration::ZERO };
    let refused = change(OLD, NEW, |observed| {
        gone(observed);
        observed.etcd_copy = Some(Ok(full));
    });
    assert!(matches!(refused.unwrap_err()[..], [Refusal::EtcdCopy { room: true, .. }]));
    // The same one is just written.
    let same = change(OLD, OLD, gone).unwrap().steps;
    assert_eq!(same.iter().filter(|step| matches!(step, Step::WriteManifest { .. })).count(), 4, "{same:?}");
}

#[test]
fn the_versions_say_which_way_it_is() {
    // An older etcd with a newer Kubernetes.
    let up = change((OLD.0, "3.6.9-0"), (NEW.0, "3.6.8-0"), |_| {}).unwrap();
    assert_eq!(up.steps[0], SWAP);
    let down = change((NEW.0, "3.6.8-0"), (OLD.0, "3.6.9-0"), |_| {}).unwrap();
    assert_eq!(down.steps[3], SWAP);
}

#[test]
fn another_version_comes_after_another_address() {
    let mut asked = Asked::another_flag();
    asked.cluster.advertise_address = "192.0.2.77".parse().unwrap();
    asked.plan(&whole(committed())).unwrap();
    asked.cluster.version = "v1.37.99".parse().unwrap();
    let refusals = asked.plan(&whole(committed())).unwrap_err();
    assert!(matches!(refusals[..], [Refusal::VersionAndAddress { .. }]), "{refusals:?}");
    assert_eq!(refusals[0].hints()[1], "plinth init --kubernetes-version v1.37.99");
}

#[test]
fn what_was_not_exchanged_is_not_recorded() {
    for (skipped, recorded) in [("etcd", false), ("control-plane/scheduler", false), ("cluster-admins", true)] {
        let skip = Skip::parse(&[skipped.to_owned()]).unwrap();
        let Plan { steps, changes, .. } = change(OLD, NEW, |_| {}).unwrap().without(&skip);
        assert_eq!(steps.contains(&Step::Commit), recorded, "{skipped}: {steps:?}");
        let listed = changes.iter().any(|change| change.what == super::change::CONFIGURATION);
        assert_eq!(listed, recorded, "{skipped}: {changes:?}");
    }
}

#[test]
fn what_cannot_be_made_anew_is_refused_on_a_committed_host() {
    let mut observed = whole(committed());
    observed.credentials.remove(CA);
    observed.credentials.insert(LEAF, bad(true));
    observed.credentials.insert(ETCD_CA, bad(true));
    observed.etcd_data = EtcdData::Empty;
    let refusals = plan(&observed).unwrap_err();
    assert_eq!(
        refusals,
        [
            Refusal::AuthorityLost { item: CA },
            Refusal::Unusable { item: ETCD_CA, reason: "no good".into(), hints: vec!["mend it".into()] },
            Refusal::EtcdDataLost { path: "/var/lib/etcd".into() },
        ]
    );
    // But half a key pair follows from the other half.
    let mut observed = whole(committed());
    let half = Found::Bad { reason: "no good".into(), hints: vec![], ours: true, derivable: true };
    observed.credentials.insert(CA, half);
    assert_eq!(plan(&observed).unwrap(), [reissue(CA), Step::Wait, Step::Commit]);
    // Nor what somebody else signed.
    let mut observed = whole(committed());
    observed.credentials.insert(LEAF, bad(false));
    assert!(matches!(&plan(&observed).unwrap_err()[..], [Refusal::Unusable { item: LEAF, .. }]));
}

#[test]
fn a_healthy_unfinished_attempt_is_only_completed() {
    assert_eq!(plan(&whole(Standing::Unfinished)).unwrap(), [Step::BindClusterAdmins, Step::Commit]);
}

#[test]
fn an_unhealthy_unfinished_attempt_is_started_afresh_and_its_data_set_aside() {
    let mut observed = whole(Standing::Unfinished);
    observed.unhealthy.insert(Component::KubeApiserver, "connection refused".into());
    assert_eq!(
        plan(&observed).unwrap(),
        [
            Step::StopPods,
            Step::SetEtcdDataAside { path: "/var/lib/etcd".into() },
            write(Component::Etcd, false),
            Step::StartAgent,
            write(Component::KubeApiserver, false),
            Step::Wait,
            Step::BindClusterAdmins,
            Step::Commit,
        ]
    );
}

#[test]
fn an_unfinished_attempt_with_other_flags_is_replaced_and_its_data_set_aside() {
    let mut observed = whole(Standing::Unfinished);
    observed.credentials.insert(LEAF, bad(true));
    observed.manifests.insert(Component::KubeApiserver, manifest("old\n", true));
    assert_eq!(
        plan(&observed).unwrap(),
        [
            Step::StopPods,
            Step::SetEtcdDataAside { path: "/var/lib/etcd".into() },
            write(Component::Etcd, false),
            Step::StartAgent,
            reissue(LEAF),
            write(Component::KubeApiserver, true),
            Step::Wait,
            Step::BindClusterAdmins,
            Step::Commit,
        ]
    );
}

#[test]
fn leaves_of_a_replaced_authority_are_replaced_with_it() {
    let mut observed = whole(Standing::Unfinished);
    observed.credentials.insert(CA, bad(true));
    observed.credentials.insert(LEAF, bad(true));
    let steps = plan(&observed).unwrap();
    assert!(steps.contains(&reissue(CA)) && steps.contains(&reissue(LEAF)), "{steps:?}");
}

#[test]
fn what_others_made_is_never_replaced_and_all_of_it_is_named() {
    let mut observed = empty();
    observed.credentials.insert(LEAF, bad(false));
    observed.manifests.insert(Component::Etcd, manifest("theirs\n", false));
    assert_eq!(
        plan(&observed).unwrap_err(),
        [
            Refusal::Unusable { item: LEAF, reason: "no good".into(), hints: vec!["mend it".into()] },
            Refusal::ForeignManifest { path: "/m.yaml".into() },
        ]
    );
}

#[test]
fn data_of_another_etcd_is_never_moved() {
    let mut observed = whole(Standing::Unfinished);
    observed.manifests.insert(Component::Etcd, manifest("old\n", true));
    observed.etcd_data = EtcdData::Foreign;
    let steps = plan(&observed).unwrap();
    assert!(!steps.iter().any(|step| matches!(step, Step::SetEtcdDataAside { .. })), "{steps:?}");
}

#[test]
fn an_authority_without_key_needs_all_its_leaves() {
    let mut observed = empty();
    observed.credentials.insert(CA, Found::Good { can_sign: false, other_server: None, as_committed: false });
    assert_eq!(plan(&observed).unwrap_err(), [Refusal::CannotSign { item: LEAF, authority: CA }]);
    observed.credentials.insert(LEAF, Found::Good { can_sign: false, other_server: None, as_committed: false });
    assert!(plan(&observed).is_ok());
}

#[test]
fn a_broken_authority_is_reported_once_and_not_for_each_leaf() {
    let mut observed = empty();
    observed.credentials.insert(CA, bad(false));
    let refusals = plan(&observed).unwrap_err();
    assert!(matches!(&refusals[..], [Refusal::Unusable { item: CA, .. }]), "{refusals:?}");
}

#[test]
fn skipped_phases_leave_the_plan_and_without_waiting_nothing_is_recorded() {
    let plan = Asked::default().plan(&empty()).unwrap();
    assert!(plan.changes.iter().all(|change| change.cause == Cause::New && change.class == Class::None));
    let skip = Skip::parse(&["certs/etcd-ca".to_owned(), "wait-control-plane".to_owned()]).unwrap();
    let Plan { steps, changes, .. } = plan.without(&skip);
    assert!(!changes.iter().any(|change| change.what == ETCD_CA));
    assert!(!steps.contains(&issue(ETCD_CA)) && steps.contains(&issue(ETCD_LEAF)));
    assert!(!steps.contains(&Step::Wait) && !steps.contains(&Step::Commit));
}

#[test]
fn every_step_belongs_to_a_phase_of_the_list() {
    for step in plan(&empty()).unwrap() {
        assert!(INIT.iter().any(|phase| phase.name == step.phase()), "{step:?}");
    }
}

#[test]
fn every_refusal_says_what_to_do() {
    let path = PathBuf::from("/x");
    for refusal in [
        Refusal::ForeignManifest { path: path.clone() },
        Refusal::EtcdDataLost { path },
        Refusal::CannotSign { item: LEAF, authority: CA },
        Refusal::AuthorityLost { item: CA },
    ] {
        assert!(!refusal.hints().is_empty(), "{refusal}");
    }
}

#[test]
fn the_plan_of_another_flag_reads_well() {
    let plan = Asked::another_flag().plan(&whole(committed())).unwrap();
    assert_eq!(
        show::text(&plan),
        "\
kube-apiserver: other flags: flag [restart of kube-apiserver, API gap expected]
    @@ -10,2 +10,2 @@
         - kube-apiserver
    -    - --flag=new
    +    - --flag=newer

configuration: other values are asked for [none]
    @@ -1 +1 @@
    -config
    +other

would replace the manifest of kube-apiserver, wait until it is healthy, or else put the old one back
would wait until every component is healthy
would record the configuration as reached"
    );
}
