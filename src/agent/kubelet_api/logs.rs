//! `/containerLogs`: what a query asks for (pure), and the answer. Codes and words are the kubelet's.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;

use super::Face;
use super::reviews::Reviews;
use crate::agent::log_choice::{Candidate, ChoiceError, Question, choose};
use crate::agent::{board::Snapshot, report};
use crate::runtime::{LogQuery, Runtime, RuntimeError};

/// How long an error may take to come before the answer begins; from then on it can only break it off.
const FIRST: Duration = Duration::from_millis(500);

/// An answer that is no log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) StatusCode, pub(super) String);

impl axum::response::IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wish {
    query: LogQuery,
    previous: bool,
    /// Bytes at most.
    limit: Option<u64>,
}

impl Wish {
    /// Reads the parameters of a `PodLogOptions`; of several of one name the first counts.
    fn read(parameters: &[(String, String)], now: Timestamp) -> Result<Self, Refusal> {
        let undecodable = || Refusal(StatusCode::BAD_REQUEST, r#"{"message": "Unable to decode query."}"#.to_owned());
        let invalid = || Refusal(StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#.to_owned());
        let text = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let switch = |name: &str| text(name).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"));
        let number = |name: &str| match text(name) {
            Some(value) => value.parse::<i64>().map(Some).map_err(|_| undecodable()),
            None => Ok(None),
        };
        // The name of old clients; it wins.
        let tail = match text("tail").filter(|tail| !tail.is_empty()) {
            Some("all") => None,
            Some(_) => number("tail")?,
            None => number("tailLines")?,
        };
        let (seconds, limit) = (number("sinceSeconds")?, number("limitBytes")?);
        let time = text("sinceTime").filter(|time| !time.is_empty());
        let time = time.map(|time| time.parse::<Timestamp>().map_err(|_| undecodable())).transpose()?;
        // A kubelet without the feature gate PodLogsQuerySplitStreams, which is off.
        if let Some(stream) = text("stream").filter(|stream| *stream != "All") {
            let words = format!(
                "unable to return the given log stream: {stream:?}. Please enable PodLogsQuerySplitStreams feature gate \
                 in kubelet"
            );
            return Err(Refusal(StatusCode::BAD_REQUEST, words));
        }
        if tail.is_some_and(|lines| lines < 0)
            || limit.is_some_and(|bytes| bytes < 1)
            || seconds.is_some_and(|seconds| seconds < 1)
            || (seconds.is_some() && time.is_some())
        {
            return Err(invalid());
        }
        let before = |seconds| now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::UNIX_EPOCH);
        Ok(Self {
            query: LogQuery {
                tail: tail.and_then(|lines| u64::try_from(lines).ok()),
                since: time.or(seconds.map(before)),
                timestamps: switch("timestamps"),
                follow: switch("follow"),
            },
            previous: switch("previous"),
            limit: limit.and_then(|bytes| u64::try_from(bytes).ok()),
        })
    }
}

/// `GET /containerLogs/{namespace}/{pod}/{container}`.
pub(super) async fn serve<R: Runtime, V: Reviews>(
    State(face): State<Face<R, V>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Response, Refusal> {
    let wish = Wish::read(&parameters, face.clock.now())?;
    let snapshot = face.snapshot(&namespace, &pod);
    let snapshot = snapshot.ok_or_else(|| Refusal(StatusCode::NOT_FOUND, format!("pod {pod:?} does not exist")))?;
    let id = choice(candidate(&snapshot, &face.node), &container, wish.previous)?;
    // Asked again after its end, where the first answer is that.
    let mut log = face.runtime.read_log(&id, wish.query).fuse().boxed();
    let log = match timeout(FIRST, log.next()).await {
        Ok(Some(Err(error))) => return Err(Refusal(StatusCode::BAD_REQUEST, error.to_string())),
        Ok(first) => stream::iter(first).chain(log).boxed(),
        Err(_) => log,
    };
    let body = Body::from_stream(limited(log, wish.limit).map_ok(Bytes::from));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

fn candidate(snapshot: &Snapshot, node: &crate::agent::translate::Node) -> Candidate {
    Candidate {
        namespace: snapshot.key.namespace.clone(),
        name: snapshot.key.name.clone(),
        // Mirrors have the whole one.
        short_name: String::new(),
        pod: report::pod(snapshot, node),
        containers: snapshot.containers.values().cloned().collect(),
    }
}

fn choice(candidate: Candidate, container: &str, previous: bool) -> Result<String, Refusal> {
    let (namespace, pod) = (candidate.namespace.clone(), candidate.name.clone());
    let question = Question { pod: &pod, namespace: Some(&namespace), container: Some(container), previous };
    match choose(&[candidate], question) {
        Ok(choice) => Ok(choice.id),
        Err(ChoiceError::NoSuchContainer { .. }) => {
            Err(Refusal(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {pod:?}")))
        }
        Err(error) => Err(Refusal(StatusCode::BAD_REQUEST, error.to_string())),
    }
}

/// The first `limit` bytes.
fn limited(
    log: BoxStream<'static, Result<Vec<u8>, RuntimeError>>,
    limit: Option<u64>,
) -> BoxStream<'static, Result<Vec<u8>, RuntimeError>> {
    let Some(limit) = limit else { return log };
    stream::unfold((log, limit), async |(mut log, left)| {
        if left == 0 {
            return None;
        }
        let mut part = log.next().await?;
        if let Ok(part) = &mut part {
            part.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        }
        let left = left - part.as_ref().map_or(0, |part| part.len() as u64);
        Some((part, (log, left)))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_as_the_kubelet_reads_them() {
        let now = Timestamp::from_second(1000).unwrap();
        let nothing = Wish::default();
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let query = |query: LogQuery| Ok(Wish { query, ..Wish::default() });
        let usual = LogQuery::default();
        let table: [(&str, Result<Wish, u16>); 24] = [
            ("", Ok(nothing.clone())),
            ("unknown=1&container=x", Ok(nothing.clone())),
            ("follow=true&timestamps", query(LogQuery { follow: true, timestamps: true, ..usual })),
            ("follow=1&timestamps=0", query(LogQuery { follow: true, ..usual })),
            ("follow=False&follow=true", Ok(nothing.clone())),
            ("previous=true", Ok(Wish { previous: true, ..Wish::default() })),
            ("tailLines=0", query(LogQuery { tail: Some(0), ..usual })),
            ("tailLines=7&tail=all", Ok(nothing.clone())),
            ("tailLines=7&tail=9", query(LogQuery { tail: Some(9), ..usual })),
            ("tailLines=7&tail=", query(LogQuery { tail: Some(7), ..usual })),
            ("tailLines=-1", Err(422)),
            ("tailLines=x", Err(400)),
            ("tailLines=", Err(400)),
            ("limitBytes=5", Ok(Wish { limit: Some(5), ..Wish::default() })),
            ("limitBytes=0", Err(422)),
            ("sinceSeconds=10", query(LogQuery { since: at(990), ..usual })),
            ("sinceSeconds=9223372036854775807", query(LogQuery { since: at(0), ..usual })),
            ("sinceSeconds=0", Err(422)),
            ("sinceTime=1970-01-01T00:00:07Z", query(LogQuery { since: at(7), ..usual })),
            ("sinceTime=1970-01-01T01:00:07%2B01:00", query(LogQuery { since: at(7), ..usual })),
            ("sinceTime=now", Err(400)),
            ("sinceTime=1970-01-01T00:00:07Z&sinceSeconds=1", Err(422)),
            ("stream=All", Ok(nothing)),
            ("stream=Stdout", Err(400)),
        ];
        for (text, expected) in table {
            let uri = format!("/?{text}").parse().unwrap();
            let Query(parameters) = Query::<Vec<(String, String)>>::try_from_uri(&uri).unwrap();
            let found = Wish::read(&parameters, now).map_err(|refusal| refusal.0.as_u16());
            assert_eq!(found, expected, "{text}");
        }
    }

    #[tokio::test]
    async fn a_limit_cuts_within_a_part() {
        for (limit, expected) in
            [(None, "onetwothree"), (Some(1), "o"), (Some(3), "one"), (Some(4), "onet"), (Some(99), "onetwothree")]
        {
            let parts = ["one", "two", "three"].map(|part| Ok(part.as_bytes().to_vec()));
            let parts: Vec<_> = limited(stream::iter(parts).boxed(), limit).try_collect().await.unwrap();
            assert_eq!(String::from_utf8(parts.concat()).unwrap(), expected, "{limit:?}");
        }
    }
}
