//! The interface over TLS, with certificates made by [`crate::pki`].

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use futures_util::{SinkExt as _, StreamExt as _};
use jiff::SignedDuration;
use reqwest::{Client, Identity, Method};
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::authn::User;
use super::reviews::testing::Scripted;
use super::*;
use crate::agent::ledger::NoLedger;
use crate::agent::ledger::tests::Gated;
use crate::agent::metrics::Metrics;
use crate::agent::pod::tests::pod;
use crate::config::{CertificatePolicy, Cluster};
use crate::journal::{Creation, Record};
use crate::pki::{self, Authority, Spec, Usage};
use crate::runtime::fake::{FakeRuntime, Program};
use crate::runtime::{ContainerSpec, labels};

/// An authority and its users.
struct Users {
    authority: Authority,
    policy: CertificatePolicy,
    spec: Spec,
}

impl Users {
    fn new() -> Self {
        let cluster = Cluster::example();
        let spec = |name: &str| pki::specifications(&cluster).into_iter().find(|spec| spec.name == name).unwrap();
        let (policy, now) = (cluster.certificates, Timestamp::now());
        let issued = pki::issue_authority(&spec("ca"), &policy, now).unwrap();
        let key = Some(issued.key.expose().as_bytes());
        let authority = Authority::load(&spec("ca"), issued.certificate.as_bytes(), key, now).unwrap();
        Self { authority, policy, spec: spec("apiserver-kubelet-client") }
    }

    fn identity_with(&self, change: impl FnOnce(&mut Spec), at: Timestamp) -> Identity {
        let mut spec = self.spec.clone();
        change(&mut spec);
        let issued = pki::issue_leaf(&spec, &self.authority, &self.policy, at).unwrap();
        Identity::from_pem(format!("{}{}", issued.certificate, issued.key.expose()).as_bytes()).unwrap()
    }

    fn identity(&self, name: &str) -> Identity {
        self.identity_with(|spec| name.clone_into(&mut spec.common_name), Timestamp::now())
    }
}

struct Fixture {
    directory: TempDir,
    runtime: Arc<FakeRuntime>,
    board: Arc<Board>,
    reviews: Arc<Scripted>,
    users: Users,
    address: SocketAddr,
    _server: tokio_util::task::AbortOnDropHandle<()>,
}

fn node() -> Node {
    Node {
        name: "node-1".to_owned(),
        address: "127.0.0.1".parse().unwrap(),
        memory: 0,
        storage: 0,
        cpus: 1,
        dns: crate::agent::host::Dns::default(),
        may_protect_from_oom: false,
        apparmor: false,
    }
}

impl Fixture {
    async fn new() -> Self {
        crate::health::testing::install_provider();
        let directory = tempfile::tempdir().unwrap();
        let (users, clock) = (Users::new(), Clock::system());
        fs::write(directory.path().join("ca.crt"), users.authority.certificate_pem()).unwrap();
        let runtime = Arc::new(FakeRuntime::new(clock.clone()));
        let board = Arc::new(Board::new(Metrics::new("1")));
        let reviews = Arc::new(Scripted::default());
        let face = Face {
            runtime: Arc::clone(&runtime),
            board: Arc::clone(&board),
            node: Arc::new(node()),
            clock: clock.clone(),
            reviews: Arc::clone(&reviews),
            authenticator: Arc::new(Authenticator::new(directory.path().join("ca.crt"), clock)),
            authorizer: Arc::new(Authorizer::new("node-1")),
        };
        let ledger = Writer::new(Arc::new(NoLedger));
        let mut serving = Serving::own(directory.path(), "node-1", node().address, ledger);
        serving.config(Timestamp::now()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(accept(listener, serving, face)));
        Self { directory, runtime, board, reviews, users, address, _server: server }
    }

    /// A client that trusts what the file of the agent says, and shows `identity`.
    fn client(&self, identity: Option<Identity>) -> Client {
        let chain = fs::read(self.directory.path().join("kubelet.crt")).unwrap();
        let builder = Client::builder().tls_certs_only(reqwest::Certificate::from_pem_bundle(&chain).unwrap());
        match identity {
            Some(identity) => builder.identity(identity).build().unwrap(),
            None => builder.build().unwrap(),
        }
    }

    fn request(&self, client: &Client, path: &str) -> reqwest::RequestBuilder {
        client.get(format!("https://{}{path}", self.address))
    }

    async fn get(&self, client: &Client, path: &str) -> (u16, String) {
        text(self.request(client, path)).await
    }

    /// A client that may do everything.
    fn admin(&self) -> Client {
        for verb in ["get", "create"] {
            for subresource in ["proxy", "metrics"] {
                self.reviews.allow("admin", verb, subresource);
            }
        }
        self.client(Some(self.users.identity("admin")))
    }

    /// A pod whose container `c` has run once and runs again, and whose container `new` has not been made.
    async fn web(&self) {
        let pod =
            pod("apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: ns}\nspec:\n  hostNetwork: true\n  \
                       containers: [{name: c, image: i}, {name: new, image: i}]\n");
        self.runtime.add_image("i");
        for attempt in ["0", "1"] {
            let labels = [
                (labels::POD_UID, pod.uid.as_str()),
                (labels::SPEC_HASH, &pod.hash),
                (labels::CONTAINER_NAME, "c"),
                (labels::RESTART_COUNT, attempt),
            ];
            let spec = ContainerSpec {
                name: format!("c{attempt}"),
                image: "i".to_owned(),
                labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
                ..ContainerSpec::default()
            };
            let id = self.runtime.create(&spec).await.unwrap();
            self.runtime.start(&id).await.unwrap();
            for line in ["one", "two", "three"] {
                self.runtime.write_log(&id, &format!("{line} of {attempt}\n"));
            }
            if attempt == "0" {
                self.runtime.kill(&id, 1);
            }
        }
        let containers = self.runtime.containers().into_iter().map(|container| (container.id.clone(), container));
        let known = Snapshot::bare(&pod.key.clone(), Some(Arc::new(pod)), Timestamp::now());
        self.board.publish(Snapshot { containers: containers.collect(), ..known });
    }
}

async fn text(request: reqwest::RequestBuilder) -> (u16, String) {
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

fn is(code: u16, body: &str) -> (u16, String) {
    (code, body.to_owned())
}

#[tokio::test]
async fn nobody_unknown_gets_an_answer() {
    let fixture = Fixture::new().await;
    let year = SignedDuration::from_hours(2 * 365 * 24);
    let strangers = Users::new();
    let of = |change: fn(&mut Spec), at| Some(fixture.users.identity_with(change, at));
    let now = Timestamp::now();
    for (who, identity) in [
        ("nobody", None),
        ("another authority's", Some(strangers.identity("admin"))),
        ("a server", of(|spec| spec.usages = &[Usage::ServerAuth], now)),
        ("expired", of(|_| {}, now - year)),
        ("not yet valid", of(|_| {}, now + year)),
        ("without a name", of(|spec| spec.common_name.clear(), now)),
    ] {
        let client = fixture.client(identity);
        for path in ["/healthz", "/pods", "/no-such-path", "/containerLogs/ns/web-node-1/c", "/exec/a/b/c"] {
            assert_eq!(fixture.get(&client, path).await, is(401, "Unauthorized"), "{who} at {path}");
        }
    }
    assert_eq!(fixture.reviews.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn the_api_server_says_what_the_owner_of_a_certificate_may_do() {
    let fixture = Fixture::new().await;
    let client = fixture.client(Some(fixture.users.identity("u")));
    fixture.reviews.allow("u", "get", "healthz");
    assert_eq!(fixture.get(&client, "/healthz").await, is(200, "ok"));
    assert_eq!(fixture.get(&client, "/healthz/ping").await, is(200, "ok"));
    assert_eq!(fixture.reviews.asked(), ["u get nodes/healthz of node-1"]);
    let forbidden = "Forbidden (user=u, verb=get, resource=nodes, subresource(s)=[metrics])\n";
    assert_eq!(fixture.get(&client, "/metrics").await, is(403, forbidden));
    let create = client.request(Method::POST, format!("https://{}/run/a/b/c", fixture.address));
    let forbidden = "Forbidden (user=u, verb=create, resource=nodes, subresource(s)=[proxy])\n";
    assert_eq!(text(create).await, is(403, forbidden));
    fixture.reviews.set_away(true);
    assert_eq!(fixture.get(&client, "/healthz").await, is(200, "ok"), "what was allowed is for a while");
    let unknown = "Authorization error (user=u, verb=get, resource=nodes, subresource=stats)";
    assert_eq!(fixture.get(&client, "/stats/summary").await, is(500, unknown));

    // The authority is replaced while the connection is open.
    let others = Users::new();
    fs::write(fixture.directory.path().join("ca.crt"), others.authority.certificate_pem()).unwrap();
    assert_eq!(fixture.get(&client, "/healthz").await, is(401, "Unauthorized"));
    let client = fixture.client(Some(others.identity("u")));
    assert_eq!(fixture.get(&client, "/healthz").await, is(200, "ok"));
    assert_eq!(fixture.board.situation().2, Vec::<String>::new());
    let file = fixture.directory.path().join("ca.crt");
    fs::remove_file(&file).unwrap();
    assert_eq!(fixture.get(&client, "/healthz").await, is(401, "Unauthorized"));
    // It is said with the next connection; the refused one is not kept.
    assert_eq!(fixture.get(&client, "/healthz").await, is(401, "Unauthorized"));
    let said = fixture.board.situation().2.join("\n");
    assert!(said.starts_with(NO_CERTIFICATE) && said.contains(file.to_str().unwrap()), "{said}");
}

#[tokio::test]
async fn the_api_server_says_whose_a_token_is() {
    let fixture = Fixture::new().await;
    let client = fixture.client(None);
    fixture.reviews.know("good", User { name: "sa".to_owned(), ..User::default() });
    fixture.reviews.allow("sa", "get", "metrics");
    let ask = async |header: &str| text(fixture.request(&client, "/metrics").header("Authorization", header)).await;
    assert_eq!(ask("Bearer good").await.0, 200);
    assert_eq!(ask("bearer  good").await.0, 200);
    assert_eq!(fixture.reviews.asked(), ["token good", "sa get nodes/metrics of node-1"]);
    for other in ["Bearer bad", "Bearer bad", "Bearer ", "Basic good", "good"] {
        assert_eq!(ask(other).await, is(401, "Unauthorized"), "{other}");
    }
    assert_eq!(fixture.reviews.asked(), ["token bad"], "once");
    fixture.reviews.set_away(true);
    assert_eq!(ask("Bearer good").await.0, 200, "for two minutes");
    assert_eq!(ask("Bearer unknown").await, is(401, "Unauthorized"));
}

#[tokio::test]
async fn what_a_kubelet_shows_is_shown() {
    let fixture = Fixture::new().await;
    fixture.web().await;
    let client = fixture.admin();
    let (code, list) = fixture.get(&client, "/pods").await;
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(
        (code, &list["kind"], &list["items"][0]["metadata"]["name"]),
        (200, &"PodList".into(), &"web-node-1".into())
    );
    let (code, list) = fixture.get(&client, "/runningpods/").await;
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let containers = serde_json::json!([{ "name": "c", "image": "i" }]);
    assert_eq!((code, &list["items"][0]["spec"]["containers"]), (200, &containers));
    assert!(fixture.get(&client, "/metrics").await.1.contains("plinth_agent_pods"));
    fixture.board.set_problem(Some("the engine is away".to_owned()));
    assert_eq!(fixture.get(&client, "/healthz/ping").await, is(200, "ok"));
    let problem = "internal server error: the engine is away\n";
    assert_eq!(fixture.get(&client, "/healthz/syncloop").await, is(500, problem));
    let (code, words) = fixture.get(&client, "/healthz").await;
    assert!(code == 500 && words.contains("[-]syncloop failed"), "{words}");
    for path in ["/run/a/b/c", "/attach/a/b/c", "/portForward/a/b"] {
        assert_eq!(fixture.get(&client, path).await.0, 501, "{path}");
    }
    assert_eq!(fixture.get(&client, "/configz").await.0, 404);
    let post = client.request(Method::POST, format!("https://{}/pods", fixture.address));
    assert_eq!(text(post).await.0, 405);
}

#[tokio::test]
async fn logs_are_the_kubelets_answers() {
    let fixture = Fixture::new().await;
    fixture.web().await;
    let client = fixture.admin();
    let all = "one of 1\ntwo of 1\nthree of 1\n";
    for (path, code, expected) in [
        ("ns/web-node-1/c", 200, all),
        ("ns/web-node-1/c?tailLines=1", 200, "three of 1\n"),
        ("ns/web-node-1/c?limitBytes=5", 200, "one o"),
        ("ns/web-node-1/c?sinceTime=2999-01-01T00:00:00Z", 200, ""),
        ("ns/web-node-1/c?previous=true", 200, "one of 0\ntwo of 0\nthree of 0\n"),
        ("ns/web-node-1/c?tailLines=-1", 422, "{\"message\": \"Invalid request.\"}"),
        ("ns/web/c", 404, "pod \"web\" does not exist"),
        ("other/web-node-1/c", 404, "pod \"web-node-1\" does not exist"),
        ("ns/web-node-1/d", 404, "container \"d\" not found in pod \"web-node-1\""),
        ("ns/web-node-1/new", 400, "container \"new\" in pod \"web-node-1\" is waiting to start: ContainerCreating"),
        ("ns/web-node-1/new?previous=1", 400, "previous terminated container \"new\" in pod \"web-node-1\" not found"),
    ] {
        assert_eq!(fixture.get(&client, &format!("/containerLogs/{path}")).await, is(code, expected), "{path}");
    }
    let (_, text) = fixture.get(&client, "/containerLogs/ns/web-node-1/c?timestamps=true&tailLines=1").await;
    let (time, line) = text.split_once(' ').unwrap();
    assert!(time.parse::<Timestamp>().is_ok() && line == "three of 1\n", "{text}");

    let mut answer =
        fixture.request(&client, "/containerLogs/ns/web-node-1/c?follow=true&tailLines=0").send().await.unwrap();
    fixture.runtime.write_log("c1", "later\n");
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "later\n");
    fixture.runtime.kill("c1", 0);
    assert_eq!(answer.chunk().await.unwrap(), None);
}

/// Asks for a WebSocket.
fn upgrade(request: reqwest::RequestBuilder, protocol: &str) -> reqwest::RequestBuilder {
    let headers = [
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "WebSocket"),
        ("Sec-WebSocket-Version", "13"),
        // RFC 6455, 1.3.
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", protocol),
    ];
    headers.into_iter().fold(request, |request, (name, value)| request.header(name, value))
}

#[tokio::test]
async fn a_command_is_talked_with() {
    let fixture = Fixture::new().await;
    fixture.web().await;
    fixture.runtime.set_program("i", Program::default().answers_exec(3, "hello\n"));
    let client = fixture.admin();
    let request = fixture.request(&client, "/exec/ns/web-node-1/c?command=cat&command=-&input=1&output=1&error=1");
    let answer = upgrade(request, "v5.channel.k8s.io").send().await.unwrap();
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(header("Sec-WebSocket-Accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(header("Sec-WebSocket-Protocol"), "v5.channel.k8s.io");
    let socket = answer.upgrade().await.unwrap();
    let mut socket = WebSocketStream::from_raw_socket(socket, Role::Client, None).await;
    let mut received = Vec::new();
    for sent in [&b"\0in"[..], b"\x04{\"Width\":80,\"Height\":25}", b"\xff\0"] {
        socket.send(Message::binary(sent.to_vec())).await.unwrap();
    }
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(data) => received.push(data.to_vec()),
            Message::Close(frame) => received.push(format!("closed: {}", frame.unwrap().code).into_bytes()),
            other => panic!("{other:?}"),
        }
    }
    let status: serde_json::Value = serde_json::from_slice(&received[3][1..]).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "3", "{status}");
    assert_eq!(received[3][0], 3);
    received.remove(3);
    assert_eq!(received, [&b"\x01"[..], b"\x01hello\n", b"\x01in", b"closed: 1000"]);
}

#[tokio::test]
async fn what_is_no_exec_is_refused_with_the_reason() {
    let fixture = Fixture::new().await;
    fixture.web().await;
    let client = fixture.admin();
    for (path, protocol, code, words) in [
        ("ns/none/c?command=a&output=1", "v5.channel.k8s.io", 404, "pod does not exist"),
        ("ns/web-node-1/new?command=a&output=1", "v5.channel.k8s.io", 500, "container not found (\"new\")"),
        ("ns/web-node-1/c?command=a", "v5.channel.k8s.io", 400, "you must specify at least 1 of stdin, stdout, stderr"),
        ("ns/web-node-1/c?output=1", "v5.channel.k8s.io", 400, "you must specify a command"),
        ("ns/web-node-1/c?command=a&output=1", "v3.channel.k8s.io", 501, "exec is served over WebSocket alone"),
    ] {
        let request = fixture.request(&client, &format!("/exec/{path}"));
        let (found, text) = text(upgrade(request, protocol)).await;
        assert!(found == code && text.starts_with(words), "{path}: {found} {text}");
    }
    let path = "/exec/ns/web-node-1/c?command=a&output=1";
    let spdy = client.request(Method::POST, format!("https://{}{path}", fixture.address));
    let spdy = spdy.header("Connection", "Upgrade").header("Upgrade", "SPDY/3.1");
    assert_eq!(text(spdy).await.0, 501);
    assert_eq!(fixture.get(&client, path).await.0, 501);
    fixture.runtime.go_away();
    let (code, words) = text(upgrade(fixture.request(&client, path), "v4.channel.k8s.io")).await;
    assert!(code == 500 && words.contains("does not answer"), "{words}");
}

#[tokio::test]
async fn a_certificate_is_made_when_there_is_no_good_one() {
    let directory = tempfile::tempdir().unwrap();
    let pki = directory.path().join("kubelet/pki");
    let ledger = Arc::new(Gated::default());
    let now = Timestamp::now();
    let day = SignedDuration::from_hours(24);
    let read = |name: &str| fs::read(pki.join(name)).unwrap();
    let mode = |path: &str| fs::metadata(pki.join(path)).unwrap().permissions().mode() & 0o7777;
    // As an agent that starts.
    let present = async |name: &str, at: Timestamp| {
        let writer = Writer::new(Arc::clone(&ledger) as Arc<dyn crate::agent::ledger::Ledger>);
        Serving::own(&pki, name, node().address, writer).config(at).await.unwrap();
        (read("kubelet.crt"), read("kubelet.key"))
    };
    let first = present("node-1", now).await;
    assert_eq!((mode("kubelet.crt"), mode("kubelet.key"), mode("")), (0o644, 0o600, 0o755));
    let directories = [directory.path().join("kubelet"), pki.clone()].map(|path| Creation::Directory { path });
    let files = ["kubelet.crt", "kubelet.key"].map(|name| Creation::File { path: pki.join(name) });
    let expected: Vec<_> = directories.into_iter().chain(files).map(|what| Record::Make { what }).collect();
    assert_eq!(ledger.appends(), [expected]);

    assert_eq!(present("node-1", now + 300 * day).await, first, "a good one stays");
    let others = present("node-2", now).await;
    assert_ne!(others, first, "the node has another name");
    let renewed = present("node-2", now + 340 * day).await;
    assert_ne!(renewed, others, "its end is near");
    fs::write(pki.join("kubelet.key"), &first.1).unwrap();
    let mended = present("node-2", now + 340 * day).await;
    assert_ne!(mended, (renewed.0, first.1), "the key is another one's");
    fs::remove_file(pki.join("kubelet.crt")).unwrap();
    assert_ne!(present("node-2", now + 340 * day).await, mended, "it is missing");
}

#[tokio::test(start_paused = true)]
async fn clients_do_not_make_the_agent_try_more_often() {
    let directory = tempfile::tempdir().unwrap();
    // Nothing is there, and nothing can be written there.
    std::os::unix::fs::symlink("/nowhere/at/all", directory.path().join("pki")).unwrap();
    let ledger = Arc::new(Gated::default());
    let writer = Writer::new(Arc::clone(&ledger) as Arc<dyn crate::agent::ledger::Ledger>);
    let mut serving = Serving::own(&directory.path().join("pki"), "node-1", node().address, writer);
    let mut attempts = async |clients: usize| {
        for _ in 0..clients {
            assert!(serving.config(Timestamp::now()).await.is_err());
        }
        ledger.appends().len()
    };
    assert_eq!(attempts(5).await, 1);
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(attempts(5).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_pair_of_others_is_followed_and_a_bad_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let now = Timestamp::now();
    let writer = || Writer::new(Arc::new(NoLedger));
    for name in ["a", "b"] {
        Serving::own(&path(name), name, node().address, writer()).config(now).await.unwrap();
    }
    let copy = |from: &str| {
        for name in ["kubelet.crt", "kubelet.key"] {
            fs::copy(path(from).join(name), path(name)).unwrap();
        }
    };
    let pair = Pair { certificate: path("kubelet.crt"), key: path("kubelet.key") };
    let mut serving = Serving::of_others(pair, writer());
    assert!(serving.config(now).await.is_err(), "there is none");
    copy("a");
    let minute = Duration::from_secs(61);
    tokio::time::advance(minute).await;
    let first = serving.config(now).await.unwrap();
    copy("b");
    assert!(Arc::ptr_eq(&serving.config(now).await.unwrap(), &first), "it is looked at once a minute");
    tokio::time::advance(minute).await;
    let second = serving.config(now).await.unwrap();
    assert!(!Arc::ptr_eq(&second, &first));
    fs::write(path("kubelet.key"), "nonsense").unwrap();
    tokio::time::advance(minute).await;
    assert!(Arc::ptr_eq(&serving.config(now).await.unwrap(), &second), "the last good one goes on");
}

#[tokio::test(start_paused = true)]
async fn a_client_has_little_time_for_its_first_request() {
    let heard = Notify::new();
    let before = Instant::now();
    assert_eq!(unless_silent(std::future::pending::<()>(), &heard).await, None);
    assert_eq!(before.elapsed(), GREETING);
    heard.notify_one();
    assert_eq!(unless_silent(sleep(IDLE), &heard).await, Some(()));
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_and_tried_again() {
    let board = Board::new(Metrics::new("1"));
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = holder.local_addr().unwrap();
    let listening = listen(address, &board);
    tokio::pin!(listening);
    let said = || board.situation().2.join("\n");
    while said().is_empty() {
        assert!(timeout(Duration::from_millis(20), &mut listening).await.is_err());
    }
    assert!(said().contains(&format!("cannot listen on {address}")), "{}", said());
    drop(holder);
    timeout(Duration::from_mins(1), listening).await.unwrap();
    assert_eq!(said(), "");
}
