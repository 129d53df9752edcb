//! The command line: clap structs → settings → one call. The only place that knows clap, anyhow and the environment.

mod agent;
mod config;
mod history;
mod init;
mod logs;
mod plan;
mod reset;
mod rollback;
mod status;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::clock::Clock;
use crate::error::{Exit, Hint};
use crate::journal::{Journal, Ledger};
use crate::layout::Layout;
use crate::runtime::docker::Docker;
use crate::ui::{Format, Mode, Printer, Surroundings, Verbosity};

/// Bootstraps a Kubernetes control plane on a Docker host and keeps it running, without a kubelet.
#[derive(Debug, Parser)]
#[command(name = "plinth", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log to stderr; twice for debugging, three times for everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Show results, warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Format of the result on stdout
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// One JSON document
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set up the control plane on this host, or change or repair the one that runs here
    Init(Box<init::Args>),
    /// Show what `init` would change, and what that costs; changes nothing
    Plan(Box<plan::Args>),
    /// List the generations: what each successful `init` has left
    History(history::Args),
    /// Go back to an earlier generation: its version, its flags, its certificates' names
    Rollback(rollback::Args),
    /// Remove everything that plinth made on this host
    Reset(reset::Args),
    /// Show what runs, whether it is well, and why not
    Status(status::Args),
    /// Show what a container of a static pod wrote, as kubectl does
    Logs(logs::Args),
    /// Run static pods from a directory, as a kubelet does
    Agent(Box<agent::Args>),
    /// Show what the configuration gives
    #[command(subcommand)]
    Config(config::Command),
}

/// What every command works with.
struct Context {
    printer: Printer,
    layout: Layout,
    clock: Clock,
    environment: Environment,
}

/// The environment variables that plinth reads, read once.
struct Environment {
    variables: Vec<(String, String)>,
}

impl Environment {
    fn of_process() -> Self {
        let text = |value: OsString| value.into_string().ok();
        let variables = std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?)));
        Self { variables: variables.collect() }
    }

    /// The value of `name`, unless it is empty.
    fn get(&self, name: &str) -> Option<&str> {
        let found = self.variables.iter().find(|(variable, _)| variable == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }
}

/// A command that did not succeed: what to say, and with which code to end.
struct Failure {
    exit: Exit,
    error: anyhow::Error,
    hints: Vec<String>,
}

impl Failure {
    /// Something failed on the way.
    fn failed(error: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Failed, error: error.into(), hints: Vec::new() }
    }

    /// The command line or configuration is at fault.
    fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Usage, ..Self::failed(error) }
    }

    fn with_hints(self, hints: Vec<String>) -> Self {
        Self { hints, ..self }
    }

    /// An error that brings its own hints.
    fn hinted<E: std::error::Error + Hint + Send + Sync + 'static>(error: E, exit: Exit) -> Self {
        let hints = error.hints();
        Self { exit, error: error.into(), hints }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::failed(error)
    }
}

/// How a command ended.
type Outcome = Result<Exit, Failure>;

/// Parses the command line, runs the command, tells how it went.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to clap as well; printing fails only where nobody reads it.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    let environment = Environment::of_process();
    let printer = printer(&cli, &environment);
    start_logging(&cli, &printer, &environment);
    // Fails only when one is installed already, and then that one serves as well.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();

    let context = Context { printer: printer.clone(), layout: Layout::default(), clock: Clock::system(), environment };
    let exit = match run(cli.command, &context) {
        Ok(exit) => exit,
        Err(failure) => {
            let hints: Vec<_> = failure.hints.into_iter().chain(needs_root(&failure.error)).collect();
            printer.error(failure.error.as_ref(), &hints);
            failure.exit
        }
    };
    exit.into()
}

/// What to do about a file that only root may read or write.
fn needs_root(error: &anyhow::Error) -> Option<String> {
    let denied = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::PermissionDenied);
    (denied && !nix::unistd::Uid::effective().is_root()).then(|| "run it as root: sudo plinth …".to_owned())
}

fn run(command: Command, context: &Context) -> Outcome {
    match command {
        Command::Init(args) => block_on(Threads::Many, init::run(&args, context)),
        Command::Plan(args) => block_on(Threads::Many, plan::run(&args, context)),
        Command::History(_) => history::run(context),
        Command::Rollback(args) => block_on(Threads::Many, rollback::run(&args, context)),
        Command::Reset(args) => block_on(Threads::One, reset::run(args, context)),
        Command::Logs(args) => block_on(Threads::One, logs::run(args, context)),
        Command::Status(_) => block_on(Threads::One, status::run(context)),
        // One thread does all an agent has to do, and costs the host the least.
        Command::Agent(args) => block_on(Threads::One, agent::run(*args, context)),
        Command::Config(command) => config::run(&command, context),
    }
}

#[derive(Clone, Copy)]
enum Threads {
    One,
    Many,
}

fn block_on(threads: Threads, command: impl Future<Output = Outcome>) -> Outcome {
    let mut builder = match threads {
        Threads::One => tokio::runtime::Builder::new_current_thread(),
        Threads::Many => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.enable_all().build().context("cannot start the asynchronous runtime")?;
    let outcome = runtime.block_on(command);
    // A blocked thread (a read from a terminal) must not keep the command from ending.
    runtime.shutdown_background();
    outcome
}

fn printer(cli: &Cli, environment: &Environment) -> Printer {
    let terminal = std::io::stderr().is_terminal();
    Printer::new(Mode::choose(&Surroundings {
        stderr_terminal: terminal,
        dumb_terminal: environment.get("TERM").is_none_or(|terminal| terminal == "dumb"),
        ci: environment.get("CI").is_some(),
        no_color: environment.get("NO_COLOR").is_some(),
        verbosity: match (cli.quiet, cli.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, 0) => Verbosity::Normal,
            (false, _) => Verbosity::Logs,
        },
        format: match cli.output {
            Output::Text => Format::Text,
            Output::Json => Format::Json,
        },
    }))
}

/// Logs go to stderr: those that `RUST_LOG` asks for, or those of `-v`. The agent logs without being asked.
fn start_logging(cli: &Cli, printer: &Printer, environment: &Environment) {
    let agent = u8::from(matches!(cli.command, Command::Agent(_)));
    let level = match cli.verbose + agent {
        0 => "off",
        1 => "plinth=info",
        2 => "plinth=debug,info",
        _ => "trace",
    };
    let filter = EnvFilter::new(environment.get("RUST_LOG").unwrap_or(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(printer.log_writer())
        .with_ansi(printer.mode().color)
        .with_target(false)
        .init();
}

impl Context {
    /// The engine that `DOCKER_HOST` names, or the one at Docker's usual socket. Does not connect yet.
    fn docker(&self) -> Result<Docker, Failure> {
        let docker = Docker::connect(self.environment.get("DOCKER_HOST"));
        Ok(docker.context("cannot use DOCKER_HOST").map_err(Failure::usage)?.with_credentials(self.credentials()))
    }

    /// Where credentials of registries are looked for: Docker's own file (a service may have no `HOME`), and the
    /// kubelet's.
    fn credentials(&self) -> Vec<PathBuf> {
        let home = || Path::new(self.environment.get("HOME").unwrap_or("/root")).join(".docker");
        let docker = self.environment.get("DOCKER_CONFIG").map_or_else(home, PathBuf::from);
        vec![docker.join("config.json"), PathBuf::from("/var/lib/kubelet/config.json")]
    }
}

/// What plinth has made on this host.
fn ledger(journal: &Journal) -> Result<Ledger, Failure> {
    journal.ledger().map_err(|error| Failure::hinted(error, Exit::Failed))
}

/// Completes when the user or the service manager wants the command to end.
async fn interrupted() {
    let wait = async |kind| match signal(kind) {
        Ok(mut signals) => {
            signals.recv().await;
        }
        // Without a handler the signal ends the process, which is what it asks for.
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
