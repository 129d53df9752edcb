//! What components say when they cannot work, and what it means.
//!
//! The texts are those of etcd 3.7.0 and Kubernetes 1.37.1; real output of each is in `tests/fixtures/logs`, except
//! for the few that need more than one host, which were read in etcd's source (`server/etcdserver`).

use super::Code;
use super::evidence::{Evidence, PortOwner};
use crate::logline::{self, Severity};
use crate::release::Component;

/// A known way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Symptom {
    PortTaken,
    AddressNotOurs,
    BadFlag,
    NoSpace,
    ForeignData,
    NewerData,
    DamagedData,
    Quota,
    CertificateDates,
    OtherAuthority,
    FileMissing,
    PermissionDenied,
}

/// Any of the texts in a line is the symptom; the more specific ones come first.
const SYMPTOMS: &[(Symptom, &[&str])] = &[
    (Symptom::PortTaken, &["bind: address already in use"]),
    (Symptom::AddressNotOurs, &["bind: cannot assign requested address"]),
    (
        Symptom::BadFlag,
        &[
            "unknown flag: ",
            "unknown shorthand flag: ",
            "flag provided but not defined: ",
            "\" for flag -",
            "Error: invalid argument ",
            "unrecognized feature gate: ",
            "enable-admission-plugins plugin ",
            "is not in the list of known controllers",
            "unknown api groups ",
        ],
    ),
    (Symptom::NoSpace, &["no space left on device"]),
    (Symptom::Quota, &["mvcc: database space exceeded"]),
    (Symptom::NewerData, &["server version is lower than determined cluster version", "cluster cannot be downgraded"]),
    (
        Symptom::DamagedData,
        &[
            r#""msg":"failed to open database""#,
            "crc mismatch",
            "failed to find database snapshot file",
            "found data inconsistency",
        ],
    ),
    (
        Symptom::ForeignData,
        &[
            "has already been bootstrapped",
            "cluster ID mismatch",
            "failed to find remote peer in cluster",
            // Our etcd is a cluster of one: whoever it misses came with the data.
            "prober detected unhealthy status",
            "sent MsgPreVote request to",
        ],
    ),
    (Symptom::CertificateDates, &["certificate has expired or is not yet valid"]),
    (
        Symptom::OtherAuthority,
        &["certificate signed by unknown authority", "tls: unknown certificate authority", ": Unauthorized"],
    ),
    (Symptom::PermissionDenied, &[": permission denied"]),
    (Symptom::FileMissing, &[": no such file or directory"]),
];

/// The last line that shows a symptom, if any: what a process says last is closest to its end.
pub(super) fn find(log: &[String]) -> Option<(Symptom, &str)> {
    log.iter().rev().find_map(|line| {
        let (symptom, _) = SYMPTOMS.iter().find(|(_, texts)| texts.iter().any(|text| line.contains(text)))?;
        symptom.counts_in(logline::severity(line)).then_some((*symptom, line.as_str()))
    })
}

/// How surely a component that showed a symptom shows it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::apply) enum Certainty {
    /// Always: it comes from the component's own flags.
    OfItself,
    /// As long as nobody changes something on the host.
    OfTheHost,
}

/// Whether what a component `said` last makes it end again at each start. `None` for what passes, like a dependency
/// that is not there yet or a clock that is about to be set.
pub(in crate::apply) fn certainty(said: &str) -> Option<Certainty> {
    let (symptom, _) = find(&[said.to_owned()])?;
    match symptom {
        Symptom::BadFlag => Some(Certainty::OfItself),
        Symptom::PortTaken
        | Symptom::AddressNotOurs
        | Symptom::NewerData
        | Symptom::NoSpace
        | Symptom::FileMissing
        | Symptom::PermissionDenied => Some(Certainty::OfTheHost),
        Symptom::ForeignData
        | Symptom::DamagedData
        | Symptom::Quota
        | Symptom::CertificateDates
        | Symptom::OtherAuthority => None,
    }
}

impl Symptom {
    /// Components also mention harmless things: a file that may be missing, an attempt that is repeated.
    fn counts_in(self, severity: Severity) -> bool {
        match self {
            // etcd tells of its elections as information.
            Self::ForeignData => true,
            Self::FileMissing | Self::PermissionDenied => severity >= Severity::Error,
            _ => severity >= Severity::Warning,
        }
    }

    /// Code, cause and fix, for the `line` that `component` wrote.
    pub(super) fn explain(self, evidence: &Evidence, component: Component, line: &str) -> (Code, String, String) {
        let said = logline::message(line);
        let data = evidence.etcd_data_dir.display();
        match self {
            Self::PortTaken => {
                let port = port_of(&said);
                let owner = evidence.ports.iter().find(|owner| Some(owner.port) == port);
                port_taken(owner, component, port)
            }
            Self::AddressNotOurs => (
                Code::AddressNotOurs,
                format!("{component} cannot listen on an address that this host does not have: {said}"),
                "name one of this host's addresses (`ip address`) and run the same command again".to_owned(),
            ),
            Self::BadFlag => (
                Code::BadFlag,
                format!("{component} does not accept its flags: {}", said.trim_start_matches("Error: ")),
                format!("correct {} in the configuration file and run the same command again", extra_args(component)),
            ),
            Self::NoSpace => (
                Code::DiskFull,
                format!("{component} found no space left on its disk"),
                "free some space (`df -h`, `df -i`) and run the same command again".to_owned(),
            ),
            Self::ForeignData => (
                Code::EtcdForeignData,
                format!("`{data}` holds the data of another cluster, with members that this one does not have"),
                format!("move `{data}` away if somebody needs it, or `plinth reset`, and run the same command again"),
            ),
            Self::NewerData => (
                Code::EtcdNewerData,
                format!("`{data}` was written by a newer etcd: {said}"),
                "use the newer Kubernetes version, or let the newer etcd run `etcdctl downgrade enable` first"
                    .to_owned(),
            ),
            Self::DamagedData => (
                Code::EtcdDataDamaged,
                format!("etcd cannot read its data in `{data}`: {said}"),
                format!("restore `{data}` from a snapshot, or move it away to begin with an empty cluster"),
            ),
            Self::Quota => (
                Code::EtcdQuota,
                "etcd has reached its quota and takes no more writes".to_owned(),
                "raise `quota-backend-bytes` in etcd's extraArgs, or compact and defragment it".to_owned(),
            ),
            Self::CertificateDates => (
                if said.contains(" is before ") { Code::ClockBeforeCertificates } else { Code::CertificateExpired },
                format!("{component} meets a certificate that is not valid now: {}", tail(&said, "x509: ")),
                "set the clock if it is wrong; otherwise move the certificate away and run init again".to_owned(),
            ),
            Self::OtherAuthority => (
                Code::PkiMismatch,
                format!(
                    "{component} and its peer have certificates of different authorities: {}",
                    tail(&said, "tls: ")
                ),
                "remove what is left of an earlier cluster (`plinth reset`), or the file that does not belong here"
                    .to_owned(),
            ),
            Self::PermissionDenied => (
                Code::PermissionDenied,
                format!("{component} may not use a file: {said}"),
                "correct owner and mode of that file, or the security module (AppArmor, SELinux) in the way".to_owned(),
            ),
            Self::FileMissing => (
                Code::FileMissing,
                format!("{component} does not find a file: {said}"),
                format!(
                    "create it, and mount it with the extraVolumes of {component} when it is not below its own paths"
                ),
            ),
        }
    }
}

/// Code, cause and fix of a taken port, with as much as is known of it.
pub(super) fn port_taken(owner: Option<&PortOwner>, component: Component, port: Option<u16>) -> (Code, String, String) {
    let port = port.map_or_else(|| "its port".to_owned(), |port| format!("port {port}"));
    let name = |owner: &PortOwner| match (&*owner.command, owner.pid) {
        ("", None) => "another process".to_owned(),
        ("", Some(pid)) => format!("the process {pid}"),
        (command, None) => format!("`{command}`"),
        (command, Some(pid)) => format!("`{command}` (pid {pid})"),
    };
    let choice =
        if component == Component::KubeApiserver { ", or choose another port with --apiserver-bind-port" } else { "" };
    match owner {
        Some(owner) if owner.ours => (
            Code::PortTaken,
            format!("{component} cannot listen: {port} is still held by an older container of ours, {}", name(owner)),
            "run the same command again; if it stays, `plinth reset`".to_owned(),
        ),
        Some(owner) => (
            Code::PortTaken,
            format!("{component} cannot listen: {port} is taken by {}", name(owner)),
            format!("stop {}{choice}", name(owner)),
        ),
        None => (
            Code::PortTaken,
            format!("{component} cannot listen: {port} is taken by another process"),
            format!("find it (`ss -ltnp`) and stop it{choice}"),
        ),
    }
}

/// Where a configuration file has the flags of `component`.
fn extra_args(component: Component) -> &'static str {
    match component {
        Component::Etcd => "`etcd.local.extraArgs`",
        Component::KubeApiserver => "`apiServer.extraArgs`",
        Component::KubeControllerManager => "`controllerManager.extraArgs`",
        Component::KubeScheduler => "`scheduler.extraArgs`",
    }
}

/// The port in `listen tcp 127.0.0.1:6443: bind: address already in use`.
fn port_of(said: &str) -> Option<u16> {
    let (before, _) = said.split_once(": bind: ")?;
    before.rsplit_once(':')?.1.parse().ok()
}

/// What follows the last `mark`, where the interesting part begins.
fn tail<'a>(said: &'a str, mark: &str) -> &'a str {
    said.rsplit_once(mark).map_or(said, |(_, tail)| tail.trim_end_matches('"'))
}
