//! Who leads, while a controller manager or a scheduler is exchanged.
//!
//! A component that is healthy does not work before it leads, and the one before it does not release its Lease when it
//! ends. `init` has seen it end, so it releases that Lease, and waits until the new one has it.
//!
//! # Guarantees
//! - Only a Lease that this host's instance held before the exchange is released, after its container is gone.
//! - An API server that does not answer keeps nobody from being exchanged: health alone decides then.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{Goal, Host};
use crate::cluster::lease::{Election, Holder, LeaseName};
use crate::release::Component;

/// An API server that has answered before may be away for so long.
const AWAY: Duration = Duration::from_secs(5);

/// The election of one component during its exchange.
pub(super) struct Lead {
    host_name: String,
    /// Whom to ask; or why nobody is.
    asked: Result<Election, NotAsked>,
    /// The instance of this host that has led so far.
    before: Option<String>,
    away_since: Option<Instant>,
}

/// Why nobody is asked who leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NotAsked {
    /// There is no election.
    NoElection,
    /// The API server does not answer.
    NoAnswer,
}

/// Whether the new instance leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leads {
    /// It does.
    Yes,
    /// Not yet.
    NotYet,
    /// Nobody can tell, or it is not to lead; with what is to be said of it.
    NotChecked(&'static str),
}

impl Leads {
    /// What is to be said after "is healthy".
    pub(super) fn how(self) -> &'static str {
        if self == Self::Yes { " and leads" } else { "" }
    }

    /// What is to be said at the end.
    pub(super) fn remark(self) -> &'static str {
        if let Self::NotChecked(remark) = self { remark } else { "" }
    }
}

impl Lead {
    /// Learns who leads before `component` is exchanged for `new`.
    pub(super) async fn before<R>(component: Component, new: &Pod, goal: &Goal<'_>, host: &Host<'_, R>) -> Self {
        let host_name = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let lead = |asked, before| Self { host_name: host_name.clone(), asked, before, away_since: None };
        let Some(name) = LeaseName::of(component, new) else { return lead(Err(NotAsked::NoElection), None) };
        let Some((file, kubeconfig)) = super::who_may_write(goal, host.layout) else {
            return lead(Err(NotAsked::NoAnswer), None);
        };
        let asked = async {
            let election = Election::new(file, &kubeconfig, &name).await?;
            let holder = election.holder().await?;
            Ok::<_, crate::cluster::ClusterError>((election, holder))
        };
        match asked.await {
            Ok((election, holder)) => {
                let ours = holder.filter(|holder| holder.is_on(&host_name));
                lead(Ok(election), ours.map(|holder| holder.identity))
            }
            Err(error) => {
                tracing::warn!(%component, error = &error as &dyn std::error::Error, "cannot ask who leads");
                lead(Err(NotAsked::NoAnswer), None)
            }
        }
    }

    /// There is a Lease to release as soon as its holder is dead.
    pub(super) fn is_held(&self) -> bool {
        self.asked.is_ok() && self.before.is_some()
    }

    /// Releases the Lease of the instance from before, which is dead. What cannot be released runs out.
    pub(super) async fn release(&mut self) {
        if let (Ok(election), Some(dead)) = (&self.asked, self.before.take())
            && let Err(error) = election.release(&dead).await
        {
            tracing::warn!(dead, error = &error as &dyn std::error::Error, "cannot release the Lease");
        }
    }

    /// Whether the instance that runs since `started_at` leads.
    pub(super) async fn holds(&mut self, started_at: Option<Timestamp>) -> Leads {
        let election = match &self.asked {
            Ok(election) => election,
            Err(NotAsked::NoElection) => return Leads::NotChecked(""),
            Err(NotAsked::NoAnswer) => return Leads::NotChecked(UNASKED),
        };
        match election.holder().await {
            Ok(holder) => {
                self.away_since = None;
                judge(holder.as_ref(), &self.host_name, started_at)
            }
            Err(_) if self.away_since.get_or_insert_with(Instant::now).elapsed() < AWAY => Leads::NotYet,
            Err(_) => Leads::NotChecked(UNASKED),
        }
    }
}

const UNASKED: &str = "; leading: not checked, the API server does not answer";

/// Only the instance that runs renews: what was renewed after its start is its own.
fn judge(holder: Option<&Holder>, host_name: &str, started_at: Option<Timestamp>) -> Leads {
    match holder {
        Some(holder) if !holder.is_on(host_name) => Leads::NotChecked("; an instance of another host leads"),
        Some(Holder { renewed_at: Some(at), .. }) if started_at.is_some_and(|start| *at > start) => Leads::Yes,
        _ => Leads::NotYet,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_instance_that_runs_leads() {
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let holder = |identity: &str, second| Some(Holder { identity: identity.to_owned(), renewed_at: at(second) });
        for (name, holder, expected) in [
            ("nobody", None, Leads::NotYet),
            ("the one before", holder("m_1", 9), Leads::NotYet),
            ("the new one", holder("m_2", 11), Leads::Yes),
            ("another host's", holder("n_1", 9), Leads::NotChecked("; an instance of another host leads")),
        ] {
            assert_eq!(judge(holder.as_ref(), "m", at(10)), expected, "{name}");
        }
    }
}
