use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::runtime::fake::FakeRuntime;

fn probe(text: &str) -> Probe {
    serde_json::from_value(crate::yaml::from_str(text).unwrap()).unwrap()
}

fn fail() -> Outcome {
    Outcome::Failure("no".into())
}

#[test]
fn thresholds_count_consecutive_answers() {
    let probe = probe("{failureThreshold: 2, successThreshold: 2}");
    let mut tracker = Tracker::new(ProbeKind::Readiness, &probe);
    let answers = [
        (Outcome::Success, None),
        (fail(), None),
        (Outcome::Success, None),
        (Outcome::Success, Some(true)),
        (Outcome::Success, None),
        (fail(), None),
        (Outcome::Unknown(String::new()), None),
        (fail(), Some(false)),
        (fail(), None),
    ];
    for (index, (outcome, verdict)) in answers.into_iter().enumerate() {
        assert_eq!(tracker.record(&outcome), verdict, "{index}");
    }
}

#[test]
fn first_results_are_the_kubelets() {
    let probe = probe("{failureThreshold: 1, successThreshold: 1}");
    for (kind, outcome, verdict) in [
        (ProbeKind::Readiness, fail(), None),
        (ProbeKind::Readiness, Outcome::Success, Some(true)),
        (ProbeKind::Liveness, Outcome::Success, None),
        (ProbeKind::Liveness, fail(), Some(false)),
        (ProbeKind::Startup, Outcome::Success, Some(true)),
        (ProbeKind::Startup, fail(), Some(false)),
    ] {
        assert_eq!(Tracker::new(kind, &probe).record(&outcome), verdict, "{kind:?} {outcome:?}");
    }
}

/// A server that answers every connection with the next of `answers`, and its port. Ends after the last one.
async fn server(answers: Vec<&'static str>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut requests = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 4096];
            let read = stream.read(&mut buffer).await.unwrap();
            requests.push(String::from_utf8_lossy(&buffer[..read]).into_owned());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        requests
    });
    (port, task)
}

fn target() -> Target {
    Target { container_id: "id".into(), started_at: Timestamp::UNIX_EPOCH, address: Ipv4Addr::LOCALHOST.into() }
}

fn prober() -> Prober<FakeRuntime> {
    let clock = Clock::system();
    Prober::new(Arc::new(FakeRuntime::new(clock.clone())), clock).unwrap()
}

async fn ask(get: &str) -> Outcome {
    let container = Container { ports: Some(vec![]), ..Container::default() };
    prober().ask(&probe(get), &container, &target()).await
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

#[tokio::test]
async fn status_decides_and_the_line_that_says_why_is_kept() {
    for (answer, outcome) in [
        (OK, Outcome::Success),
        ("HTTP/1.1 399 Odd\r\nContent-Length: 0\r\n\r\n", Outcome::Success),
        (
            "HTTP/1.1 500 No\r\nContent-Length: 37\r\n\r\n[+]ping ok\n[-]etcd failed: reason\nmore\n",
            Outcome::Failure("500: [-]etcd failed: reason".into()),
        ),
    ] {
        let (port, _) = server(vec![answer]).await;
        let got = ask(&format!("{{httpGet: {{port: {port}, path: /x}}}}")).await;
        match (&got, &outcome) {
            (Outcome::Failure(got), Outcome::Failure(end)) => assert!(got.ends_with(end.as_str()), "{got}"),
            _ => assert_eq!(got, outcome),
        }
    }
}

#[tokio::test]
async fn a_request_looks_like_the_kubelets_and_every_probe_has_its_own_connection() {
    let (port, requests) = server(vec![OK, OK]).await;
    let get = format!("{{httpGet: {{port: {port}, path: '/livez?x=1', httpHeaders: [{{name: X-A, value: b}}]}}}}");
    assert_eq!(ask(&get).await, Outcome::Success);
    assert_eq!(ask(&get).await, Outcome::Success);
    let requests = requests.await.unwrap();
    let first = requests[0].to_lowercase();
    assert!(first.starts_with("get /livez?x=1 http/1.1"), "{first}");
    assert!(first.contains("user-agent: kube-probe/1.37\r\n") && first.contains("x-a: b\r\n"), "{first}");
    assert!(first.contains("accept: */*\r\n") && first.contains("connection: close\r\n"), "{first}");
}

#[tokio::test]
async fn headers_of_the_probe_take_the_place_of_the_usual_ones() {
    let (port, requests) = server(vec![OK]).await;
    let headers = "[{name: Host, value: web.example}, {name: User-Agent, value: me}, {name: X-A, value: '1'}, {name: X-A, value: '2'}]";
    assert_eq!(ask(&format!("{{httpGet: {{port: {port}, httpHeaders: {headers}}}}}")).await, Outcome::Success);
    let request = requests.await.unwrap()[0].to_lowercase();
    for (name, values) in [("host", vec!["web.example"]), ("user-agent", vec!["me"]), ("x-a", vec!["1", "2"])] {
        let start = format!("{name}: ");
        assert_eq!(
            request.lines().filter_map(|line| line.strip_prefix(&start)).collect::<Vec<_>>(),
            values,
            "{request}"
        );
    }
}

#[tokio::test]
async fn https_is_taken_from_anybody() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let prober = prober(); // the TLS provider with it
    let issued = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
    let config =
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![issued.cert.der().clone()], key);
    let server = tokio::task::spawn_blocking(move || {
        use std::io::{Read as _, Write as _};
        let listener = listener.into_std().unwrap();
        listener.set_nonblocking(false).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut connection = rustls::ServerConnection::new(Arc::new(config.unwrap())).unwrap();
        let mut tls = rustls::Stream::new(&mut connection, &mut stream);
        let mut request = [0; 4096];
        assert!(tls.read(&mut request).unwrap() > 0);
        tls.write_all(OK.as_bytes()).unwrap();
    });
    let probe = probe(&format!("{{httpGet: {{port: {port}, scheme: HTTPS}}, timeoutSeconds: 30}}"));
    assert_eq!(prober.ask(&probe, &Container::default(), &target()).await, Outcome::Success);
    server.await.unwrap();
}

#[test]
fn an_exec_probe_knows_the_plain_variables_of_its_container() {
    let container: Container = serde_json::from_value(serde_json::json!({"name": "c", "env": [
        {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"},
        {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]}))
    .unwrap();
    let exec = ExecAction { command: Some(vec!["$(B)".into(), "$$(A)".into(), "$(N)".into()]) };
    assert_eq!(command(&exec, &container), ["12", "$(A)", "$(N)"]);
}

#[tokio::test]
async fn a_redirect_elsewhere_is_a_success_and_one_without_end_a_failure() {
    let (port, _) =
        server(vec!["HTTP/1.1 302 Found\r\nLocation: http://other.invalid/\r\nContent-Length: 0\r\n\r\n"]).await;
    let Outcome::Warning(why) = ask(&format!("{{httpGet: {{port: {port}}}}}")).await else { panic!("no warning") };
    assert!(why.ends_with("302: not followed to http://other.invalid/"), "{why}");
    let again = "HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let (port, _) = server(vec![again; 20]).await;
    assert!(matches!(ask(&format!("{{httpGet: {{port: {port}}}}}")).await, Outcome::Failure(_)));
}

#[tokio::test]
async fn nobody_there_is_a_failure_and_silence_too() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(ask(&format!("{{tcpSocket: {{port: {port}}}}}")).await, Outcome::Success);
    assert_eq!(
        ask(&format!("{{httpGet: {{port: {port}}}, timeoutSeconds: 1}}")).await,
        Outcome::Failure("no answer within 1s".into())
    );
    drop(listener);
    for probe in ["tcpSocket", "httpGet"] {
        let Outcome::Failure(why) = ask(&format!("{{{probe}: {{port: {port}}}}}")).await else { panic!("no failure") };
        assert!(why.contains("refused"), "{why}");
    }
}

#[test]
fn ports_are_found_by_name() {
    let container: Container = serde_json::from_value(
        serde_json::json!({"name": "c", "ports": [{"name": "probe-port", "containerPort": 6443}]}),
    )
    .unwrap();
    assert_eq!(port(&IntOrString::String("probe-port".into()), &container), 6443);
    assert_eq!(port(&IntOrString::String("80".into()), &container), 80);
    assert_eq!(port(&IntOrString::Int(81), &container), 81);
}

#[test]
fn a_failure_is_kept_though_another_probe_passes() {
    let container = Container::default();
    let mut health = Health::initial(&container);
    let report = |kind, outcome| Report { container_id: String::new(), kind, outcome, verdict: None, eager: false };
    health.apply(&container, &report(ProbeKind::Readiness, Outcome::Failure("503".to_owned())));
    health.apply(&container, &report(ProbeKind::Liveness, Outcome::Success));
    assert_eq!((health.failures, health.failure.as_deref()), (1, Some("readiness probe failed: 503")));
    assert_eq!(health.message, None);
}
