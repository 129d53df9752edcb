use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode as Code;
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::super::memory::remember;
use super::*;

fn manifest(name: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: i}}]}}\n")
}

fn list(names: &[&str]) -> String {
    let item =
        |name: &&str| format!("- metadata: {{name: {name}}}\n  spec:\n    containers: [{{name: c, image: i}}]\n");
    let items: String = names.iter().map(item).collect();
    format!("apiVersion: v1\nkind: PodList\nitems: {}\n{items}", if names.is_empty() { "[]" } else { "" })
}

fn source(url: &str, headers: &[(&str, &str)]) -> HttpSource {
    HttpSource {
        endpoint: Endpoint::new(url, headers.iter().copied()).unwrap(),
        node: "N".into(),
        pods: "/nonexistent".into(),
        period: Duration::from_secs(20),
    }
}

fn reader() -> Reader {
    Reader::new(source("http://host/pods", &[]))
}

fn names(published: &Published) -> Vec<&str> {
    published.pods.iter().map(|pod| pod.key.name.as_str()).collect()
}

/// Each row: an answer, the pods afterwards, and how the problem begins.
#[test]
fn an_answer_replaces_everything_or_nothing() {
    type Row<'a> = (&'a str, Result<Vec<u8>, String>, &'a [&'a str], &'a str);

    let ok = |text: &str| Ok(text.as_bytes().to_vec());
    let rows: &[Row<'_>] = &[
        ("silence at first", Err("does not answer".into()), &[], "does not answer"),
        ("a pod", ok(&manifest("a")), &["a-n"], ""),
        ("silence", Err("does not answer".into()), &["a-n"], "does not answer; its pods go on"),
        ("the same again", ok(&manifest("a")), &["a-n"], ""),
        ("a list", ok(&list(&["a", "b"])), &["a-n", "b-n"], ""),
        (
            "a list in JSON",
            ok(r#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[{"metadata":{"name":"j"},
            "spec":{"containers":[{"name":"c","image":"i"}]}}]}"#),
            &["j-n"],
            "",
        ),
        (
            "an item that is no good",
            ok(&list(&["a", "''"])),
            &["j-n"],
            "the answer is not run: items[1] () has no metadata.name; its pods go on",
        ),
        ("it stays no good", ok(&list(&["a", "''"])), &["j-n"], "the answer is not run: items[1] ()"),
        (
            "a deployment",
            ok("kind: Deployment\napiVersion: apps/v1\n"),
            &["j-n"],
            "the answer is not run: is a Deployment",
        ),
        (
            "another list",
            ok("kind: List\napiVersion: v1\nitems: []\n"),
            &["j-n"],
            "the answer is not run: is a List (v1)",
        ),
        (
            "a list of something",
            ok("kind: PodList\napiVersion: v1\nitems: [{kind: Service, metadata: {name: s}}]\n"),
            &["j-n"],
            "the answer is not run: items[0] (s) is a Service",
        ),
        (
            "no list",
            ok("kind: PodList\napiVersion: v1\nitems: {}\n"),
            &["j-n"],
            "the answer is not run: cannot be parsed",
        ),
        ("white space", ok(" \n"), &["j-n"], "the answer is not run: cannot be parsed"),
        ("no text", Ok(vec![0xff]), &["j-n"], "the answer is not run: cannot be parsed"),
        ("an empty list", ok(&list(&[])), &[], ""),
        ("a pod once more", ok(&manifest("a")), &["a-n"], ""),
        ("nothing at all", ok(""), &[], ""),
    ];
    let mut reader = reader();
    for (name, answer, pods, problem) in rows {
        let published = reader.take(answer.clone(), Clock::system().now());
        assert_eq!(names(&published), *pods, "{name}");
        let found = published.problem.clone().unwrap_or_default();
        assert!(found.starts_with(problem) && found.is_empty() == problem.is_empty(), "{name}: {found}");
        assert_eq!(published.complete, *name != "silence at first", "{name}");
        assert_eq!(published.read_at.is_some(), problem.is_empty(), "{name}");
    }
}

#[test]
fn of_two_pods_with_one_name_in_a_list_the_first_runs() {
    let published = reader().take(Ok(list(&["a", "b", "a"]).into_bytes()), Clock::system().now());
    assert_eq!(names(&published), ["a-n", "b-n"]);
    assert_eq!(published.rejected.len(), 1);
    assert!(published.rejected[0].reason.contains("default/a-n"), "{published:?}");
}

#[test]
fn of_two_pods_with_one_uid_in_a_list_the_first_runs() {
    let text = list(&["a", "b"]).replace("{name:", "{uid: u, name:");
    let published = reader().take(Ok(text.replace("{uid: u, name: c", "{name: c").into_bytes()), Clock::system().now());
    assert_eq!(names(&published), ["a-n"]);
    assert_eq!(published.rejected[0].reason, "has the same metadata.uid as an earlier one of the list");
}

#[test]
fn a_pod_of_a_url_is_the_same_on_every_node_alone_and_in_a_list() {
    let of = |text: &str, url: &str, node: &str| {
        let source = HttpSource { node: node.into(), ..source(url, &[]) };
        let published = Reader::new(source).take(Ok(text.as_bytes().to_vec()), Clock::system().now());
        StaticPod::clone(&published.pods[0])
    };
    let url = "http://host/pods";
    let pod = of(&manifest("a"), url, "N");
    assert_eq!(pod.metadata.annotations.as_ref().unwrap()["kubernetes.io/config.source"], "http");
    assert_eq!((pod.source, pod.origin.as_str()), (SourceKind::Http, url));
    assert_eq!(pod.spec.tolerations, None, "only pods of files tolerate everything");
    assert_eq!(pod.spec.node_name.as_deref(), Some("N"));
    assert_eq!(of(&list(&["a"]), url, "N").uid, pod.uid);
    assert_eq!(of(&manifest("a"), url, "other").uid, pod.uid);
    assert_eq!(of(&manifest("a"), "http://user:secret@host/pods?signature=1", "N").uid, pod.uid);
    assert_ne!(of(&manifest("a"), "http://host/others", "N").uid, pod.uid);
    assert_ne!(StaticPod::read(&manifest("a"), Origin::File("/m/a".as_ref()), "N").unwrap().uid, pod.uid);
    let again = StaticPod::read(&of(&list(&["a"]), url, "N").manifest, Origin::Url(url), "N").unwrap();
    assert_eq!(again.uid, pod.uid, "an item of a list is remembered as a pod");
}

#[test]
fn a_new_agent_runs_what_the_last_one_had_from_a_url_that_is_away() {
    let root = tempfile::tempdir().unwrap();
    let source = || HttpSource { pods: root.path().to_path_buf(), ..source("http://host/pods", &[]) };
    let mut first = Reader::new(source());
    let published = first.take(Ok(list(&["a", "b"]).into_bytes()), Clock::system().now());
    let file = StaticPod::read(&manifest("file"), Origin::File("/m/file".as_ref()), "N").unwrap();
    for pod in published.pods.iter().map(AsRef::as_ref).chain([&file]) {
        remember(root.path(), pod).unwrap();
    }
    let mut second = Reader::new(source());
    let recalled = second.take(Err("does not answer".into()), Clock::system().now());
    assert_eq!(recalled.pods, published.pods);
    assert!(!recalled.complete, "there may be others");
    let answered = second.take(Ok(list(&["b"]).into_bytes()), Clock::system().now());
    assert_eq!((names(&answered), answered.complete), (vec!["b-n"], true));
    for (answer, expected) in [("kind: [", vec!["b-n"]), ("", vec![]), ("kind: [", vec![])] {
        let later = second.take(Ok(answer.as_bytes().to_vec()), Clock::system().now());
        assert_eq!(names(&later), expected, "what was stopped stays so");
    }
}

#[test]
fn urls_and_headers_are_checked_without_being_told() {
    let error = |url: &str, header: (&str, &str)| Endpoint::new(url, [header]).unwrap_err().to_string();
    for (url, header, expected) in [
        ("host/pods", ("a", "b"), "is no URL"),
        ("", ("a", "b"), "is no URL"),
        ("ftp://user:secret@host/", ("a", "b"), "has the scheme `ftp`"),
        ("file:///secret", ("a", "b"), "has the scheme `file`"),
        ("http://host/", ("a b", "secret"), "has the header `a b`"),
        ("http://host/", ("Authorization", "secret\n"), "has a value of the header `Authorization`"),
    ] {
        let error = error(url, header);
        assert!(error.starts_with(expected) && !error.contains("secret"), "{error}");
    }
    let endpoint = Endpoint::new("https://user:secret@host:8443/a/b?token=secret#secret", [("X-T", "secret")]).unwrap();
    assert_eq!(endpoint.location(), "https://host:8443/a/b");
    let debug = format!("{endpoint:?} {:?}", source("http://user:secret@host/", &[("a", "secret")]));
    assert!(debug.contains("x-t") && !debug.contains("secret"), "{debug}");
}

/// A server on the loopback and its address.
async fn server(tasks: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let polls = Arc::new(AtomicUsize::new(0));
    let router = Router::new()
        .route("/pod", get(async || manifest("a")))
        .route("/echo", get(async |request: Request| echo(&request)))
        .route("/missing", get(async || Code::NOT_FOUND))
        .route("/now-and-then", get(async move || now_and_then(polls.fetch_add(1, Ordering::Relaxed))))
        .route("/created", get(async || (Code::CREATED, manifest("a"))))
        .route("/moved", get(async || Redirect::temporary("/echo")))
        .route(
            "/elsewhere",
            get(async |request: Request| {
                Redirect::temporary(&format!("http://localhost:{}/pod", request.uri().query().unwrap_or_default()))
            }),
        )
        .route("/round", get(async || Redirect::temporary("/round")))
        .route("/large", get(async || "x".repeat(yaml::MAX_MANIFEST_BYTES + 1)))
        .route("/full", get(async || "x".repeat(yaml::MAX_MANIFEST_BYTES)));
    tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
    format!("http://{address}")
}

/// Fails ten times, answers, and fails again every third time.
fn now_and_then(poll: usize) -> Response {
    if poll >= 10 && !poll.is_multiple_of(3) { manifest("a").into_response() } else { Code::NOT_FOUND.into_response() }
}

fn echo(request: &Request) -> Response {
    let sent = |name: &str| {
        let values = request.headers().get_all(name).into_iter();
        values.map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join("+")
    };
    format!("{} {} {}", sent("x-a"), sent("x-b"), sent("authorization")).into_response()
}

async fn ask(url: &str, headers: &[(&str, &str)]) -> Result<Vec<u8>, String> {
    let endpoint = Endpoint::new(url, headers.iter().copied()).unwrap();
    fetch(&client(&endpoint).unwrap(), &endpoint).await
}

#[tokio::test]
async fn what_is_asked_and_accepted_is_the_kubelets_rule() {
    let mut tasks = JoinSet::new();
    let host = server(&mut tasks).await;
    let port = host.rsplit_once(':').unwrap().1;
    let headers = [("X-A", "1"), ("X-A", "2"), ("X-B", "3")];
    let with_user = host.replace("http://", "http://user:secret@");
    assert_eq!(ask(&format!("{host}/pod"), &[]).await.unwrap(), manifest("a").into_bytes());
    assert_eq!(ask(&format!("{host}/echo"), &headers).await.unwrap(), b"1+2 3 ");
    assert_eq!(ask(&format!("{with_user}/echo"), &[]).await.unwrap(), b"  Basic dXNlcjpzZWNyZXQ=");
    assert_eq!(ask(&format!("{host}/moved"), &headers).await.unwrap(), b"1+2 3 ");
    assert_eq!(ask(&format!("{host}/elsewhere?{port}"), &[]).await.unwrap(), manifest("a").into_bytes());
    assert_eq!(ask(&format!("{host}/full"), &[]).await.unwrap().len(), yaml::MAX_MANIFEST_BYTES);
    for (url, expected) in [
        (format!("{with_user}/missing"), "answers 404 Not Found"),
        (format!("{with_user}/created"), "answers 201 Created"),
        (format!("{with_user}/large"), "answers more than 10 MiB"),
        (format!("{with_user}/round"), "too many redirects"),
        (format!("{with_user}/elsewhere?{port}"), "a redirect to another server, which must not see the credentials"),
        ("http://user:secret@127.0.0.1:1/".to_owned(), "cannot be reached: Connection refused"),
    ] {
        let error = ask(&url, &[]).await.unwrap_err();
        assert!(error.starts_with(expected) && !error.contains("secret"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_is_given_ten_seconds() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let started = tokio::time::Instant::now();
    assert_eq!(ask(&url, &[]).await.unwrap_err(), "does not answer within 10 s");
    assert_eq!(started.elapsed().as_secs(), 10);
}

/// The pauses grow before the first answer alone, and never beyond the period; an agent polls for years.
#[tokio::test(start_paused = true)]
async fn a_source_polls_on_and_on_whatever_the_url_answers() {
    let mut tasks = JoinSet::new();
    let host = server(&mut tasks).await;
    for path in ["/missing", "/pod", "/now-and-then"] {
        let (publish, mut published) = mpsc::unbounded_channel();
        let polling = tasks.spawn(source(&format!("{host}{path}"), &[]).run(Clock::system(), publish));
        let mut slowest = Duration::ZERO;
        let mut last = tokio::time::Instant::now();
        for poll in 0..100 {
            published.recv().await.unwrap_or_else(|| panic!("{path} ended at poll {poll}"));
            slowest = slowest.max(last.elapsed());
            last = tokio::time::Instant::now();
        }
        polling.abort();
        // A poll of its own takes 10 s at most, and the period is 20 s.
        assert!(Duration::from_secs(20) <= slowest && slowest <= Duration::from_secs(31), "{path}: {slowest:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_url_that_has_never_answered_is_asked_less_and_less_often() {
    let (publish, mut published) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    // Nobody listens there.
    tasks.spawn(source("http://127.0.0.1:1/", &[]).run(Clock::system(), publish));
    let mut pauses = Vec::new();
    published.recv().await.unwrap();
    for _ in 0..100 {
        let asked = tokio::time::Instant::now();
        published.recv().await.unwrap();
        pauses.push(asked.elapsed().as_secs());
    }
    for (pause, expected) in pauses.iter().zip([1, 2, 4, 8, 16].into_iter().chain(std::iter::repeat(20))) {
        // The refusal comes at once, or after 10 s at most.
        assert!((expected..=expected + 11).contains(pause), "{pauses:?}");
    }
}
