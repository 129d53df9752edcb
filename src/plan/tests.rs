use super::*;

const CA: Item = "certs/ca";
const LEAF: Item = "certs/apiserver";
const ETCD_CA: Item = "certs/etcd-ca";
const ETCD_LEAF: Item = "certs/etcd-server";

/// Two authorities with a leaf each and two manifests: enough for every rule.
fn desired() -> Vec<Manifest> {
    [Component::Etcd, Component::KubeApiserver]
        .map(|component| Manifest { component, pod: k8s_openapi::api::core::v1::Pod::default(), yaml: "new\n".into() })
        .into()
}

fn credential(item: Item, authority: Option<Item>) -> Credential {
    Credential { item, authority, for_etcd: item.contains("etcd") }
}

fn plan(observed: &Observed) -> Result<Vec<Step>, Vec<Refusal>> {
    let manifests = desired();
    let desired = Desired {
        config: "config\n",
        manifests: &manifests,
        credentials: vec![
            credential(CA, None),
            credential(LEAF, Some(CA)),
            credential(ETCD_CA, None),
            credential(ETCD_LEAF, Some(ETCD_CA)),
        ],
        etcd_data: "/var/lib/etcd".into(),
    };
    compute(&desired, observed).map(|plan| plan.steps)
}

fn empty() -> Observed {
    Observed {
        standing: Standing::New,
        credentials: BTreeMap::new(),
        manifests: BTreeMap::new(),
        etcd_data: EtcdData::Empty,
        agent_runs: false,
        agent_starts_at_boot: true,
        unhealthy: BTreeMap::from([(Component::Etcd, "connection refused".to_owned())]),
        has_containers: false,
    }
}

fn manifest(content: &str, ours: bool) -> FoundManifest {
    FoundManifest { path: "/m.yaml".into(), content: content.into(), ours }
}

fn whole(standing: Standing) -> Observed {
    Observed {
        standing,
        credentials: [CA, LEAF, ETCD_CA, ETCD_LEAF].map(|item| (item, Found::Good { can_sign: true })).into(),
        manifests: [Component::Etcd, Component::KubeApiserver].map(|c| (c, manifest("new\n", true))).into(),
        etcd_data: EtcdData::Ours,
        agent_runs: true,
        agent_starts_at_boot: true,
        unhealthy: BTreeMap::new(),
        has_containers: true,
    }
}

fn committed() -> Standing {
    Standing::Committed { config: "config\n".into() }
}

fn bad(ours: bool) -> Found {
    Found::Bad { reason: "no good".into(), hints: vec!["mend it".into()], ours }
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
        [Step::StartAgent, issue(LEAF), write(Component::KubeApiserver, false), Step::Wait]
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
    observed.unhealthy.insert(Component::KubeScheduler, "connection refused".into());
    assert_eq!(plan(&observed).unwrap(), [Step::Wait]);
}

#[test]
fn a_difference_to_a_committed_host_is_refused_and_shown() {
    let observed = whole(Standing::Committed { config: "other\n".into() });
    let refusals = plan(&observed).unwrap_err();
    assert!(
        matches!(&refusals[..], [Refusal::ConfigurationDiffers { diff }] if diff.contains("-other") && diff.contains("+config")),
        "{refusals:?}"
    );

    let mut observed = whole(committed());
    observed.manifests.insert(Component::KubeApiserver, manifest("edited\n", true));
    observed.credentials.insert(LEAF, bad(true));
    let refusals = plan(&observed).unwrap_err();
    assert!(
        matches!(&refusals[..], [Refusal::Unusable { item: LEAF, .. }, Refusal::ManifestDiffers { diff, .. }] if diff.contains("-edited")),
        "{refusals:?}"
    );
}

#[test]
fn a_committed_host_whose_authority_is_gone_is_not_given_a_new_one() {
    let mut observed = whole(committed());
    observed.credentials.remove(CA);
    observed.credentials.insert(LEAF, bad(true));
    let refusals = plan(&observed).unwrap_err();
    assert!(refusals.contains(&Refusal::AuthorityLost { item: CA }), "{refusals:?}");
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
    observed.credentials.insert(CA, Found::Good { can_sign: false });
    assert_eq!(plan(&observed).unwrap_err(), [Refusal::CannotSign { item: LEAF, authority: CA }]);
    observed.credentials.insert(LEAF, Found::Good { can_sign: false });
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
    let plan = Plan { steps: plan(&empty()).unwrap() };
    let skip = Skip::parse(&["certs/etcd-ca".to_owned(), "wait-control-plane".to_owned()]).unwrap();
    let steps = plan.without(&skip).steps;
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
        Refusal::ConfigurationDiffers { diff: String::new() },
        Refusal::ManifestDiffers { path: path.clone(), diff: String::new() },
        Refusal::ForeignManifest { path },
        Refusal::CannotSign { item: LEAF, authority: CA },
        Refusal::AuthorityLost { item: CA },
    ] {
        assert!(!refusal.hints().is_empty(), "{refusal}");
    }
}
