//! Which events are written, and how: the same one again is counted, and an object that has too many is not heard for a
//! while. Pure; as client-go's `EventCorrelator` does it, without its aggregation of similar texts.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

use super::{Event, Kind};

/// Longer than this nobody asks for the same event again: the API server keeps one for an hour (`--event-ttl`).
const REMEMBERED: SignedDuration = SignedDuration::from_mins(50);
/// How many events of an object are written at once (client-go: `defaultSpamBurst`).
const BURST: f64 = 25.0;
/// How soon another one may be (client-go: `defaultSpamQPS`, one in five minutes).
const REFILL: SignedDuration = SignedDuration::from_mins(5);
/// How many are remembered at most (client-go: `maxLruCacheEntries`).
const MOST: usize = 4096;

/// What becomes of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is written as a new object of this name.
    Create {
        /// `<object>.<time in hexadecimal>`, unique.
        name: String,
    },
    /// The object of this name has happened so often now.
    Count {
        /// The name.
        name: String,
        /// How often, the first time included.
        count: i32,
    },
    /// It is dropped: there are too many of this object.
    Drop,
}

/// What makes two events the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    namespace: Option<String>,
    object: Option<String>,
    uid: Option<String>,
    field_path: Option<String>,
    kind: Kind,
    reason: &'static str,
    message: String,
}

#[derive(Debug)]
struct Known {
    name: String,
    count: i32,
    first: Timestamp,
    last: Timestamp,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Timestamp,
}

/// What was written so far.
#[derive(Debug, Default)]
pub struct Correlator {
    known: HashMap<Key, Known>,
    buckets: HashMap<Option<String>, Bucket>,
}

impl Correlator {
    /// What becomes of `event`.
    pub fn judge(&mut self, event: &Event) -> Verdict {
        if !self.has_room(event) {
            return Verdict::Drop;
        }
        let (key, at) = (key(event), event.at);
        if let Some(known) = self.known.get_mut(&key)
            && at.duration_since(known.first) < REMEMBERED
        {
            known.count = known.count.saturating_add(1);
            known.last = at;
            return Verdict::Count { name: known.name.clone(), count: known.count };
        }
        if self.known.len() >= MOST {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.last).map(|(key, _)| key.clone());
            oldest.map(|key| self.known.remove(&key));
        }
        let mut name = format!("{}.{:x}", event.object.name.as_deref().unwrap_or_default(), at.as_nanosecond());
        // Several may be of one instant.
        while self.known.values().any(|known| known.name == name) {
            name.push('0');
        }
        self.known.insert(key, Known { name: name.clone(), count: 1, first: at, last: at });
        Verdict::Create { name }
    }

    /// It could not be written, or is no longer there: the next one begins anew.
    pub fn forget(&mut self, event: &Event) {
        self.known.remove(&key(event));
    }

    /// Takes one of the tokens of the object, if there is one.
    #[allow(clippy::cast_precision_loss)] // seconds
    fn has_room(&mut self, event: &Event) -> bool {
        if self.buckets.len() >= MOST {
            // Those that are full again say nothing.
            self.buckets.retain(|_, bucket| event.at.duration_since(bucket.at) < REFILL * 25);
        }
        let bucket = self.buckets.entry(event.object.uid.clone()).or_insert(Bucket { tokens: BURST, at: event.at });
        let since = event.at.duration_since(bucket.at).as_secs().max(0) as f64;
        let tokens = (bucket.tokens + since / REFILL.as_secs() as f64).min(BURST);
        // Whole seconds only: what is cut off is not lost as long as the time stays.
        if since >= 1.0 {
            bucket.at = event.at;
            bucket.tokens = tokens;
        }
        let has = bucket.tokens >= 1.0;
        if has {
            bucket.tokens -= 1.0;
        }
        has
    }
}

fn key(event: &Event) -> Key {
    let object = &event.object;
    Key {
        namespace: object.namespace.clone(),
        object: object.name.clone(),
        uid: object.uid.clone(),
        field_path: object.field_path.clone(),
        kind: event.kind,
        reason: event.reason,
        message: event.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ObjectReference;

    use super::*;

    fn event(object: &str, message: &str, after: i64) -> Event {
        let at: Timestamp = "2026-11-21T08:00:00Z".parse().unwrap();
        Event {
            object: ObjectReference {
                name: Some(object.to_owned()),
                uid: Some(object.to_owned()),
                ..ObjectReference::default()
            },
            kind: Kind::Normal,
            reason: "Started",
            message: message.to_owned(),
            at: at + SignedDuration::from_secs(after),
        }
    }

    fn create(name: &str) -> Verdict {
        Verdict::Create { name: name.to_owned() }
    }

    fn count(name: &str, count: i32) -> Verdict {
        Verdict::Count { name: name.to_owned(), count }
    }

    #[test]
    fn the_same_event_is_counted_and_another_one_is_another_object() {
        let mut correlator = Correlator::default();
        let first = format!("a.{:x}", event("a", "x", 0).at.as_nanosecond());
        assert_eq!(correlator.judge(&event("a", "x", 0)), create(&first));
        assert_eq!(correlator.judge(&event("a", "x", 10)), count(&first, 2));
        assert_eq!(correlator.judge(&event("a", "y", 0)), create(&format!("{first}0")));
        assert_eq!(correlator.judge(&event("a", "x", 20)), count(&first, 3));
        // After an hour the API server has forgotten it.
        let later = correlator.judge(&event("a", "x", 3600));
        assert!(matches!(&later, Verdict::Create { name } if *name != first), "{later:?}");
        correlator.forget(&event("a", "y", 0));
        assert!(matches!(correlator.judge(&event("a", "y", 30)), Verdict::Create { .. }));
    }

    #[test]
    fn an_object_with_too_many_is_not_heard_for_a_while() {
        let mut correlator = Correlator::default();
        let mut written = |object: &str, after: i64, number: usize| {
            let verdicts = (0..number).map(|_| correlator.judge(&event(object, "x", after)));
            verdicts.filter(|verdict| *verdict != Verdict::Drop).count()
        };
        assert_eq!(written("a", 0, 30), 25);
        assert_eq!(written("b", 0, 1), 1);
        assert_eq!(written("a", 299, 5), 0);
        assert_eq!(written("a", 300, 5), 1);
        assert_eq!(written("a", 300 + 7500, 40), 25);
    }
}
