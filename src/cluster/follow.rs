//! Objects of the API server as they are now: listed once, then followed, and listed again when the connection is lost.
//!
//! Objects have no type here: the code that reads each typed one from a stream of events is large.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use kube::Api;
use kube::api::{DynamicObject, ListParams, WatchEvent, WatchParams};
use kube::core::ApiResource;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::connection::{Connection, ConnectionError};
use crate::error::root_cause;

/// How long an answer may take.
pub const ASK: Duration = Duration::from_secs(10);

/// First and longest wait between two tries (kubelet: registration and Lease).
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(7));
/// How long a watch goes on, seconds, and how much later a connection that says nothing is taken for dead.
const WATCH: (u32, Duration) = (290, Duration::from_secs(30));
/// A connection that lasts so long is a good one: the waits begin anew after it.
const LASTS: Duration = Duration::from_secs(10);

/// Why the API server did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no client.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// It refused, or could not be asked.
    #[error(transparent)]
    Api(Box<kube::Error>),
    /// It took too long.
    #[error("no answer within {} s", ASK.as_secs())]
    Silent,
    /// It ended what was to go on.
    #[error("the API server closed the connection")]
    Closed,
}

impl From<kube::Error> for AskError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

impl AskError {
    /// The HTTP status of a refusal; `None` where the API server did not answer.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api(error) => match &**error {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }

    /// The error in one line: a refusal in the API server's own words, of all else the innermost cause.
    pub fn told(&self) -> String {
        if let Self::Api(error) = self
            && let kube::Error::Api(status) = &**error
        {
            return status.message.clone();
        }
        root_cause(self).to_string()
    }
}

/// The answer to `question`, if it comes in time.
pub async fn ask<T>(question: impl Future<Output = kube::Result<T>>) -> Result<T, AskError> {
    Ok(timeout(ASK, question).await.map_err(|_| AskError::Silent)??)
}

/// Waits between tries: longer and longer ones, up to 7 s.
#[derive(Debug)]
pub struct BackOff(Duration);

impl Default for BackOff {
    fn default() -> Self {
        Self(AGAIN.0)
    }
}

impl BackOff {
    /// How long to wait this time.
    pub fn pause(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(AGAIN.1);
        now
    }
}

/// What is followed.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Kind of the objects, in all namespaces.
    pub resource: ApiResource,
    /// Field selector.
    pub fields: String,
}

/// News of the objects.
#[derive(Debug)]
pub enum Change {
    /// All there are.
    Listed(Vec<DynamicObject>),
    /// One that is new, or another than it was.
    Is(DynamicObject),
    /// One that is gone.
    Gone(DynamicObject),
    /// Nothing is known until the next list.
    Lost(AskError),
}

/// Follows until it is dropped.
#[derive(Debug)]
pub struct Follower {
    changes: mpsc::UnboundedReceiver<Change>,
    _task: JoinSet<()>,
}

impl Follower {
    /// Begins to follow.
    ///
    /// With each change of `hints` the API server may be back: it is not waited any longer then.
    pub fn start<T: Send + Sync + 'static>(
        connection: Arc<Connection>,
        selection: Selection,
        mut hints: watch::Receiver<T>,
    ) -> Self {
        let (news, changes) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut back_off = BackOff::default();
            loop {
                let begin = Instant::now();
                let Err(error) = follow(&connection, &selection, &news).await else { return };
                if begin.elapsed() >= LASTS {
                    back_off = BackOff::default();
                }
                if news.send(Change::Lost(error)).is_err() {
                    return;
                }
                let pause = back_off.pause();
                sleep(pause.min(AGAIN.0)).await;
                tokio::select! {
                    () = sleep(pause.saturating_sub(AGAIN.0)) => {}
                    Ok(()) = hints.changed() => {}
                }
            }
        });
        Self { changes, _task: task }
    }

    /// The next change, in order; `None` when, by a defect, there will be none.
    pub async fn next(&mut self) -> Option<Change> {
        self.changes.recv().await
    }

    /// The next change, if it is there already.
    pub fn try_next(&mut self) -> Option<Change> {
        self.changes.try_recv().ok()
    }
}

/// Ends with `Ok` when nobody listens any more.
async fn follow(
    connection: &Connection,
    selection: &Selection,
    news: &mpsc::UnboundedSender<Change>,
) -> Result<(), AskError> {
    let objects: Api<DynamicObject> = Api::all_with(connection.client().await?, &selection.resource);
    let list = ask(objects.list(&ListParams::default().fields(&selection.fields))).await?;
    let mut version = list.metadata.resource_version.unwrap_or_default();
    if news.send(Change::Listed(list.items)).is_err() {
        return Ok(());
    }
    let parameters = WatchParams::default().fields(&selection.fields).timeout(WATCH.0);
    loop {
        let begin = Instant::now();
        let mut events = std::pin::pin!(ask(objects.watch(&parameters, &version)).await?);
        let end = begin + Duration::from_secs(WATCH.0.into()) + WATCH.1;
        while let Some(event) = next_until(end, &mut events).await {
            let change = match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => Change::Is(object),
                WatchEvent::Deleted(object) => Change::Gone(object),
                WatchEvent::Bookmark(bookmark) => {
                    version = bookmark.metadata.resource_version;
                    continue;
                }
                WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
            };
            if let Change::Is(object) | Change::Gone(object) = &change {
                version = object.metadata.resource_version.clone().unwrap_or(version);
            }
            if news.send(change).is_err() {
                return Ok(());
            }
        }
        // It ends when its time is over, and sooner when the API server does.
        if begin.elapsed() < LASTS {
            return Err(AskError::Closed);
        }
    }
}

/// The next item; `None` where there is none before `end`: a peer that is gone without a word never ends its stream.
async fn next_until<S: Stream + Unpin>(end: Instant, items: &mut S) -> Option<S::Item> {
    timeout_at(end, items.next()).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_never_ends_is_left() {
        let end = Instant::now() + WATCH.1;
        let mut items = stream::iter([1]).chain(stream::pending());
        assert_eq!(next_until(end, &mut items).await, Some(1));
        assert_eq!(next_until(end, &mut items).await, None);
        assert_eq!(Instant::now(), end);
    }

    #[test]
    fn waits_double_up_to_a_limit() {
        let mut back_off = BackOff::default();
        let waits: Vec<_> = std::iter::repeat_with(|| back_off.pause().as_millis()).take(9).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 7000, 7000]);
    }
}
