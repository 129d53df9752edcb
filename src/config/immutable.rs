//! Values that a cluster keeps for as long as it lives.

use super::error::Problem;
use super::validate::Checker;
use super::{Cluster, ComponentOptions};

/// Flag of the API server that names who issues the tokens of service accounts; the first one signs, all are believed.
const ISSUER: &str = "service-account-issuer";

/// Reports every such value in which `wanted` differs from the cluster that `runs`.
pub(super) fn check(runs: &Cluster, wanted: &Cluster, checker: &mut Checker<'_>) {
    let list = |networks: &[ipnet::IpNet]| networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let path = |path: &std::path::Path| path.display().to_string();
    for (field, running, wanted, reason) in [
        (
            "networking.serviceSubnet",
            list(&runs.networking.service_subnets),
            list(&wanted.networking.service_subnets),
            "Services keep the addresses they were given, the one of the API server among them",
        ),
        (
            "networking.dnsDomain",
            runs.networking.dns_domain.clone(),
            wanted.networking.dns_domain.clone(),
            "pods look services up in it, and service-account tokens carry it",
        ),
        (
            "nodeRegistration.name",
            runs.node_name.clone(),
            wanted.node_name.clone(),
            "etcd's member and the control plane's pods are called by it",
        ),
        (
            "etcd.local.dataDir",
            path(&runs.etcd.data_dir),
            path(&wanted.etcd.data_dir),
            "the data would stay behind, and etcd would begin an empty cluster",
        ),
        (
            "certificatesDir",
            path(&runs.cert_dir),
            path(&wanted.cert_dir),
            "the authorities are there, and all that they signed depends on them",
        ),
    ] {
        // A stand-in for a value that was refused already is no difference.
        let refused = checker.errors.iter().any(|error| error.field == field);
        if running != wanted && !refused {
            checker.problem(field, Problem::Immutable { running, wanted, reason });
        }
    }
    issuer(runs, wanted, checker);
}

/// The issuer that signs may change only while the old one is still believed. Where nobody names one it follows from the
/// DNS domain, which has been looked at.
fn issuer(runs: &Cluster, wanted: &Cluster, checker: &mut Checker<'_>) {
    let [before, after] = [runs, wanted].map(issuers);
    if issuer_flags(&runs.api_server.options).next().is_none()
        && issuer_flags(&wanted.api_server.options).next().is_none()
    {
        return;
    }
    let Some(signs) = before.first().filter(|signs| !after.contains(signs)) else { return };
    let flag = |values: &[String]| values.iter().map(|value| format!("{ISSUER}={value}")).collect::<Vec<_>>().join(" ");
    let reason = "the tokens it has issued would no longer be believed; name it again after the new one to keep them";
    let (running, wanted) = (flag(std::slice::from_ref(signs)), flag(&after));
    checker.problem("apiServer.extraArgs", Problem::Immutable { running, wanted, reason });
}

fn issuers(cluster: &Cluster) -> Vec<String> {
    let named: Vec<_> = issuer_flags(&cluster.api_server.options).map(str::to_owned).collect();
    // kubeadm: `getAPIServerCommand`
    let default = || vec![format!("https://kubernetes.default.svc.{}", cluster.networking.dns_domain)];
    if named.is_empty() { default() } else { named }
}

fn issuer_flags(options: &ComponentOptions) -> impl Iterator<Item = &str> {
    options.extra_args.iter().filter(|(name, _)| name == ISSUER).map(|(_, value)| value.as_str())
}
