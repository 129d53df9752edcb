//! Waiting for several components at once.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, sleep_until};

use super::check::{Checker, Unhealthy};
use crate::release::Component;

/// The pause between an answer and the next question to the same component.
pub const POLL: Duration = Duration::from_millis(20);

/// What [`wait`] reports while it waits: each change, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Not healthy, for a reason that is not the one before.
    Waiting {
        /// Who.
        component: Component,
        /// Why.
        reason: &'a Unhealthy,
    },
    /// Healthy; not asked again.
    Healthy(Healthy),
}

/// A component that became healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Healthy {
    /// Who.
    pub component: Component,
    /// How long after the wait began.
    pub after: Duration,
}

/// A component that is not healthy, with the last reason seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Who.
    pub component: Component,
    /// Why, when last asked.
    pub reason: Unhealthy,
}

/// How a wait ended when not with everything healthy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unmet<A> {
    /// The deadline came.
    #[error("not healthy within {} s: {}", after.as_secs(), list(unhealthy))]
    TimedOut {
        /// How long was waited.
        after: Duration,
        /// Those that became healthy in time.
        healthy: Vec<Healthy>,
        /// Those that did not, in the order given.
        unhealthy: Vec<Waiting>,
    },
    /// The caller's future ended first.
    #[error("gave up waiting for {}", list(unhealthy))]
    Aborted {
        /// What the caller's future gave.
        by: A,
        /// Those that became healthy before.
        healthy: Vec<Healthy>,
        /// Those that did not, in the order given.
        unhealthy: Vec<Waiting>,
    },
}

fn list(unhealthy: &[Waiting]) -> String {
    let lines: Vec<_> = unhealthy.iter().map(|w| format!("{}: {}", w.component, w.reason)).collect();
    lines.join("; ")
}

/// Waits until every component is healthy, each asked again `poll` after its last answer, all of them at once.
///
/// Ends early when `abort` does (Ctrl-C, a rejected manifest); pass [`std::future::pending`] to never give up before
/// the deadline, which is `within` from now. Returns the components in the order in which they became healthy.
pub async fn wait<A>(
    checkers: &[Checker],
    within: Duration,
    poll: Duration,
    abort: impl Future<Output = A>,
    on_change: impl FnMut(Progress<'_>),
) -> Result<Vec<Healthy>, Unmet<A>> {
    let components: Vec<_> = checkers.iter().map(Checker::component).collect();
    let check = async |index: usize| checkers[index].check().await;
    poll_all(&components, check, within, poll, abort, on_change).await
}

async fn poll_all<A>(
    components: &[Component],
    check: impl AsyncFn(usize) -> Result<(), Unhealthy>,
    within: Duration,
    poll: Duration,
    abort: impl Future<Output = A>,
    mut on_change: impl FnMut(Progress<'_>),
) -> Result<Vec<Healthy>, Unmet<A>> {
    let start = Instant::now();
    let mut deadline = pin!(sleep_until(start + within));
    let mut abort = pin!(abort);
    let mut healthy = Vec::new();
    let mut waiting: Vec<_> = components.iter().map(|_| Some(Unhealthy::NotAsked)).collect();

    let ask = async |index: usize, pause: Duration| {
        if !pause.is_zero() {
            sleep(pause).await;
        }
        (index, check(index).await)
    };
    let mut questions: FuturesUnordered<_> = (0..components.len()).map(|index| ask(index, Duration::ZERO)).collect();

    let unhealthy = |waiting: Vec<Option<Unhealthy>>| {
        components
            .iter()
            .zip(waiting)
            .filter_map(|(component, reason)| Some(Waiting { component: *component, reason: reason? }))
            .collect()
    };
    loop {
        let answer = tokio::select! {
            // A component that becomes healthy at the last moment is healthy.
            biased;
            answer = questions.next() => answer,
            by = &mut abort => return Err(Unmet::Aborted { by, healthy, unhealthy: unhealthy(waiting) }),
            () = &mut deadline => {
                return Err(Unmet::TimedOut { after: within, healthy, unhealthy: unhealthy(waiting) });
            }
        };
        let Some((index, answer)) = answer else { return Ok(healthy) };
        let component = components[index];
        match answer {
            Ok(()) => {
                let now = Healthy { component, after: start.elapsed() };
                waiting[index] = None;
                healthy.push(now);
                on_change(Progress::Healthy(now));
            }
            Err(reason) => {
                if waiting[index].as_ref() != Some(&reason) {
                    on_change(Progress::Waiting { component, reason: &reason });
                    waiting[index] = Some(reason);
                }
                questions.push(ask(index, poll));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    const ETCD: Component = Component::Etcd;
    const API: Component = Component::KubeApiserver;

    fn status(failing: &[&str]) -> Unhealthy {
        let failing = failing.iter().map(|name| (*name).to_owned()).collect();
        Unhealthy::Status { path: "/readyz".into(), status: 500, failing }
    }

    /// etcd is healthy after 100 ms; the API server after 1 s, with two failing checks until 0.5 s and one after it.
    fn scripted(index: usize, start: Instant) -> Result<(), Unhealthy> {
        let age = start.elapsed().as_millis();
        match (index, age) {
            (0, 100..) | (1, 1000..) => Ok(()),
            (0, _) | (1, 0..100) => Err(Unhealthy::Refused),
            (_, ..500) => Err(status(&["etcd", "poststarthook/rbac/bootstrap-roles"])),
            _ => Err(status(&["poststarthook/rbac/bootstrap-roles"])),
        }
    }

    async fn run<A>(within: Duration, abort: impl Future<Output = A>) -> (Result<Vec<Healthy>, Unmet<A>>, Vec<String>) {
        let start = Instant::now();
        let mut seen = Vec::new();
        let result = poll_all(
            &[ETCD, API],
            async |i| scripted(i, start),
            within,
            POLL,
            abort,
            |progress| {
                seen.push(match progress {
                    Progress::Waiting { component, reason } => format!("{component}: {reason}"),
                    Progress::Healthy(Healthy { component, after }) => format!("{component}: {} ms", after.as_millis()),
                });
            },
        )
        .await;
        (result, seen)
    }

    #[tokio::test(start_paused = true)]
    async fn every_change_is_reported_once() {
        let (result, seen) = run(Duration::from_secs(5), pending::<()>()).await;
        let order: Vec<_> = result.unwrap().iter().map(|h| (h.component, h.after.as_millis())).collect();
        assert_eq!(order, [(ETCD, 100), (API, 1000)]);
        assert_eq!(seen.len(), 6);
        assert_eq!(
            seen[2..],
            [
                "etcd: 100 ms",
                "kube-apiserver: /readyz 500: etcd, poststarthook/rbac/bootstrap-roles",
                "kube-apiserver: /readyz 500: poststarthook/rbac/bootstrap-roles",
                "kube-apiserver: 1000 ms",
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_tells_who_is_missing_and_why() {
        let (result, _) = run(Duration::from_millis(700), pending::<()>()).await;
        let error = result.unwrap_err();
        assert_eq!(
            error.to_string(),
            "not healthy within 0 s: kube-apiserver: /readyz 500: poststarthook/rbac/bootstrap-roles"
        );
        let Unmet::TimedOut { healthy, unhealthy, .. } = error else { panic!("{error:?}") };
        assert_eq!((healthy[0].component, unhealthy[0].component), (ETCD, API));
        assert_eq!((healthy.len(), unhealthy.len()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_caller_can_end_the_wait() {
        let start = Instant::now();
        let abort = async {
            sleep(Duration::from_millis(50)).await;
            "interrupted"
        };
        let (result, _) = run(Duration::from_secs(5), abort).await;
        let Err(Unmet::Aborted { by, unhealthy, .. }) = result else { panic!("{result:?}") };
        assert_eq!((by, unhealthy.len()), ("interrupted", 2));
        assert_eq!(start.elapsed().as_millis(), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_hangs_does_not_outlive_the_deadline() {
        let hang = async |_| pending().await;
        let within = Duration::from_secs(2);
        let result = poll_all(&[API], hang, within, POLL, pending::<()>(), |_| {}).await;
        let Err(Unmet::TimedOut { unhealthy, .. }) = result else { panic!("{result:?}") };
        assert_eq!(unhealthy, [Waiting { component: API, reason: Unhealthy::NotAsked }]);
    }

    #[tokio::test]
    async fn nothing_to_wait_for_is_done() {
        let done = wait(&[], Duration::ZERO, POLL, pending::<()>(), |_| {}).await;
        assert_eq!(done, Ok(vec![]));
    }
}
