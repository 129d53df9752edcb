//! `plinth status`.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{Context, Outcome, ledger};
use crate::agent::client::AgentClient;
use crate::agent::status::{AgentStatus, PodSummary};
use crate::config::{self, Cluster, ConfigFile, HostFacts, Overrides};
use crate::error::Exit;
use crate::fsx::{self, FsError, Holder, Lock};
use crate::journal::{EtcdSwap, Journal, Ledger};
use crate::layout::Layout;
use crate::pki;
use crate::plan::{self, Inventory, Kind, Standing};
use crate::release::Component;
use crate::service;
use crate::ui::table;

/// Below this a certificate's remaining life is worth a warning (kubeadm's users renew at every yearly upgrade).
const EXPIRES_SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// The result for programs. Fields are only ever added.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    /// Everything is as it should be.
    well: bool,
    /// What is not, one line each, the most important first.
    problems: Vec<String>,
    /// What is worth knowing although it is well: of the agent, and of pods that run.
    warnings: Vec<String>,
    /// Kubernetes version of the control plane, where one was set up.
    kubernetes_version: Option<String>,
    /// What the agent says; `null` when none answers.
    agent: Option<AgentStatus>,
    /// Certificates, those that expire first on top.
    certificates: Vec<Certificate>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    name: &'static str,
    expires_at: Timestamp,
    days_left: i64,
}

pub(super) async fn run(context: &Context) -> Outcome {
    let status = gather(context).await?;
    context.printer.result(&status, || text(&status))?;
    Ok(if status.well { Exit::Done } else { Exit::Failed })
}

async fn gather(context: &Context) -> Result<Status, super::Failure> {
    let layout = &context.layout;
    let now = context.clock.now();
    let ledger = ledger(&Journal::of(layout))?;
    let standing = plan::standing(layout, &ledger)?;
    let host = HostFacts::collect([])?;
    let cluster = standing.committed().and_then(|generation| {
        let file = ConfigFile { name: "the stored configuration", text: &generation.config };
        config::load(Some(file), &Overrides::default(), &host).ok().map(|loaded| loaded.cluster)
    });
    let mut problems: Vec<_> = cluster.as_ref().and_then(|cluster| address_gone(cluster, &host)).into_iter().collect();
    problems.extend(etcd_away(layout, &ledger, &standing)?);
    let agent = match AgentClient::new(layout)?.status().await {
        Ok(status) => Some(status),
        Err(error) => {
            problems.push(match service::running(layout)? {
                Holder::Process(pid) => {
                    format!("the agent (pid {pid}) does not answer: {:#}", anyhow::Error::from(error))
                }
                Holder::Unknown => format!("the agent does not answer: {:#}", anyhow::Error::from(error)),
                Holder::Free => nobody_runs(&standing),
            });
            None
        }
    };
    let mut warnings = Vec::new();
    if let Some(agent) = &agent {
        problems.extend(problems_of(agent, now));
        warnings = warnings_of(agent);
    }
    if !service::starts_at_boot(layout, &ledger) {
        problems.push(format!("{} does not start at boot; `plinth init` enables it", service::UNIT));
    }
    if standing == Standing::Unfinished {
        problems.push("an init has begun and not succeeded; run `plinth init` again, or `plinth reset`".to_owned());
    }
    let certificates =
        cluster.as_ref().map(|cluster| certificates(&Inventory::of(cluster, layout), now)).unwrap_or_default();
    for certificate in &certificates {
        if certificate.expires_at <= now {
            problems.push(format!("{} has expired", certificate.name));
        } else if certificate.expires_at.duration_since(now) < EXPIRES_SOON {
            problems.push(format!("{} expires in {} days", certificate.name, certificate.days_left));
        }
    }
    let kubernetes_version = cluster.map(|cluster| cluster.version.to_string());
    Ok(Status { well: problems.is_empty(), problems, warnings, kubernetes_version, agent, certificates })
}

/// Without its address the control plane is found by nobody, and etcd does not start again.
fn address_gone(cluster: &Cluster, host: &HostFacts) -> Option<String> {
    let gone = cluster.advertise_address;
    let to = match host.default_address(gone.is_ipv6()) {
        _ if host.has_address(gone) => return None,
        Some(address) => format!("`plinth init` moves the control plane to {address}"),
        None => "and no interface with a default route has another one".to_owned(),
    };
    Some(format!("the advertise address {gone} is no longer on this host; {to}"))
}

/// While etcd's manifest is away nobody serves, and the agent starts nobody, also after a boot.
fn etcd_away(layout: &Layout, ledger: &Ledger, standing: &Standing) -> Result<Option<String>, FsError> {
    let manifest = plan::manifest_path(layout, Component::Etcd);
    let is_away = !manifest.exists();
    let at_work = match Lock::holder(&layout.lock())? {
        Holder::Process(pid) => Some(format!("under way (plinth, pid {pid})")),
        Holder::Unknown => Some("under way".to_owned()),
        Holder::Free => None,
    };
    Ok(match &ledger.etcd_swap {
        Some(EtcdSwap { old, new, .. }) => {
            let state = at_work.unwrap_or_else(|| "interrupted: run `plinth init` again".to_owned());
            let serves = if is_away { "etcd is stopped, and nothing serves: its" } else { "etcd's" };
            Some(format!("{serves} replacement ({} → {}) is {state}", old.image, new.image))
        }
        None if is_away && standing.committed().is_some() => {
            let path = manifest.display();
            Some(format!("etcd is stopped, and nothing serves: `{path}` is missing; `plinth init` puts it back"))
        }
        None => None,
    })
}

/// An agent without a control plane is nobody's but that of who started it.
fn nobody_runs(standing: &Standing) -> String {
    let start = match standing {
        Standing::New => "`plinth agent` starts one",
        Standing::Unfinished | Standing::Committed { .. } => "`plinth init` starts it",
    };
    format!("no agent runs; {start}, and without it nothing is restarted")
}

fn problems_of(agent: &AgentStatus, now: Timestamp) -> Vec<String> {
    let mut problems: Vec<_> = agent.problem.iter().cloned().collect();
    for source in &agent.sources {
        problems.extend(source.problem.iter().map(|problem| format!("{}: {problem}", source.location)));
        problems
            .extend(source.rejected.iter().map(|one| format!("{} is not run: {}", one.file, first_line(&one.reason))));
    }
    let unwell = agent.pods.iter().filter(|pod| !pod.is_well() && !pod.is_starting(now));
    problems.extend(unwell.filter_map(said));
    problems
}

fn warnings_of(agent: &AgentStatus) -> Vec<String> {
    let well = agent.pods.iter().filter(|pod| pod.is_well());
    agent.warnings.iter().cloned().chain(well.filter_map(said)).collect()
}

fn said(pod: &PodSummary) -> Option<String> {
    Some(format!("{}: {}", pod.name, pod.message.as_ref()?))
}

/// A parser shows the place below its message; in a list of problems each has one line.
fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn certificates(inventory: &Inventory, now: Timestamp) -> Vec<Certificate> {
    let mut certificates: Vec<_> = inventory
        .entries()
        .iter()
        .filter_map(|entry| {
            let file = entry.files.first()?;
            let name = file.path.display().to_string();
            let content = fsx::read(&file.path).ok()?;
            let info = match &entry.kind {
                Kind::Certificate(_) => pki::inspect(&name, &content).ok()?,
                Kind::Kubeconfig(_) => {
                    let text = String::from_utf8_lossy(&content);
                    let credentials = crate::kubeconfig::credentials(&name, &text).ok()?;
                    pki::inspect(&name, credentials.certificate_pem.as_bytes()).ok()?
                }
                Kind::ServiceAccount => return None,
            };
            let days_left = info.remaining(now).as_hours().div_euclid(24);
            Some(Certificate { name: entry.credential.item, expires_at: info.not_after, days_left })
        })
        .collect();
    certificates.sort_by_key(|certificate| certificate.expires_at);
    certificates
}

fn text(status: &Status) -> String {
    let mut text = String::new();
    if let Some(version) = &status.kubernetes_version {
        text.push_str(&format!("Kubernetes {version}\n"));
    }
    if let Some(agent) = &status.agent {
        let headers = ["POD", "READY", "STATUS", "RESTARTS", "IMAGE"];
        let rows: Vec<_> = agent.pods.iter().map(row).collect();
        if !rows.is_empty() {
            text.push_str(&table(&headers, &rows, None));
        }
        // Of the others the problems below speak.
        for pod in agent.pods.iter().filter(|pod| pod.is_well()) {
            if let Some(message) = &pod.message {
                text.push_str(&format!("{}/{}: {message}\n", pod.namespace, pod.name));
            }
        }
        for source in &agent.sources {
            let pods = if source.pods == 1 { "1 pod".to_owned() } else { format!("{} pods", source.pods) };
            text.push_str(&format!("source: {}, {pods}\n", source.location));
        }
    }
    for warning in &status.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    if let (Some(first), Some(last)) = (status.certificates.first(), status.certificates.last()) {
        text.push_str(&format!(
            "certificates: {} has {} days left, {} has {}\n",
            first.name, first.days_left, last.name, last.days_left
        ));
    }
    if status.well {
        let starting = status.agent.iter().flat_map(|agent| &agent.pods).filter(|pod| !pod.is_well()).count();
        text.push_str(&match starting {
            0 => "all is well\n".to_owned(),
            pods => format!("all is well so far; pods that are still starting: {pods}\n"),
        });
    }
    for problem in &status.problems {
        text.push_str(&format!("problem: {problem}\n"));
    }
    text
}

fn row(pod: &PodSummary) -> Vec<String> {
    let ready = pod.containers.iter().filter(|container| container.ready).count();
    let restarts: u32 = pod.containers.iter().map(|container| container.restart_count).sum();
    let reason = pod.containers.iter().map(|container| container.reason.as_str()).find(|reason| !reason.is_empty());
    let images: Vec<_> = pod.containers.iter().map(|container| container.image.as_str()).collect();
    vec![
        format!("{}/{}", pod.namespace, pod.name),
        format!("{ready}/{}", pod.containers.len()),
        reason.unwrap_or(&pod.phase).to_owned(),
        restarts.to_string(),
        images.join(", "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::status::ContainerSummary;
    use crate::config::Interface;

    fn pod(name: &str, phase: &str, ready: bool, message: Option<&str>) -> PodSummary {
        PodSummary {
            name: name.into(),
            phase: phase.into(),
            ready,
            message: message.map(str::to_owned),
            containers: vec![ContainerSummary { ready, ..ContainerSummary::default() }],
            ..PodSummary::default()
        }
    }

    #[test]
    fn what_a_pod_that_is_well_has_to_say_is_a_warning() {
        let agent = AgentStatus {
            warnings: vec!["of the agent".into()],
            pods: vec![
                pod("silent", "Running", true, None),
                pod("ready", "Running", true, Some("unknown field `spec.future` is ignored")),
                pod("done", "Succeeded", false, Some("the key `Kind` is read as `kind`")),
                pod("ill", "Running", false, Some("c crashed once")),
            ],
            ..AgentStatus::default()
        };
        let problems = problems_of(&agent, Timestamp::UNIX_EPOCH);
        assert_eq!(problems, ["ill: c crashed once"]);
        let warnings = warnings_of(&agent);
        let expected =
            ["of the agent", "ready: unknown field `spec.future` is ignored", "done: the key `Kind` is read as `kind`"];
        assert_eq!(warnings, expected);
        let status = Status {
            well: true,
            problems: Vec::new(),
            warnings,
            kubernetes_version: None,
            agent: Some(agent),
            certificates: Vec::new(),
        };
        let text = text(&status);
        for warning in expected {
            assert!(text.lines().any(|line| line == format!("warning: {warning}")), "{text}");
        }
    }

    #[test]
    fn an_address_that_is_gone_is_told_with_the_one_that_takes_its_place() {
        let facts = |addresses: &[&str]| HostFacts {
            interfaces: vec![Interface {
                name: "eth0".into(),
                up: true,
                addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
                ..Interface::default()
            }],
            ..HostFacts::default()
        };
        let told = |addresses: &[&str]| address_gone(&Cluster::example(), &facts(addresses));
        assert_eq!(told(&["192.0.2.11", "192.0.2.10"]), None);
        assert!(told(&["192.0.2.11"]).unwrap().ends_with("`plinth init` moves the control plane to 192.0.2.11"));
        assert!(told(&[]).unwrap().contains("192.0.2.10 is no longer on this host; and no interface"));
    }

    #[test]
    fn only_what_init_made_is_started_by_init() {
        for (standing, named) in [
            (Standing::New, "`plinth agent`"),
            (Standing::Unfinished, "`plinth init`"),
            (Standing::Committed(Box::default()), "`plinth init`"),
        ] {
            let told = nobody_runs(&standing);
            assert!(told.starts_with("no agent runs; ") && told.contains(named), "{told}");
        }
    }
}
