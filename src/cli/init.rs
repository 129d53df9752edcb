//! `plinth init`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Context, Failure, Outcome, agent, interrupted};
use crate::apply::autopsy::{self, Autopsy};
use crate::apply::{self, ApplyError, Goal, Host, Launch};
use crate::config::{self, Cluster, ConfigFile, HostFacts, Loaded, Overrides};
use crate::error::Exit;
use crate::fsx::{self, Lock};
use crate::journal::{Creation, Journal, Ledger, Record};
use crate::layout::Layout;
use crate::manifests::{self, Manifest};
use crate::pki;
use crate::plan::{self, Desired, Inventory, Kind, Live, Observed, Plan, Refusal, Skip, Standing};
use crate::preflight::{self, ImageProgress, Level, Ownership};
use crate::release::Component;
use crate::runtime::Runtime;
use crate::runtime::docker::Docker;
use crate::service::{self, AgentCommand, Manager};
use crate::takedown;

/// Flags are kubeadm's wherever it has them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// File with an InitConfiguration and a ClusterConfiguration of kubeadm.k8s.io/v1beta4; `-` is stdin
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Kubernetes version, like v1.37.1
    #[arg(long, value_name = "VERSION")]
    kubernetes_version: Option<String>,
    /// Address that the API server announces; that of the default route's interface unless given
    #[arg(long, value_name = "ADDRESS")]
    apiserver_advertise_address: Option<String>,
    /// Port of the API server
    #[arg(long, value_name = "PORT")]
    apiserver_bind_port: Option<i32>,
    /// More names and addresses for the API server's certificate
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    apiserver_cert_extra_sans: Option<Vec<String>>,
    /// Shared name or address of the control plane, with or without port
    #[arg(long, value_name = "HOST[:PORT]")]
    control_plane_endpoint: Option<String>,
    /// Network of services
    #[arg(long, value_name = "CIDR")]
    service_cidr: Option<String>,
    /// Network of pods; the controller manager gives each node a part of it
    #[arg(long, value_name = "CIDR")]
    pod_network_cidr: Option<String>,
    /// Domain of services
    #[arg(long, value_name = "DOMAIN")]
    service_dns_domain: Option<String>,
    /// Where certificates are kept
    #[arg(long, value_name = "DIRECTORY")]
    cert_dir: Option<String>,
    /// Registry and path that images come from
    #[arg(long, value_name = "REPOSITORY")]
    image_repository: Option<String>,
    /// Name of this node; its host name unless given
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Phases to leave out, see the list below
    #[arg(long, value_name = "PHASE", value_delimiter = ',')]
    skip_phases: Option<Vec<String>>,
    /// Preflight checks whose errors are only warnings; `all` is all of them
    #[arg(long, value_name = "CHECK", value_delimiter = ',')]
    ignore_preflight_errors: Option<Vec<String>>,
    /// Run the agent in this process and stay, for containers and supervisors
    #[arg(long)]
    foreground: bool,
}

impl Args {
    fn overrides(&self) -> Overrides {
        Overrides {
            apiserver_advertise_address: self.apiserver_advertise_address.clone(),
            apiserver_bind_port: self.apiserver_bind_port,
            apiserver_cert_extra_sans: self.apiserver_cert_extra_sans.clone(),
            cert_dir: self.cert_dir.clone(),
            control_plane_endpoint: self.control_plane_endpoint.clone(),
            dry_run: self.dry_run.then_some(true),
            ignore_preflight_errors: self.ignore_preflight_errors.clone(),
            image_repository: self.image_repository.clone(),
            kubernetes_version: self.kubernetes_version.clone(),
            node_name: self.node_name.clone(),
            pod_network_cidr: self.pod_network_cidr.clone(),
            service_cidr: self.service_cidr.clone(),
            service_dns_domain: self.service_dns_domain.clone(),
            skip_phases: self.skip_phases.clone(),
        }
    }

    /// Nothing is said about the cluster itself.
    fn asks_for_nothing(&self) -> bool {
        let about_this_run = Overrides {
            dry_run: self.dry_run.then_some(true),
            ignore_preflight_errors: self.ignore_preflight_errors.clone(),
            skip_phases: self.skip_phases.clone(),
            ..Overrides::default()
        };
        self.config.is_none() && self.overrides() == about_this_run
    }
}

pub(super) async fn run(args: &Args, context: &Context) -> Outcome {
    let journal = Journal::of(&context.layout);
    let loaded = load(args, context, &journal.ledger()?)?;
    for warning in &loaded.warnings {
        context.printer.warning(warning);
    }
    let skip = Skip::parse(&loaded.skip_phases).map_err(Failure::usage)?;
    let wanted = Wanted::of(&loaded.cluster, &context.layout)?;
    let docker = context.docker()?;
    let init = Init { context, journal, loaded, skip, wanted, docker };

    // Nothing is locked or written before it is known that something is to be done.
    let plan = init.plan(&init.journal.ledger()?).await?;
    if init.loaded.dry_run {
        return init.show(&plan);
    }
    if plan.is_empty() {
        return init.nothing_to_do(args.foreground).await;
    }
    init.preflight().await?;
    fsx::create_directories(&context.layout.state(), 0o700)?;
    let _lock = Lock::try_take(&context.layout.lock())?.map_err(busy)?;
    init.pull_images().await?;
    if args.foreground { init.perform_in_foreground().await } else { init.perform().await }
}

/// Another command has the lock.
pub(super) fn busy(holder: Option<i32>) -> Failure {
    let pid = holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    Failure::failed(anyhow!("another plinth is at work on this host{pid}"))
        .with_hints(vec!["wait until it is done, and run the same command again".to_owned()])
}

/// The configuration: that of the command line, or that of the control plane that runs here where nothing is said.
fn load(args: &Args, context: &Context, ledger: &Ledger) -> Result<Loaded, Failure> {
    let stored = match plan::standing(&context.layout, ledger)? {
        Standing::Committed { config } if args.asks_for_nothing() => {
            Some(("the configuration of the control plane that runs here".to_owned(), config))
        }
        _ => None,
    };
    let text = match &args.config {
        Some(path) => Some(super::config::read(path)?),
        None => stored,
    };
    let file = text.as_ref().map(|(name, text)| ConfigFile { name, text });
    let host = HostFacts::collect(context.environment.variables.clone())?;
    config::load(file, &args.overrides(), &host).map_err(|errors| Failure::hinted(errors, Exit::Usage))
}

/// What the configuration gives.
struct Wanted {
    config: String,
    manifests: Vec<Manifest>,
    inventory: Inventory,
}

impl Wanted {
    fn of(cluster: &Cluster, layout: &Layout) -> Result<Self, Failure> {
        let manifests = Component::ALL
            .into_iter()
            .map(|component| manifests::render(cluster, component, layout))
            .collect::<Result<_, _>>()?;
        Ok(Self { config: config::to_wire_yaml(cluster), manifests, inventory: Inventory::of(cluster, layout) })
    }
}

struct Init<'a> {
    context: &'a Context,
    journal: Journal,
    loaded: Loaded,
    skip: Skip,
    wanted: Wanted,
    docker: Docker,
}

impl Init<'_> {
    fn goal(&self) -> Goal<'_> {
        Goal {
            cluster: &self.loaded.cluster,
            config: &self.wanted.config,
            manifests: &self.wanted.manifests,
            inventory: &self.wanted.inventory,
        }
    }

    fn host(&self, launch: Launch) -> Host<'_, Docker> {
        let Context { printer, layout, clock, .. } = self.context;
        Host { layout, journal: &self.journal, runtime: &self.docker, clock, printer, launch }
    }

    async fn plan(&self, ledger: &Ledger) -> Result<Plan, Failure> {
        let layout = &self.context.layout;
        let Wanted { config, manifests, inventory } = &self.wanted;
        let now = self.context.clock.now();
        let live = self.live(ledger).await?;
        let observed: Observed = plan::observe(&self.loaded.cluster, layout, inventory, ledger, live, now)?;
        let desired = Desired {
            config,
            manifests,
            credentials: inventory.credentials(),
            etcd_data: layout.below_root(&self.loaded.cluster.etcd.data_dir),
        };
        let plan = plan::compute(&desired, &observed).map_err(|refusals| refused(&refusals))?;
        Ok(plan.without(&self.skip))
    }

    /// What runs. Components are asked for their health only where an agent could run them.
    async fn live(&self, ledger: &Ledger) -> Result<Live, Failure> {
        let layout = &self.context.layout;
        let agent_runs = service::running(layout)?.is_some();
        let has_containers = match takedown::agent_id(layout)? {
            // A runtime that is away is for preflight to report; what the journal knows is good enough here.
            Some(id) => match self.docker.list(&id).await {
                Ok(containers) => !containers.is_empty(),
                Err(_) => !ledger.containers().is_empty(),
            },
            None => false,
        };
        let not_asked = || Component::ALL.map(|component| (component, "not asked".to_owned())).into();
        let unhealthy = match apply::checkers(&self.goal(), layout) {
            Ok(checkers) if agent_runs => {
                let checks = checkers.iter().map(async |checker| (checker.component(), checker.check().await));
                let answers = futures_util::future::join_all(checks).await;
                answers.into_iter().filter_map(|(one, answer)| Some((one, answer.err()?.to_string()))).collect()
            }
            // Without an agent nothing is healthy for long, and without credentials nobody can be asked.
            _ => not_asked(),
        };
        let agent_starts_at_boot = service::starts_at_boot(layout, ledger);
        Ok(Live { agent_runs, agent_starts_at_boot, has_containers, unhealthy })
    }

    fn show(&self, plan: &Plan) -> Outcome {
        let text = || {
            if plan.is_empty() {
                return "nothing is to be done".to_owned();
            }
            let steps = plan.steps.iter().map(|step| format!("would {step}"));
            let files = self.wanted.manifests.iter().map(|manifest| {
                let path = plan::manifest_path(&self.context.layout, manifest.component);
                format!("\n{}:\n{}", path.display(), manifest.yaml.trim_end())
            });
            steps.chain(files).collect::<Vec<_>>().join("\n")
        };
        let manifests: serde_json::Map<_, _> =
            self.wanted.manifests.iter().map(|m| (m.component.to_string(), m.yaml.clone().into())).collect();
        let value = json!({ "plan": plan, "config": self.wanted.config, "manifests": manifests });
        self.context.printer.result(&value, text)?;
        Ok(Exit::Done)
    }

    async fn nothing_to_do(&self, foreground: bool) -> Outcome {
        let version = &self.loaded.cluster.version;
        let text = || format!("nothing is to be done: the {version} control plane is as configured, and healthy");
        self.context.printer.result(&json!({ "changed": false, "kubernetesVersion": version }), text)?;
        if foreground {
            self.context.printer.note("the agent runs in another process; this one waits for its end");
            while service::running(&self.context.layout)?.is_some() {
                tokio::select! {
                    () = interrupted() => break,
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                }
            }
        }
        Ok(Exit::Done)
    }

    async fn preflight(&self) -> Result<(), Failure> {
        if self.skip.covers("preflight") {
            return Ok(());
        }
        let Context { printer, layout, clock, .. } = self.context;
        let ledger = self.journal.ledger()?;
        let owned = Ownership { container_ids: ledger.containers(), paths: ledger.paths() };
        let context = preflight::Context {
            cluster: &self.loaded.cluster,
            layout,
            runtime: &self.docker,
            engine_address: self.docker.host(),
            owned: &owned,
            clock,
            not_before: &self.not_before(),
        };
        let phase = printer.phase("preflight");
        let report = preflight::run(&context, &self.loaded.ignore_preflight_errors)
            .await
            .map_err(|error| Failure::hinted(error, Exit::Usage))?;
        for finding in &report.findings {
            let hint = if finding.hint.is_empty() { String::new() } else { format!("\n    {}", finding.hint) };
            printer.line(&format!("{finding}{hint}"));
        }
        if !report.passed() {
            phase.failed("this host is not ready");
            printer.result(&json!({ "error": "preflight", "findings": report.findings }), String::new)?;
            let ignore = "--ignore-preflight-errors=NAME,… goes on in spite of an error";
            let errors = report.findings.iter().filter(|finding| finding.level == Level::Error).count();
            return Err(Failure {
                exit: Exit::Preflight,
                ..Failure::failed(anyhow!("{errors} preflight checks failed; nothing was changed"))
            }
            .with_hints(vec![ignore.to_owned()]));
        }
        phase.done("this host is ready");
        Ok(())
    }

    /// Certificates that are there already with the start of their validity.
    fn not_before(&self) -> Vec<(PathBuf, Timestamp)> {
        let files = self.wanted.inventory.entries().iter().flat_map(|entry| &entry.files);
        files
            .filter(|file| file.path.extension().is_some_and(|extension| extension == "crt"))
            .filter_map(|file| {
                let pem = fsx::read(&file.path).ok()?;
                let info = pki::inspect(&file.path.display().to_string(), &pem).ok()?;
                Some((file.path.clone(), info.not_before))
            })
            .collect()
    }

    /// Gets the images that are missing. A failure is left to the agent's own back-off only where the user said so.
    async fn pull_images(&self) -> Result<(), Failure> {
        let images: Vec<_> = Component::ALL.map(|component| self.loaded.cluster.image(component)).into();
        let mut missing = Vec::new();
        for image in &images {
            if matches!(self.docker.image(image).await, Ok(None)) {
                missing.push(image.clone());
            }
        }
        if missing.is_empty() || self.skip.covers("preflight") {
            return Ok(());
        }
        let records: Vec<_> = missing
            .iter()
            .map(|reference| Record::Make { what: Creation::Image { reference: reference.clone() } })
            .collect();
        self.journal.append(&records)?;
        let phase = self.context.printer.phase("preflight");
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
        let result = preflight::ensure_images(&self.docker, &missing, &progress).await;
        drop(transfers);
        match result {
            Ok(_) => {
                phase.done("the images are here");
                Ok(())
            }
            Err(error) if self.ignores(preflight::IMAGE_PULL) => {
                phase.failed("an image is missing");
                self.context.printer.warning(&format!("{:#}", anyhow::Error::from(error)));
                Ok(())
            }
            Err(error) => {
                phase.failed("an image is missing");
                Err(Failure::hinted(error, Exit::Preflight))
            }
        }
    }

    fn ignores(&self, check: &str) -> bool {
        let ignored = &self.loaded.ignore_preflight_errors;
        ignored.iter().any(|name| name.eq_ignore_ascii_case(check) || name == "all")
    }

    async fn perform(&self) -> Outcome {
        let command = self.agent_command()?;
        let manager = Manager::detect(&self.context.layout);
        let host = self.host(Launch::Service { manager, command: command.clone() });
        let outcome = self.execute(&host).await?;
        self.report(&outcome, manager.boot_line(&command))?;
        Ok(Exit::Done)
    }

    /// The agent runs in this process from the moment the plan starts it, and is what remains when the plan is done.
    async fn perform_in_foreground(&self) -> Outcome {
        let begin = Arc::new(Notify::new());
        let stop = CancellationToken::new();
        let _stop_on_return = stop.clone().drop_guard();
        let options = agent::options(self.context, &self.loaded.cluster.node_name, &self.loaded.cluster.pause_image());
        let docker = self.context.docker()?;
        let running = tokio::spawn({
            let (begin, stop, clock) = (begin.clone(), stop.clone(), self.context.clock.clone());
            async move {
                tokio::select! {
                    () = begin.notified() => crate::agent::run(options, docker, clock, stop).await,
                    () = stop.cancelled() => Ok(()),
                }
            }
        });
        let host = self.host(Launch::Foreground(begin));
        let outcome = self.execute(&host).await?;
        self.report(&outcome, None)?;
        let mut running = running;
        tokio::select! {
            ended = &mut running => ended.context("the agent panicked")??,
            () = interrupted() => {
                stop.cancel();
                running.await.context("the agent panicked")??;
            }
        }
        Ok(Exit::Done)
    }

    async fn execute(&self, host: &Host<'_, Docker>) -> Result<apply::Outcome, Failure> {
        // Planned again under the lock: what was seen before may have changed.
        let ledger = self.journal.ledger()?;
        let plan = self.plan(&ledger).await?;
        let goal = self.goal();
        match apply::execute(&plan, &goal, host, &ledger, interrupted()).await {
            Ok(outcome) => Ok(outcome),
            Err(ApplyError::Unhealthy { after, unhealthy }) => {
                let evidence = autopsy::gather(&goal, host, after, &unhealthy).await;
                self.tell(&autopsy::diagnose(&evidence), after)
            }
            Err(error @ ApplyError::AgentEnded { .. }) => {
                let evidence = autopsy::gather(&goal, host, Duration::ZERO, &[]).await;
                let autopsy = autopsy::diagnose(&evidence);
                Err(Failure::failed(error).with_hints(vec![autopsy.fix]))
            }
            Err(error) => Err(Failure::failed(error)),
        }
    }

    fn tell(&self, autopsy: &Autopsy, after: Duration) -> Result<apply::Outcome, Failure> {
        let printer = &self.context.printer;
        printer.line(&format!("\nThe control plane did not become healthy within {} s.\n{autopsy}", after.as_secs()));
        printer.line("Mend the cause and run the same command again; or `plinth reset` to take everything away.");
        printer.result(&json!({ "error": "unhealthy", "autopsy": autopsy }), String::new)?;
        Err(Failure::told(Exit::Failed))
    }

    fn report(&self, outcome: &apply::Outcome, boot_line: Option<String>) -> Result<(), Failure> {
        let cluster = &self.loaded.cluster;
        let admin = self.kubeconfig("admin");
        let value = json!({
            "changed": true,
            "kubernetesVersion": cluster.version,
            "server": cluster.api_url(),
            "kubeconfig": admin,
            "healthy": outcome.healthy,
            "generation": outcome.generation,
            "startAtBoot": boot_line,
        });
        let waited = outcome.generation.is_some() || !outcome.healthy.is_empty();
        self.context.printer.result(&value, || {
            let state = if waited { "is healthy" } else { "was set up and not waited for" };
            let boot = boot_line.map(|line| {
                format!("\n\nNo systemd here: let the init system of this host run this at boot:\n\n  {line}")
            });
            format!(
                "\nYour Kubernetes {version} control plane {state}.\n\n\
                 To use it as root:\n\n  export KUBECONFIG={admin}\n\n\
                 To use it as another user:\n\n  mkdir -p $HOME/.kube\n  \
                 sudo cp -i {admin} $HOME/.kube/config\n  sudo chown $(id -u):$(id -g) $HOME/.kube/config\n\n\
                 There is no Node and no pod network yet: pods stay Pending.{boot}\n\n\
                 Next: plinth status",
                version = cluster.version,
                admin = admin.display(),
                boot = boot.unwrap_or_default(),
            )
        })?;
        Ok(())
    }

    fn kubeconfig(&self, name: &str) -> PathBuf {
        let named = |entry: &&plan::Entry| matches!(&entry.kind, Kind::Kubeconfig(spec) if spec.name == name);
        let entry = self.wanted.inventory.entries().iter().find(named);
        entry.and_then(|entry| entry.files.first()).map(|file| file.path.clone()).unwrap_or_default()
    }

    fn agent_command(&self) -> Result<AgentCommand, Failure> {
        let program = std::env::current_exe().context("cannot find the path of plinth itself")?;
        let Cluster { node_name, .. } = &self.loaded.cluster;
        let mut arguments = vec!["agent".to_owned()];
        arguments.push(format!("--pod-manifest-path={}", self.context.layout.manifests().display()));
        arguments.push(format!("--hostname-override={node_name}"));
        arguments.push(format!("--pod-infra-container-image={}", self.loaded.cluster.pause_image()));
        if let Some(engine) = self.context.environment.get("DOCKER_HOST") {
            arguments.push(format!("--docker-host={engine}"));
        }
        Ok(AgentCommand { program, arguments })
    }
}

/// All refusals together: the first one is the error, the others follow it.
fn refused(refusals: &[Refusal]) -> Failure {
    let mut hints: Vec<String> = Vec::new();
    for hint in refusals.iter().flat_map(crate::error::Hint::hints) {
        if !hints.contains(&hint) {
            hints.push(hint);
        }
    }
    let lines: Vec<_> = refusals.iter().map(ToString::to_string).collect();
    Failure::failed(anyhow!("{}", lines.join("\n"))).with_hints(hints)
}
