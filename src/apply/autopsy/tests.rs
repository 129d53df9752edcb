use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::*;
use crate::agent::status::{AgentStatus, PodSummary, Rejection, SourceStatus, TerminationSummary};
use Component::{Etcd, KubeApiserver, KubeControllerManager, KubeScheduler};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Everything is well with the host; all four components run and are healthy.
fn evidence() -> Evidence {
    let pods = Component::ALL
        .map(|component| PodSummary {
            namespace: "kube-system".into(),
            name: format!("{component}-master"),
            containers: vec![ContainerSummary {
                name: component.name().into(),
                state: "running".into(),
                ..ContainerSummary::default()
            }],
            ..PodSummary::default()
        })
        .to_vec();
    Evidence {
        now: at("2026-11-21T08:00:00Z"),
        waited: Duration::from_mins(4),
        runtime: Ok(()),
        agent: Ok(AgentStatus {
            node_name: "master".into(),
            pods,
            sources: vec![SourceStatus { location: "/etc/kubernetes/manifests".into(), ..SourceStatus::default() }],
            ..AgentStatus::default()
        }),
        components: Component::ALL
            .map(|component| ComponentEvidence { component, unhealthy: None, missing_image: None, log: vec![] })
            .to_vec(),
        ports: vec![],
        disks: vec![Disk { path: "/var/lib/etcd".into(), free: 20 << 30, total: 50 << 30 }],
        memory_available: Some(3 << 30),
        certificates: vec![CertificateDates {
            file: "/etc/kubernetes/pki/apiserver.crt".into(),
            not_before: at("2026-11-21T07:59:00Z"),
            not_after: at("2027-11-21T07:59:00Z"),
        }],
        advertise_address: "192.0.2.10".parse().unwrap(),
        address_is_ours: true,
        etcd_data_dir: "/var/lib/etcd".into(),
    }
}

/// The real output of a component, from `tests/fixtures/logs`.
fn fixture(name: &str) -> Vec<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/logs/{name}.log"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}")).lines().map(str::to_owned).collect()
}

impl Evidence {
    fn component(&mut self, component: Component) -> &mut ComponentEvidence {
        self.components.iter_mut().find(|c| c.component == component).unwrap()
    }

    fn container_mut(&mut self, component: Component) -> &mut ContainerSummary {
        let name = format!("{component}-master");
        let pods = &mut self.agent.as_mut().unwrap().pods;
        &mut pods.iter_mut().find(|pod| pod.name == name).unwrap().containers[0]
    }

    /// Not healthy, and neither is whatever depends on it.
    fn unhealthy_from(mut self, first: Component) -> Self {
        for of in self.components.iter_mut().filter(|of| of.component >= first) {
            of.unhealthy = Some("connection refused".into());
        }
        self
    }

    /// Ended with `exit_code` after the output of a fixture, and what depends on it is not healthy.
    fn crashed(self, component: Component, exit_code: i64, log: &str) -> Self {
        let mut evidence = self.unhealthy_from(component);
        evidence.component(component).log = fixture(log);
        let container = evidence.container_mut(component);
        container.state = "waiting".into();
        container.reason = "CrashLoopBackOff".into();
        container.restart_count = 4;
        container.last_termination =
            Some(TerminationSummary { exit_code, reason: "Error".into(), ..TerminationSummary::default() });
        evidence
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

fn nginx(port: u16, component: Component) -> PortOwner {
    PortOwner { port, component, pid: Some(812), command: "nginx".into(), ours: false }
}

#[test]
fn each_case_has_its_cause() {
    let nothing_runs = || evidence().unhealthy_from(Etcd);
    let cases: Vec<(&str, Evidence, Option<Component>, Code, &str)> = vec![
        (
            "port taken, told by the component",
            evidence()
                .crashed(KubeApiserver, 1, "kube-apiserver-port-taken")
                .with(|e| e.ports.push(nginx(6443, KubeApiserver))),
            Some(KubeApiserver),
            Code::PortTaken,
            "kube-apiserver cannot listen: port 6443 is taken by `nginx` (pid 812)",
        ),
        (
            "port taken, seen only on the host",
            evidence()
                .unhealthy_from(KubeApiserver)
                .with(|e| e.ports.push(nginx(6443, KubeApiserver)))
                .with(|e| e.component(KubeApiserver).unhealthy = Some("certificate is not from our CA".into())),
            Some(KubeApiserver),
            Code::PortTaken,
            "kube-apiserver cannot listen: port 6443 is taken by `nginx` (pid 812)",
        ),
        (
            "the new one was rejected, and said why",
            evidence().unhealthy_from(KubeApiserver).with(|e| {
                let why = "rejected: kube-apiserver exited with code 1: Error: unknown flag: --bogus";
                e.component(KubeApiserver).unhealthy = Some(why.into());
            }),
            Some(KubeApiserver),
            Code::BadFlag,
            "kube-apiserver does not accept its flags: unknown flag: --bogus",
        ),
        (
            "the new one was rejected, and nobody knows why",
            evidence().unhealthy_from(KubeApiserver).with(|e| {
                e.component(KubeApiserver).unhealthy = Some("rejected: not ready within 240 s".into());
            }),
            Some(KubeApiserver),
            Code::Crash,
            "the new kube-apiserver was given up: not ready within 240 s",
        ),
        (
            "port taken, owner unknown",
            evidence().crashed(KubeScheduler, 1, "kube-scheduler-port-taken"),
            Some(KubeScheduler),
            Code::PortTaken,
            "kube-scheduler cannot listen: port 10259 is taken by another process",
        ),
        (
            "port taken by an older container",
            evidence().crashed(Etcd, 1, "etcd-port-taken").with(|e| {
                e.ports.push(PortOwner {
                    port: 2380,
                    component: Etcd,
                    pid: Some(7),
                    command: "etcd".into(),
                    ours: true,
                });
            }),
            Some(Etcd),
            Code::PortTaken,
            "etcd cannot listen: port 2380 is still held by an older container of ours, `etcd` (pid 7)",
        ),
        (
            "etcd directory of another cluster",
            nothing_runs().with(|e| e.component(Etcd).log = fixture("etcd-foreign-members")),
            Some(Etcd),
            Code::EtcdForeignData,
            "`/var/lib/etcd` holds the data of another cluster, with members that this one does not have",
        ),
        (
            "etcd directory that is no database",
            evidence().crashed(Etcd, 2, "etcd-corrupt-db"),
            Some(Etcd),
            Code::EtcdDataDamaged,
            "etcd cannot read its data in `/var/lib/etcd`: failed to open database: invalid database",
        ),
        (
            "invalid extraArg",
            evidence().crashed(KubeApiserver, 1, "kube-apiserver-unknown-flag"),
            Some(KubeApiserver),
            Code::BadFlag,
            "kube-apiserver does not accept its flags: unknown flag: --bogus-flag",
        ),
        (
            "invalid extraArg of etcd, with the usage after it",
            evidence().crashed(Etcd, 2, "etcd-unknown-flag"),
            Some(Etcd),
            Code::BadFlag,
            "etcd does not accept its flags: flag provided but not defined: -bogus-flag",
        ),
        (
            "image missing",
            nothing_runs().with(|e| {
                e.component(Etcd).missing_image = Some("registry.k8s.io/etcd:3.7.0-0".into());
                let container = e.container_mut(Etcd);
                container.state = "waiting".into();
                container.reason = "ErrImagePull".into();
                container.message = "connection refused".into();
            }),
            Some(Etcd),
            Code::ImageMissing,
            "the image `registry.k8s.io/etcd:3.7.0-0` is not on this host: connection refused",
        ),
        (
            "Docker down, and so the agent and all else",
            nothing_runs().with(|e| {
                e.runtime = Err("no such socket `/var/run/docker.sock`".into());
                e.agent = Err("connection refused".into());
            }),
            None,
            Code::DockerDown,
            "the container engine does not answer: no such socket `/var/run/docker.sock`",
        ),
        (
            "disk full, and so etcd crashed",
            evidence().crashed(Etcd, 2, "etcd-disk-full").with(|e| e.disks[0].free = 1 << 20),
            None,
            Code::DiskFull,
            "only 1.00 MiB are free below `/var/lib/etcd`",
        ),
        (
            "disk was full",
            evidence().crashed(Etcd, 2, "etcd-disk-full"),
            None,
            Code::DiskFull,
            "a component found no space left on its disk",
        ),
        (
            "clock before the certificates",
            evidence().crashed(KubeApiserver, 1, "kube-apiserver-etcd-future").with(|e| {
                e.now = at("2020-01-01T00:00:00Z");
            }),
            None,
            Code::ClockBeforeCertificates,
            "this host's clock says 2020-01-01T00:00:00Z, \
             but `/etc/kubernetes/pki/apiserver.crt` is valid only from 2026-11-21T07:59:00Z",
        ),
        (
            "certificate expired",
            nothing_runs().with(|e| e.now = at("2030-01-01T00:00:00Z")),
            None,
            Code::CertificateExpired,
            "`/etc/kubernetes/pki/apiserver.crt` expired at 2027-11-21T07:59:00Z; \
             this host's clock says 2030-01-01T00:00:00Z",
        ),
        (
            "advertise address not ours",
            nothing_runs().with(|e| e.address_is_ours = false),
            None,
            Code::AddressNotOurs,
            "no interface of this host has the advertise address 192.0.2.10",
        ),
        (
            "advertise address not ours, and so etcd crashed",
            evidence().crashed(Etcd, 1, "etcd-address-peer").with(|e| e.address_is_ours = false),
            None,
            Code::AddressNotOurs,
            "no interface of this host has the advertise address 192.0.2.10",
        ),
        (
            "another address that is not ours",
            evidence().crashed(Etcd, 1, "etcd-address"),
            Some(Etcd),
            Code::AddressNotOurs,
            "etcd cannot listen on an address that this host does not have: \
             discovery failed: listen tcp 192.0.2.7:2379: bind: cannot assign requested address",
        ),
        (
            "out of memory",
            evidence().crashed(KubeApiserver, 137, "kube-apiserver-no-etcd").with(|e| {
                e.container_mut(KubeApiserver).last_termination.as_mut().unwrap().reason = "OOMKilled".into();
            }),
            Some(KubeApiserver),
            Code::OutOfMemory,
            "the kernel killed kube-apiserver for lack of memory",
        ),
        (
            "a crash of its own kind",
            evidence().crashed(Etcd, 2, "etcd-garbage-wal"),
            Some(Etcd),
            Code::Crash,
            "etcd ends with exit code 2: panic: runtime error: invalid memory address or nil pointer dereference",
        ),
        (
            "the API server crashes only because etcd is not there yet",
            evidence().crashed(KubeApiserver, 1, "kube-apiserver-no-etcd").with(|e| {
                e.component(Etcd).unhealthy = Some("/readyz 503: serializable_read".into());
            }),
            Some(Etcd),
            Code::Slow,
            "etcd runs, but was not healthy within 240 s: /readyz 503: serializable_read",
        ),
        (
            "slow",
            evidence().unhealthy_from(KubeControllerManager),
            Some(KubeControllerManager),
            Code::Slow,
            "kube-controller-manager runs, but was not healthy within 240 s: connection refused",
        ),
        (
            "never started",
            nothing_runs().with(|e| e.agent.as_mut().unwrap().pods.clear()),
            Some(Etcd),
            Code::NotStarted,
            "the agent has started no container of etcd within 240 s",
        ),
        (
            "agent down",
            nothing_runs().with(|e| e.agent = Err("connection refused".into())),
            None,
            Code::AgentDown,
            "plinth's agent does not answer: connection refused",
        ),
        (
            "agent stuck",
            nothing_runs().with(|e| {
                e.agent.as_mut().unwrap().sources[0].problem = Some("permission denied".into());
            }),
            None,
            Code::AgentStuck,
            "plinth's agent cannot work: `/etc/kubernetes/manifests`: permission denied",
        ),
        (
            "manifest rejected",
            evidence().unhealthy_from(KubeScheduler).with(|e| {
                let file = "/etc/kubernetes/manifests/kube-scheduler.yaml".into();
                let rejection = Rejection { file, reason: "line 3: unknown field `contianers`".into() };
                e.agent.as_mut().unwrap().sources[0].rejected.push(rejection);
            }),
            Some(KubeScheduler),
            Code::ManifestRejected,
            "the agent does not accept `/etc/kubernetes/manifests/kube-scheduler.yaml`: \
             line 3: unknown field `contianers`",
        ),
        (
            "the engine refuses to start it",
            nothing_runs().with(|e| {
                let container = e.container_mut(Etcd);
                container.reason = "RunContainerError".into();
                container.message = "invalid mount".into();
            }),
            Some(Etcd),
            Code::ContainerCannotRun,
            "the engine cannot start etcd: invalid mount",
        ),
        (
            "another API server's certificate",
            evidence()
                .unhealthy_from(KubeApiserver)
                .with(|e| e.component(KubeApiserver).unhealthy = Some("certificate is not from our CA".into())),
            Some(KubeApiserver),
            Code::PkiMismatch,
            "kube-apiserver serves a certificate that is not from this cluster's CA",
        ),
        ("healthy by now", evidence(), None, Code::Slow, "all components are healthy by now"),
    ];
    for (what, evidence, component, code, cause) in cases {
        let autopsy = diagnose(&evidence);
        assert_eq!((autopsy.component, autopsy.code, &*autopsy.cause), (component, code, cause), "{what}");
        assert!(!autopsy.fix.is_empty(), "{what}");
    }
}

/// Every recorded output leads to its cause by its own words.
#[test]
fn real_output_is_understood() {
    for (component, log, code, part) in [
        (KubeApiserver, "kube-apiserver-invalid-value", Code::BadFlag, "\"--max-requests-inflight\""),
        (KubeApiserver, "kube-apiserver-feature-gate", Code::BadFlag, "feature gate: Nope"),
        (KubeApiserver, "kube-apiserver-admission-plugin", Code::BadFlag, "plugin \"Nope\" is unknown"),
        (KubeApiserver, "kube-apiserver-missing-file", Code::FileMissing, "/nowhere.yaml"),
        (KubeApiserver, "kube-apiserver-etcd-expired", Code::CertificateExpired, "is after 2021-01-01"),
        (KubeApiserver, "kube-apiserver-etcd-future", Code::ClockBeforeCertificates, "is before 2090-01-01"),
        (KubeApiserver, "kube-apiserver-etcd-unknown-ca", Code::PkiMismatch, "unknown authority"),
        (KubeApiserver, "kube-apiserver-etcd-refuses-us", Code::PkiMismatch, "unknown certificate authority"),
        (KubeApiserver, "kube-apiserver-no-space", Code::EtcdQuota, "quota"),
        (KubeApiserver, "kube-apiserver-no-etcd", Code::Crash, "etcd grpc connection not ready"),
        (KubeControllerManager, "kube-controller-manager-unknown-flag", Code::BadFlag, "--bogus-flag"),
        (KubeControllerManager, "kube-controller-manager-unknown-controller", Code::BadFlag, "\"nope\""),
        (KubeControllerManager, "kube-controller-manager-port-taken", Code::PortTaken, "port 10257"),
        (KubeScheduler, "kube-scheduler-unknown-flag", Code::BadFlag, "--bogus-flag"),
        (KubeScheduler, "kube-scheduler-missing-kubeconfig", Code::FileMissing, "/nowhere.conf"),
        (KubeScheduler, "kube-scheduler-unauthorized", Code::PkiMismatch, "Unauthorized"),
        (KubeScheduler, "kube-scheduler-unknown-ca", Code::PkiMismatch, "unknown authority"),
        (Etcd, "etcd-invalid-value", Code::BadFlag, "-snapshot-count"),
        (Etcd, "etcd-address-peer", Code::AddressNotOurs, "192.0.2.7:2380"),
        (Etcd, "etcd-permission", Code::PermissionDenied, "/data/etcd: permission denied"),
    ] {
        let autopsy = diagnose(&evidence().crashed(component, 1, log));
        assert_eq!(autopsy.code, code, "{log}: {}", autopsy.cause);
        assert!(autopsy.cause.contains(part), "{log}: {}", autopsy.cause);
    }
}

/// Messages that need other hosts to come about, as etcd 3.7's source words them.
#[test]
fn etcds_words_about_other_clusters_are_understood() {
    for (line, code) in [
        (
            r#"{"level":"fatal","msg":"discovery failed","error":"member 8e9e05c52164694d has already been bootstrapped"}"#,
            Code::EtcdForeignData,
        ),
        (r#"{"level":"warn","msg":"request cluster ID mismatch"}"#, Code::EtcdForeignData),
        (r#"{"level":"warn","msg":"failed to find remote peer in cluster"}"#, Code::EtcdForeignData),
        (
            r#"{"level":"panic","msg":"invalid downgrade; server version is lower than determined cluster version"}"#,
            Code::EtcdNewerData,
        ),
        (
            r#"{"level":"fatal","msg":"failed to read WAL, cannot be repaired","error":"walpb: crc mismatch"}"#,
            Code::EtcdDataDamaged,
        ),
    ] {
        let autopsy = diagnose(&evidence().unhealthy_from(Etcd).with(|e| e.component(Etcd).log = vec![line.into()]));
        assert_eq!(autopsy.code, code, "{line}");
    }
}

#[test]
fn people_read_the_cause_first_and_programs_the_code() {
    let evidence = evidence().crashed(KubeApiserver, 1, "kube-apiserver-port-taken").with(|e| {
        e.ports.push(nginx(6443, KubeApiserver));
        e.component(KubeApiserver).log.push("\x1b[2Jcleared".into());
        e.component(KubeApiserver).log.push("x".repeat(2000));
        e.components.truncate(2);
    });
    let autopsy = diagnose(&evidence);
    let text = autopsy.to_string();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[..5],
        [
            "cause: kube-apiserver cannot listen: port 6443 is taken by `nginx` (pid 812)",
            "fix:   stop `nginx` (pid 812), or choose another port with --apiserver-bind-port",
            "",
            "etcd: healthy",
            "kube-apiserver: waiting, CrashLoopBackOff, last exit code 1, 4 restarts; health: connection refused",
        ]
    );
    assert_eq!(lines[9], "  |  [2Jcleared");
    assert_eq!(lines[10].chars().count(), 4 + 300 + 1, "long lines are cut");
    assert_eq!(
        lines[11..],
        [
            "disk /var/lib/etcd: 20.00 GiB of 50.00 GiB free",
            "memory: 3.00 GiB available",
            "port 6443 (kube-apiserver): nginx (pid 812), not ours",
        ]
    );

    let json = serde_json::to_value(&autopsy).unwrap();
    assert_eq!(json["code"], "port-taken");
    assert_eq!(json["component"], "kube-apiserver");
    assert_eq!(json["components"][1]["exitCode"], 1);
    assert_eq!(json["components"][1]["log"].as_array().unwrap().len(), 6);
    assert_eq!(json["host"]["ports"][0]["pid"], 812);
}
