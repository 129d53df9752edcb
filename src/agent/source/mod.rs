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
    /// What is worth knowing although it was read.
    pub remark: Option<String>,
    /// Whether these are all its pods: it has been read since the agent started.
    pub complete: bool,
    /// When it was read.
    pub read_at: Option<Timestamp>,
}

impl Published {
    /// What is known of a source before it has been read.
    pub fn unread(source: SourceKind, location: String) -> Self {
        Self {
            source,
            location,
            pods: Vec::new(),
            rejected: Vec::new(),
            problem: None,
            remark: None,
            complete: false,
            read_at: None,
        }
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
    /// Pods that are not run because one of another source has their name or UID; with the source that has them.
    pub shadowed: Vec<(SourceKind, Rejection)>,
}

/// All sources together. Of two pods with one name or UID that of the lesser kind runs.
pub fn merge(sources: &BTreeMap<SourceKind, Published>) -> Merged {
    let mut merged = Merged::default();
    let mut taken = Taken::default();
    for published in sources.values() {
        for pod in &published.pods {
            match taken.take(pod, &pod.origin) {
                Ok(()) => _ = merged.pods.insert(pod.key.clone(), Arc::clone(pod)),
                Err(reason) => {
                    merged.shadowed.push((published.source, Rejection { file: pod.origin.clone(), reason }));
                }
            }
        }
    }
    merged
}

/// What no two pods can share, with the origin of the pod that came first. A UID is also the name of a directory.
#[derive(Default)]
struct Taken {
    names: BTreeMap<PodKey, String>,
    uids: BTreeMap<String, String>,
}

impl Taken {
    /// Takes name and UID of `pod`, which comes from `origin`; or says why it is not run although its manifest is good.
    fn take(&mut self, pod: &StaticPod, origin: &str) -> Result<(), String> {
        if let Some(first) = self.names.get(&pod.key) {
            return Err(format!("has the same pod name ({}) as {first}", pod.key));
        }
        if let Some(first) = self.uids.get(&pod.uid) {
            return Err(format!("has the same metadata.uid as {first}"));
        }
        self.names.insert(pod.key.clone(), origin.to_owned());
        self.uids.insert(pod.uid.clone(), origin.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::pod::Origin;
    use super::*;

    fn published(source: SourceKind, origin: Origin<'_>, name: &str, uid: &str) -> Published {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, uid: {uid}}}\nspec: {{containers: [{{name: c, image: i}}]}}\n"
        );
        let pods = vec![Arc::new(StaticPod::read(&text, origin, "n").unwrap())];
        Published { pods, ..Published::unread(source, String::new()) }
    }

    #[test]
    fn of_two_sources_with_one_name_or_uid_the_file_wins() {
        for (name, uid, expected) in [
            ("a", "u2", Some("has the same pod name (default/a-n) as /m/a")),
            ("b", "u1", Some("has the same metadata.uid as /m/a")),
            ("a", "u1", Some("has the same pod name (default/a-n) as /m/a")),
            ("b", "u2", None),
        ] {
            let web = published(SourceKind::Http, Origin::Url("http://h/"), name, uid);
            let file = published(SourceKind::File, Origin::File("/m/a".as_ref()), "a", "u1");
            let merged = merge(&BTreeMap::from([(SourceKind::Http, web), (SourceKind::File, file)]));
            let shadowed: Vec<_> = merged.shadowed.iter().map(|(source, one)| (*source, one.reason.as_str())).collect();
            assert_eq!(shadowed, expected.map(|reason| (SourceKind::Http, reason)).into_iter().collect::<Vec<_>>());
            assert_eq!(merged.pods.len(), if expected.is_some() { 1 } else { 2 }, "{name} {uid}");
        }
    }
}
