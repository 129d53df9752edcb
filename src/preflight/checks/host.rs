//! The machine: rights, size, kernel, clock, name, kubelets.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::super::{Facts, Manifests, NameResolution};
use super::Check;
use crate::config::Cluster;
use crate::proc::{CgroupVersion, Cgroups};

/// Reported alone, because without root the others cannot know.
pub(in crate::preflight) const IS_PRIVILEGED_USER: &str = "IsPrivilegedUser";

/// kubeadm: `ControlPlaneNumCPU`.
const CPUS: usize = 2;

/// kubeadm: `ControlPlaneMem`, in its megabytes.
const MEMORY: u64 = 1700 << 20;

/// Controllers kubeadm requires of cgroup v1.
const V1_CONTROLLERS: [&str; 7] = ["cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids"];

/// Controllers kubeadm requires of cgroup v2 (devices and freezer are no controllers there).
const V2_CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// Before plinth was there. A clock without a battery starts in 1970, or at the build of the image.
const EARLIEST: Timestamp = Timestamp::constant(1_767_225_600, 0); // 2026-01-01

/// The end of what a clock may say: certificates for years beyond 2100 are a mistake.
const LATEST: Timestamp = Timestamp::constant(4_102_444_800, 0); // 2100-01-01

pub(super) fn checks(cluster: &Cluster, facts: &Facts) -> Vec<Check> {
    let host = &facts.host;
    vec![
        Check::new(IS_PRIVILEGED_USER, "run it as root, e.g. with sudo")
            .error((host.uid != 0).then(|| format!("user {} is not root", host.uid))),
        Check::new("NumCPU", format!("give this machine at least {CPUS} processors"))
            .error((host.cpus < CPUS).then(|| format!("{} processor; a control plane needs {CPUS}", host.cpus))),
        Check::new("Mem", format!("give this machine at least {} MiB of memory", MEMORY >> 20)).error(
            (host.memory.total < MEMORY)
                .then(|| format!("{} MiB of memory; a control plane needs {}", host.memory.total >> 20, MEMORY >> 20)),
        ),
        swap(facts),
        cgroups(host.cgroups.as_ref()),
        Check::new(
            "CapSysResource",
            "give this environment CAP_SYS_RESOURCE, or accept that the kernel may end the control plane first when \
             memory runs out",
        )
        .warning((!host.capabilities.sys_resource()).then(|| {
            "no CAP_SYS_RESOURCE: the control plane runs without protection against the out-of-memory killer".to_owned()
        })),
        clock(facts),
        Check::new("Hostname", format!("add `{}` to /etc/hosts or to the DNS", cluster.node_name)).warning(match facts
            .node_name
        {
            NameResolution::Resolves => None,
            NameResolution::Fails => Some(format!("node name `{}` cannot be resolved", cluster.node_name)),
            NameResolution::TimesOut => Some(format!("the resolver is slow on node name `{}`", cluster.node_name)),
        }),
        kubelet(facts),
    ]
}

fn swap(facts: &Facts) -> Check {
    let swaps = &facts.host.swaps;
    let names: Vec<_> = swaps.iter().map(|swap| swap.name.as_str()).collect();
    Check::new(
        "Swap",
        "switch it off (swapoff -a, and remove it from /etc/fstab): etcd misses its deadlines when swapped",
    )
    .warning((!swaps.is_empty()).then(|| format!("swap is on: {}", names.join(", "))))
}

fn cgroups(cgroups: Option<&Cgroups>) -> Check {
    let check = Check::new(
        "SystemVerification",
        "mount cgroups, with all controllers switched on (kernel command line: no cgroup_disable=)",
    );
    let Some(cgroups) = cgroups else { return check.error(Some("no cgroups are mounted".to_owned())) };
    let (version, required) = match cgroups.version {
        CgroupVersion::V1 => ("v1", BTreeSet::from(V1_CONTROLLERS)),
        CgroupVersion::V2 => ("v2", BTreeSet::from(V2_CONTROLLERS)),
    };
    let missing: Vec<_> = required.into_iter().filter(|name| !cgroups.controllers.contains(*name)).collect();
    // Not an error as with kubeadm: Docker runs containers without limits then, and the control plane has none.
    check.warning((!missing.is_empty()).then(|| format!("cgroup {version} lacks: {}", missing.join(", "))))
}

fn clock(facts: &Facts) -> Check {
    let now = facts.now;
    let early = facts.not_before.iter().filter(|(_, start)| now < *start).max_by_key(|(_, start)| *start);
    Check::new("Clock", "set the clock (timedatectl, chronyd, hwclock), and see that it stays right")
        .error((now < EARLIEST || now >= LATEST).then(|| format!("the clock says {now:.0}, which cannot be")))
        .error(early.map(|(file, start)| {
            format!("the clock says {now:.0}, but `{}` is valid only from {start:.0}", file.display())
        }))
}

fn kubelet(facts: &Facts) -> Check {
    let of = |wanted: Manifests| -> Option<String> {
        let found: Vec<_> = facts.host.kubelets.iter().filter(|kubelet| kubelet.manifests == wanted).collect();
        let names: Vec<_> = found.iter().map(|kubelet| kubelet.found.as_str()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    Check::new("Kubelet", "stop it (systemctl disable --now kubelet), or take staticPodPath out of its configuration")
        .error(of(Manifests::Ours).map(|found| format!("a kubelet runs the static pods of our directory: {found}")))
        .warning(
            of(Manifests::Unknown).map(|found| format!("a kubelet, and no telling which static pods it runs: {found}")),
        )
}

#[cfg(test)]
mod tests {
    use super::super::super::{KubeletFacts, Level, Ownership};
    use super::super::testing::{at, good, says};
    use super::*;
    use crate::proc::{Capabilities, Memory, Swap};

    type Case = (&'static str, fn(&mut Facts), Option<(Level, &'static str)>);

    #[test]
    fn each_check_passes_and_fails() {
        let cases: &[Case] = &[
            ("IsPrivilegedUser", |f| f.host.uid = 1000, Some((Level::Error, "user 1000 is not root"))),
            ("NumCPU", |f| f.host.cpus = 2, None),
            ("NumCPU", |f| f.host.cpus = 1, Some((Level::Error, "1 processor; a control plane needs 2"))),
            ("Mem", |f| f.host.memory = Memory { total: 1700 << 20, available: 0 }, None),
            (
                "Mem",
                |f| f.host.memory = Memory { total: 1699 << 20, available: 0 },
                Some((Level::Error, "1699 MiB of memory; a control plane needs 1700")),
            ),
            (
                "Swap",
                |f| f.host.swaps = vec![Swap { name: "/dev/sda2".into(), size: 1 }],
                Some((Level::Warning, "swap is on: /dev/sda2")),
            ),
            ("SystemVerification", |f| f.host.cgroups = None, Some((Level::Error, "no cgroups are mounted"))),
            (
                "SystemVerification",
                |f| {
                    f.host.cgroups = Some(Cgroups {
                        version: CgroupVersion::V2,
                        controllers: ["cpu".into(), "cpuset".into()].into(),
                    });
                },
                Some((Level::Warning, "cgroup v2 lacks: memory, pids")),
            ),
            (
                "SystemVerification",
                |f| {
                    let controllers = V1_CONTROLLERS.map(str::to_owned).into();
                    f.host.cgroups = Some(Cgroups { version: CgroupVersion::V1, controllers });
                },
                None,
            ),
            (
                "CapSysResource",
                |f| f.host.capabilities = Capabilities(0x01ff_feff_ffff),
                Some((
                    Level::Warning,
                    "no CAP_SYS_RESOURCE: the control plane runs without protection against the out-of-memory killer",
                )),
            ),
            (
                "Clock",
                |f| f.now = at("1970-01-01T00:01:00Z"),
                Some((Level::Error, "the clock says 1970-01-01T00:01:00Z, which cannot be")),
            ),
            (
                "Clock",
                |f| f.now = at("2106-02-07T06:28:15Z"),
                Some((Level::Error, "the clock says 2106-02-07T06:28:15Z, which cannot be")),
            ),
            (
                "Clock",
                |f| f.now = at("2026-11-19T12:00:00Z"),
                Some((
                    Level::Error,
                    "the clock says 2026-11-19T12:00:00Z, but `/etc/kubernetes/pki/ca.crt` is valid only from \
                     2026-11-20T00:00:00Z",
                )),
            ),
            (
                "Hostname",
                |f| f.node_name = NameResolution::Fails,
                Some((Level::Warning, "node name `node-1` cannot be resolved")),
            ),
            (
                "Hostname",
                |f| f.node_name = NameResolution::TimesOut,
                Some((Level::Warning, "the resolver is slow on node name `node-1`")),
            ),
            (
                "Kubelet",
                |f| f.host.kubelets = vec![KubeletFacts { found: "process 9".into(), manifests: Manifests::Elsewhere }],
                None,
            ),
            (
                "Kubelet",
                |f| f.host.kubelets = vec![KubeletFacts { found: "process 9".into(), manifests: Manifests::Unknown }],
                Some((Level::Warning, "a kubelet, and no telling which static pods it runs: process 9")),
            ),
            (
                "Kubelet",
                |f| f.host.kubelets = vec![KubeletFacts { found: "process 9".into(), manifests: Manifests::Ours }],
                Some((Level::Error, "a kubelet runs the static pods of our directory: process 9")),
            ),
        ];
        let mut cluster = Cluster::example();
        cluster.node_name = "node-1".into();
        for (name, change, expected) in cases {
            let mut facts = good();
            change(&mut facts);
            let found = says(&cluster, &Ownership::default(), &facts, name);
            assert_eq!(found, expected.map(|(level, text)| (level, text.to_owned())), "{name}");
        }
    }

    #[test]
    fn the_bounds_of_the_clock_are_what_they_say() {
        assert_eq!(EARLIEST, at("2026-01-01T00:00:00Z"));
        assert_eq!(LATEST, at("2100-01-01T00:00:00Z"));
    }
}
