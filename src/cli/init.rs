//! `plinth init`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Context, Failure, Outcome, agent, interrupted, ledger};
use crate::agent::AgentError;
use crate::apply::{self, Host, Launch};
use crate::config::{self, Cluster, ConfigFile, HostFacts, HostView, Loaded, Overrides};
use crate::error::Exit;
use crate::init::{Init, InitError, Request};
use crate::journal::{Journal, Ledger};
use crate::plan::{self, Plan, Skip, Standing};
use crate::runtime::Runtime;
use crate::service::{AgentCommand, Manager};
use crate::ui::Printer;

/// Flags are kubeadm's wherever it has them.
#[derive(Debug, clap::Args)]
#[command(after_help = phases())]
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

/// The phases for the help text.
fn phases() -> String {
    let width = plan::INIT.iter().map(|phase| phase.name.len()).max().unwrap_or_default();
    let lines: Vec<_> = plan::INIT.iter().map(|phase| format!("  {:width$}  {}", phase.name, phase.about)).collect();
    format!("Phases:\n{}", lines.join("\n"))
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
    let Context { printer, layout, clock, .. } = context;
    let journal = Journal::of(layout);
    let loaded = load(args, context, &ledger(&journal)?)?;
    for warning in &loaded.warnings {
        printer.warning(warning);
    }
    let docker = context.docker()?;
    let (launch, mut agent) = if args.foreground {
        let agent = ForegroundAgent::new(context, &loaded.cluster)?;
        (Launch::Foreground(agent.begin.clone()), Some(agent))
    } else {
        let command = agent_command(context, &loaded.cluster)?;
        (Launch::Service { manager: Manager::detect(layout), command }, None)
    };
    let request = Request {
        cluster: &loaded.cluster,
        skip: Skip::parse(&loaded.skip_phases).map_err(Failure::usage)?,
        ignored: &loaded.ignore_preflight_errors,
        engine_address: docker.host(),
    };
    let host = Host { layout, journal: &journal, runtime: &docker, clock, printer, launch };
    let init = Init::new(request, host)?;

    let plan = init.plan().await.map_err(|error| failure(error, printer))?;
    if loaded.dry_run {
        return show(&init, &plan, context);
    }
    if plan.is_empty() {
        let version = &loaded.cluster.version;
        let text = || format!("nothing is to be done: the {version} control plane is as configured, and healthy");
        printer.result(&json!({ "changed": false, "kubernetesVersion": version }), text)?;
        return Ok(Exit::Done);
    }
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
    report(&init, &outcome, &loaded.cluster, printer)?;
    match agent {
        Some(agent) => agent.stay().await,
        None => Ok(Exit::Done),
    }
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
    let mut host = HostFacts::collect(context.environment.variables.clone())?;
    let rendered = plan::rendered_host(&context.layout, ledger)?;
    if let Some(HostView { ca_directories, proxy_variables, .. }) = rendered.clone() {
        host = HostFacts { ca_directories, proxy_variables, ..host };
    }
    let mut loaded = config::load(file, &args.overrides(), &host).map_err(|e| Failure::hinted(e, Exit::Usage))?;
    loaded.cluster.host.external_ca =
        rendered.map_or_else(|| plan::external_ca(&context.layout, &loaded.cluster), |view| view.external_ca);
    Ok(loaded)
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
        let options = agent::options(context, &cluster.node_name, &cluster.pause_image());
        let (docker, clock) = (context.docker()?, context.clock.clone());
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
    arguments.extend(context.environment.get("DOCKER_HOST").map(|engine| format!("--docker-host={engine}")));
    Ok(AgentCommand { program, arguments })
}

/// What would be done, with the manifests in full.
fn show<R: Runtime>(init: &Init<'_, R>, plan: &Plan, context: &Context) -> Outcome {
    let text = || {
        if plan.is_empty() {
            return "nothing is to be done".to_owned();
        }
        let steps = plan.steps.iter().map(|step| format!("would {step}"));
        let files = init.manifests().iter().map(|manifest| {
            let path = plan::manifest_path(&context.layout, manifest.component);
            format!("\n{}:\n{}", path.display(), manifest.yaml.trim_end())
        });
        steps.chain(files).collect::<Vec<_>>().join("\n")
    };
    let manifests: serde_json::Map<_, _> =
        init.manifests().iter().map(|m| (m.component.to_string(), m.yaml.clone().into())).collect();
    context.printer.result(&json!({ "plan": plan, "config": init.config(), "manifests": manifests }), text)?;
    Ok(Exit::Done)
}

/// Exit code and output of an `init` that failed.
fn failure(error: InitError, printer: &Printer) -> Failure {
    let (exit, value) = match &error {
        InitError::NotReady(report) => (Exit::Preflight, json!({ "error": "preflight", "findings": report.findings })),
        InitError::Image(_) => (Exit::Preflight, json!({ "error": "image", "message": error.to_string() })),
        InitError::Unchecked(_) => (Exit::Usage, json!({ "error": "usage", "message": error.to_string() })),
        InitError::Unhealthy { autopsy, .. } => {
            printer.line(&format!("\n{autopsy}"));
            (Exit::Failed, json!({ "error": "unhealthy", "autopsy": autopsy }))
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
    cluster: &Cluster,
    printer: &Printer,
) -> Result<(), Failure> {
    let admin = init.file_of("kubeconfig/admin").map(|path| path.display().to_string()).unwrap_or_default();
    let value = json!({
        "changed": true,
        "kubernetesVersion": cluster.version,
        "server": cluster.api_url(),
        "kubeconfig": admin,
        "healthy": outcome.healthy,
        "generation": outcome.generation,
        "startAtBoot": outcome.start_at_boot,
    });
    let waited = outcome.generation.is_some() || !outcome.healthy.is_empty();
    printer.result(&value, || {
        let state = if waited { "is healthy" } else { "was set up and not waited for" };
        let boot = outcome
            .start_at_boot
            .as_ref()
            .map(|line| format!("\n\nNo systemd here: let the init system of this host run this at boot:\n\n  {line}"));
        format!(
            "\nYour Kubernetes {version} control plane {state}.\n\n\
             To use it as root:\n\n  export KUBECONFIG={admin}\n\n\
             To use it as another user:\n\n  mkdir -p $HOME/.kube\n  \
             sudo cp -i {admin} $HOME/.kube/config\n  sudo chown $(id -u):$(id -g) $HOME/.kube/config\n\n\
             There is no Node and no pod network yet: pods stay Pending.{boot}\n\n\
             Next: plinth status",
            version = cluster.version,
            boot = boot.unwrap_or_default(),
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

    fn args(line: &str) -> Args {
        Command::try_parse_from(std::iter::once("init").chain(line.split_whitespace())).unwrap().args
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
    fn a_rerun_keeps_the_stored_configuration_only_when_nothing_is_said_about_the_cluster() {
        for (line, keeps) in [
            ("", true),
            ("--dry-run --skip-phases=certs --ignore-preflight-errors=Swap,Mem --foreground", true),
            ("--service-cidr 10.97.0.0/16", false),
            ("--config x.yaml", false),
            ("--node-name m1 --dry-run", false),
        ] {
            assert_eq!(args(line).asks_for_nothing(), keeps, "{line}");
        }
    }
}
