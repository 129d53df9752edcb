//! Another version over one that runs. Without one all of these pass.

use super::super::{Facts, Upgrade};
use super::Check;
use crate::cluster::survey::{DeprecatedApi, Survey};
use crate::config::Cluster;
use crate::release::{Component, kubelet_refusals, removed_feature_gates, removed_flags};

pub(super) fn checks(cluster: &Cluster, facts: &Facts) -> Vec<Check> {
    let upgrade = facts.upgrade.as_ref();
    vec![
        health(upgrade),
        kubelets(cluster, upgrade),
        removed(cluster, upgrade),
        deprecated(cluster, upgrade),
        not_done(upgrade),
    ]
}

fn health(upgrade: Option<&Upgrade>) -> Check {
    let hint = if upgrade.is_some_and(|upgrade| upgrade.mends) {
        "go on: this run is to mend it, and says at its end who is healthy"
    } else {
        "run `plinth init` with the version that runs: it mends what is broken; then change the version"
    };
    let check = Check::new("ComponentHealth", hint);
    let Some(Upgrade { mends, unhealthy: Ok(unhealthy), .. }) = upgrade else { return check };
    let list: Vec<_> = unhealthy.iter().map(|(component, why)| format!("{component}: {why}")).collect();
    let message = (!list.is_empty()).then(|| format!("not every component is healthy: {}", list.join("; ")));
    // It is what going on, or going back, is to mend.
    if *mends { check.warning(message) } else { check.error(message) }
}

fn kubelets(cluster: &Cluster, upgrade: Option<&Upgrade>) -> Check {
    let refusals = surveyed(upgrade).map(|survey| kubelet_refusals(&cluster.version, &survey.kubelets));
    let refusals: Vec<_> = refusals.iter().flatten().map(ToString::to_string).collect();
    Check::new(
        "KubeletSkew",
        "upgrade these kubelets, or delete the Node objects of those that are gone; see \
         https://kubernetes.io/releases/version-skew-policy/",
    )
    .error((!refusals.is_empty()).then(|| refusals.join("; ")))
}

fn removed(cluster: &Cluster, upgrade: Option<&Upgrade>) -> Check {
    let found = upgrade.map(|_| Component::ALL.map(|component| removed_of(component, cluster)).concat());
    let found = found.filter(|found| !found.is_empty()).map(|found| found.join("; "));
    Check::new("RemovedFlags", "take them out of extraArgs in the configuration file")
        .error(found.map(|found| format!("{} would not start with {found}", cluster.version)))
}

/// Flags and feature gates in the extraArgs of `component` that the version does not know any more.
fn removed_of(component: Component, cluster: &Cluster) -> Vec<String> {
    let minor = cluster.version.minor();
    let mut found = Vec::new();
    for (flag, value) in &cluster.options(component).extra_args {
        if removed_flags(component, minor).contains(&flag.as_str()) {
            found.push(format!("--{flag} of {component}"));
        }
        if flag == "feature-gates" && component != Component::Etcd {
            let gates = value.split(',').filter_map(|gate| gate.split('=').next()).map(str::trim);
            let gone = gates.filter(|gate| removed_feature_gates(minor).contains(gate));
            found.extend(gone.map(|gate| format!("the feature gate {gate} of {component}")));
        }
    }
    found
}

fn deprecated(cluster: &Cluster, upgrade: Option<&Upgrade>) -> Check {
    let minor = cluster.version.minor();
    let all = surveyed(upgrade).map_or(&[][..], |survey| &survey.deprecated);
    let list = |gone: bool| {
        let those = all.iter().filter(|api| (api.removed_in <= minor) == gone);
        let name = |DeprecatedApi { removed_in, group_version, resource }: &DeprecatedApi| {
            if gone {
                format!("{resource} of {group_version}")
            } else {
                format!("{resource} of {group_version} (until 1.{removed_in})")
            }
        };
        those.map(name).collect::<Vec<_>>().join(", ")
    };
    let [gone, going] = [list(true), list(false)];
    let version = &cluster.version;
    let parts = [
        (!gone.is_empty()).then(|| format!("somebody uses what {version} does not serve any more: {gone}")),
        (!going.is_empty()).then(|| format!("somebody uses what is deprecated: {going}")),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    Check::new(
        "DeprecatedAPIs",
        "find the clients in the audit log (annotation k8s.io/deprecated) and move them to a later version; see \
         https://kubernetes.io/docs/reference/using-api/deprecation-guide/",
    )
    .warning((!parts.is_empty()).then(|| parts.join("; ")))
}

fn not_done(upgrade: Option<&Upgrade>) -> Check {
    let why = upgrade.and_then(|upgrade| upgrade.survey.as_ref().err());
    let health = upgrade.is_some_and(|upgrade| upgrade.unhealthy.is_err());
    let checks = if health { "ComponentHealth, KubeletSkew" } else { "KubeletSkew" };
    Check::new(
        "APIServerAnswers",
        "once it answers: `kubectl get nodes`, and the metric apiserver_requested_deprecated_apis",
    )
    .warning(why.map(|why| format!("{checks} and DeprecatedAPIs were not checked: {why}")))
}

fn surveyed(upgrade: Option<&Upgrade>) -> Option<&Survey> {
    upgrade?.survey.as_ref().ok()
}

#[cfg(test)]
mod tests {
    use super::super::super::{Level, Ownership};
    use super::super::testing::{good, says};
    use super::*;
    use crate::release::Kubelet;

    fn told(cluster: &Cluster, upgrade: Upgrade, name: &str) -> Option<(Level, String)> {
        let mut facts = good();
        facts.upgrade = Some(upgrade);
        says(cluster, &Ownership::default(), &facts, name)
    }

    fn well() -> Upgrade {
        Upgrade { mends: false, unhealthy: Ok([].into()), survey: Ok(Survey::default()) }
    }

    #[test]
    fn a_component_that_is_not_healthy_is_mended_first() {
        let ill = || Upgrade { unhealthy: Ok([(Component::Etcd, "connection refused".to_owned())].into()), ..well() };
        let message = "not every component is healthy: etcd: connection refused".to_owned();
        let cluster = Cluster::example();
        assert_eq!(told(&cluster, ill(), "ComponentHealth"), Some((Level::Error, message.clone())));
        let mending = Upgrade { mends: true, ..ill() };
        assert_eq!(told(&cluster, mending, "ComponentHealth"), Some((Level::Warning, message)));
        assert_eq!(told(&cluster, well(), "ComponentHealth"), None);
    }

    #[test]
    fn what_the_api_server_knows_is_checked_where_it_answers() {
        let cluster = Cluster::example();
        let api = |removed_in, resource: &str| DeprecatedApi {
            removed_in,
            group_version: "g/v1beta1".to_owned(),
            resource: resource.to_owned(),
        };
        let survey = Survey {
            kubelets: vec![
                Kubelet { node: "a".to_owned(), version: "v1.36.3".to_owned() },
                Kubelet { node: "b".to_owned(), version: "v1.33.0".to_owned() },
            ],
            deprecated: vec![api(36, "x"), api(37, "y"), api(40, "z")],
        };
        let found = || Upgrade { survey: Ok(survey.clone()), ..well() };
        let (level, message) = told(&cluster, found(), "KubeletSkew").unwrap();
        assert!(level == Level::Error && message.contains("`b`") && !message.contains("`a`"), "{message}");
        let expected = "somebody uses what v1.37.1 does not serve any more: x of g/v1beta1, y of g/v1beta1; \
                        somebody uses what is deprecated: z of g/v1beta1 (until 1.40)";
        let told_of = told(&cluster, found(), "DeprecatedAPIs");
        assert_eq!(told_of, Some((Level::Warning, expected.to_owned())));

        let away = || Upgrade { survey: Err("no answer".to_owned()), ..well() };
        assert_eq!(told(&cluster, away(), "KubeletSkew"), None);
        let expected = "KubeletSkew and DeprecatedAPIs were not checked: no answer".to_owned();
        assert_eq!(told(&cluster, away(), "APIServerAnswers"), Some((Level::Warning, expected)));

        let interrupted = || Upgrade { unhealthy: Err("etcd is away".to_owned()), mends: true, ..away() };
        assert_eq!(told(&cluster, interrupted(), "ComponentHealth"), None);
        let expected = "ComponentHealth, KubeletSkew and DeprecatedAPIs were not checked: no answer".to_owned();
        assert_eq!(told(&cluster, interrupted(), "APIServerAnswers"), Some((Level::Warning, expected)));
    }

    #[test]
    fn removed_flags_and_gates_are_named() {
        let mut cluster = Cluster::example();
        let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        cluster.controller_manager.extra_args = vec![set("concurrent-service-syncs", "2"), set("v", "2")];
        cluster.scheduler.extra_args = vec![set("feature-gates", "SidecarContainers=true, InPlace=false")];
        let expected = "v1.37.1 would not start with --concurrent-service-syncs of kube-controller-manager; \
                        the feature gate SidecarContainers of kube-scheduler";
        assert_eq!(told(&cluster, well(), "RemovedFlags"), Some((Level::Error, expected.to_owned())));
        assert_eq!(says(&cluster, &Ownership::default(), &good(), "RemovedFlags"), None, "the version stays");
    }
}
