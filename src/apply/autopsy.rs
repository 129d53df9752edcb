//! Why the control plane did not come up: the most likely cause with its fix, then all that is known.
//!
//! Observe → decide, as everywhere: [`Evidence`] is plain data that somebody gathered from the host, [`diagnose`] is
//! pure. Causes are looked for in the order in which they bring each other about: no container runs without its
//! engine, a full disk makes etcd crash, without etcd no API server, and so on; the first one found is named.

mod collect;
mod evidence;
mod gather;
mod render;
mod symptom;

pub use collect::disk_free;
pub use evidence::{CertificateDates, ComponentEvidence, Disk, Evidence, PortOwner};
pub use gather::gather;

use std::path::Path;

use serde::Serialize;

use super::exchange::REJECTED_NEW;
use crate::agent::status::{AgentStatus, ContainerSummary, Rejection};
use crate::logline;
use crate::manifests;
use crate::release::Component;
use symptom::Symptom;
pub(super) use symptom::{Certainty, certainty};

/// Lines of each component's log that a result carries; the cause is sought in more.
const SHOWN_LINES: usize = 40;

/// Below this, etcd cannot create its write-ahead log (64 MB, `wal.SegmentSizeBytes`), in bytes.
const DISK_NEEDED: u64 = 64 * 1000 * 1000;

/// What went wrong, as programs know it. The names are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The container engine does not answer.
    DockerDown,
    /// A file system has no space left.
    DiskFull,
    /// The agent does not run, or does not answer.
    AgentDown,
    /// The agent runs but cannot work.
    AgentStuck,
    /// The agent does not accept a manifest.
    ManifestRejected,
    /// An image is not on this host and cannot be pulled.
    ImageMissing,
    /// The advertise address is not an address of this host.
    AddressNotOurs,
    /// By the host's clock a certificate is not valid yet.
    ClockBeforeCertificates,
    /// A certificate is no longer valid.
    CertificateExpired,
    /// Another process has a component's port.
    PortTaken,
    /// The engine cannot start the container.
    ContainerCannotRun,
    /// The kernel killed a component for lack of memory.
    OutOfMemory,
    /// A component does not understand one of its flags or its value.
    BadFlag,
    /// A component does not find a file that one of its flags names.
    FileMissing,
    /// A component may not read or write a file.
    PermissionDenied,
    /// etcd's directory holds the data of another cluster.
    EtcdForeignData,
    /// etcd's directory holds the data of a newer etcd.
    EtcdNewerData,
    /// etcd cannot read its own data.
    EtcdDataDamaged,
    /// etcd has reached its quota.
    EtcdQuota,
    /// Certificates and keys of different authorities meet.
    PkiMismatch,
    /// A component ends by itself, for another reason.
    Crash,
    /// A component was never started.
    NotStarted,
    /// All runs, and needs more time or hangs.
    Slow,
}

/// The result. Serialises to what `-o json` shows; `Display` is for people.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Autopsy {
    /// The component at fault; `None` when it is the host.
    pub component: Option<Component>,
    /// The cause, for programs.
    pub code: Code,
    /// The cause, for people: one line.
    pub cause: String,
    /// What to do about it: one line.
    pub fix: String,
    /// What is known of each component, dependencies first.
    pub components: Vec<ComponentDetail>,
    /// What is known of the host.
    pub host: HostDetail,
}

/// What is known of one component.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ComponentDetail {
    /// Which.
    pub component: Component,
    /// Why it is not healthy, when last asked; `None` when it is.
    pub unhealthy: Option<String>,
    /// `waiting`, `running`, `terminated`, or `absent` when the agent knows no container of it.
    pub state: String,
    /// `CrashLoopBackOff`, `ErrImagePull`, …; empty when there is nothing to say.
    pub reason: String,
    /// The reason in more words.
    pub message: String,
    /// How often it was started again.
    pub restarts: u32,
    /// Exit code of the last instance that ended.
    pub exit_code: Option<i64>,
    /// The kernel killed that instance for lack of memory.
    pub oom_killed: bool,
    /// The last lines it wrote, at most 40.
    pub log: Vec<String>,
}

/// What is known of the host.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostDetail {
    /// Listening sockets on the control plane's ports.
    pub ports: Vec<PortOwner>,
    /// File systems with data of ours.
    pub disks: Vec<Disk>,
    /// Bytes of memory that new processes can have (`MemAvailable`).
    pub memory_available: Option<u64>,
    /// What the agent warns of.
    pub warnings: Vec<String>,
}

/// A cause that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    component: Option<Component>,
    code: Code,
    cause: String,
    fix: String,
}

/// Finds the most likely cause in `evidence`. Never fails: where nothing is found, something was slow.
pub fn diagnose(evidence: &Evidence) -> Autopsy {
    let components: Vec<_> = evidence.components.iter().map(|c| detail(evidence, c)).collect();
    let finding = host(evidence)
        .or_else(|| evidence.unhealthy().find_map(|component| cause_of(evidence, component)))
        .or_else(|| crash(evidence))
        .unwrap_or_else(|| slow(evidence));
    Autopsy {
        component: finding.component,
        code: finding.code,
        cause: finding.cause,
        fix: finding.fix,
        components,
        host: HostDetail {
            ports: evidence.ports.clone(),
            disks: evidence.disks.clone(),
            memory_available: evidence.memory_available,
            warnings: evidence.agent.as_ref().map(|status| status.warnings.clone()).unwrap_or_default(),
        },
    }
}

fn detail(evidence: &Evidence, of: &ComponentEvidence) -> ComponentDetail {
    let container = evidence.container(of.component);
    let ended = container.and_then(|c| c.last_termination.as_ref());
    ComponentDetail {
        component: of.component,
        unhealthy: of.unhealthy.clone(),
        state: container.map_or_else(|| "absent".to_owned(), |c| c.state.clone()),
        reason: container.map(|c| c.reason.clone()).unwrap_or_default(),
        message: container.map(|c| c.message.clone()).unwrap_or_default(),
        restarts: container.map_or(0, |c| c.restart_count),
        exit_code: ended.map(|t| t.exit_code),
        oom_killed: ended.is_some_and(|t| t.reason == OOM_KILLED),
        log: of.log[of.log.len().saturating_sub(SHOWN_LINES)..].to_vec(),
    }
}

/// The kubelet's word for it, as the agent's status has it.
const OOM_KILLED: &str = "OOMKilled";

/// Causes that lie with the host, in causal order.
fn host(evidence: &Evidence) -> Option<Finding> {
    let on_host = |code, cause: String, fix: &str| Some(Finding { component: None, code, cause, fix: fix.to_owned() });
    if let Err(why) = &evidence.runtime {
        return on_host(
            Code::DockerDown,
            format!("the container engine does not answer: {why}"),
            "start it (`systemctl start docker`) and run the same command again",
        );
    }
    let full = evidence.disks.iter().filter(|disk| disk.free < DISK_NEEDED).min_by_key(|disk| disk.free);
    if let Some(disk) = full {
        return on_host(
            Code::DiskFull,
            format!("only {} are free below `{}`", render::bytes(disk.free), disk.path.display()),
            "free some space there and run the same command again",
        );
    }
    let no_space = |c: &ComponentEvidence| symptom::find(&c.log).is_some_and(|(found, _)| found == Symptom::NoSpace);
    if evidence.unhealthy().any(no_space) {
        return on_host(
            Code::DiskFull,
            "a component found no space left on its disk".to_owned(),
            "free some space (`df -h`, `df -i`) and run the same command again",
        );
    }
    let status = match &evidence.agent {
        Ok(status) => status,
        Err(why) => {
            return on_host(
                Code::AgentDown,
                format!("plinth's agent does not answer: {why}"),
                "see its log (`journalctl -u plinth-agent`, without systemd /var/log/plinth/agent.log)",
            );
        }
    };
    let source = status.sources.iter().find_map(|source| Some((&source.location, source.problem.as_ref()?)));
    let stuck = status.problem.clone().or_else(|| source.map(|(location, why)| format!("`{location}`: {why}")));
    if let Some(why) = stuck {
        return on_host(
            Code::AgentStuck,
            format!("plinth's agent cannot work: {why}"),
            "remove that obstacle; the agent goes on by itself",
        );
    }
    if let Some((component, rejection)) = rejected(evidence, status) {
        return Some(Finding {
            component: Some(component),
            code: Code::ManifestRejected,
            cause: format!("the agent does not accept `{}`: {}", rejection.file, rejection.reason),
            fix: "correct what makes it so (extraArgs, extraVolumes, …) and run the same command again".to_owned(),
        });
    }
    if let Some((component, image)) = evidence.unhealthy().find_map(|c| Some((c.component, c.missing_image.as_ref()?)))
    {
        let why = evidence.container(component).map(|c| c.message.as_str()).filter(|message| !message.is_empty());
        return Some(Finding {
            component: Some(component),
            code: Code::ImageMissing,
            cause: match why {
                Some(why) => format!("the image `{image}` is not on this host: {why}"),
                None => format!("the image `{image}` is not on this host"),
            },
            fix: format!("`docker pull {image}` or `docker load` it; the agent goes on by itself"),
        });
    }
    if !evidence.address_is_ours {
        return on_host(
            Code::AddressNotOurs,
            format!("no interface of this host has the advertise address {}", evidence.advertise_address),
            "name one of this host's addresses (`ip address`) with --apiserver-advertise-address and run init again",
        );
    }
    certificates(evidence)
}

/// The rejected manifest of a component that is not healthy. Somebody else's broken file harms nobody.
fn rejected<'a>(evidence: &Evidence, status: &'a AgentStatus) -> Option<(Component, &'a Rejection)> {
    let rejected = || status.sources.iter().flat_map(|source| &source.rejected);
    evidence.unhealthy().find_map(|of| {
        let name = manifests::file_name(of.component);
        let rejection = rejected().find(|one| Path::new(&one.file).file_name().is_some_and(|file| *file == *name))?;
        Some((of.component, rejection))
    })
}

fn certificates(evidence: &Evidence) -> Option<Finding> {
    let now = evidence.now;
    let early = evidence.certificates.iter().filter(|c| now < c.not_before).max_by_key(|c| c.not_before);
    if let Some(certificate) = early {
        return Some(Finding {
            component: None,
            code: Code::ClockBeforeCertificates,
            cause: format!(
                "this host's clock says {now:.0}, but `{}` is valid only from {:.0}",
                certificate.file.display(),
                certificate.not_before,
            ),
            fix: "set the clock (`timedatectl`, `date -u`); the components recover by themselves".to_owned(),
        });
    }
    let certificate = evidence.certificates.iter().filter(|c| now > c.not_after).min_by_key(|c| c.not_after)?;
    Some(Finding {
        component: None,
        code: Code::CertificateExpired,
        cause: format!(
            "`{}` expired at {:.0}; this host's clock says {now:.0}",
            certificate.file.display(),
            certificate.not_after,
        ),
        fix: "set the clock if it is wrong; otherwise move the certificate away and run init again".to_owned(),
    })
}

/// A cause that a component's own state, port or words give away.
fn cause_of(evidence: &Evidence, of: &ComponentEvidence) -> Option<Finding> {
    let component = of.component;
    let found = |code, cause, fix| Some(Finding { component: Some(component), code, cause, fix });
    let container = evidence.container(component);
    if let Some(c) = container.filter(|c| cannot_run(c)) {
        let why = if c.message.is_empty() { c.reason.as_str() } else { c.message.as_str() };
        let fix = "correct what the engine complains of (paths in extraVolumes, …) and run the same command again";
        return found(Code::ContainerCannotRun, format!("the engine cannot start {component}: {why}"), fix.to_owned());
    }
    if container.and_then(|c| c.last_termination.as_ref()).is_some_and(|t| t.reason == OOM_KILLED) {
        let available = evidence.memory_available.map(render::bytes);
        return found(
            Code::OutOfMemory,
            format!("the kernel killed {component} for lack of memory"),
            match available {
                Some(bytes) => {
                    format!("give this host more memory ({bytes} are available; a control plane needs 2 GiB)")
                }
                None => "give this host more memory (a control plane needs 2 GiB)".to_owned(),
            },
        );
    }
    // The log is that of the old one, which serves.
    if let Some(said) = of.unhealthy.as_deref().and_then(|why| why.strip_prefix(REJECTED_NEW)) {
        // How it ended, and then its last words.
        let words = [said.split_once(": ").map_or(said, |(_, words)| words).to_owned()];
        let (code, cause, fix) = match symptom::find(&words) {
            Some((symptom, line)) => symptom.explain(evidence, component, line),
            None => (
                Code::Crash,
                format!("the new {component} was given up: {said}"),
                "correct the configuration and run the same command again".to_owned(),
            ),
        };
        return found(code, cause, fix);
    }
    if let Some((symptom, line)) = symptom::find(&of.log) {
        let (code, cause, fix) = symptom.explain(evidence, component, line);
        return found(code, cause, fix);
    }
    let stranger = evidence.ports.iter().find(|owner| owner.component == component && !owner.ours);
    if let Some(owner) = stranger {
        let (code, cause, fix) = symptom::port_taken(Some(owner), component, Some(owner.port));
        return found(code, cause, fix);
    }
    if of.unhealthy.as_deref().is_some_and(|why| why.contains("certificate is not from our CA")) {
        return found(
            Code::PkiMismatch,
            format!("{component} serves a certificate that is not from this cluster's CA"),
            "remove a serving certificate given in extraArgs, or an older instance that still runs".to_owned(),
        );
    }
    None
}

fn cannot_run(container: &ContainerSummary) -> bool {
    const REASONS: [&str; 5] =
        ["CreateContainerError", "CreateContainerConfigError", "RunContainerError", "StartError", "ContainerCannotRun"];
    REASONS.contains(&container.reason.as_str())
        || container.last_termination.as_ref().is_some_and(|t| REASONS.contains(&t.reason.as_str()))
}

/// The first component that is not healthy ends by itself, for no reason that we know. Later ones are not looked at:
/// the API server gives up without etcd, and the others without it.
fn crash(evidence: &Evidence) -> Option<Finding> {
    let of = evidence.unhealthy().next()?;
    let ended = evidence.container(of.component)?.last_termination.as_ref()?;
    // A process that a signal ends does not say why.
    if let Some(signal) = signal(ended.exit_code) {
        return Some(Finding {
            component: Some(of.component),
            code: Code::Crash,
            cause: format!("{} was ended by {signal} (exit code {})", of.component, ended.exit_code),
            fix: "find out who sends it: the kernel when memory is short (`dmesg`), a supervisor, a person; \
                  then run the same command again"
                .to_owned(),
        });
    }
    let last_words = logline::most_telling(&of.log).map(|words| format!(": {words}")).unwrap_or_default();
    Some(Finding {
        component: Some(of.component),
        code: Code::Crash,
        cause: format!("{} ends with exit code {}{last_words}", of.component, ended.exit_code),
        fix: "see its last words below; correct the configuration and run the same command again".to_owned(),
    })
}

/// The signal from outside behind an exit code, as shells and Docker write it (128 + number, signal(7)).
fn signal(exit_code: i64) -> Option<&'static str> {
    match exit_code {
        129 => Some("SIGHUP"),
        130 => Some("SIGINT"),
        137 => Some("SIGKILL"),
        143 => Some("SIGTERM"),
        _ => None,
    }
}

fn slow(evidence: &Evidence) -> Finding {
    let Some(first) = evidence.unhealthy().next() else {
        return Finding {
            component: None,
            code: Code::Slow,
            cause: "all components are healthy by now".to_owned(),
            fix: "run the same command again".to_owned(),
        };
    };
    let component = first.component;
    let why = first.unhealthy.as_deref().unwrap_or_default();
    let waited = evidence.waited.as_secs();
    match evidence.container(component) {
        None => Finding {
            component: Some(component),
            code: Code::NotStarted,
            cause: format!("the agent has started no container of {component} within {waited} s"),
            fix: format!("see that its manifest `{component}.yaml` is in the manifests directory, and the agent's log"),
        },
        Some(_) => Finding {
            component: Some(component),
            code: Code::Slow,
            cause: format!("{component} runs, but was not healthy within {waited} s: {why}"),
            fix: "run the same command again to wait longer, \
                  or raise `timeouts.controlPlaneComponentHealthCheck` in the configuration"
                .to_owned(),
        },
    }
}

#[cfg(test)]
mod tests;
