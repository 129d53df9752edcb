//! Where static pods come from.
//!
//! # Guarantees
//! - A source publishes **complete sets**: what it has now, not what changed. The agent compares.
//! - A source that cannot be read goes on publishing what it last had, with the problem. Nothing of it is removed
//!   before it has been read once; the other sources are not held up by it. (A kubelet removes nothing at all before
//!   every source has answered.)

pub mod file;
pub mod http;
pub mod memory;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::pod::{PodKey, SourceKind, StaticPod};
use super::status::{Rejection, SourceStatus};

/// Everything one source has.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// What kind of source it is; an agent has at most one of each.
    pub source: SourceKind,
    /// Path, or URL without credentials and query.
    pub location: String,
    /// The pods to run.
    pub pods: Vec<Arc<StaticPod>>,
    /// Files that are not run as they are, with reasons.
    pub rejected: Vec<Rejection>,
    /// Why the source cannot be read; the pods are then those it last had.
    pub problem: Option<String>,
    /// Whether these are all its pods: it has been read since the agent started.
    pub complete: bool,
    /// When it was read.
    pub read_at: Option<Timestamp>,
}

impl Published {
    /// What is known of a source before it has been read.
    pub fn unread(source: SourceKind, location: String) -> Self {
        Self { source, location, pods: Vec::new(), rejected: Vec::new(), problem: None, complete: false, read_at: None }
    }

    /// Whether reading it was tried.
    pub fn was_tried(&self) -> bool {
        self.read_at.is_some() || self.problem.is_some()
    }

    /// For `/status`, with the pods that another source has taken.
    pub fn status(&self, shadowed: &[(SourceKind, Rejection)]) -> SourceStatus {
        let shadowed: Vec<_> =
            shadowed.iter().filter(|(source, _)| *source == self.source).map(|(_, rejection)| rejection).collect();
        SourceStatus {
            location: self.location.clone(),
            last_read_at: self.read_at,
            problem: self.problem.clone().or_else(|| (!self.was_tried()).then(|| "has not answered yet".to_owned())),
            pods: self.pods.len() - shadowed.len(),
            rejected: self.rejected.iter().chain(shadowed).cloned().collect(),
        }
    }
}

/// All sources together.
#[derive(Debug, Default)]
pub struct Merged {
    /// The pods to run.
    pub pods: BTreeMap<PodKey, Arc<StaticPod>>,
    /// Pods that are not run because one of another source has their name; with the source that has them.
    pub shadowed: Vec<(SourceKind, Rejection)>,
}

/// All sources together. Of two pods with one name that of the lesser kind runs.
pub fn merge(sources: &BTreeMap<SourceKind, Published>) -> Merged {
    let mut merged = Merged::default();
    for published in sources.values() {
        for pod in &published.pods {
            if let Some(first) = merged.pods.get(&pod.key) {
                let reason = same_name(&pod.key, &first.origin);
                merged.shadowed.push((published.source, Rejection { file: pod.origin.clone(), reason }));
            } else {
                merged.pods.insert(pod.key.clone(), Arc::clone(pod));
            }
        }
    }
    merged
}

/// Why a pod is not run although its manifest is good.
fn same_name(key: &PodKey, first: &str) -> String {
    format!("has the same pod name ({key}) as {first}")
}
