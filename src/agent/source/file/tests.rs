use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::super::memory::{FILE, remember};
use super::*;

fn manifest(name: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: i}}]}}\n")
}

struct Fixture {
    root: TempDir,
    reader: Reader,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("manifests")).unwrap();
        let reader = Reader::new(source(root.path(), "manifests"));
        Self { root, reader }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("manifests").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&mut self) -> (Vec<String>, Vec<String>, Option<String>) {
        let published = self.reader.read(Clock::system().now());
        (
            published.pods.iter().map(|pod| pod.key.name.clone()).collect(),
            published.rejected.iter().map(|rejection| rejection.reason.clone()).collect(),
            published.problem,
        )
    }

    fn names(&mut self) -> Vec<String> {
        self.read().0
    }
}

fn source(root: &Path, manifests: &str) -> FileSource {
    FileSource {
        path: root.join(manifests),
        node: "n".into(),
        pods: root.join("pods"),
        period: Duration::from_secs(20),
        events: true,
    }
}

#[test]
fn which_files_count_is_the_kubelets_rule() {
    let mut fixture = Fixture::new();
    fixture.write("b.yaml", &manifest("b"));
    fixture.write(
        "a",
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"i"}]}}"#,
    );
    fixture.write("c.yaml.bak", &manifest("c"));
    fixture.write(".hidden.yaml", &manifest("hidden"));
    fs::create_dir(fixture.path("directory")).unwrap();
    fs::write(fixture.path("directory").join("x.yaml"), manifest("x")).unwrap();
    fs::write(fixture.root.path().join("elsewhere"), manifest("linked")).unwrap();
    symlink(fixture.root.path().join("elsewhere"), fixture.path("link")).unwrap();
    symlink("nowhere", fixture.path("dangling")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(fixture.path("socket")).unwrap();
    assert_eq!(fixture.names(), ["a-n", "b-n", "c-n", "linked-n"]);
}

#[test]
fn a_bad_file_is_rejected_and_the_others_run() {
    let mut fixture = Fixture::new();
    fixture.write("good.yaml", &manifest("good"));
    fixture.write("bad.yaml", "kind: Deployment\napiVersion: apps/v1\n");
    fixture.write("binary", "\u{0}");
    fs::write(fixture.path("latin1"), [0xe9]).unwrap();
    let (names, rejected, problem) = fixture.read();
    assert_eq!(names, ["good-n"]);
    assert_eq!(rejected.len(), 3, "{rejected:?}");
    assert_eq!(problem, None);
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let mut fixture = Fixture::new();
    let file = fs::File::create(fixture.path("large.yaml")).unwrap();
    file.set_len(yaml::MAX_MANIFEST_BYTES as u64 + 1).unwrap();
    assert!(fixture.read().1[0].contains("10 MiB"));
}

#[test]
fn a_file_that_breaks_keeps_its_pod_until_it_is_mended_or_removed() {
    let mut fixture = Fixture::new();
    fixture.write("web.yaml", &manifest("web"));
    fixture.read();
    for broken in ["kind: [", "", &manifest("web").replace("containers", "serviceAccountName: x, containers")] {
        fixture.write("web.yaml", broken);
        for _ in 0..2 {
            let (names, rejected, _) = fixture.read();
            assert_eq!(names, ["web-n"]);
            assert!(rejected[0].ends_with("its pod goes on as it was last good"), "{rejected:?}");
        }
    }
    fixture.write("web.yaml", &manifest("mended"));
    assert_eq!(fixture.read(), (vec!["mended-n".to_owned()], vec![], None));
    fs::remove_file(fixture.path("web.yaml")).unwrap();
    assert_eq!(fixture.names(), Vec::<String>::new());
}

#[test]
fn a_new_agent_knows_the_last_good_manifest_of_a_broken_file() {
    let mut fixture = Fixture::new();
    fixture.write("web.yaml", &manifest("web"));
    let published = fixture.reader.read(Clock::system().now());
    let pods = fixture.root.path().join("pods");
    remember(&pods, &published.pods[0]).unwrap();
    fixture.write("web.yaml", "kind: [");
    fixture.reader = Reader::new(source(fixture.root.path(), "manifests"));
    let again = fixture.reader.read(Clock::system().now());
    assert_eq!(again.pods[0].uid, published.pods[0].uid);
    let file = pods.join(&published.pods[0].uid).join(FILE);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_directory_that_is_away_keeps_its_pods_and_an_empty_one_does_not() {
    let mut fixture = Fixture::new();
    fixture.write("web.yaml", &manifest("web"));
    let published = fixture.reader.read(Clock::system().now());
    remember(&fixture.root.path().join("pods"), &published.pods[0]).unwrap();
    fs::remove_dir_all(fixture.path("")).unwrap();
    let (names, _, problem) = fixture.read();
    assert_eq!(names, ["web-n"]);
    assert!(problem.unwrap().contains("cannot be read"));
    fixture.reader = Reader::new(source(fixture.root.path(), "manifests"));
    assert_eq!(fixture.names(), ["web-n"], "also to a new agent");
    fs::create_dir(fixture.path("")).unwrap();
    assert_eq!(fixture.read(), (vec![], vec![], None));
}

#[test]
fn of_two_files_with_one_pod_name_the_first_wins() {
    let mut fixture = Fixture::new();
    fixture.write("b.yaml", &manifest("web"));
    fixture.write("a.yaml", &manifest("web"));
    let published = fixture.reader.read(Clock::system().now());
    assert_eq!(published.pods.len(), 1);
    assert!(published.pods[0].origin.ends_with("a.yaml"));
    assert!(published.rejected[0].file.ends_with("b.yaml"));
    assert!(published.rejected[0].reason.contains("same pod name"));
    fs::remove_file(fixture.path("a.yaml")).unwrap();
    assert_eq!(fixture.read(), (vec!["web-n".to_owned()], vec![], None));
}

#[test]
fn a_single_file_is_a_source_too() {
    let mut fixture = Fixture::new();
    fixture.write("web.yaml", &manifest("web"));
    fixture.write("other.yaml", &manifest("other"));
    fixture.reader = Reader::new(source(fixture.root.path(), "manifests/web.yaml"));
    assert_eq!(fixture.names(), ["web-n"]);
}

#[test]
fn reading_by_anybody_and_hidden_files_wake_nobody() {
    use notify::event::{CreateKind, DataChange, RemoveKind, RenameMode};
    let of = |kind, path: &str| hint(&Ok(notify::Event::new(kind).add_path(path.into())), Path::new("/m"));
    let close = EventKind::Access(AccessKind::Close(AccessMode::Write));
    assert_eq!(of(close, "/m/a"), Some(Hint::Now));
    assert_eq!(of(EventKind::Modify(ModifyKind::Name(RenameMode::To)), "/m/a"), Some(Hint::Now));
    assert_eq!(of(EventKind::Create(CreateKind::File), "/m/a"), Some(Hint::Soon));
    assert_eq!(of(EventKind::Remove(RemoveKind::File), "/m/a"), Some(Hint::Soon));
    assert_eq!(of(EventKind::Modify(ModifyKind::Data(DataChange::Any)), "/m/a"), Some(Hint::Soon));
    assert_eq!(of(EventKind::Access(AccessKind::Open(AccessMode::Any)), "/m/a"), None);
    assert_eq!(of(EventKind::Access(AccessKind::Close(AccessMode::Read)), "/m/a"), None);
    assert_eq!(of(close, "/m/.plinth-x"), None);
}

/// In real time, because the events come from the kernel.
#[tokio::test]
async fn a_change_is_published_at_once_also_after_the_directory_was_replaced() {
    let root = tempfile::tempdir().unwrap();
    let manifests = root.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let source = FileSource { period: Duration::from_secs(1), ..source(root.path(), "manifests") };
    let (publish, mut published) = mpsc::unbounded_channel();
    let task = tokio::spawn(source.run(Clock::system(), publish));
    published.recv().await.unwrap();
    let mut wait = async |count: usize| {
        let since = Instant::now();
        while published.recv().await.unwrap().pods.len() != count {}
        since.elapsed()
    };
    fs::write(manifests.join("a"), manifest("a")).unwrap();
    assert!(wait(1).await < Duration::from_millis(500), "at once");
    fs::rename(&manifests, root.path().join("old")).unwrap();
    fs::create_dir(&manifests).unwrap();
    wait(0).await;
    fs::write(manifests.join(".b"), manifest("b")).unwrap();
    fs::rename(manifests.join(".b"), manifests.join("b")).unwrap();
    assert!(wait(1).await < Duration::from_millis(500), "the new directory is watched");
    task.abort();
}
