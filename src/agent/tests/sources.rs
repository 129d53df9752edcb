//! Several sources beside each other, one of them away.

use std::net::TcpListener as StdListener;
use std::sync::Mutex;

use axum::Router;
use tokio::net::TcpListener;

use super::*;

/// An HTTP server that can be away.
struct Web {
    address: std::net::SocketAddr,
    answer: Arc<Mutex<String>>,
    server: JoinSet<()>,
}

impl Web {
    /// Has an address, at which nobody answers yet.
    fn away() -> Self {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        Self { address: listener.local_addr().unwrap(), answer: Arc::default(), server: JoinSet::new() }
    }

    async fn answers(&mut self, text: &str) {
        text.clone_into(&mut self.answer.lock().unwrap());
        if !self.server.is_empty() {
            return;
        }
        let listener = TcpListener::bind(self.address).await.unwrap();
        let answer = Arc::clone(&self.answer);
        let router = Router::new().fallback(async move || answer.lock().unwrap().clone());
        self.server.spawn(async move { axum::serve(listener, router).await.unwrap() });
    }

    async fn leaves(&mut self) {
        self.server.shutdown().await;
    }

    fn asked_by(&self, host: &mut Host) {
        let url = format!("http://user:secret@{}/pods", self.address);
        host.start_with(|options| {
            options.url = Some(Endpoint::new(&url, [("X-Token", "secret")]).unwrap());
            options.http_check_period = Duration::from_secs(1);
        });
    }
}

fn list(names: &[&str]) -> String {
    let items = names.iter().map(|name| {
        format!(
            "- metadata: {{name: {name}}}\n  spec: {{hostNetwork: true, containers: [{{name: c, image: 'i:1'}}]}}\n"
        )
    });
    format!("apiVersion: v1\nkind: PodList\nitems:\n{}", items.collect::<String>())
}

#[tokio::test(start_paused = true)]
async fn files_and_a_url_run_side_by_side() {
    let mut web = Web::away();
    let mut host = Host::new();
    web.answers(&list(&["web", "other"])).await;
    web.asked_by(&mut host);
    host.write("file", &pod("file", "i:1", ""));
    host.until_running(&["c_file-node_default", "c_other-node_default", "c_web-node_default"]).await;
    web.answers(&list(&["other"])).await;
    host.until_running(&["c_file-node_default", "c_other-node_default"]).await;
    web.answers("").await;
    host.until_running(&["c_file-node_default"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_url_that_is_away_keeps_its_pods_over_a_restart_and_holds_up_no_file() {
    let mut web = Web::away();
    let mut host = Host::new();
    web.answers(&list(&["web"])).await;
    web.asked_by(&mut host);
    host.write("a", &pod("a", "i:1", ""));
    host.write("b", &pod("b", "i:1", ""));
    host.until_running(&["c_a-node_default", "c_b-node_default", "c_web-node_default"]).await;
    sleep(Duration::from_secs(2)).await;
    web.leaves().await;
    host.delete("a");
    host.until_running(&["c_b-node_default", "c_web-node_default"]).await;
    host.stop().await;
    host.delete("b");
    web.asked_by(&mut host);
    host.until_running(&["c_web-node_default"]).await;
    sleep(Duration::from_mins(1)).await;
    assert_eq!(host.running(), ["c_web-node_default"]);

    let text = host.get("/status").await;
    assert!(text.contains("cannot be reached") && !text.contains("secret"), "{text}");
    let sources = host.status().await.sources;
    assert_eq!(sources.iter().map(|source| source.pods).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(sources.iter().map(|source| source.problem.is_some()).collect::<Vec<_>>(), [false, true]);

    let name = host.fake.running()[0].clone();
    host.fake.kill(&name, 1);
    host.until("it is restarted", |host| host.fake.running().first().is_some_and(|name| name.ends_with("_1"))).await;
    web.answers(&list(&["new"])).await;
    host.until_running(&["c_new-node_default"]).await;
}

/// Its manifest was lost, but the label says where it is from.
#[tokio::test(start_paused = true)]
async fn a_pod_of_a_url_is_left_alone_until_the_url_has_answered() {
    let mut web = Web::away();
    let mut host = Host::new();
    web.answers(&list(&["web"])).await;
    web.asked_by(&mut host);
    host.until_running(&["c_web-node_default"]).await;
    sleep(Duration::from_secs(2)).await;
    host.stop().await;
    web.leaves().await;
    std::fs::remove_dir_all(host.layout().pods()).unwrap();
    web.asked_by(&mut host);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(host.running(), ["c_web-node_default"]);
    web.answers("").await;
    host.until("it is removed", |host| host.fake.containers().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_url_that_is_no_longer_asked_are_removed() {
    let mut web = Web::away();
    let mut host = Host::new();
    web.answers(&list(&["web"])).await;
    web.asked_by(&mut host);
    host.until_running(&["c_web-node_default"]).await;
    sleep(Duration::from_secs(2)).await;
    host.stop().await;
    host.start();
    host.until("it is removed", |host| host.fake.containers().is_empty()).await;
    host.until("its directory too", |host| std::fs::read_dir(host.layout().pods()).unwrap().next().is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn of_two_sources_with_one_pod_name_the_file_wins_for_as_long_as_it_is_there() {
    let mut web = Web::away();
    let mut host = Host::new();
    web.answers(&list(&["web"])).await;
    host.write("web", &pod("web", "i:2", ""));
    web.asked_by(&mut host);
    host.until_running(&["c_web-node_default"]).await;
    let images = |host: &Host| host.fake.containers().iter().map(|c| c.image.clone()).collect::<Vec<_>>();
    let rejected = loop {
        let source = host.status().await.sources.pop().unwrap();
        if source.last_read_at.is_some() {
            assert_eq!(source.pods, 0);
            break source.rejected;
        }
        sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(rejected.len(), 1);
    assert!(rejected[0].reason.contains("same pod name (default/web-node) as /"), "{rejected:?}");
    assert_eq!(images(&host), ["i:2"]);
    host.delete("web");
    host.until("that of the URL runs", |host| images(host) == ["i:1"]).await;
    host.write("web", &pod("web", "i:2", ""));
    host.until("that of the file runs", |host| images(host) == ["i:2"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_single_file_may_come_and_go() {
    let mut host = Host::new();
    let path = host.layout().manifests().join("web.yaml");
    let shown = format!("{}: the file is not there, and so there is no pod of it", path.display());
    for _ in 0..2 {
        host.start_with(|options| options.manifests = Some(path.clone()));
        host.write("web", &pod("web", "i:1", ""));
        host.until_running(&["c_web-node_default"]).await;
        sleep(Duration::from_secs(2)).await;
        assert!(!host.status().await.warnings.contains(&shown));
        host.delete("web");
        host.until("it is removed", |host| host.fake.containers().is_empty()).await;
        let status = host.status().await;
        assert_eq!((&status.sources[0].problem, &status.sources[0].rejected), (&None, &vec![]));
        assert!(status.warnings.contains(&shown), "{:?}", status.warnings);
        host.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn notes_of_the_configuration_are_shown() {
    let mut host = Host::new();
    host.start_with(|options| options.notes = vec!["k.yaml: ignored".to_owned()]);
    host.until("it answers", |host| host.layout().socket().exists()).await;
    sleep(Duration::from_secs(1)).await;
    assert!(host.status().await.warnings.contains(&"k.yaml: ignored".to_owned()));
}

#[tokio::test]
async fn a_source_that_ends_or_fails_is_an_error_that_names_it() {
    let mut sources = Sources::default();
    sources.start(Published::unread(SourceKind::File, "/m".into()), async {});
    assert_eq!(sources.ended().await.to_string(), "the source `/m` ended");
    sources.start(Published::unread(SourceKind::Http, "http://h/".into()), async { panic!("why") });
    let error = sources.ended().await.to_string();
    assert!(error.starts_with("the source `http://h/` ended: ") && error.contains("why"), "{error}");
}
