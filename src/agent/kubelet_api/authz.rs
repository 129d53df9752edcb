//! Who may ask what, decided by the API server as for a kubelet: path and method become a verb on a subresource of this
//! node, and a `SubjectAccessReview` says whether the user may. Answers are kept for a
//! while.
//!
//! # Guarantees
//! - Nothing is allowed that the API server has not allowed. While it is away only kept answers count.
//! - Running a command counts as `create`, whatever the method: by WebSocket it is a GET, and who may look at metrics
//!   (`get` on `nodes/proxy`, too) is not to be root. The API server asks the same of its own users
//!   (`AuthorizePodWebsocketUpgradeCreatePermission`); a kubelet goes by the method alone.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::Method;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReviewSpec};
use tokio::time::Instant;

use super::authn::User;
use super::reviews::Reviews;

/// How long an answer counts (kubelet: `cacheAuthorizedTTL`, `cacheUnauthorizedTTL`).
const KEPT: (Duration, Duration) = (Duration::from_mins(5), Duration::from_secs(30));
/// Answers that are kept at most.
const MOST: usize = 1024;

/// What a request is about. The subresources are asked for in turn until one is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) verb: &'static str,
    pub(super) subresources: Vec<&'static str>,
}

impl Attributes {
    /// kubelet: `GetRequestAttributes`. `path` as the routes see it: what they do not take for `/metrics` is not
    /// authorised as such.
    pub(super) fn of(method: &Method, path: &str) -> Self {
        let is = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let fine = match () {
            () if is("/allocatedPods") || is("/pods") || is("/runningpods") => Some("pods"),
            () if is("/healthz") => Some("healthz"),
            () if is("/configz") => Some("configz"),
            () => None,
        };
        let coarse = match () {
            () if is("/stats") => "stats",
            () if is("/metrics") => "metrics",
            () if is("/logs") => "log",
            () if is("/checkpoint") => "checkpoint",
            () if is("/statusz") => "statusz",
            () if is("/flagz") => "configz",
            () => "proxy",
        };
        let verb = match *method {
            _ if is("/exec") || is("/attach") || is("/run") || is("/portForward") => "create",
            Method::POST => "create",
            Method::GET => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        };
        Self { verb, subresources: fine.into_iter().chain([coarse]).collect() }
    }
}

/// Why a request is not served; the words are the kubelet's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The API server says no.
    #[error("Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)=[{}])\n", subresources.join(" "))]
    Forbidden { user: String, verb: &'static str, subresources: Vec<&'static str> },
    /// It does not say.
    #[error("Authorization error (user={user}, verb={verb}, resource=nodes, subresource={subresource})")]
    Unknown { user: String, verb: &'static str, subresource: &'static str },
}

/// Asks, and keeps the answers.
#[derive(Debug)]
pub(super) struct Authorizer {
    node: String,
    kept: Kept<(User, &'static str, &'static str), bool>,
}

impl Authorizer {
    /// For the node of this name.
    pub(super) fn new(node: &str) -> Self {
        Self { node: node.to_owned(), kept: Kept::default() }
    }

    /// Whether `user` may do what `attributes` say.
    pub(super) async fn check<V: Reviews>(
        &self,
        reviews: &V,
        user: &User,
        attributes: &Attributes,
    ) -> Result<(), Refusal> {
        let verb = attributes.verb;
        for &subresource in &attributes.subresources {
            let key = (user.clone(), verb, subresource);
            let allowed = match self.kept.get(&key) {
                Some(allowed) => allowed,
                None => match reviews.access(&self.question(user, verb, subresource)).await {
                    Ok(allowed) => {
                        self.kept.keep(key, allowed, if allowed { KEPT.0 } else { KEPT.1 });
                        allowed
                    }
                    Err(error) => {
                        tracing::warn!(user = user.name, verb, subresource, error, "cannot ask who may do this");
                        return Err(Refusal::Unknown { user: user.name.clone(), verb, subresource });
                    }
                },
            };
            if allowed {
                return Ok(());
            }
        }
        Err(Refusal::Forbidden { user: user.name.clone(), verb, subresources: attributes.subresources.clone() })
    }

    fn question(&self, user: &User, verb: &str, subresource: &str) -> SubjectAccessReviewSpec {
        SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: (!user.uid.is_empty()).then(|| user.uid.clone()),
            groups: Some(user.groups.clone()),
            extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                version: Some("v1".to_owned()),
                resource: Some("nodes".to_owned()),
                subresource: Some(subresource.to_owned()),
                name: Some(self.node.clone()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        }
    }
}

/// Answers that count for a while.
#[derive(Debug)]
pub(super) struct Kept<K, A>(Mutex<HashMap<K, (A, Instant)>>);

impl<K, A> Default for Kept<K, A> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, A: Clone> Kept<K, A> {
    pub(super) fn get(&self, key: &K) -> Option<A> {
        let answers = self.answers();
        answers.get(key).filter(|(_, until)| Instant::now() < *until).map(|(answer, _)| answer.clone())
    }

    pub(super) fn keep(&self, key: K, answer: A, period: Duration) {
        let (mut answers, now) = (self.answers(), Instant::now());
        answers.retain(|_, (_, until)| now < *until);
        if answers.len() >= MOST {
            answers.clear();
        }
        answers.insert(key, (answer, now + period));
    }

    fn answers(&self) -> MutexGuard<'_, HashMap<K, (A, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::reviews::testing::Scripted;
    use super::*;

    #[test]
    fn paths_and_methods_are_the_kubelets_attributes() {
        let (get, post, put) = (Method::GET, Method::POST, Method::PUT);
        for (method, path, verb, subresources) in [
            (&get, "/pods", "get", &["pods", "proxy"][..]),
            (&get, "/pods/", "get", &["pods", "proxy"]),
            (&get, "/podsx", "get", &["proxy"]),
            (&get, "/runningpods/", "get", &["pods", "proxy"]),
            (&get, "/runningpods", "get", &["pods", "proxy"]),
            (&get, "/allocatedPods", "get", &["pods", "proxy"]),
            (&get, "/healthz", "get", &["healthz", "proxy"]),
            (&get, "/healthz/syncloop", "get", &["healthz", "proxy"]),
            (&get, "/configz", "get", &["configz", "proxy"]),
            (&get, "/metrics", "get", &["metrics"]),
            (&get, "/metrics/cadvisor", "get", &["metrics"]),
            (&get, "/stats/summary", "get", &["stats"]),
            (&get, "/logs/", "get", &["log"]),
            (&get, "/logs", "get", &["log"]),
            (&post, "/checkpoint/ns/p/c", "create", &["checkpoint"]),
            (&get, "/statusz", "get", &["statusz"]),
            (&get, "/flagz", "get", &["configz"]),
            (&get, "/containerLogs/ns/p/c", "get", &["proxy"]),
            (&put, "/debug/flags/v", "update", &["proxy"]),
            (&Method::PATCH, "/", "patch", &["proxy"]),
            (&Method::DELETE, "/", "delete", &["proxy"]),
            (&Method::HEAD, "/", "", &["proxy"]),
            // Not as a kubelet: these are no reading.
            (&get, "/exec/ns/p/c", "create", &["proxy"]),
            (&get, "/attach/ns/p/c", "create", &["proxy"]),
            (&get, "/portForward/ns/p", "create", &["proxy"]),
            (&post, "/run/ns/p/c", "create", &["proxy"]),
        ] {
            let expected = Attributes { verb, subresources: subresources.to_vec() };
            assert_eq!(Attributes::of(method, path), expected, "{method} {path}");
        }
    }

    fn user(name: &str) -> User {
        User { name: name.to_owned(), groups: vec!["g".to_owned()], ..User::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn one_subresource_will_do_and_answers_are_kept() {
        let (authorizer, reviews) = (Authorizer::new("node-1"), Arc::new(Scripted::default()));
        reviews.allow("u", "get", "proxy");
        let attributes = Attributes::of(&Method::GET, "/pods");
        let (one, other) = (user("u"), user("v"));
        assert_eq!(authorizer.check(&reviews, &one, &attributes).await, Ok(()));
        assert_eq!(reviews.asked(), ["u get nodes/pods of node-1", "u get nodes/proxy of node-1"]);
        let refusal = authorizer.check(&reviews, &other, &attributes).await.unwrap_err();
        assert_eq!(refusal.to_string(), "Forbidden (user=v, verb=get, resource=nodes, subresource(s)=[pods proxy])\n");
        reviews.asked();

        // Away: what was allowed is for five minutes, what was refused for half a minute.
        reviews.set_away(true);
        tokio::time::advance(Duration::from_secs(29)).await;
        let refused = authorizer.check(&reviews, &other, &attributes).await;
        assert!(matches!(refused, Err(Refusal::Forbidden { .. })), "{refused:?}");
        tokio::time::advance(Duration::from_secs(2)).await;
        for user in [&one, &other] {
            let refused = authorizer.check(&reviews, user, &attributes).await.unwrap_err();
            let text = format!("Authorization error (user={}, verb=get, resource=nodes, subresource=pods)", user.name);
            assert_eq!(refused.to_string(), text);
        }
        // `nodes/proxy` alone is what containerLogs needs.
        let logs = Attributes::of(&Method::GET, "/containerLogs/a/b/c");
        assert_eq!(authorizer.check(&reviews, &one, &logs).await, Ok(()));
        tokio::time::advance(Duration::from_secs(270)).await;
        assert!(matches!(authorizer.check(&reviews, &one, &logs).await, Err(Refusal::Unknown { .. })));
        // Same name, other groups: another user.
        reviews.set_away(false);
        assert_eq!(authorizer.check(&reviews, &one, &logs).await, Ok(()));
        reviews.set_away(true);
        let namesake = User { groups: Vec::new(), ..user("u") };
        assert!(authorizer.check(&reviews, &namesake, &logs).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_bounded() {
        let kept = Kept::default();
        for key in 0..3 * MOST {
            kept.keep(key, (), Duration::from_mins(5));
            assert!(kept.answers().len() <= MOST);
            assert!(kept.get(&key).is_some());
        }
        tokio::time::advance(Duration::from_mins(5)).await;
        kept.keep(0, (), Duration::from_secs(1));
        assert_eq!(kept.answers().len(), 1);
    }
}
