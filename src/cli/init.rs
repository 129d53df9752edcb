//! `plinth init`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Context, Failure, Outcome, agent, interrupted, ledger};
use crate::agent::AgentError;
use crate::apply::{self, ApplyError, EtcdStuck, Host, Launch};
use crate::cluster::node::text_of;
use crate::config::{self, Cluster, ConfigFile, HostFacts, HostView, Loaded, Overrides, Running};
use crate::error::{Exit, with_causes};
use crate::etcd::Prospect;
use crate::init::{Init, InitError, Planned, Request};
use crate::journal::Journal;
use crate::plan::{self, Plan, PlanFile, PlanFileError, Refusal, generation};
use crate::runtime::Runtime;
use crate::runtime::docker::Docker;
use crate::service::{AgentCommand, Manager};
use crate::ui::Printer;

/// What is asked for. Flags are kubeadm's wherever it has them.
#[derive(Debug, clap::Args)]
#[group(id = "flags", multiple = true)]
pub(super) struct Flags {
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
    /// Register this node in the cluster, with a mirror of each static pod; `=false` ends that
    #[arg(long, value_name = "BOOL", default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    register_node: Option<bool>,
    /// Name of this node; its host name unless given
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Phases to leave out, see the list below
    #[arg(long, value_name = "PHASE", value_delimiter = ',')]
    skip_phases: Option<Vec<String>>,
    /// Preflight checks whose errors are only warnings; `all` is all of them
    #[arg(long, value_name = "CHECK", value_delimiter = ',')]
    ignore_preflight_errors: Option<Vec<String>>,
    /// Renew certificates, those of authorities apart, when the version goes up; `=false` leaves them
    #[arg(long, value_name = "BOOL", default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    certificate_renewal: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = phases())]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Do what `plinth plan --out FILE` has shown, and refuse if the host has changed since
    #[arg(long, value_name = "FILE", conflicts_with = "flags")]
    plan: Option<PathBuf>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Run the agent in this process and stay, for containers and supervisors
    #[arg(long)]
    foreground: bool,
}

/// The phases for the help text.
pub(super) fn phases() -> String {
    let width = plan::INIT.iter().map(|phase| phase.name.len()).max().unwrap_or_default();
    let lines: Vec<_> = plan::INIT.iter().map(|phase| format!("  {:width$}  {}", phase.name, phase.about)).collect();
    format!("Phases:\n{}", lines.join("\n"))
}

impl Flags {
    fn overrides(&self, dry_run: bool) -> Overrides {
        Overrides {
            apiserver_advertise_address: self.apiserver_advertise_address.clone(),
            apiserver_bind_port: self.apiserver_bind_port,
            apiserver_cert_extra_sans: self.apiserver_cert_extra_sans.clone(),
            cert_dir: self.cert_dir.clone(),
            control_plane_endpoint: self.control_plane_endpoint.clone(),
            dry_run: dry_run.then_some(true),
            ignore_preflight_errors: self.ignore_preflight_errors.clone(),
            image_repository: self.image_repository.clone(),
            kubernetes_version: self.kubernetes_version.clone(),
            node_name: self.node_name.clone(),
            pod_network_cidr: self.pod_network_cidr.clone(),
            register_node: self.register_node,
            service_cidr: self.service_cidr.clone(),
            service_dns_domain: self.service_dns_domain.clone(),
            skip_phases: self.skip_phases.clone(),
        }
    }
}

/// What is asked for, and what an `init` works with.
pub(super) struct Asked {
    pub(super) loaded: Loaded,
    plan: Option<PlanFile>,
    renew: bool,
    /// The generation that it is based on.
    committed: Option<(u32, Timestamp)>,
    journal: Journal,
    docker: Docker,
}

impl Asked {
    /// By the flags, over the configuration of the control plane that runs here.
    pub(super) fn by_flags(flags: &Flags, dry_run: bool, context: &Context) -> Result<Self, Failure> {
        let text = flags.config.as_deref().map(super::config::read).transpose()?;
        let file = text.as_ref().map(|(name, text)| ConfigFile { name, text });
        let asked = Self::load(file, &flags.overrides(dry_run), None, None, context)?;
        Ok(Self { renew: flags.certificate_renewal, ..asked })
    }

    /// By a plan that was kept in a file.
    fn by_plan(path: &Path, dry_run: bool, context: &Context) -> Result<Self, Failure> {
        let plan = PlanFile::read(path).map_err(|error| Failure::hinted(error, Exit::Usage))?;
        let overrides = Overrides {
            dry_run: dry_run.then_some(true),
            skip_phases: Some(plan.skip_phases.clone()),
            ignore_preflight_errors: Some(plan.ignore_preflight_errors.clone()),
            ..Overrides::default()
        };
        let text = plan.config.clone();
        let file = ConfigFile { name: &path.display().to_string(), text: &text };
        let mut asked = Self::load(Some(file), &overrides, Some(plan), None, context)?;
        if let Some(plan) = &asked.plan {
            asked.loaded.cluster.version_pinned = plan.version_pinned;
            asked.renew = plan.renew;
        }
        Ok(asked)
    }

    /// `view` is what manifests take from the host, if not what those of the control plane that runs here took.
    pub(super) fn load(
        file: Option<ConfigFile<'_>>,
        overrides: &Overrides,
        plan: Option<PlanFile>,
        view: Option<HostView>,
        context: &Context,
    ) -> Result<Self, Failure> {
        let layout = &context.layout;
        let journal = Journal::of(layout);
        let ledger = ledger(&journal)?;
        let generation = generation::committed(layout, &ledger)?;
        let mut host = HostFacts::collect(context.environment.variables.clone())?;
        let rendered = view.or_else(|| generation.as_ref().and_then(|generation| generation.host.clone()));
        if let Some(HostView { ca_directories, proxy_variables, .. }) = rendered.clone() {
            host = HostFacts { ca_directories, proxy_variables, ..host };
        }
        let running = generation.as_ref().map(|generation| Running {
            config: ConfigFile {
                name: "the configuration of the control plane that runs here",
                text: &generation.config,
            },
            version_pinned: generation.facts.version_pinned,
        });
        let mut loaded = config::load_over(file, running.as_ref(), overrides, &host)
            .map_err(|errors| Failure::hinted(errors, Exit::Usage))?;
        let found = || plan::external_ca(layout, &loaded.cluster, &ledger);
        let external_ca = rendered.map_or_else(found, |view| view.external_ca);
        for cluster in [Some(&mut loaded.cluster), loaded.running.as_mut()].into_iter().flatten() {
            cluster.host.external_ca = external_ca;
        }
        for warning in &loaded.warnings {
            context.printer.warning(warning);
        }
        Ok(Self { loaded, plan, renew: true, committed: ledger.committed, journal, docker: context.docker()? })
    }

    /// The `init` that does it.
    pub(super) fn init<'a>(&'a self, launch: Launch, context: &'a Context) -> Result<Init<'a, Docker>, Failure> {
        let Context { printer, layout, clock, .. } = context;
        let request = Request {
            cluster: &self.loaded.cluster,
            running: self.loaded.running.as_ref(),
            committed: self.committed,
            skip_phases: &self.loaded.skip_phases,
            plan: self.plan.as_ref(),
            ignored: &self.loaded.ignore_preflight_errors,
            renew: self.renew,
            engine_address: self.docker.host(),
        };
        let host = Host { layout, journal: &self.journal, runtime: &self.docker, clock, printer, launch };
        Init::new(request, host).map_err(|error| failure(error, printer))
    }

    /// The agent as a service of this host.
    pub(super) fn service(&self, context: &Context) -> Result<Launch, Failure> {
        let command = agent_command(context, &self.loaded.cluster)?;
        Ok(Launch::Service { manager: Manager::detect(&context.layout), command })
    }
}

pub(super) async fn run(args: &Args, context: &Context) -> Outcome {
    let asked = match &args.plan {
        Some(path) => Asked::by_plan(path, args.dry_run, context)?,
        None => Asked::by_flags(&args.flags, args.dry_run, context)?,
    };
    Box::pin(perform(&asked, args.foreground, context)).await
}

/// Says or does what is asked for.
pub(super) async fn perform(asked: &Asked, foreground: bool, context: &Context) -> Outcome {
    let printer = &context.printer;
    let loaded = &asked.loaded;
    let (launch, mut agent) = if foreground {
        let agent = ForegroundAgent::new(context, &loaded.cluster)?;
        (Launch::Foreground(agent.begin.clone()), Some(agent))
    } else {
        (asked.service(context)?, None)
    };
    let init = asked.init(launch, context)?;

    let planned = init.plan().await.map_err(|error| failure(error, printer))?;
    let plan = &planned.plan;
    if loaded.dry_run {
        let text = || {
            let manifests = init.manifests().iter().map(|manifest| {
                let path = plan::manifest_path(&context.layout, manifest.component);
                format!("\n\n{}:\n{}", path.display(), manifest.yaml.trim_end())
            });
            let manifests: String = if plan.is_empty() { String::new() } else { manifests.collect() };
            text(&planned, &loaded.cluster) + &manifests
        };
        printer.result(&document(&init, &planned), text)?;
        return Ok(Exit::Done);
    }
    if plan.is_empty() {
        let document = json!({ "changed": false, "kubernetesVersion": loaded.cluster.version });
        printer.result(&document, || text(&planned, &loaded.cluster))?;
        return Ok(Exit::Done);
    }
    announce(plan, loaded, printer);
    let performed = Box::pin(init.perform(interrupted()));
    let outcome = match &mut agent {
        Some(agent) => tokio::select! {
            outcome = performed => outcome,
            ended = &mut agent.running => {
                ended.context("the agent panicked")??;
                return Err(Failure::failed(anyhow!("the agent ended before the control plane was up")));
            }
        },
        None => performed.await,
    };
    let outcome = outcome.map_err(|error| failure(error, printer))?;
    report(&init, &outcome, loaded, plan, printer)?;
    match agent {
        Some(agent) => agent.stay().await,
        None => Ok(Exit::Done),
    }
}

/// What differs from the control plane that runs here; a first `init` needs no announcement.
fn announce(plan: &Plan, loaded: &Loaded, printer: &Printer) {
    if loaded.running.is_none() {
        return;
    }
    let mut phase = printer.phase("plan");
    for line in plan.headlines().chain(plan.summary()) {
        phase.update(&line);
    }
    phase.done(&format!("at worst: {}", plan.class()));
}

/// The agent in this process. It begins when the plan says so, and is what remains when the plan is done.
struct ForegroundAgent {
    begin: Arc<Notify>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), AgentError>>,
}

impl ForegroundAgent {
    fn new(context: &Context, cluster: &Cluster) -> Result<Self, Failure> {
        let (begin, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let (options, docker) = agent::of_command_line(&agent_command(context, cluster)?.arguments, context)?;
        let clock = context.clock.clone();
        let running = tokio::spawn({
            let (begin, stop) = (begin.clone(), stop.clone());
            async move {
                begin.notified().await;
                // On the heap: it is as large as everything that an agent does.
                Box::pin(crate::agent::run(options, docker, clock, stop)).await
            }
        });
        Ok(Self { begin, stop, running })
    }

    /// Until the agent ends by itself, which is a failure, or is told to.
    async fn stay(mut self) -> Outcome {
        tokio::select! {
            ended = &mut self.running => ended.context("the agent panicked")??,
            () = interrupted() => {
                self.stop.cancel();
                self.running.await.context("the agent panicked")??;
            }
        }
        Ok(Exit::Done)
    }
}

fn agent_command(context: &Context, cluster: &Cluster) -> Result<AgentCommand, Failure> {
    let program = std::env::current_exe().context("cannot find the path of plinth itself")?;
    let mut arguments = vec![
        "agent".to_owned(),
        format!("--pod-manifest-path={}", context.layout.manifests().display()),
        format!("--hostname-override={}", cluster.node_name),
        format!("--pod-infra-container-image={}", cluster.pause_image()),
    ];
    if let Some(registration) = &cluster.registration {
        let taints: Vec<_> = registration.taints.iter().map(text_of).collect();
        let authority = context.layout.below_root(&cluster.cert_dir).join("ca.crt");
        arguments.push("--register-node".to_owned());
        arguments.push(format!("--node-ip={}", cluster.advertise_address));
        arguments.push(format!("--client-ca-file={}", authority.display()));
        arguments.extend((!taints.is_empty()).then(|| format!("--register-with-taints={}", taints.join(","))));
    }
    arguments.extend(context.environment.get("DOCKER_HOST").map(|engine| format!("--docker-host={engine}")));
    Ok(AgentCommand { program, arguments })
}

/// The plan for people.
pub(super) fn text(Planned { plan, observed }: &Planned, cluster: &Cluster) -> String {
    if plan.is_empty() {
        let version = &cluster.version;
        return format!("nothing is to be done: the {version} control plane is as configured, and healthy");
    }
    match &observed.etcd_copy {
        Some(Ok(prospect)) => format!("{}\n\n{prospect}", plan::text(plan)),
        _ => plan::text(plan),
    }
}

/// The plan for programs. Fields are only ever added.
pub(super) fn document<R: Runtime>(init: &Init<'_, R>, Planned { plan, observed }: &Planned) -> Value {
    let etcd_copy = observed.etcd_copy.as_ref().and_then(|prospect| prospect.as_ref().ok()).map(|prospect| {
        let Prospect { bytes, free, shares_blocks, time } = prospect;
        json!({ "bytes": bytes, "freeBytes": free, "sharesBlocks": shares_blocks, "seconds": time.as_secs_f64() })
    });
    let manifests: serde_json::Map<_, _> =
        init.manifests().iter().map(|m| (m.component.to_string(), m.yaml.clone().into())).collect();
    json!({
        "differs": !plan.is_empty(),
        "class": plan.class(),
        "plan": plan,
        "etcdCopy": etcd_copy,
        "config": init.config(),
        "manifests": manifests,
    })
}

/// Exit code and output of an `init` that failed.
pub(super) fn failure(error: InitError, printer: &Printer) -> Failure {
    let (exit, value) = match &error {
        InitError::NotReady(report) => (Exit::Preflight, json!({ "error": "preflight", "findings": report.findings })),
        InitError::Image(_) => (Exit::Preflight, json!({ "error": "image", "message": error.to_string() })),
        InitError::Unchecked(_) | InitError::Phase(_) => {
            (Exit::Usage, json!({ "error": "usage", "message": error.to_string() }))
        }
        InitError::Unhealthy { autopsy, .. } => {
            printer.line(&format!("\n{autopsy}"));
            (Exit::Failed, json!({ "error": "unhealthy", "autopsy": autopsy }))
        }
        InitError::PutBack { autopsy, back, .. } => {
            printer.line(&format!("\n{autopsy}"));
            let back: Vec<_> =
                back.iter().map(|(component, reason)| json!({ "component": component, "unhealthy": reason })).collect();
            (
                Exit::Failed,
                json!({ "error": "put-back", "message": error.to_string(), "autopsy": autopsy, "back": back }),
            )
        }
        InitError::Plan(PlanFileError::HostChanged { what } | PlanFileError::OtherPlan { what }) => {
            (Exit::Failed, json!({ "error": "plan", "message": error.to_string(), "changed": what }))
        }
        InitError::Refused(refusals) if refusals.iter().all(Refusal::is_usage) => {
            (Exit::Usage, json!({ "error": "refused", "message": error.to_string() }))
        }
        InitError::Apply(ApplyError::Undone { back, .. }) => {
            let back: Vec<_> =
                back.iter().map(|(component, reason)| json!({ "component": component, "unhealthy": reason })).collect();
            (Exit::Failed, json!({ "error": "undone", "message": with_causes(&error), "back": back }))
        }
        InitError::Apply(ApplyError::EtcdStuck(stuck)) => {
            let EtcdStuck { data, revision, copy, .. } = stuck.as_ref();
            let copy = copy.as_ref().map(|(path, record)| json!({ "path": path, "of": record }));
            let value = json!({ "error": "etcd-stuck", "message": error.to_string(), "data": data,
                "revision": revision, "copy": copy });
            (Exit::Failed, value)
        }
        InitError::Refused(refusals) if refusals.iter().all(|one| one.is_usage() || one.is_preflight()) => {
            (Exit::Preflight, json!({ "error": "refused", "message": error.to_string() }))
        }
        InitError::Refused(_) => (Exit::Failed, json!({ "error": "refused", "message": error.to_string() })),
        _ => (Exit::Failed, json!({ "error": "failed", "message": error.to_string() })),
    };
    // An error about stdout would hide the one that matters.
    let _ = printer.result(&value, String::new);
    Failure::hinted(error, exit)
}

fn report<R: Runtime>(
    init: &Init<'_, R>,
    outcome: &apply::Outcome,
    loaded: &Loaded,
    plan: &Plan,
    printer: &Printer,
) -> Result<(), Failure> {
    let cluster = &loaded.cluster;
    let admin = init.file_of("kubeconfig/admin").map(|path| path.display().to_string()).unwrap_or_default();
    let value = json!({
        "changed": true,
        "kubernetesVersion": cluster.version,
        "server": cluster.api_url(),
        "kubeconfig": admin,
        "healthy": outcome.healthy,
        "generation": outcome.generation,
        "changes": plan.changes,
        "startAtBoot": outcome.start_at_boot,
    });
    let waited = outcome.generation.is_some() || !outcome.healthy.is_empty();
    printer.result(&value, || {
        let state = if waited { "healthy" } else { "not waited for" };
        let boot = outcome
            .start_at_boot
            .as_ref()
            .map(|line| format!("\n\nNo systemd here: let the init system of this host run this at boot:\n\n  {line}"))
            .unwrap_or_default();
        if loaded.running.is_some() {
            let version = &cluster.version;
            let generation =
                outcome.generation.map(|number| format!("; this is generation {number}")).unwrap_or_default();
            return format!("\nThe {version} control plane is as configured, and {state}{generation}.{boot}");
        }
        let pods = if cluster.registration.is_some() {
            "This node runs static pods only, and there is no pod network yet: other pods stay Pending."
        } else {
            "There is no Node and no pod network yet: pods stay Pending."
        };
        format!(
            "\nYour Kubernetes {version} control plane is {state}.\n\n\
             To use it as root:\n\n  export KUBECONFIG={admin}\n\n\
             To use it as another user:\n\n  mkdir -p $HOME/.kube\n  \
             sudo cp -i {admin} $HOME/.kube/config\n  sudo chown $(id -u):$(id -g) $HOME/.kube/config\n\n\
             {pods}{boot}\n\n\
             Next: plinth status",
            version = cluster.version,
        )
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory as _, Parser as _};

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn help_lists_the_phases_that_are_run() {
        let help = Command::command().render_help().to_string();
        let listed: Vec<_> = help
            .lines()
            .skip_while(|line| *line != "Phases:")
            .skip(1)
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        let known: Vec<_> = plan::INIT.iter().map(|phase| phase.name).collect();
        assert_eq!(listed, known);
    }

    #[test]
    fn a_plan_stands_alone() {
        let parse = |line: &str| Command::try_parse_from(std::iter::once("init").chain(line.split_whitespace()));
        for (line, fine) in [
            ("--plan p.json", true),
            ("--plan p.json --foreground", true),
            ("--plan p.json --dry-run", true),
            ("--plan p.json --config c.yaml", false),
            ("--plan p.json --kubernetes-version v1.37.1", false),
            ("--plan p.json --skip-phases preflight", false),
            ("--config c.yaml --skip-phases preflight --ignore-preflight-errors all", true),
        ] {
            assert_eq!(parse(line).is_ok(), fine, "{line}");
        }
    }
}
