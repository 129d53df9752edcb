//! Small named checks of the host, all run before any is reported.
//!
//! Facts are gathered once, at the edge ([`Facts::gather`]); every decision is a pure function over them. Names are
//! kubeadm's where it has the check, so that its documentation and habits hold; they are part of the interface.
//!
//! # Guarantees
//! - Nothing is changed, and nothing is bound, even for a moment: a check cannot disturb a cluster that runs.
//! - What is ours, by [`Ownership`], is never in the way.
//! - Every check has a hint; an error can be ignored by the check's name and is a warning then.

mod checks;
mod facts;
mod ignored;
mod images;
mod ports;
mod proxy;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use crate::clock::Clock;
use crate::cluster::survey::Survey;
use crate::config::Cluster;
use crate::error::Hint;
use crate::layout::Layout;
use crate::proc::ProcError;
use crate::release::Component;
use crate::runtime::Runtime;

pub use checks::IMAGE_PULL;
pub use facts::{
    DiskSpace, EngineFacts, Facts, HostFacts, ImagePresence, KubeletFacts, Manifests, NameResolution, disk_space,
};
pub use ignored::{IgnoreError, Ignored};
pub use images::{ImageProgress, ImagePullError, ensure_images};

use checks::{Check, IS_PRIVILEGED_USER};

/// What the checks are about.
#[derive(Debug)]
pub struct Context<'a, R> {
    /// What is to be set up.
    pub cluster: &'a Cluster,
    /// Where on the host.
    pub layout: &'a Layout,
    /// The engine.
    pub runtime: &'a R,
    /// How the engine is reached, as `DOCKER_HOST` writes it: `unix:///var/run/docker.sock`.
    pub engine_address: &'a str,
    /// What earlier runs made.
    pub owned: &'a Ownership,
    /// What time it is.
    pub clock: &'a Clock,
    /// Certificates that are there already, and the start of their validity.
    pub not_before: &'a [(PathBuf, Timestamp)],
    /// The control plane whose version is to change, if it is.
    pub upgrade: Option<&'a Upgrade>,
}

/// A control plane that is to get another version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// An earlier attempt was interrupted, the agent does not run, or the way leads back: that they are not healthy is
    /// what is to be mended.
    pub mends: bool,
    /// Components that are not healthy, each with the reason; or why none was asked.
    pub unhealthy: Result<BTreeMap<Component, String>, String>,
    /// What the API server knows; or why it does not say.
    pub survey: Result<Survey, String>,
}

/// What earlier runs made, and what therefore is not in the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ownership {
    /// Full ids of our containers.
    pub container_ids: BTreeSet<String>,
    /// The agent, where it runs. It listens beside an API server that it replaces.
    pub agent: Option<i32>,
    /// Our files and directories, as they are on the host (below the layout's root). A directory being ours says
    /// nothing of what is in it, except for etcd's data directory.
    pub paths: BTreeSet<PathBuf>,
}

impl Ownership {
    fn has_path(&self, path: &Path) -> bool {
        self.paths.contains(path)
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Goes on.
    Warning,
    /// Does not go on.
    Error,
}

/// What a check has to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the check, as `--ignore-preflight-errors` takes it.
    pub name: String,
    /// How bad it is; never an error when `ignored`.
    pub level: Level,
    /// What is wrong.
    pub message: String,
    /// What can be done about it.
    pub hint: String,
    /// It was an error, and the user said to go on all the same.
    pub ignored: bool,
}

/// In kubeadm's form: `[ERROR Port-6443]: port 6443 is in use …`.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Warning => "WARNING",
            Level::Error => "ERROR",
        };
        write!(f, "[{level} {}]: {}", self.name, self.message)
    }
}

/// What all checks have to say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Errors and warnings, in the order of the checks.
    pub findings: Vec<Finding>,
    /// Images that are not on this host, for [`ensure_images`].
    pub images_to_pull: Vec<String>,
}

impl Report {
    /// Whether it may go on.
    pub fn passed(&self) -> bool {
        self.errors() == 0
    }

    /// How many findings are errors.
    pub fn errors(&self) -> usize {
        self.findings.iter().filter(|finding| finding.level == Level::Error).count()
    }

    fn of(checks: Vec<Check>, ignored: &Ignored, images_to_pull: Vec<String>) -> Self {
        let mut findings: Vec<_> = checks.into_iter().filter_map(|check| check.finding(ignored)).collect();
        // Without root hardly anything can be told; as with kubeadm, the rest would only hide that.
        let unprivileged = |finding: &Finding| finding.name == IS_PRIVILEGED_USER && finding.level == Level::Error;
        if let Some(place) = findings.iter().position(unprivileged) {
            findings = vec![findings.swap_remove(place)];
        }
        Self { findings, images_to_pull }
    }
}

/// Why the host could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// `--ignore-preflight-errors` names what cannot be ignored.
    #[error(transparent)]
    Ignore(#[from] IgnoreError),
    /// The kernel did not tell.
    #[error("cannot look at this host")]
    Host(#[from] ProcError),
    /// The kernel did not tell its addresses.
    #[error("cannot list the addresses of this host")]
    Addresses(#[source] std::io::Error),
}

impl Hint for PreflightError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Ignore(error) => error.hints(),
            Self::Host(_) | Self::Addresses(_) => Vec::new(),
        }
    }
}

/// Runs all checks and reports them together. Errors named in `ignored` are warnings (see [`Ignored`]).
///
/// Takes some ten milliseconds, and five seconds when the engine hangs.
pub async fn run<R: Runtime>(context: &Context<'_, R>, ignored: &[String]) -> Result<Report, PreflightError> {
    let facts = Facts::gather(context).await?;
    let checks = checks::all(context.cluster, context.owned, &facts);
    let names: Vec<_> = checks.iter().map(|check| check.name.as_str()).collect();
    let ignored = Ignored::parse(ignored, &names)?;
    Ok(Report::of(checks, &ignored, facts.missing_images()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::RuntimeError;
    use crate::runtime::fake::{FakeRuntime, Op};

    fn finding(report: &Report, name: &str) -> Option<Level> {
        report.findings.iter().find(|finding| finding.name == name).map(|finding| finding.level)
    }

    async fn run_with(runtime: &FakeRuntime, ignored: &[&str]) -> Result<Report, PreflightError> {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let etcd = layout.below_root(Path::new("/var/lib/etcd"));
        std::fs::create_dir_all(etcd.join("member")).unwrap();
        std::fs::create_dir_all(layout.manifests()).unwrap();
        std::fs::write(layout.manifests().join("etcd.yaml"), "foreign").unwrap();
        std::fs::write(layout.manifests().join("kube-scheduler.yaml"), "ours").unwrap();
        let owned = Ownership {
            paths: [layout.manifests().join("kube-scheduler.yaml")].into(),
            container_ids: BTreeSet::new(),
            agent: None,
        };
        let context = Context {
            cluster: &Cluster::example(),
            layout: &layout,
            runtime,
            engine_address: "unix:///var/run/docker.sock",
            owned: &owned,
            clock: &Clock::fixed(Timestamp::UNIX_EPOCH),
            not_before: &[],
            upgrade: None,
        };
        let ignored: Vec<_> = ignored.iter().map(|name| (*name).to_owned()).collect();
        run(&context, &ignored).await
    }

    #[tokio::test]
    async fn all_checks_are_reported_together_and_named_ones_are_ignored() {
        let runtime = FakeRuntime::new(Clock::default());
        let cluster = Cluster::example();
        runtime.add_image(&cluster.image(crate::release::Component::Etcd));
        // Root is another test's concern; ignoring it lets this one run as anybody.
        let report = run_with(&runtime, &["isprivilegeduser", "Clock"]).await.unwrap();
        assert!(!report.passed());
        assert_eq!(finding(&report, "FileAvailable--etc-kubernetes-manifests-etcd.yaml"), Some(Level::Error));
        assert_eq!(finding(&report, "FileAvailable--etc-kubernetes-manifests-kube-scheduler.yaml"), None);
        assert_eq!(finding(&report, "DirAvailable--var-lib-etcd"), Some(Level::Error));
        assert_eq!(finding(&report, "Clock"), Some(Level::Warning));
        assert_eq!(report.images_to_pull.len(), 3);

        let report = run_with(&runtime, &["all"]).await.unwrap();
        assert!(report.passed());
        assert!(report.findings.iter().any(|finding| finding.ignored));
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_hangs_or_refuses_is_a_finding() {
        let runtime = FakeRuntime::new(Clock::default());
        runtime.fail_next(Op::Info, RuntimeError::Unreachable("connection refused".into()));
        let report = run_with(&runtime, &["IsPrivilegedUser"]).await.unwrap();
        let docker = report.findings.iter().find(|finding| finding.name == "Docker").unwrap();
        assert!(docker.message.contains("connection refused"), "{docker}");

        let runtime = FakeRuntime::new(Clock::default());
        runtime.set_latency(Op::Info, facts::ENGINE_TIMEOUT * 10);
        runtime.set_latency(Op::Image, facts::ENGINE_TIMEOUT * 10);
        let report = run_with(&runtime, &["IsPrivilegedUser"]).await.unwrap();
        let docker = report.findings.iter().find(|finding| finding.name == "Docker").unwrap();
        assert!(docker.message.contains("no answer within 5s"), "{docker}");
    }

    #[tokio::test]
    async fn an_unknown_name_is_an_error() {
        let error = run_with(&FakeRuntime::new(Clock::default()), &["Port-6444"]).await.unwrap_err();
        assert_eq!(error.hints(), ["did you mean `Port-6443`?"]);
    }

    #[test]
    fn without_root_only_that_is_reported() {
        let checks = || {
            vec![
                Check::new("NumCPU", "hint").error(Some("one".into())),
                Check::new(IS_PRIVILEGED_USER, "hint").error(Some("not root".into())),
            ]
        };
        let report = Report::of(checks(), &Ignored::default(), Vec::new());
        assert_eq!(report.findings.len(), 1);
        assert_eq!(report.findings[0].to_string(), "[ERROR IsPrivilegedUser]: not root");
        let ignored = Ignored::parse(&["isprivilegeduser".to_owned()], &[IS_PRIVILEGED_USER]).unwrap();
        assert_eq!(Report::of(checks(), &ignored, Vec::new()).findings.len(), 2);
    }

    #[test]
    fn a_report_is_machine_readable() {
        let check = Check::new("Swap", "switch it off").warning(Some("swap is on".into()));
        let report = Report::of(vec![check], &Ignored::default(), vec!["etcd:3".into()]);
        assert!(report.passed());
        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            serde_json::json!({
                "findings": [{
                    "name": "Swap", "level": "warning", "message": "swap is on", "hint": "switch it off",
                    "ignored": false,
                }],
                "images_to_pull": ["etcd:3"],
            })
        );
    }
}
