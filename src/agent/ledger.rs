//! Where the agent records what it is about to make, without a stop of everything else meanwhile.
//!
//! An append to the [`Journal`] waits for the disk, and for `init` or `reset` where one holds the file's lock: it is
//! done on a thread of its own. What is to be recorded while one is under way goes together into the next, so that
//! many pods that start at once cost the disk two syncs.
//!
//! # Guarantees
//! - [`Writer::record`] ends when the records are durable. Whoever makes something afterwards keeps the journal's
//!   promise, intent before effect.
//! - Records reach the ledger in the order of the calls.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::journal::{Journal, JournalError, Record};

/// Where creations are recorded, so that `reset` finds them.
pub trait Ledger: Send + Sync + 'static {
    /// Returns when `records` are durable, which may take long: called on threads that may block. What they announce is
    /// not made when this fails.
    fn record(&self, records: &[Record]) -> Result<(), JournalError>;
}

impl Ledger for Journal {
    fn record(&self, records: &[Record]) -> Result<(), JournalError> {
        self.append(records)
    }
}

/// A ledger that forgets, for hosts that nobody resets.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLedger;

impl Ledger for NoLedger {
    fn record(&self, _: &[Record]) -> Result<(), JournalError> {
        Ok(())
    }
}

/// Records that did not become durable.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    /// The ledger refused them, possibly together with those of others.
    #[error(transparent)]
    Refused(Arc<JournalError>),
    /// The thread that wrote them has ended before it was done.
    #[error("the agent's writer has failed")]
    Ended,
}

/// Writes to a [`Ledger`] beside everything else. Cheap to clone; clones share the queue.
#[derive(Clone)]
pub struct Writer {
    ledger: Arc<dyn Ledger>,
    queue: Arc<Mutex<Queue>>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Entry>,
    /// A thread takes what is waiting until there is nothing more.
    at_work: bool,
}

struct Entry {
    records: Vec<Record>,
    done: oneshot::Sender<Result<(), LedgerError>>,
}

impl Writer {
    /// A writer to `ledger`.
    pub fn new(ledger: Arc<dyn Ledger>) -> Self {
        Self { ledger, queue: Arc::default() }
    }

    /// Ends when `records` are durable. They are on their way from the call on, whether or not anybody waits. To be
    /// called within a Tokio runtime.
    pub fn record(&self, records: Vec<Record>) -> impl Future<Output = Result<(), LedgerError>> + Send + use<> {
        let (done, answer) = oneshot::channel();
        if records.is_empty() {
            // The receiver is right here.
            let _ = done.send(Ok(()));
        } else {
            let mut queue = self.queue();
            queue.waiting.push(Entry { records, done });
            if !std::mem::replace(&mut queue.at_work, true) {
                let writer = self.clone();
                tokio::task::spawn_blocking(move || writer.work());
            }
        }
        async move { answer.await.unwrap_or(Err(LedgerError::Ended)) }
    }

    /// Records what has happened already, and nobody has to wait for.
    pub fn note(&self, records: Vec<Record>) {
        if records.is_empty() {
            return;
        }
        let recorded = self.record(records);
        tokio::spawn(async move {
            if let Err(error) = recorded.await {
                tracing::warn!(%error, "cannot record what is gone");
            }
        });
    }

    fn work(&self) {
        /// Should the ledger panic, lets the next call begin a new thread, and tells those who wait.
        struct AtWork<'a>(&'a Writer);
        impl Drop for AtWork<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    let mut queue = self.0.queue();
                    queue.at_work = false;
                    queue.waiting.clear();
                }
            }
        }
        loop {
            let entries = {
                let mut queue = self.queue();
                // Under one lock, or a call in between would find nobody who serves it.
                queue.at_work = !queue.waiting.is_empty();
                if !queue.at_work {
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            let (records, waiting): (Vec<_>, Vec<_>) =
                entries.into_iter().map(|entry| (entry.records, entry.done)).unzip();
            // Goes before those who wait are told by a channel that closes.
            let _at_work = AtWork(self);
            let result = self.ledger.record(&records.concat()).map_err(|error| LedgerError::Refused(Arc::new(error)));
            for done in waiting {
                // Whoever does not wait any more does not care.
                let _ = done.send(result.clone());
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Condvar;
    use std::time::Duration;

    use super::*;
    use crate::journal::Creation;

    /// A ledger that hangs while its gate is shut, as a journal on a slow disk does.
    #[derive(Default)]
    pub(crate) struct Gated {
        shut: Mutex<bool>,
        opened: Condvar,
        appends: Mutex<Vec<Vec<Record>>>,
        refuses: Mutex<bool>,
    }

    impl Gated {
        pub(crate) fn shut(&self) {
            *self.shut.lock().unwrap() = true;
        }

        pub(crate) fn open(&self) {
            *self.shut.lock().unwrap() = false;
            self.opened.notify_all();
        }

        pub(crate) fn appends(&self) -> Vec<Vec<Record>> {
            self.appends.lock().unwrap().clone()
        }
    }

    impl Ledger for Gated {
        fn record(&self, records: &[Record]) -> Result<(), JournalError> {
            // A test that is wrong fails, and does not hang.
            let limit = Duration::from_mins(1);
            drop(self.opened.wait_timeout_while(self.shut.lock().unwrap(), limit, |shut| *shut).unwrap());
            self.appends.lock().unwrap().push(records.to_vec());
            if *self.refuses.lock().unwrap() {
                Err(JournalError::Damaged { path: "/j".into(), line: 1 })
            } else {
                Ok(())
            }
        }
    }

    fn make(name: &str) -> Record {
        Record::Make { what: Creation::Container { id: name.to_owned() } }
    }

    #[tokio::test]
    async fn what_waits_goes_together_and_in_order() {
        let ledger = Arc::new(Gated::default());
        ledger.shut();
        let writer = Writer::new(Arc::clone(&ledger) as Arc<dyn Ledger>);
        let first = tokio::spawn(writer.record(vec![make("1")]));
        // Its thread has taken it before the others come.
        while !writer.queue().waiting.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let others: Vec<_> = (2..5).map(|n| tokio::spawn(writer.record(vec![make(&n.to_string())]))).collect();
        drop(writer.record(vec![make("5"), make("6")]));
        writer.record(Vec::new()).await.unwrap();
        assert!(!first.is_finished() && ledger.appends().is_empty(), "nothing is done before it is durable");
        ledger.open();
        first.await.unwrap().unwrap();
        for other in others {
            other.await.unwrap().unwrap();
        }
        let numbers = |range: std::ops::Range<u32>| range.map(|n| make(&n.to_string())).collect::<Vec<_>>();
        assert_eq!(ledger.appends(), [numbers(1..2), numbers(2..7)]);
        writer.record(vec![make("7")]).await.unwrap();
        assert_eq!(ledger.appends().len(), 3, "a writer that had nothing to do begins again");
    }

    #[tokio::test]
    async fn all_of_an_append_that_fails_are_told() {
        let ledger = Arc::new(Gated::default());
        *ledger.refuses.lock().unwrap() = true;
        let writer = Writer::new(Arc::clone(&ledger) as Arc<dyn Ledger>);
        let (one, other) = tokio::join!(writer.record(vec![make("1")]), writer.record(vec![make("2")]));
        for result in [one, other] {
            assert!(matches!(result, Err(LedgerError::Refused(_))));
        }
    }

    struct Panics;

    impl Ledger for Panics {
        fn record(&self, records: &[Record]) -> Result<(), JournalError> {
            assert!(records != [make("bad")], "as a bug would");
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_writer_that_fails_is_followed_by_another() {
        let writer = Writer::new(Arc::new(Panics));
        assert!(matches!(writer.record(vec![make("bad")]).await, Err(LedgerError::Ended)));
        writer.record(vec![make("good")]).await.unwrap();
    }
}
