//! What only the API server knows: whom a bearer token belongs to, and what a user may do.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::authn::User;
use crate::cluster::connection::Connection;

/// How long one question may take. Somebody waits for it.
const ASK: Duration = Duration::from_secs(10);

/// Asks the API server. An error is why it has not answered.
pub(super) trait Reviews: Send + Sync + 'static {
    /// Whether it allows this.
    fn access(&self, question: &SubjectAccessReviewSpec) -> impl Future<Output = Result<bool, String>> + Send;
    /// Whose token this is; `None` for one that is none.
    fn token(&self, token: &str) -> impl Future<Output = Result<Option<User>, String>> + Send;
}

/// Questions at the same time.
const AT_ONCE: usize = 8;

/// Asks no more than [`AT_ONCE`] at the same time: anybody who reaches the port can cause questions.
#[derive(Debug, Clone)]
pub(super) struct Few<V> {
    reviews: V,
    slots: Arc<Semaphore>,
}

impl<V: Reviews> Few<V> {
    /// Asks with `reviews`.
    pub(super) fn new(reviews: V) -> Self {
        Self { reviews, slots: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    async fn in_turn<T>(&self, question: impl Future<Output = Result<T, String>> + Send) -> Result<T, String> {
        match timeout(ASK, self.slots.acquire()).await {
            Ok(_turn) => question.await,
            Err(_) => Err("too many questions wait".to_owned()),
        }
    }
}

impl<V: Reviews> Reviews for Few<V> {
    async fn access(&self, question: &SubjectAccessReviewSpec) -> Result<bool, String> {
        self.in_turn(self.reviews.access(question)).await
    }

    async fn token(&self, token: &str) -> Result<Option<User>, String> {
        self.in_turn(self.reviews.token(token)).await
    }
}

/// With the node's own credentials: the Node authorizer lets it ask both (system:node).
impl Reviews for Arc<Connection> {
    async fn access(&self, question: &SubjectAccessReviewSpec) -> Result<bool, String> {
        let review =
            SubjectAccessReview { metadata: ObjectMeta::default(), spec: question.clone(), ..Default::default() };
        let status = create(self, &review).await?.status.unwrap_or_default();
        Ok(status.allowed && status.denied != Some(true))
    }

    async fn token(&self, token: &str) -> Result<Option<User>, String> {
        let spec = TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() };
        let review = TokenReview { metadata: ObjectMeta::default(), spec, ..Default::default() };
        let status = create(self, &review).await?.status.unwrap_or_default();
        Ok(status.user.filter(|_| status.authenticated == Some(true)).map(of_info))
    }
}

fn of_info(info: UserInfo) -> User {
    User {
        name: info.username.unwrap_or_default(),
        groups: info.groups.unwrap_or_default(),
        uid: info.uid.unwrap_or_default(),
        extra: info.extra.unwrap_or_default(),
    }
}

async fn create<K>(connection: &Connection, review: &K) -> Result<K, String>
where
    K: kube::Resource<DynamicType = ()> + serde::Serialize + serde::de::DeserializeOwned + Clone + std::fmt::Debug,
{
    let asked = async {
        let client = connection.client().await.map_err(|error| error.to_string())?;
        Api::all(client).create(&PostParams::default(), review).await.map_err(|error| error.to_string())
    };
    match timeout(ASK, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", ASK.as_secs())),
    }
}

#[cfg(test)]
pub(super) mod testing {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Mutex;

    use super::*;

    /// An API server that says what a test told it.
    #[derive(Default)]
    pub(in super::super) struct Scripted {
        allowed: Mutex<BTreeSet<(String, String, String)>>,
        tokens: Mutex<BTreeMap<String, User>>,
        away: Mutex<bool>,
        asked: Mutex<Vec<String>>,
    }

    impl Scripted {
        pub(in super::super) fn allow(&self, user: &str, verb: &str, subresource: &str) {
            self.allowed.lock().unwrap().insert((user.to_owned(), verb.to_owned(), subresource.to_owned()));
        }

        pub(in super::super) fn know(&self, token: &str, user: User) {
            self.tokens.lock().unwrap().insert(token.to_owned(), user);
        }

        pub(in super::super) fn set_away(&self, away: bool) {
            *self.away.lock().unwrap() = away;
        }

        /// What it was asked since the last time.
        pub(in super::super) fn asked(&self) -> Vec<String> {
            std::mem::take(&mut self.asked.lock().unwrap())
        }

        fn answer<T>(&self, question: String, answer: impl FnOnce() -> T) -> Result<T, String> {
            self.asked.lock().unwrap().push(question);
            if *self.away.lock().unwrap() { Err("connection refused".to_owned()) } else { Ok(answer()) }
        }
    }

    impl Reviews for Arc<Scripted> {
        async fn access(&self, question: &SubjectAccessReviewSpec) -> Result<bool, String> {
            let user = question.user.clone().unwrap();
            let asked = question.resource_attributes.clone().unwrap();
            let [verb, resource, subresource, name] =
                [asked.verb, asked.resource, asked.subresource, asked.name].map(Option::unwrap);
            let text = format!("{user} {verb} {resource}/{subresource} of {name}");
            let allowed = self.allowed.lock().unwrap();
            self.answer(text, || allowed.contains(&(user, verb, subresource)))
        }

        async fn token(&self, token: &str) -> Result<Option<User>, String> {
            self.answer(format!("token {token}"), || self.tokens.lock().unwrap().get(token).cloned())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use futures_util::future::join_all;
    use tokio::time::sleep;

    use super::*;

    /// Takes its time, and keeps how many it was asked at once.
    #[derive(Default)]
    struct Slow {
        now: AtomicUsize,
        most: AtomicUsize,
    }

    impl Reviews for Arc<Slow> {
        async fn access(&self, _: &SubjectAccessReviewSpec) -> Result<bool, String> {
            Ok(self.token("").await?.is_some())
        }

        async fn token(&self, _: &str) -> Result<Option<User>, String> {
            self.most.fetch_max(self.now.fetch_add(1, SeqCst) + 1, SeqCst);
            sleep(ASK.mul_f32(0.4)).await;
            self.now.fetch_sub(1, SeqCst);
            Ok(None)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn few_are_asked_at_once_and_nobody_waits_for_ever() {
        let slow = Arc::new(Slow::default());
        let few = Few::new(Arc::clone(&slow));
        let answers = join_all((0..5 * AT_ONCE).map(|_| few.token("t"))).await;
        // Three rounds begin within the time.
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 3 * AT_ONCE);
        assert_eq!(slow.most.load(SeqCst), AT_ONCE);
    }
}
