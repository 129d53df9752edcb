//! Where static pods come from.
//!
//! A source publishes **complete sets**: what it has now, not what changed. The agent compares. Every source reports
//! once before anything is removed.

pub mod file;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::pod::{PodKey, StaticPod};
use super::status::{Rejection, SourceStatus};

/// Everything one source has.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Published {
    /// Path or URL, the name of the source.
    pub location: String,
    /// The pods to run.
    pub pods: Vec<Arc<StaticPod>>,
    /// Files that are not run as they are, with reasons.
    pub rejected: Vec<Rejection>,
    /// Why the source cannot be read; the pods are then those it last had.
    pub problem: Option<String>,
    /// When it was read.
    pub read_at: Option<Timestamp>,
}

impl Published {
    /// For `/status`.
    pub fn status(&self) -> SourceStatus {
        SourceStatus {
            location: self.location.clone(),
            last_read_at: self.read_at,
            problem: self.problem.clone(),
            rejected: self.rejected.clone(),
        }
    }
}

/// All sources together: the first one that has a name wins, in order of the sources' locations.
pub fn merge(sources: &BTreeMap<String, Published>) -> BTreeMap<PodKey, Arc<StaticPod>> {
    let mut merged = BTreeMap::new();
    for pod in sources.values().flat_map(|source| &source.pods) {
        merged.entry(pod.key.clone()).or_insert_with(|| Arc::clone(pod));
    }
    merged
}
