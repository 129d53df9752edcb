//! A plan that is kept in a file, to be performed as it was shown.
//!
//! The file says what was asked for, what was seen of the host and what came of it. Nothing secret that plinth makes is
//! in it: certificates and keys are named, and files of the host are there as checksums. What a user put into the
//! configuration (`extraEnvs`) is, so its mode is 0600.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{EtcdData, Found, Observed, Plan, Standing};
use crate::error::Hint;
use crate::fsx::{self, FsError};
use crate::manifests::Manifest;
use crate::release::Component;

/// What the file calls itself.
const KIND: &str = "plinth-plan";

/// Version of the format. Another one is refused: a plan is made to be performed soon, by the same plinth.
const VERSION: u32 = 1;

/// Mode of the file.
const MODE: u32 = 0o600;

/// The plan file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanFileError {
    /// It cannot be read or written.
    #[error(transparent)]
    File(#[from] FsError),
    /// It is no plan.
    #[error("`{}` is not a plan of plinth", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// It is of another format.
    #[error("`{}` is a plan of format {found}; this plinth reads format {VERSION}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Another plinth made it.
    #[error("the plan was made by plinth {made_by}, and this is {this}")]
    OtherPlinth {
        /// Which.
        made_by: String,
        /// This one.
        this: &'static str,
    },
    /// The host is not as it was when the plan was made.
    #[error("the host has changed since the plan was made: {}", what.join("; "))]
    HostChanged {
        /// What has.
        what: Vec<String>,
    },
    /// The host is as it was, and something else would be done.
    #[error("the plan no longer fits: {}", what.join("; "))]
    OtherPlan {
        /// What is not as the plan has it.
        what: Vec<String>,
    },
}

impl Hint for PlanFileError {
    fn hints(&self) -> Vec<String> {
        vec!["make a new one with `plinth plan --out FILE`, and look at it".to_owned()]
    }
}

/// A plan with all that it depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanFile {
    kind: String,
    version: u32,
    /// Version of the plinth that made it.
    plinth: String,
    /// When.
    made_at: Timestamp,
    /// The configuration that is asked for, in kubeadm's format.
    pub config: String,
    /// See [`crate::config::Cluster::version_pinned`].
    pub version_pinned: bool,
    /// Phases to leave out.
    pub skip_phases: Vec<String>,
    /// Preflight checks whose errors are only warnings.
    pub ignore_preflight_errors: Vec<String>,
    /// See [`super::Desired::renew`].
    pub renew: bool,
    /// Checksums of the manifests that the configuration gives on this host.
    manifests: BTreeMap<Component, String>,
    /// What was seen of the host, by name.
    observed: BTreeMap<String, String>,
    plan: Value,
}

/// What a plan is made from, beside the host.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The configuration, in kubeadm's format.
    pub config: &'a str,
    /// See [`crate::config::Cluster::version_pinned`].
    pub version_pinned: bool,
    /// The manifests that it gives.
    pub manifests: &'a [Manifest],
    /// Phases to leave out.
    pub skip_phases: &'a [String],
    /// Preflight checks whose errors are only warnings.
    pub ignore_preflight_errors: &'a [String],
    /// See [`super::Desired::renew`].
    pub renew: bool,
}

impl PlanFile {
    /// `plan`, made from `inputs` and `observed`.
    pub fn new(inputs: &Inputs<'_>, observed: &Observed, plan: &Plan, made_at: Timestamp) -> Self {
        Self {
            kind: KIND.to_owned(),
            version: VERSION,
            plinth: env!("CARGO_PKG_VERSION").to_owned(),
            made_at,
            config: inputs.config.to_owned(),
            version_pinned: inputs.version_pinned,
            skip_phases: inputs.skip_phases.to_vec(),
            ignore_preflight_errors: inputs.ignore_preflight_errors.to_vec(),
            renew: inputs.renew,
            manifests: checksums(inputs.manifests),
            observed: facts(observed),
            plan: value(plan),
        }
    }

    /// Writes it to `path`, 0600.
    pub fn write(&self, path: &Path) -> Result<(), PlanFileError> {
        // Plain data with string keys: writing it as JSON cannot fail.
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        Ok(fsx::write_atomic(path, text.as_bytes(), MODE)?)
    }

    /// Reads the plan in `path`, which this plinth made.
    pub fn read(path: &Path) -> Result<Self, PlanFileError> {
        #[derive(Deserialize)]
        struct Header {
            version: u32,
        }
        let text = fsx::read(path)?;
        let malformed = |source| PlanFileError::Malformed { path: path.to_owned(), source };
        let Header { version } = serde_json::from_slice(&text).map_err(malformed)?;
        if version != VERSION {
            return Err(PlanFileError::Format { path: path.to_owned(), found: version });
        }
        let file: Self = serde_json::from_slice(&text).map_err(malformed)?;
        if file.plinth != env!("CARGO_PKG_VERSION") {
            return Err(PlanFileError::OtherPlinth { made_by: file.plinth, this: env!("CARGO_PKG_VERSION") });
        }
        Ok(file)
    }

    /// Whether `plan`, made just now from `inputs` and `observed`, is this one.
    pub fn check(&self, inputs: &Inputs<'_>, observed: &Observed, plan: &Plan) -> Result<(), PlanFileError> {
        let now = Self::new(inputs, observed, plan, self.made_at);
        let what = differing(&self.observed, &now.observed);
        if !what.is_empty() {
            return Err(PlanFileError::HostChanged { what });
        }
        let mut what: Vec<_> = differing(&self.manifests, &now.manifests)
            .into_iter()
            .map(|component| format!("the manifest of {component} is another one"))
            .collect();
        if self.config != now.config || self.version_pinned != now.version_pinned {
            what.push("the configuration is another one".to_owned());
        }
        if what.is_empty() && self.plan != now.plan {
            what.push("other steps follow from it".to_owned());
        }
        if what.is_empty() { Ok(()) } else { Err(PlanFileError::OtherPlan { what }) }
    }
}

/// Names of what is not the same in both.
fn differing<K: Ord + ToString>(one: &BTreeMap<K, String>, other: &BTreeMap<K, String>) -> Vec<String> {
    let keys: std::collections::BTreeSet<_> = one.keys().chain(other.keys()).collect();
    keys.into_iter().filter(|key| one.get(key) != other.get(key)).map(ToString::to_string).collect()
}

fn value(plan: &Plan) -> Value {
    // Plain data with string keys: writing it as JSON cannot fail.
    serde_json::to_value(plan).unwrap_or_default()
}

fn checksums(manifests: &[Manifest]) -> BTreeMap<Component, String> {
    manifests.iter().map(|manifest| (manifest.component, checksum(&manifest.yaml))).collect()
}

/// SHA-256, hexadecimal.
pub(super) fn checksum(content: &str) -> String {
    digest::digest(&digest::SHA256, content.as_bytes()).as_ref().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// All of `observed` by names that people understand, in short. What a component says of why it is not healthy changes
/// by the second; that it is not counts.
fn facts(observed: &Observed) -> BTreeMap<String, String> {
    let Observed {
        standing,
        credentials,
        manifests,
        etcd_data,
        agent_runs,
        agent_outdated,
        agent_starts_at_boot,
        unhealthy,
        has_containers,
        running,
        cluster_admins,
        node,
        node_kubeconfig,
        etcd_swap,
        // What is free changes by the second; whether it is enough is in the plan.
        etcd_copy: _,
    } = observed;
    let mut facts = BTreeMap::from([
        (
            "the last init".to_owned(),
            match standing {
                Standing::New => "none".to_owned(),
                Standing::Unfinished => "unfinished".to_owned(),
                Standing::Committed(generation) => format!("generation {}", generation.number),
            },
        ),
        (
            "etcd's data".to_owned(),
            match etcd_data {
                EtcdData::Empty => "empty",
                EtcdData::Ours => "ours",
                EtcdData::Foreign => "foreign",
            }
            .to_owned(),
        ),
        ("whether the agent runs".to_owned(), agent_runs.to_string()),
        ("the agent's build and arguments".to_owned(), agent_outdated.unwrap_or("as they should be").to_owned()),
        ("whether a boot starts the agent".to_owned(), agent_starts_at_boot.to_string()),
        ("whether there are containers".to_owned(), has_containers.to_string()),
        ("the rights of admin.conf".to_owned(), format!("{cluster_admins:?}")),
        ("the Node of this host".to_owned(), format!("{node:?}, kubelet.conf: {}", node_kubeconfig.is_some())),
        (
            "a swap of etcd that has not ended".to_owned(),
            etcd_swap.as_ref().map_or_else(|| "none".to_owned(), |swap| format!("{}, {:?}", swap.id, swap.course)),
        ),
    ]);
    facts.extend(credentials.iter().map(|(item, found)| {
        let state = match found {
            Found::Good { can_sign, other_server, as_committed: _ } => {
                format!("good, signs: {can_sign}, {}", other_server.as_deref().unwrap_or("leads here"))
            }
            Found::Bad { reason, .. } => reason.clone(),
        };
        ((*item).to_owned(), state)
    }));
    for component in Component::ALL {
        let healthy = !unhealthy.contains_key(&component);
        let runs = running.contains(&component);
        facts.insert(format!("the state of {component}"), format!("runs: {runs}, healthy: {healthy}"));
        if let Some(manifest) = manifests.get(&component) {
            let state = format!("{} {}", if manifest.ours { "ours" } else { "foreign" }, checksum(&manifest.content));
            facts.insert(manifest.path.display().to_string(), state);
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::super::tests::{committed, desired, empty, manifest, whole};
    use super::*;
    use crate::plan::Step;

    fn inputs(manifests: &[Manifest]) -> Inputs<'_> {
        Inputs {
            config: "c\n",
            version_pinned: false,
            manifests,
            skip_phases: &[],
            ignore_preflight_errors: &[],
            renew: true,
        }
    }

    fn plan() -> Plan {
        Plan { steps: vec![Step::StartAgent], ..Plan::default() }
    }

    #[test]
    fn a_plan_comes_back_from_its_file_and_fits_the_host_it_was_made_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plan.json");
        let manifests = desired();
        let file = PlanFile::new(&inputs(&manifests), &whole(committed()), &plan(), Timestamp::UNIX_EPOCH);
        file.write(&path).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o7777, 0o600);
        let read = PlanFile::read(&path).unwrap();
        assert_eq!(read, file);
        read.check(&inputs(&manifests), &whole(committed()), &plan()).unwrap();
    }

    #[test]
    fn what_has_changed_since_is_named() {
        let manifests = desired();
        let file = PlanFile::new(&inputs(&manifests), &whole(committed()), &plan(), Timestamp::UNIX_EPOCH);
        let mut changed = whole(committed());
        changed.agent_runs = false;
        changed.credentials.remove("certs/apiserver");
        changed.manifests.insert(Component::KubeApiserver, manifest("edited\n", true));
        changed.unhealthy.insert(Component::KubeScheduler, "connection refused".to_owned());
        let error = file.check(&inputs(&manifests), &changed, &plan()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the host has changed since the plan was made: /m.yaml; certs/apiserver; the state of kube-scheduler; \
             whether the agent runs"
        );
        // Another reason for the same is no change.
        let file = PlanFile::new(&inputs(&manifests), &changed, &plan(), Timestamp::UNIX_EPOCH);
        changed.unhealthy.insert(Component::KubeScheduler, "no answer".to_owned());
        file.check(&inputs(&manifests), &changed, &plan()).unwrap();
    }

    #[test]
    fn another_configuration_or_outcome_on_the_same_host_is_refused() {
        let manifests = desired();
        let file = PlanFile::new(&inputs(&manifests), &empty(), &plan(), Timestamp::UNIX_EPOCH);
        let error = file.check(&inputs(&manifests[1..]), &empty(), &plan()).unwrap_err();
        assert_eq!(error.to_string(), "the plan no longer fits: the manifest of etcd is another one");
        let error = file.check(&Inputs { config: "d\n", ..inputs(&manifests) }, &empty(), &plan()).unwrap_err();
        assert_eq!(error.to_string(), "the plan no longer fits: the configuration is another one");
        let error = file.check(&inputs(&manifests), &empty(), &Plan::default()).unwrap_err();
        assert_eq!(error.to_string(), "the plan no longer fits: other steps follow from it");
    }

    #[test]
    fn a_file_that_is_no_plan_of_this_plinth_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plan.json");
        let manifests = desired();
        let file = PlanFile::new(&inputs(&manifests), &empty(), &plan(), Timestamp::UNIX_EPOCH);
        let mut other = serde_json::to_value(&file).unwrap();
        other["plinth"] = "0.0.9".into();
        let mut newer = serde_json::to_value(&file).unwrap();
        newer["version"] = 2.into();
        for (text, expected) in [
            ("{".to_owned(), "is not a plan of plinth"),
            ("{\"version\": 1}".to_owned(), "is not a plan of plinth"),
            (other.to_string(), "the plan was made by plinth 0.0.9"),
            (newer.to_string(), "is a plan of format 2"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = PlanFile::read(&path).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
