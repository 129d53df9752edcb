use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::super::memory::{FILE, remember};
use super::*;
use crate::agent::pod::Origin;

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
fn of_two_files_with_one_uid_the_first_wins() {
    let mut fixture = Fixture::new();
    let with_uid = |name: &str| manifest(name).replace(&format!("name: {name}"), &format!("name: {name}, uid: u"));
    fixture.write("b.yaml", &with_uid("b"));
    assert_eq!(fixture.read(), (vec!["b-n".to_owned()], vec![], None));
    fixture.write("a.yaml", &with_uid("a"));
    let reason = format!("has the same metadata.uid as {}", fixture.path("a.yaml").display());
    assert_eq!(fixture.read(), (vec!["a-n".to_owned()], vec![reason], None));
    fs::remove_file(fixture.path("a.yaml")).unwrap();
    assert_eq!(fixture.read(), (vec!["b-n".to_owned()], vec![], None));
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

#[test]
fn a_file_that_cannot_be_read_keeps_its_pod_also_over_a_restart() {
    let mut fixture = Fixture::new();
    fixture.write("web.yaml", &manifest("web"));
    let published = fixture.reader.read(Clock::system().now());
    remember(&fixture.root.path().join("pods"), &published.pods[0]).unwrap();
    let path = fixture.path("web.yaml");
    let too_large = || fs::File::create(&path)?.set_len(yaml::MAX_MANIFEST_BYTES as u64 + 1);
    let no_text = || fs::write(&path, [0xe9]);
    let loops = || {
        fs::remove_file(&path)?;
        symlink("web.yaml", &path)
    };
    let cases: [(&dyn Fn() -> io::Result<()>, &str); 3] =
        [(&too_large, "10 MiB"), (&no_text, "UTF-8"), (&loops, "cannot be read")];
    let mut reader = fixture.reader;
    for (spoil, expected) in cases {
        spoil().unwrap();
        for restarted in [false, true] {
            if restarted {
                reader = Reader::new(source(fixture.root.path(), "manifests"));
            }
            let published = reader.read(Clock::system().now());
            assert_eq!(published.pods.len(), 1, "{expected} {restarted}");
            assert!(published.rejected[0].reason.contains(expected), "{:?}", published.rejected);
        }
    }
}

#[test]
fn an_edit_of_what_a_link_leads_to_is_seen() {
    let mut fixture = Fixture::new();
    let elsewhere = fixture.root.path().join("elsewhere");
    fs::write(&elsewhere, manifest("old")).unwrap();
    symlink(&elsewhere, fixture.path("link")).unwrap();
    assert_eq!(fixture.names(), ["old-n"]);
    fs::write(&elsewhere, manifest("new")).unwrap();
    assert_eq!(fixture.names(), ["new-n"]);
    fs::remove_file(&elsewhere).unwrap();
    assert_eq!(fixture.read(), (vec![], vec![], None), "a link that leads nowhere is no file");
}

/// Each row: what stands in the file, and whether it is run.
#[test]
fn what_a_file_holds_is_read_as_the_kubelet_does() {
    let good = manifest("web");
    let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"},"spec":{"containers":[{"name":"c","image":"i"}]}}"#;
    let rows: Vec<(&str, String, bool)> = vec![
        ("YAML", good.clone(), true),
        ("JSON", json.to_owned(), true),
        ("JSON with trailing data", format!("{json}{json}"), false),
        ("capital key", good.replace("kind:", "Kind:"), true),
        ("capital keys in JSON", json.replace("kind", "KIND").replace("apiVersion", "apiversion"), true),
        ("the right key wins", format!("{good}Kind: Deployment\n"), true),
        ("capital field", good.replace("metadata:", "Metadata:"), false),
        ("unknown field", good.replace("containers:", "future: 1, containers:"), true),
        ("wrong type", good.replace("image: i", "image: 5"), false),
        ("duplicate key: the last wins", format!("kind: Deployment\n{good}"), true),
        ("a second document", format!("{good}---\nkind: [\n"), true),
        ("an empty first document", format!("---\n# nothing\n---\n{good}"), false),
        ("a leading marker", format!("# comment\n---\n{good}"), true),
        ("byte order mark", format!("\u{feff}{good}"), true),
        ("CRLF", good.replace('\n', "\r\n"), true),
        ("a list", format!("apiVersion: v1\nkind: PodList\nitems:\n- {json}\n"), false),
        ("a deployment", "apiVersion: apps/v1\nkind: Deployment\n".to_owned(), false),
        ("no name", good.replace("name: web", "generateName: web"), false),
    ];
    for (name, text, runs) in rows {
        let mut fixture = Fixture::new();
        fixture.write("file", &text);
        let (names, rejected, _) = fixture.read();
        assert_eq!((names.len(), rejected.len()), (usize::from(runs), usize::from(!runs)), "{name}: {rejected:?}");
    }
    let warnings = |text: &str| {
        let mut fixture = Fixture::new();
        fixture.write("file", text);
        fixture.reader.read(Clock::system().now()).pods[0].warnings.clone()
    };
    assert_eq!(warnings(&good.replace("kind:", "Kind:")), ["the key `Kind` is read as `kind`"]);
    assert_eq!(
        warnings(&good.replace("containers:", "future: 1, containers:")),
        ["unknown field `spec.future` is ignored"]
    );
}

#[test]
fn a_single_file_that_is_removed_takes_its_pod_along_and_one_whose_directory_is_away_does_not() {
    let mut fixture = Fixture::new();
    fixture.write("web.yaml", &manifest("web"));
    let single = source(fixture.root.path(), "manifests/web.yaml");
    fixture.reader = Reader::new(single.clone());
    let published = fixture.reader.read(Clock::system().now());
    remember(&fixture.root.path().join("pods"), &published.pods[0]).unwrap();
    fs::rename(fixture.path(""), fixture.root.path().join("away")).unwrap();
    for restarted in [false, true] {
        if restarted {
            fixture.reader = Reader::new(single.clone());
        }
        let published = fixture.reader.read(Clock::system().now());
        assert_eq!((published.pods.len(), published.complete), (1, !restarted));
        assert!(published.problem.unwrap().contains("cannot be read"));
    }
    fs::rename(fixture.root.path().join("away"), fixture.path("")).unwrap();
    fs::remove_file(fixture.path("web.yaml")).unwrap();
    for restarted in [false, true] {
        if restarted {
            fixture.reader = Reader::new(single.clone());
        }
        let published = fixture.reader.read(Clock::system().now());
        assert_eq!((published.pods.len(), published.complete), (0, true));
        assert_eq!((published.problem, published.read_at.is_some()), (None, true), "{restarted}");
        assert!(published.remark.unwrap().contains("the file is not there"));
    }
    fixture.write("web.yaml", &manifest("web"));
    let published = fixture.reader.read(Clock::system().now());
    assert_eq!((published.pods.len(), published.problem, published.remark), (1, None, None));
}

/// Each row: a path where nothing is, of which an agent kept a pod or not, and whether it is an empty source.
#[test]
fn what_was_never_there_is_a_single_file_by_its_name() {
    for (path, kept, is_empty) in [
        ("manifests/web.yaml", None, true),
        ("manifests/web.json", None, true),
        ("manifests/web", None, false),
        ("manifests/web", Some("manifests/web"), true),
        ("manifests/web.yaml", Some("manifests/web.yaml/a"), false),
        ("away/web.yaml", None, false),
    ] {
        let fixture = Fixture::new();
        if let Some(kept) = kept {
            let origin = fixture.root.path().join(kept);
            let pod = StaticPod::read(&manifest("web"), Origin::File(&origin), "n").unwrap();
            remember(&fixture.root.path().join("pods"), &pod).unwrap();
        }
        let published = Reader::new(source(fixture.root.path(), path)).read(Clock::system().now());
        let found = (published.problem.is_none(), published.remark.is_some(), published.complete);
        assert_eq!(found, (is_empty, is_empty, is_empty), "{path} {kept:?}");
    }
}

#[test]
fn what_was_lost_to_an_earlier_agent_is_not_brought_back_once_the_directory_was_read() {
    let mut fixture = Fixture::new();
    fixture.write("web.yaml", &manifest("web"));
    let published = fixture.reader.read(Clock::system().now());
    remember(&fixture.root.path().join("pods"), &published.pods[0]).unwrap();
    fixture.reader = Reader::new(source(fixture.root.path(), "manifests"));
    fs::remove_file(fixture.path("web.yaml")).unwrap();
    assert_eq!(fixture.names(), Vec::<String>::new());
    fs::remove_dir(fixture.path("")).unwrap();
    let published = fixture.reader.read(Clock::system().now());
    assert_eq!((published.pods.len(), published.complete), (0, true));
}

#[test]
fn what_was_removed_does_not_come_back_when_a_broken_file_gets_its_name() {
    for single in [false, true] {
        for restarted in [false, true] {
            for broken in ["", "kind: ["] {
                let mut fixture = Fixture::new();
                let path = if single { "manifests/web.yaml" } else { "manifests" };
                let source = source(fixture.root.path(), path);
                fixture.reader = Reader::new(source.clone());
                fixture.write("web.yaml", &manifest("web"));
                let published = fixture.reader.read(Clock::system().now());
                remember(&fixture.root.path().join("pods"), &published.pods[0]).unwrap();
                if restarted {
                    fixture.reader = Reader::new(source);
                }
                assert_eq!(fixture.names(), ["web-n"]);
                fs::remove_file(fixture.path("web.yaml")).unwrap();
                assert_eq!(fixture.names(), Vec::<String>::new());
                fixture.write("web.yaml", broken);
                let (names, rejected, _) = fixture.read();
                let case = format!("single {single}, restarted {restarted}, {broken:?}: {rejected:?}");
                assert_eq!((names.len(), rejected.len()), (0, 1), "{case}");
                assert!(!rejected[0].contains("its pod goes on"), "{case}");
                fixture.write("web.yaml", &manifest("web"));
                assert_eq!(fixture.read(), (vec!["web-n".to_owned()], vec![], None), "{case}");
            }
        }
    }
}

/// Longer than any of these tests may take: what is seen earlier was seen by an event.
const NEVER: Duration = Duration::from_mins(10);
/// For events, which come at once on a machine that has nothing else to do.
const PATIENCE: Duration = Duration::from_mins(1);

/// A source in real time, because the events come from the kernel.
struct Live {
    root: TempDir,
    published: mpsc::UnboundedReceiver<Published>,
    _task: tokio::task::JoinSet<()>,
}

impl Live {
    async fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("above/manifests")).unwrap();
        let source = FileSource { period: NEVER, ..source(root.path(), "above/manifests") };
        let (publish, published) = mpsc::unbounded_channel();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(source.run(Clock::system(), publish));
        let mut live = Self { root, published, _task: task };
        live.until(|published| published.problem.is_none()).await;
        live
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("above").join(name)
    }

    async fn until(&mut self, condition: impl Fn(&Published) -> bool) {
        let found = async { while !condition(&self.published.recv().await.unwrap()) {} };
        tokio::time::timeout(PATIENCE, found).await.expect("an event");
    }

    async fn until_pods(&mut self, count: usize) {
        self.until(|published| published.problem.is_none() && published.pods.len() == count).await;
    }
}

#[tokio::test]
async fn a_change_is_published_at_once() {
    let mut live = Live::new().await;
    fs::write(live.path("manifests/a"), manifest("a")).unwrap();
    live.until_pods(1).await;
    fs::write(live.path("manifests/.b"), manifest("b")).unwrap();
    fs::rename(live.path("manifests/.b"), live.path("manifests/b")).unwrap();
    live.until_pods(2).await;
    fs::rename(live.path("manifests/b"), live.path("manifests/.b")).unwrap();
    live.until_pods(1).await;
    fs::remove_file(live.path("manifests/a")).unwrap();
    live.until_pods(0).await;
}

#[tokio::test]
async fn a_directory_that_was_away_is_watched_again() {
    let mut live = Live::new().await;
    for round in 0..2 {
        fs::rename(live.path("manifests"), live.path("away")).unwrap();
        live.until(|published| published.problem.is_some()).await;
        fs::rename(live.path("away"), live.path("manifests")).unwrap();
        live.until_pods(round).await;
        fs::write(live.path(&format!("manifests/{round}")), manifest(&format!("p{round}"))).unwrap();
        live.until_pods(round + 1).await;
    }
}

#[tokio::test]
async fn a_directory_that_was_replaced_is_watched() {
    let mut live = Live::new().await;
    for round in 0..3 {
        fs::write(live.path("manifests/a"), manifest("a")).unwrap();
        live.until_pods(1).await;
        // Often with the inode number of the one before.
        if round == 1 {
            fs::rename(live.path("manifests"), live.path("old")).unwrap();
        } else {
            fs::remove_dir_all(live.path("manifests")).unwrap();
        }
        fs::create_dir(live.path("manifests")).unwrap();
        live.until_pods(0).await;
    }
}

/// Nothing tells that a directory above was replaced; the next complete reading sees it.
#[tokio::test]
async fn a_directory_whose_parent_was_replaced_is_watched_after_the_next_reading() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("above/manifests");
    fs::create_dir_all(&path).unwrap();
    let (hints, mut events) = mpsc::unbounded_channel();
    let mut watch = DirectoryWatch::new(hints);
    watch.arm(&path);
    fs::rename(root.path().join("above"), root.path().join("old")).unwrap();
    watch.arm(&path);
    assert!(watch.armed.is_none());
    fs::create_dir_all(&path).unwrap();
    watch.arm(&path);
    while events.try_recv().is_ok() {}
    fs::write(path.join("a"), "").unwrap();
    tokio::time::timeout(PATIENCE, events.recv()).await.expect("an event").unwrap();
}
