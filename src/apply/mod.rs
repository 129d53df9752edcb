//! Performs a plan.
//!
//! # Guarantees
//! - What is about to be made is in the journal before it is made.
//! - Each file appears whole; certificates before the manifests that mount them.
//! - Interrupted anywhere, the next `init` plans from what is there.
//!
//! # Failure
//! When a component does not become healthy in time, the containers and their logs are the evidence, from which the
//! [`autopsy`] finds the likely cause. A first `init` undoes nothing. Where a control plane ran before, the manifests
//! that were exchanged are put back after that, in reverse order, with the certificates and kubeconfigs that were
//! replaced for them, and the generation stays the one it was.

pub mod autopsy;
mod before;
mod etcd_swap;
mod exchange;
mod files;
mod hopeless;
mod lead;
mod node;
mod peer;
mod watch;

pub use before::before_upgrade;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use tokio::process::Child;
use tokio::sync::Notify;

use crate::agent::client::ClientError;
use crate::clock::Clock;
use crate::cluster::{self, ClusterError};
use crate::config::{Cluster, HostFacts};
use crate::error::{Hint, with_causes};
use crate::etcd;
use crate::fsx::{self, FsError, NewFile};
use crate::health::{self, Checker, Credentials, Healthy, Identity, Progress, TargetError, Unmet, Waiting};
use crate::journal::{Creation, Journal, JournalError, Ledger, Operation, Record};
use crate::kubeconfig::{self, KubeconfigError};
use crate::layout::Layout;
use crate::manifests::Manifest;
use crate::pki::PkiError;
use crate::plan::generation::{self, Facts, Generation, ImageFacts};
use crate::plan::{self, Inventory, Kind, Plan, Step};
use crate::release::Component;
use crate::runtime::{Runtime, RuntimeError};
use crate::service::{self, AgentCommand, Manager, ServiceError};
use crate::takedown::{self, TakedownError};
use crate::ui::Printer;
use crate::yaml;

use watch::Watch;

/// How long the old API server may take to give the agent its rights before it is exchanged.
const BEFORE_EXCHANGE: Duration = Duration::from_secs(2);

/// What an operation works with.
pub struct Host<'a, R> {
    /// Paths.
    pub layout: &'a Layout,
    /// Record of intents.
    pub journal: &'a Journal,
    /// Containers.
    pub runtime: &'a R,
    /// Time.
    pub clock: &'a Clock,
    /// Output.
    pub printer: &'a Printer,
    /// Who keeps the agent alive.
    pub launch: Launch,
}

/// How the agent comes to run.
#[derive(Debug, Clone)]
pub enum Launch {
    /// As a service of the host.
    Service {
        /// By whom.
        manager: Manager,
        /// With which command line.
        command: AgentCommand,
    },
    /// In this process: it is told when to begin.
    Foreground(Arc<Notify>),
}

/// What is to be reached.
pub struct Goal<'a> {
    /// The configuration.
    pub cluster: &'a Cluster,
    /// The same in kubeadm's format, as it is kept.
    pub config: &'a str,
    /// The static pods.
    pub manifests: &'a [Manifest],
    /// Certificates, keys and kubeconfigs.
    pub inventory: &'a Inventory,
}

impl<'a> Goal<'a> {
    /// The static pod of `component`.
    fn manifest(&self, component: Component) -> Option<&'a Manifest> {
        self.manifests.iter().find(|manifest| manifest.component == component)
    }
}

/// How it went.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Seconds until each component was healthy, since it was exchanged or the wait began, in the order in which they
    /// became so.
    pub healthy: Vec<HealthyAfter>,
    /// Number of the generation that was recorded.
    pub generation: Option<u32>,
    /// The line that starts the agent at boot, where the host's init system has to run it.
    pub start_at_boot: Option<String>,
}

/// A component that became healthy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HealthyAfter {
    /// Which.
    pub component: Component,
    /// After how many seconds.
    pub seconds: f64,
}

/// A plan could not be performed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FsError),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A certificate or key could not be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A kubeconfig could not be made or read.
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// The agent could not be started.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// What an unfinished attempt left could not be stopped.
    #[error(transparent)]
    Takedown(#[from] TakedownError),
    /// The container runtime failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The agent cannot be asked.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// A component has no health endpoint.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The API server refused.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The agent ended while it was waited for.
    #[error("the agent ended with {status}; its log is `{}`", log.display())]
    AgentEnded {
        /// How.
        status: std::process::ExitStatus,
        /// Where it says why.
        log: PathBuf,
    },
    /// The agent ended while it was waited for, and stays away.
    #[error("the agent ended while it was waited for; its log is `{log}`")]
    AgentGone {
        /// Where it says why.
        log: String,
    },
    /// The wait ended without everything healthy; the autopsy follows.
    #[error("the control plane is not healthy after {} s", after.as_secs())]
    Unhealthy {
        /// How long was waited.
        after: Duration,
        /// The wait ended before its time, because nothing can come of it.
        hopeless: bool,
        /// Components with their last reason.
        unhealthy: Vec<(Component, String)>,
    },
    /// A component did not become healthy with its new manifest, and what ran before was put back.
    #[error("{} did not become healthy with what is new", list(unhealthy))]
    PutBack {
        /// How long was waited.
        after: Duration,
        /// The wait ended before its time, because nothing can come of it.
        hopeless: bool,
        /// Components with their last reason.
        unhealthy: Vec<(Component, String)>,
        /// Why, from the evidence as it was before it was taken away.
        autopsy: Box<autopsy::Autopsy>,
        /// Components whose old manifest is back; those that are not healthy with it have a reason.
        back: Vec<Back>,
    },
    /// etcd refused, or did not answer.
    #[error(transparent)]
    Etcd(#[from] etcd::ClientError),
    /// etcd's data cannot be copied, exchanged or read.
    #[error(transparent)]
    EtcdData(#[from] etcd::DataError),
    /// etcd does not end.
    #[error("etcd still runs {} s after its manifest was taken away", after.as_secs())]
    EtcdRuns {
        /// How long was waited.
        after: Duration,
    },
    /// Neither etcd can be brought to serve. Nothing is thrown away.
    #[error("{0}")]
    EtcdStuck(Box<EtcdStuck>),
    /// A step failed, and what ran before was put back.
    #[error("{}", back_again(back))]
    Undone {
        /// What failed.
        #[source]
        error: Box<Self>,
        /// As in [`ApplyError::PutBack`].
        back: Vec<Back>,
    },
    /// The user gave up.
    #[error("interrupted; run the same command again to finish")]
    Interrupted,
}

impl Hint for ApplyError {
    fn hints(&self) -> Vec<String> {
        if matches!(self, Self::AgentGone { .. }) {
            return vec!["run the same command again: it goes on from here".to_owned()];
        }
        let Self::EtcdStuck(stuck) = self else { return Vec::new() };
        let EtcdStuck { data, copy, manifest, old_manifest, .. } = stuck.as_ref();
        let again = "`plinth status` and `plinth logs` say why; mend that, and run the same command again";
        let mut hints = vec![format!("nothing was thrown away: {again}")];
        if let Some((copy, etcd::CopyRecord { etcd, .. })) = copy {
            let [data, copy, manifest, old] = [data, copy, manifest, old_manifest].map(|path| path.display());
            hints.push(format!(
                "to give up what was written since, and only then: mv {manifest} /root/; when etcd is gone: mv {data} \
                 {data}.given-up && cp -a {copy}/member {data}; then put the manifest of {etcd} back: cp {old} {manifest}"
            ));
        }
        hints
    }
}

/// An etcd that needs people.
#[derive(Debug)]
pub struct EtcdStuck {
    /// The etcd that does not become healthy.
    pub image: String,
    /// Its last reason.
    pub reason: String,
    /// What it runs on.
    pub data: PathBuf,
    /// Revision of these data, where they can be read.
    pub revision: Option<u64>,
    /// The copy from before the swap: where, and of what.
    pub copy: Option<(PathBuf, etcd::CopyRecord)>,
    /// Where the agent reads its manifest.
    pub manifest: PathBuf,
    /// The manifest from before the swap.
    pub old_manifest: PathBuf,
}

impl fmt::Display for EtcdStuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, reason, data, revision, copy, .. } = self;
        let revision = revision.map_or_else(|| "an unknown revision".to_owned(), |number| format!("revision {number}"));
        write!(f, "{image} does not become healthy: {reason}; its data are in `{}` at {revision}", data.display())?;
        match copy {
            None => Ok(()),
            Some((path, etcd::CopyRecord { etcd, revision, .. })) => {
                write!(f, "; the data from before, of {etcd}, are in `{}` at revision {revision}", path.display())
            }
        }
    }
}

/// What was put back, and whether it is healthy.
pub fn back_again(back: &[(Component, Option<String>)]) -> String {
    let lost: Vec<_> = back.iter().filter_map(|(one, reason)| Some(format!("{one}: {}", reason.as_ref()?))).collect();
    let again = back.iter().map(|(component, _)| component.name()).collect::<Vec<_>>().join(", ");
    if lost.is_empty() {
        format!("what ran before is back and healthy: {again}")
    } else {
        format!("what ran before is back ({again}), and not healthy: {}", lost.join("; "))
    }
}

fn list(components: &[(Component, String)]) -> String {
    components.iter().map(|(component, _)| component.name()).collect::<Vec<_>>().join(", ")
}

/// Performs the steps of `plan` one after the other. Dropped in the middle, it leaves what the next `init` goes on
/// from.
pub async fn perform<R: Runtime>(
    plan: &Plan,
    goal: &Goal<'_>,
    host: &Host<'_, R>,
    ledger: &Ledger,
) -> Result<Outcome, ApplyError> {
    announce(plan, goal, host, ledger)?;
    let mut outcome = Outcome::default();
    let mut exchanged = Vec::new();
    match steps(plan, goal, host, ledger, &mut outcome, &mut exchanged).await {
        Err(ApplyError::Unhealthy { after, hopeless, unhealthy }) if exchanged.iter().any(Exchange::can_go_back) => {
            // The containers that tell why are about to go.
            let evidence = autopsy::gather(goal, host, after, &unhealthy).await;
            let autopsy = Box::new(autopsy::diagnose(&evidence));
            match put_back(plan, exchanged, goal, host).await {
                Ok(back) => Err(ApplyError::PutBack { after, hopeless, unhealthy, autopsy, back }),
                Err(stuck) => {
                    host.printer.line(&format!("\n{autopsy}"));
                    Err(stuck)
                }
            }
        }
        // Nothing can be put back without an agent either.
        Err(error @ (ApplyError::EtcdStuck(_) | ApplyError::AgentGone { .. })) => Err(error),
        // Whatever else goes wrong with etcd away must not leave it away.
        Err(error) if exchanged.iter().any(|one| matches!(one, Exchange::Etcd(_))) => {
            let back = put_back(plan, exchanged, goal, host).await?;
            Err(ApplyError::Undone { error: Box::new(error), back })
        }
        Ok(()) => {
            etcd_swap::tidy(goal, host).await?;
            Ok(outcome)
        }
        Err(error) => Err(error),
    }
}

/// Something that was exchanged, or is about to be.
enum Exchange {
    Pod(exchange::Exchanged),
    Etcd(etcd_swap::Swapped),
    /// As they were before.
    Credentials(Vec<NewFile>),
}

impl Exchange {
    /// There is something to put back.
    fn can_go_back(&self) -> bool {
        match self {
            Self::Pod(one) => one.can_go_back(),
            Self::Etcd(_) => true,
            // Nobody else has seen the new ones.
            Self::Credentials(_) => false,
        }
    }
}

/// A component that was put back, with the reason where it is not healthy.
type Back = (Component, Option<String>);

/// Puts back what was exchanged, in reverse order, and all of it: one that fails keeps no other from going back. The one
/// error is that etcd is stuck.
async fn put_back<R: Runtime>(
    plan: &Plan,
    mut exchanged: Vec<Exchange>,
    goal: &Goal<'_>,
    host: &Host<'_, R>,
) -> Result<Vec<Back>, ApplyError> {
    put_credentials_back(&exchanged, host);
    // On the way to another address nobody is healthy before those that it asks are where it looks for them.
    if plan.version.is_some() || plan.address.is_none() {
        exchanged.reverse();
    }
    let mut in_vain = old_address_is_gone(plan, host);
    let mut back = Vec::new();
    let mut stuck = None;
    for one in &exchanged {
        let component = match one {
            Exchange::Pod(one) => one.component(),
            Exchange::Etcd(_) => Component::Etcd,
            Exchange::Credentials(_) => continue,
        };
        match put_one_back(one, in_vain.as_deref(), goal, host).await {
            Ok(undone) => back.extend(undone),
            // The others go back all the same.
            Err(error) => {
                back.push((component, Some(with_causes(&error))));
                match error {
                    ApplyError::EtcdStuck(_) => {
                        in_vain = Some("there is no etcd".to_owned());
                        stuck = Some(error);
                    }
                    ApplyError::AgentGone { .. } => in_vain = Some("there is no agent".to_owned()),
                    _ => {}
                }
            }
        }
    }
    stuck.map_or(Ok(back), Err)
}

/// Whoever starts again reads them then.
fn put_credentials_back<R>(exchanged: &[Exchange], host: &Host<'_, R>) {
    for one in exchanged {
        if let Exchange::Credentials(files) = one
            && let Err(error) = fsx::write_batch(files)
        {
            host.printer.warning(&format!("certificates are not those from before: {}", with_causes(&error)));
        }
    }
}

/// Why nobody is to be waited for, on the way back from another address that was taken because this one is gone.
fn old_address_is_gone<R>(plan: &Plan, host: &Host<'_, R>) -> Option<String> {
    let gone = plan.address.map(|change| change.from.ip()).filter(|address| !is_here(*address))?;
    host.printer.warning(&format!("what ran before is put back, and cannot serve: {gone} is not on this host"));
    Some(format!("{gone} is not on this host"))
}

/// Puts one thing back and waits for it, unless that is `in_vain`. `None` where there is nothing to go back to.
async fn put_one_back<R: Runtime>(
    one: &Exchange,
    in_vain: Option<&str>,
    goal: &Goal<'_>,
    host: &Host<'_, R>,
) -> Result<Option<Back>, ApplyError> {
    let back = match (one, in_vain) {
        (Exchange::Pod(one), Some(why)) => exchange::write_back(one, host)?.map(|whose| (whose, Some(why.to_owned()))),
        (Exchange::Pod(one), None) => exchange::put_back(one, goal, host).await?,
        (Exchange::Etcd(one), _) => etcd_swap::undo(one, goal, host).await?,
        (Exchange::Credentials(_), _) => None,
    };
    if let Some((Component::Etcd, None)) = back
        && let Err(error) = peer::record(goal, host).await
    {
        host.printer.warning(&format!("etcd's member may be recorded elsewhere: {}", with_causes(&error)));
    }
    Ok(back)
}

/// Whether `address` is one of this host's, as far as can be told.
fn is_here(address: IpAddr) -> bool {
    HostFacts::collect([]).map_or(true, |facts| facts.has_address(address))
}

/// Records where the new etcd is. One that has not moved is where it was recorded, so that nothing goes back for a
/// failure.
async fn record_peer<R>(plan: &Plan, goal: &Goal<'_>, host: &Host<'_, R>) -> Result<(), ApplyError> {
    match peer::record(goal, host).await {
        Err(error) if plan.address.is_none() => {
            let why = with_causes(&error);
            host.printer.warning(&format!("where etcd's member is recorded was not looked at: {why}"));
            Ok(())
        }
        recorded => recorded,
    }
}

async fn steps<R: Runtime>(
    plan: &Plan,
    goal: &Goal<'_>,
    host: &Host<'_, R>,
    ledger: &Ledger,
    outcome: &mut Outcome,
    exchanged: &mut Vec<Exchange>,
) -> Result<(), ApplyError> {
    let since = host.clock.now();
    let mut agent = None;
    let mut steps = plan.steps.as_slice();
    while let Some(step) = steps.first() {
        tracing::info!(phase = step.phase(), "{step}");
        let mut performed = 1;
        // All that was exchanged serves, and was waited for: what fails from here on is for the next run, and nothing goes
        // back for it.
        if step.is_behind_the_wait() {
            exchanged.clear();
        }
        match step {
            Step::StopPods => stop_pods(goal, host).await?,
            Step::SetEtcdDataAside { path } => set_aside(path, host)?,
            Step::Issue { .. } | Step::WriteManifest { .. } => {
                let is_file = |step: &&Step| matches!(step, Step::Issue { .. } | Step::WriteManifest { .. });
                performed = steps.iter().take_while(is_file).count();
                exchanged.push(Exchange::Credentials(files::replaced(&steps[..performed], goal, host, ledger)?));
                files::write(&steps[..performed], goal, host)?;
            }
            Step::StartAgent => (agent, outcome.start_at_boot) = start_agent(host).await?,
            Step::Exchange { component, back } => {
                fsx::create_directories(&host.layout.manifests(), files::MANIFESTS_MODE)?;
                if *component == Component::KubeApiserver && plan.steps.contains(&Step::BindClusterAdmins) {
                    let_agent_mend(goal, host).await;
                }
                let new = exchange::Exchanged::of(*component, *back, host, ledger)?;
                exchanged.push(Exchange::Pod(new));
                outcome.healthy.push(exchange::exchange(*component, goal, host).await?);
                if *component == Component::Etcd {
                    record_peer(plan, goal, host).await?;
                }
            }
            Step::FinishEtcdSwap { forward } => {
                if let Some(swapped) = etcd_swap::Swapped::interrupted(host)? {
                    if *forward {
                        exchanged.push(Exchange::Etcd(swapped.clone()));
                        outcome.healthy.push(etcd_swap::swap(&swapped, goal, host).await?);
                        record_peer(plan, goal, host).await?;
                    } else {
                        let undone = etcd_swap::undo(&swapped, goal, host).await?;
                        if let Some((etcd, Some(reason))) = undone {
                            let unhealthy = vec![(etcd, reason)];
                            return Err(ApplyError::Unhealthy { after: Duration::ZERO, hopeless: false, unhealthy });
                        }
                    }
                }
            }
            Step::SwapEtcd { back } => {
                fsx::create_directories(&host.layout.manifests(), files::MANIFESTS_MODE)?;
                let swapped = etcd_swap::Swapped::of(*back, goal, host, ledger)?;
                exchanged.push(Exchange::Etcd(swapped.clone()));
                outcome.healthy.push(etcd_swap::swap(&swapped, goal, host).await?);
                record_peer(plan, goal, host).await?;
            }
            Step::Wait => {
                let healthy = wait(goal, host, agent.as_mut(), since).await?;
                let known = |one: &HealthyAfter| outcome.healthy.iter().any(|known| known.component == one.component);
                let new: Vec<_> = healthy.into_iter().filter(|one| !known(one)).collect();
                outcome.healthy.extend(new);
            }
            Step::BindClusterAdmins => bind_cluster_admins(goal, host).await?,
            Step::MarkControlPlane { lifted } => node::mark(lifted, goal, host).await?,
            Step::RemoveNode => node::remove(goal, host).await?,
            Step::Commit => outcome.generation = Some(commit(plan, goal, host, ledger).await?),
        }
        steps = &steps[performed..];
    }
    Ok(())
}

/// Writes everything that `plan` will make into the journal, at once: one sync instead of one per file.
fn announce<R>(plan: &Plan, goal: &Goal<'_>, host: &Host<'_, R>, ledger: &Ledger) -> Result<(), ApplyError> {
    let mut made = Vec::new();
    let mut directories: Vec<PathBuf> = Vec::new();
    for step in &plan.steps {
        match step {
            Step::Issue { item, .. } => {
                for file in goal.inventory.entry(item).into_iter().flat_map(|entry| &entry.files) {
                    directories.extend(file.path.parent().map(Into::into));
                    made.push(Creation::File { path: file.path.clone() });
                }
            }
            Step::WriteManifest { component, .. } | Step::Exchange { component, .. } => {
                let path = plan::manifest_path(host.layout, *component);
                directories.extend(path.parent().map(Into::into));
                made.push(Creation::File { path });
                if *component == Component::Etcd {
                    directories.push(announce_etcd_data(goal, host, &mut made));
                }
            }
            Step::StartAgent => {
                if let Launch::Service { manager, command } = &host.launch {
                    made.extend(manager.creations(host.layout));
                    made.extend(service::binary_creations(command, host.layout));
                }
            }
            _ => {}
        }
    }
    for directory in directories {
        made.extend(fsx::missing_directories(&directory).into_iter().map(|path| Creation::Directory { path }));
    }
    made.sort();
    made.dedup();
    made.retain(|creation| !ledger.has(creation));
    let begin = ledger.committed.is_none().then(|| Record::Begin { operation: Operation::Init, at: host.clock.now() });
    let records: Vec<_> = begin.into_iter().chain(made.into_iter().map(|what| Record::Make { what })).collect();
    Ok(host.journal.append(&records)?)
}

/// etcd's data is ours unless there is some already. Returns its directory.
fn announce_etcd_data<R>(goal: &Goal<'_>, host: &Host<'_, R>, made: &mut Vec<Creation>) -> PathBuf {
    let data = host.layout.below_root(&goal.cluster.etcd.data_dir);
    if !data.exists() || fsx::is_empty_directory(&data) {
        made.push(Creation::Tree { path: data.clone() });
    }
    data
}

async fn stop_pods<R: Runtime>(goal: &Goal<'_>, host: &Host<'_, R>) -> Result<(), ApplyError> {
    let mut phase = host.printer.phase("agent-start");
    phase.update("stopping what an unfinished init left running");
    if let Launch::Service { manager, .. } = &host.launch {
        manager.stop(host.layout).await?;
    }
    for manifest in goal.manifests {
        fsx::remove_file(&plan::manifest_path(host.layout, manifest.component))?;
    }
    takedown::remove_containers(host.layout, host.runtime, host.journal).await?;
    phase.done("stopped what an unfinished init left running");
    Ok(())
}

fn set_aside<R>(path: &std::path::Path, host: &Host<'_, R>) -> Result<(), ApplyError> {
    let stamp = host.clock.now().strftime("%Y%m%dT%H%M%S%.3fZ");
    let announce = |aside: &std::path::Path| {
        host.journal.append(&[
            Record::Make { what: Creation::Tree { path: aside.to_owned() } },
            Record::Make { what: Creation::Directory { path: aside.to_owned() } },
        ])
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".set-aside-{stamp}"));
    let mut aside = path.with_file_name(name);
    announce(&aside)?;
    match fsx::rename(path, &aside) {
        // A mount point stays where it is; etcd looks at nothing in it but its `member` directory.
        Err(error) if error.source.kind() == std::io::ErrorKind::ResourceBusy => {
            let member = path.join("member");
            if !member.exists() {
                return Ok(());
            }
            aside = path.join(format!("set-aside-{stamp}"));
            announce(&aside)?;
            fsx::create_directories(&aside, 0o700)?;
            fsx::rename(&member, &aside.join("member"))?;
        }
        renamed => renamed?,
    }
    host.printer.warning(&format!("etcd data of an unfinished init is now in `{}`", aside.display()));
    Ok(())
}

/// The process, if it is a child of ours, and the line that starts it at boot.
async fn start_agent<R>(host: &Host<'_, R>) -> Result<(Option<Child>, Option<String>), ApplyError> {
    let phase = host.printer.phase("agent-start");
    let (started, how) = match &host.launch {
        Launch::Service { manager, command } => {
            let outdated = service::outdated(command, host.layout)?.is_some();
            if outdated {
                service::keep(host.layout)?;
            }
            let command = service::install(command, host.layout, &host.journal.ledger()?)?;
            if outdated {
                manager.stop(host.layout).await?;
            }
            let child = manager.start(&command, host.layout).await?;
            let how = match manager {
                Manager::Systemd => "started the agent as plinth-agent.service",
                Manager::Detached => "started the agent as a process of its own session",
            };
            ((child, manager.boot_line(&command)), how)
        }
        Launch::Foreground(begin) => {
            begin.notify_one();
            ((None, None), "started the agent in this process")
        }
    };
    phase.done(how);
    Ok(started)
}

/// The health endpoints of the four components, and how to ask them.
pub fn checkers(goal: &Goal<'_>, layout: &Layout) -> Result<Vec<Checker>, ApplyError> {
    checkers_of(goal, layout, goal.manifests.iter().map(|manifest| (manifest.component, &manifest.pod)))
}

/// The same of the control plane that runs: each is asked where its manifest on disk says, which may be elsewhere.
pub fn checkers_on_disk(goal: &Goal<'_>, layout: &Layout) -> Result<Vec<Checker>, ApplyError> {
    let on_disk = |component| {
        let text = fsx::read_optional(&plan::manifest_path(layout, component)).ok().flatten()?;
        yaml::manifest::<Pod>(&text).ok()
    };
    let found: Vec<_> = goal.manifests.iter().map(|manifest| on_disk(manifest.component)).collect();
    let pods = goal.manifests.iter().zip(&found);
    let pods = pods.map(|(manifest, found)| (manifest.component, found.as_ref().unwrap_or(&manifest.pod)));
    checkers_of(goal, layout, pods)
}

fn checkers_of<'a>(
    goal: &Goal<'_>,
    layout: &Layout,
    pods: impl IntoIterator<Item = (Component, &'a Pod)>,
) -> Result<Vec<Checker>, ApplyError> {
    let found = whoever_may_ask(goal, layout)?;
    let identity = Some(Identity::new(&found.certificate_pem, found.key_pem.expose()));
    let credentials = Credentials { ca: found.ca_pem, identity };
    let targets = health::targets(goal.cluster.advertise_address, &credentials, pods)?;
    Ok(targets.into_iter().map(Checker::new).collect::<Result<_, _>>()?)
}

/// `super-admin.conf`, which needs no RBAC; without it, `admin.conf`.
fn whoever_may_ask(goal: &Goal<'_>, layout: &Layout) -> Result<kubeconfig::Credentials, ApplyError> {
    let read = |name: &str| -> Result<_, ApplyError> {
        Ok(kubeconfig::credentials(&format!("{name}.conf"), &kubeconfig_of(name, goal, layout)?)?)
    };
    read("super-admin").or_else(|error| read("admin").map_err(|_| error))
}

/// The text of `super-admin.conf`.
pub fn super_admin(goal: &Goal<'_>, layout: &Layout) -> Result<String, ApplyError> {
    kubeconfig_of("super-admin", goal, layout)
}

/// The text of `super-admin.conf` and its name; without it, of `admin.conf`.
fn who_may_write(goal: &Goal<'_>, layout: &Layout) -> Option<(&'static str, String)> {
    let read = |name: &str, file| Some((file, kubeconfig_of(name, goal, layout).ok()?));
    read("super-admin", "super-admin.conf").or_else(|| read("admin", "admin.conf"))
}

fn kubeconfig_of(name: &str, goal: &Goal<'_>, layout: &Layout) -> Result<String, ApplyError> {
    let entry = goal.inventory.entries().iter().find_map(|entry| match &entry.kind {
        Kind::Kubeconfig(spec) if spec.name == name => entry.files.first(),
        _ => None,
    });
    let path = entry.map_or_else(|| layout.kubernetes().join(format!("{name}.conf")), |file| file.path.clone());
    Ok(fsx::read_to_string(&path)?)
}

async fn wait<R>(
    goal: &Goal<'_>,
    host: &Host<'_, R>,
    agent: Option<&mut Child>,
    since: Timestamp,
) -> Result<Vec<HealthyAfter>, ApplyError> {
    enum Abort {
        Agent(ApplyError),
        Hopeless,
    }
    let checkers = checkers(goal, host.layout)?;
    let phase = host.printer.phase("wait-control-plane");
    let mut tasks: std::collections::BTreeMap<_, _> =
        checkers.iter().map(|checker| (checker.component(), phase.task(checker.component().name()))).collect();
    let on_change = |progress: Progress<'_>| match progress {
        Progress::Waiting { component, reason } => {
            if let Some(task) = tasks.get_mut(&component) {
                task.update(&reason.to_string());
            }
        }
        Progress::Healthy(Healthy { component, after }) => {
            if let Some(task) = tasks.remove(&component) {
                task.done(&format!("healthy after {:.1} s", after.as_secs_f64()));
            }
        }
    };
    let agent_ended = async {
        match agent {
            Some(child) => match child.wait().await {
                Ok(status) => ApplyError::AgentEnded { status, log: host.layout.agent_log() },
                Err(_) => std::future::pending().await,
            },
            None => Watch::default().gone(host).await,
        }
    };
    let abort = async {
        tokio::select! {
            error = agent_ended => Abort::Agent(error),
            () = hopeless::hopeless(host.layout, since) => Abort::Hopeless,
        }
    };
    let within = goal.cluster.timeouts.control_plane_component_health_check;
    let begin = Instant::now();
    let reasons =
        |unhealthy: Vec<Waiting>| unhealthy.into_iter().map(|one| (one.component, one.reason.to_string())).collect();
    match health::wait(&checkers, within, health::POLL, abort, on_change).await {
        Ok(healthy) => {
            phase.done("every component is healthy");
            Ok(healthy
                .into_iter()
                .map(|Healthy { component, after }| HealthyAfter { component, seconds: after.as_secs_f64() })
                .collect())
        }
        Err(unmet) => {
            phase.failed("not every component is healthy");
            Err(match unmet {
                Unmet::TimedOut { after, unhealthy, .. } => {
                    ApplyError::Unhealthy { after, hopeless: false, unhealthy: reasons(unhealthy) }
                }
                Unmet::Aborted { by: Abort::Hopeless, unhealthy, .. } => {
                    ApplyError::Unhealthy { after: begin.elapsed(), hopeless: true, unhealthy: reasons(unhealthy) }
                }
                Unmet::Aborted { by: Abort::Agent(error), .. } => error,
            })
        }
    }
}

async fn bind_cluster_admins<R>(goal: &Goal<'_>, host: &Host<'_, R>) -> Result<(), ApplyError> {
    let phase = host.printer.phase("cluster-admins");
    let super_admin = super_admin(goal, host.layout)?;
    cluster::grant(&super_admin, goal.cluster.timeouts.kubernetes_api_call).await?;
    phase.done("admin.conf may administrate the cluster");
    Ok(())
}

/// Lets the agent look after the Service `kubernetes` already while the API server is exchanged, which none may in a
/// cluster of an older plinth. Where the old API server does not answer, the rights come with those of `admin.conf`.
async fn let_agent_mend<R>(goal: &Goal<'_>, host: &Host<'_, R>) {
    let Ok(super_admin) = super_admin(goal, host.layout) else { return };
    let granted = cluster::grant(&super_admin, BEFORE_EXCHANGE);
    if !matches!(tokio::time::timeout(BEFORE_EXCHANGE, granted).await, Ok(Ok(()))) {
        tracing::debug!("the agent gets its rights only after the exchange");
    }
}

/// Keeps what was reached as a new generation. The journal's record makes it count, so it comes last.
async fn commit<R: Runtime>(
    plan: &Plan,
    goal: &Goal<'_>,
    host: &Host<'_, R>,
    ledger: &Ledger,
) -> Result<u32, ApplyError> {
    let number = ledger.committed.map_or(1, |(generation, _)| generation + 1);
    let mut images = std::collections::BTreeMap::new();
    for component in Component::ALL {
        let reference = goal.cluster.image(component);
        // It runs, so an engine that does not know it is only an engine that does not answer.
        let known = host.runtime.image(&reference).await.ok().flatten();
        let (id, digests) = known.map(|image| (image.id, image.digests)).unwrap_or_default();
        images.insert(component, ImageFacts { reference, id, digests });
    }
    let at = host.clock.now();
    let changes = if number == 1 { vec!["the first init".to_owned()] } else { plan.summary() };
    let generation = Generation {
        number,
        config: goal.config.to_owned(),
        host: Some(goal.cluster.host.clone()),
        manifests: goal.manifests.iter().map(|manifest| (manifest.component, manifest.yaml.clone())).collect(),
        facts: Facts {
            at: Some(at),
            plinth: env!("CARGO_PKG_VERSION").to_owned(),
            kubernetes_version: goal.cluster.version.to_string(),
            version_pinned: goal.cluster.version_pinned,
            changes,
            images,
            certificates: plan::serials(goal.inventory),
        },
    };
    generation::write(host.layout, &generation)?;
    // What has served goes back by downgrade: the copy is of no use any more.
    let mut records = etcd_swap::discard_copy(goal, host).await?;
    records.push(Record::Commit { generation: number, at });
    host.journal.append(&records)?;
    Ok(number)
}
