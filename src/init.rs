//! `init`: plan, check the host, get the images, perform the plan.
//!
//! # Guarantees
//! - Nothing is locked or written before it is known that something is to be done and that the host is ready for it.
//! - The plan that is performed was made under the lock; where one was given, it is that one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;

use crate::agent::blocking::apart;
use crate::apply::autopsy::{self, Autopsy};
use crate::apply::{self, ApplyError, Goal, Host, Launch, Outcome};
use crate::cluster::{self, node::NodeState};
use crate::config::{self, Cluster};
use crate::error::{Hint, with_causes};
use crate::etcd::DataDir;
use crate::fsx::{self, FsError, Holder, Lock};
use crate::journal::{Creation, JournalError, Ledger, Record};
use crate::layout::Layout;
use crate::manifests::{self, Manifest, ManifestError};
use crate::plan::{
    self, Before, Desired, EtcdData, Inputs, Inventory, Item, Live, Observed, Plan, PlanFile, PlanFileError, Refusal,
    Skip, UnknownPhase,
};
use crate::preflight::{self, ImageProgress, ImagePullError, Ownership, PreflightError};
use crate::release::Component;
use crate::runtime::{Container, Runtime, State, labels};
use crate::service::{self, ServiceError};
use crate::takedown;

/// How long the API server may take to say what is in it. Nothing depends on the answer but the answer.
const ASK_API_SERVER: Duration = Duration::from_secs(3);

/// What is asked of `init`.
#[derive(Debug)]
pub struct Request<'a> {
    /// The configuration.
    pub cluster: &'a Cluster,
    /// The control plane that runs here.
    pub running: Option<&'a Cluster>,
    /// Its generation as the journal had it when all of this was made from it.
    pub committed: Option<(u32, Timestamp)>,
    /// Phases to leave out.
    pub skip_phases: &'a [String],
    /// The plan that is to be performed, and no other.
    pub plan: Option<&'a PlanFile>,
    /// Preflight checks whose errors are only warnings.
    pub ignored: &'a [String],
    /// Certificates are renewed when the version goes up.
    pub renew: bool,
    /// How the engine is reached, as `DOCKER_HOST` writes it.
    pub engine_address: &'a str,
}

/// `init` did not reach its goal.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FsError),
    /// The journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A manifest could not be rendered.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Whether the agent runs could not be found out.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// A phase that is to be left out does not exist.
    #[error(transparent)]
    Phase(#[from] UnknownPhase),
    /// The given plan does not fit.
    #[error(transparent)]
    Plan(#[from] PlanFileError),
    /// Something stands in the way; all of it.
    #[error("{}", lines(.0))]
    Refused(Vec<Refusal>),
    /// The host could not be checked.
    #[error(transparent)]
    Unchecked(#[from] PreflightError),
    /// The host is not ready.
    #[error("{}; nothing was changed", failed(.0.errors()))]
    NotReady(preflight::Report),
    /// Another plinth is at work.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// Another plinth was at work after it was asked for.
    #[error("another plinth has changed this host meanwhile; run the same command again")]
    Overtaken,
    /// An image could not be had.
    #[error(transparent)]
    Image(#[from] ImagePullError),
    /// The plan could not be performed.
    #[error(transparent)]
    Apply(ApplyError),
    /// The components did not become healthy in time.
    #[error("the control plane {} {} s", if *hopeless { "cannot become healthy; given up after" } else { "did not become healthy within" }, after.as_secs())]
    Unhealthy {
        /// How long was waited.
        after: Duration,
        /// Waiting longer could not have helped.
        hopeless: bool,
        /// Why.
        autopsy: Box<Autopsy>,
    },
    /// Components did not become healthy with what is new, and what ran before was put back.
    #[error("{}", put_back(unhealthy, back, *hopeless, *after))]
    PutBack {
        /// How long was waited.
        after: Duration,
        /// Waiting longer could not have helped.
        hopeless: bool,
        /// Which components, with the last reason.
        unhealthy: Vec<(Component, String)>,
        /// Why.
        autopsy: Box<Autopsy>,
        /// Components whose old manifest is back; those that are not healthy with it have a reason.
        back: Vec<(Component, Option<String>)>,
    },
}

fn put_back(
    unhealthy: &[(Component, String)],
    back: &[(Component, Option<String>)],
    hopeless: bool,
    after: Duration,
) -> String {
    let failed = unhealthy.iter().map(|(component, _)| component.name()).collect::<Vec<_>>().join(", ");
    let why = if hopeless { "cannot become healthy; given up after" } else { "did not become healthy within" };
    format!("with what is new {failed} {why} {:.1} s; {}", after.as_secs_f64(), apply::back_again(back))
}

fn failed(checks: usize) -> String {
    if checks == 1 { "a preflight check failed".to_owned() } else { format!("{checks} preflight checks failed") }
}

impl Hint for InitError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Refused(refusals) => {
                let mut hints: Vec<String> = Vec::new();
                for hint in refusals.iter().flat_map(Hint::hints) {
                    if !hints.contains(&hint) {
                        hints.push(hint);
                    }
                }
                hints
            }
            Self::Unchecked(error) => error.hints(),
            Self::NotReady(_) => vec!["--ignore-preflight-errors=NAME,… goes on in spite of an error".to_owned()],
            Self::Busy(error) => error.hints(),
            Self::Image(error) => error.hints(),
            Self::Unhealthy { .. } => vec![
                "mend the cause and run the same command again; or `plinth reset` to take everything away".to_owned(),
            ],
            Self::Journal(error) => error.hints(),
            Self::Plan(error) => error.hints(),
            Self::PutBack { .. } => vec![
                "configuration and generation are those from before; mend the cause and run the same command again"
                    .to_owned(),
            ],
            Self::Apply(error) => error.hints(),
            Self::File(_) | Self::Manifest(_) | Self::Service(_) | Self::Phase(_) | Self::Overtaken => Vec::new(),
        }
    }
}

/// Another command changes this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another plinth is at work on this host{}", holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
pub struct Busy {
    /// Its process id.
    pub holder: Option<i32>,
}

impl Hint for Busy {
    fn hints(&self) -> Vec<String> {
        vec!["wait until it is done, and run the same command again".to_owned()]
    }
}

fn lines(refusals: &[Refusal]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The lock of the one command that changes the host; makes the state directory.
pub fn lock(layout: &Layout) -> Result<Result<Lock, Busy>, FsError> {
    fsx::create_directories(&layout.state(), 0o700)?;
    Ok(Lock::try_take(&layout.lock())?.map_err(|holder| Busy { holder }))
}

/// One `init`.
pub struct Init<'a, R> {
    request: Request<'a>,
    host: Host<'a, R>,
    skip: Skip,
    config: String,
    manifests: Vec<Manifest>,
    inventory: Inventory,
    /// Manifests of the control plane that runs here as this plinth renders them, and credentials it had otherwise.
    before: Option<(&'a Cluster, Vec<Manifest>, BTreeSet<Item>)>,
}

/// A plan with what it was made from.
#[derive(Debug)]
pub struct Planned {
    /// What is to be done.
    pub plan: Plan,
    /// What was seen of the host.
    pub observed: Observed,
}

impl<'a, R: Runtime> Init<'a, R> {
    /// Renders what the configuration gives.
    pub fn new(request: Request<'a>, host: Host<'a, R>) -> Result<Self, InitError> {
        let Request { cluster, .. } = request;
        let render = |cluster: &Cluster| -> Result<Vec<_>, ManifestError> {
            Component::ALL.into_iter().map(|component| manifests::render(cluster, component, host.layout)).collect()
        };
        let manifests = render(cluster)?;
        let inventory = Inventory::of(cluster, host.layout);
        let before = match request.running {
            Some(running) => {
                let respecified = inventory.respecified(&Inventory::of(running, host.layout));
                Some((running, render(running)?, respecified))
            }
            None => None,
        };
        let skip = Skip::parse(request.skip_phases)?;
        Ok(Self { skip, config: config::to_wire_yaml(cluster), manifests, inventory, before, request, host })
    }

    /// What a plan of this `init` is made from, beside the host.
    pub fn inputs(&self) -> Inputs<'_> {
        Inputs {
            config: &self.config,
            version_pinned: self.request.cluster.version_pinned,
            manifests: &self.manifests,
            skip_phases: self.request.skip_phases,
            ignore_preflight_errors: self.request.ignored,
            renew: self.request.renew,
        }
    }

    /// The configuration in kubeadm's format.
    pub fn config(&self) -> &str {
        &self.config
    }

    /// The static pods.
    pub fn manifests(&self) -> &[Manifest] {
        &self.manifests
    }

    /// The file of a credential that has only one, e.g. of `kubeconfig/admin`.
    pub fn file_of(&self, item: Item) -> Option<&PathBuf> {
        self.inventory.entry(item)?.files.first().map(|file| &file.path)
    }

    /// What is to be done on this host as it is now.
    pub async fn plan(&self) -> Result<Planned, InitError> {
        let ledger = self.host.journal.ledger()?;
        self.plan_from(&ledger).await
    }

    /// Checks the host, takes the lock, gets the images and does what is to be done. `interrupt` ends it wherever
    /// something is waited for.
    pub async fn perform(&self, interrupt: impl Future<Output = ()>) -> Result<Outcome, InitError> {
        self.preflight().await?;
        let _lock = lock(self.host.layout)??;
        // What is asked for was completed from the generation of that time: performed now, it would undo the newer one.
        if self.host.journal.ledger()?.committed != self.request.committed {
            return Err(InitError::Overtaken);
        }
        let wait_and_act = async {
            self.pull_images().await?;
            // What was seen before the lock may have changed.
            let ledger = self.host.journal.ledger()?;
            let Planned { plan, .. } = self.plan_from(&ledger).await?;
            match apply::perform(&plan, &self.goal(), &self.host, &ledger).await {
                Ok(outcome) => Ok(outcome),
                Err(ApplyError::Unhealthy { after, hopeless, unhealthy }) => {
                    let evidence = autopsy::gather(&self.goal(), &self.host, after, &unhealthy).await;
                    Err(InitError::Unhealthy { after, hopeless, autopsy: Box::new(autopsy::diagnose(&evidence)) })
                }
                Err(ApplyError::PutBack { after, hopeless, unhealthy, autopsy, back }) => {
                    Err(InitError::PutBack { after, hopeless, unhealthy, autopsy, back })
                }
                Err(error) => Err(InitError::Apply(error)),
            }
        };
        tokio::select! {
            outcome = wait_and_act => outcome,
            () = interrupt => Err(InitError::Apply(ApplyError::Interrupted)),
        }
    }

    fn goal(&self) -> Goal<'_> {
        Goal {
            cluster: self.request.cluster,
            config: &self.config,
            manifests: &self.manifests,
            inventory: &self.inventory,
        }
    }

    async fn plan_from(&self, ledger: &Ledger) -> Result<Planned, InitError> {
        let Host { layout, clock, .. } = self.host;
        let Request { cluster, plan: given, .. } = &self.request;
        let live = self.live(ledger).await?;
        let mut observed = plan::observe(cluster, layout, &self.inventory, ledger, live, clock.now())?;
        let etcd_data = layout.below_root(&cluster.etcd.data_dir);
        if plan::replaces_etcd(&self.manifests, &observed) && observed.etcd_data != EtcdData::Empty {
            let data = DataDir::new(&etcd_data);
            let prospect = apart(move || data.prospect()).await;
            observed.etcd_copy = Some(prospect.map_err(|error| with_causes(&error)));
        }
        let desired = Desired {
            cluster,
            config: &self.config,
            manifests: &self.manifests,
            credentials: self.inventory.credentials(),
            etcd_data,
            before: self.before.as_ref().map(|(cluster, manifests, respecified)| Before {
                cluster,
                manifests,
                respecified: respecified.clone(),
            }),
            renew: self.request.renew,
        };
        let plan = plan::compute(&desired, &observed).map_err(InitError::Refused)?.without(&self.skip);
        if let Some(file) = given {
            file.check(&self.inputs(), &observed, &plan)?;
        }
        Ok(Planned { plan, observed })
    }

    /// What runs. Components are asked for their health only where something could answer.
    async fn live(&self, ledger: &Ledger) -> Result<Live, InitError> {
        let Host { layout, runtime, .. } = self.host;
        let agent_runs = service::running(layout)? != Holder::Free;
        // A runtime that is away is for preflight to report; what the journal knows is good enough here.
        let containers = match takedown::agent_id(layout)? {
            Some(id) => runtime.list(&id).await.ok(),
            None => Some(Vec::new()),
        };
        let has_containers = containers.as_ref().map_or(!ledger.containers().is_empty(), |list| !list.is_empty());
        let running = self.running(containers.as_deref().unwrap_or_default());
        let not_asked = || Component::ALL.map(|component| (component, "not asked".to_owned())).into();
        let unhealthy: BTreeMap<_, _> = match apply::checkers_on_disk(&self.goal(), layout) {
            // While etcd is being replaced nobody answers as it should, and everything is waited for at the end.
            _ if ledger.etcd_swap.is_some() => BTreeMap::new(),
            Ok(checkers) if agent_runs || has_containers => {
                let checks = checkers.iter().map(async |checker| (checker.component(), checker.check().await));
                let answers = join_all(checks).await;
                answers.into_iter().filter_map(|(one, answer)| Some((one, answer.err()?.to_string()))).collect()
            }
            // Where nothing runs nothing is healthy, and without credentials nobody can be asked.
            _ => not_asked(),
        };
        let (cluster_admins, node) = match ledger.committed {
            Some(_) if ledger.etcd_swap.is_none() && !unhealthy.contains_key(&Component::KubeApiserver) => {
                tokio::join!(self.cluster_admins(), self.node())
            }
            _ => (None, None),
        };
        let agent_outdated = match &self.host.launch {
            Launch::Service { command, .. } => service::outdated(command, layout)?,
            Launch::Foreground(_) => None,
        };
        let agent_starts_at_boot = service::starts_at_boot(layout, ledger);
        Ok(Live {
            agent_runs,
            agent_outdated,
            agent_starts_at_boot,
            has_containers,
            running,
            unhealthy,
            cluster_admins,
            node,
        })
    }

    /// Components of which one of `containers` runs.
    fn running(&self, containers: &[Container]) -> BTreeSet<Component> {
        let is_of = |container: &Container, component: Component| {
            let label = |name: &str| container.labels.get(name).map(String::as_str);
            label(labels::CONTAINER_NAME) == Some(component.name())
                && label(labels::POD_NAME) == Some(&format!("{component}-{}", self.request.cluster.node_name))
        };
        let runs = |container: &&Container| matches!(container.state, State::Running { .. });
        let found = containers.iter().filter(runs);
        found.flat_map(|one| Component::ALL.into_iter().filter(move |component| is_of(one, *component))).collect()
    }

    /// Whether `admin.conf` and the agent have their rights; an API server that does not say is not waited for.
    async fn cluster_admins(&self) -> Option<bool> {
        let super_admin = apply::super_admin(&self.goal(), self.host.layout).ok()?;
        let asked = cluster::is_granted(&super_admin);
        tokio::time::timeout(ASK_API_SERVER, asked).await.ok()?.ok()
    }

    /// The Node of this host, where it is to be registered; as above.
    async fn node(&self) -> Option<NodeState> {
        let Cluster { registration, node_name, .. } = self.request.cluster;
        let super_admin = apply::super_admin(&self.goal(), self.host.layout).ok()?;
        let asked = cluster::node::state(&super_admin, node_name, registration.as_ref()?);
        tokio::time::timeout(ASK_API_SERVER, asked).await.ok()?.ok()
    }

    async fn preflight(&self) -> Result<(), InitError> {
        let Host { layout, runtime, clock, printer, journal, .. } = self.host;
        if self.skip.covers("preflight") {
            return Ok(());
        }
        let ledger = journal.ledger()?;
        let agent = match service::running(layout)? {
            Holder::Process(pid) => Some(pid),
            Holder::Free | Holder::Unknown => None,
        };
        let other = self.request.running.filter(|running| running.version != self.request.cluster.version);
        let upgrade = match other {
            Some(running) => Some(apply::before_upgrade(running, &self.goal(), &self.host, &ledger).await),
            None => None,
        };
        // The ledger lacks a container whose agent was killed before it wrote it down; the label does not. The agent
        // starts others at any time, so this comes right before their ports are looked at.
        let mut container_ids = journal.ledger()?.containers();
        if let Some(id) = takedown::agent_id(layout)? {
            container_ids.extend(runtime.list(&id).await.unwrap_or_default().into_iter().map(|container| container.id));
        }
        let context = preflight::Context {
            cluster: self.request.cluster,
            layout,
            runtime,
            engine_address: self.request.engine_address,
            owned: &Ownership { container_ids, agent, paths: ledger.paths() },
            clock,
            not_before: &self.not_before(),
            upgrade: upgrade.as_ref(),
        };
        let phase = printer.phase("preflight");
        let report = Box::pin(preflight::run(&context, self.request.ignored)).await?;
        for finding in &report.findings {
            let hint = if finding.hint.is_empty() { String::new() } else { format!("\n    {}", finding.hint) };
            printer.line(&format!("{finding}{hint}"));
        }
        if report.passed() {
            phase.done("this host is ready");
            Ok(())
        } else {
            phase.failed("this host is not ready");
            Err(InitError::NotReady(report))
        }
    }

    /// Certificates that are there already with the start of their validity.
    fn not_before(&self) -> Vec<(PathBuf, Timestamp)> {
        plan::certificates(&self.inventory).into_iter().map(|(file, info)| (file, info.not_before)).collect()
    }

    /// Gets the images that are missing. One that cannot be had is left to the agent where the user ignores that.
    async fn pull_images(&self) -> Result<(), InitError> {
        let Host { runtime, journal, printer, .. } = self.host;
        let mut missing = Vec::new();
        for image in Component::ALL.map(|component| self.request.cluster.image(component)) {
            if matches!(runtime.image(&image).await, Ok(None)) {
                missing.push(image);
            }
        }
        if missing.is_empty() || self.skip.covers("preflight") {
            return Ok(());
        }
        let intents = missing.iter().map(|reference| Creation::Image { reference: reference.clone() });
        journal.append(&intents.map(|what| Record::Make { what }).collect::<Vec<_>>())?;

        let phase = printer.phase("preflight");
        let transfers = Mutex::new(BTreeMap::new());
        let progress = |step: ImageProgress<'_>| {
            let mut transfers = transfers.lock().unwrap_or_else(PoisonError::into_inner);
            match step {
                ImageProgress::Present(_) => {}
                ImageProgress::Pulling(image, pull) => {
                    let (transfer, layers) = transfers
                        .entry(image.to_owned())
                        .or_insert_with(|| (phase.transfer(image), BTreeMap::<String, (u64, u64)>::new()));
                    if let Some(bytes) = pull.bytes {
                        layers.insert(pull.layer, bytes);
                        let (done, total) = layers.values().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
                        transfer.update(done, total);
                    }
                }
                ImageProgress::Pulled(image) => {
                    if let Some((transfer, _)) = transfers.remove(image) {
                        transfer.done();
                    }
                }
            }
        };
        let result = preflight::ensure_images(runtime, &missing, &progress).await;
        drop(transfers);
        match result {
            Ok(_) => {
                phase.done("the images are here");
                Ok(())
            }
            Err(error) => {
                phase.failed("an image is missing");
                if self.ignores(preflight::IMAGE_PULL) {
                    printer.warning(&error.to_string());
                    Ok(())
                } else {
                    Err(error.into())
                }
            }
        }
    }

    fn ignores(&self, check: &str) -> bool {
        self.request.ignored.iter().any(|name| name.eq_ignore_ascii_case(check) || name == "all")
    }
}
