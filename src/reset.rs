//! Takes everything away again, and proves it.
//!
//! # Guarantees
//! - Only what the journal says plinth made is removed, and containers that carry our label. Foreign files stay, and
//!   so do a directory that still holds one, a file made for a container that has written to it, and what somebody
//!   else has mounted below a directory of ours.
//! - No data is removed before `/proc` shows that none of our processes runs.
//! - What cannot be removed, or an engine that is away, keeps nothing else from being removed.
//! - Interrupted anywhere, it can be run again: the journal goes last, and only when nothing is left that should not be.
//! - The report is a look at the host after all is done (`survey`), not what this run remembers.

mod survey;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;

use crate::apply::{Host, Launch};
use crate::cluster;
use crate::error::with_causes;
use crate::fsx::{self, FsError, Unmounted};
use crate::journal::{Creation, JournalError, Operation, Record};
use crate::kubeconfig;
use crate::layout::Layout;
use crate::runtime::Runtime;
use crate::service::{self, Manager, ServiceError};
use crate::takedown::{self, TakedownError};

pub use survey::{Made, State, Thing};

/// How long the API server may take for the Node.
const ASK_API_SERVER: Duration = Duration::from_secs(2);

/// What is to be kept or taken in addition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Leave etcd's data where it is.
    pub keep_etcd_data: bool,
    /// Remove the images that plinth pulled.
    pub images: bool,
}

/// What was made, and what of it is on the host now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Nothing is there that should be gone.
    pub complete: bool,
    /// How many containers were found.
    pub containers: usize,
    /// Everything that plinth had made.
    pub things: Vec<Thing>,
}

/// The host could not be reset so far that files may be removed.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FsError),
    /// The journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The agent could not be stopped, or systemd asked.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// Processes of our containers do not end.
    #[error(transparent)]
    Takedown(#[from] TakedownError),
}

/// Why something is still there, by its name.
type Reasons = BTreeMap<String, String>;

/// Makes it possible to take the lock and to write the journal where somebody has made all of it immutable.
pub fn unlock(layout: &Layout) -> Result<(), FsError> {
    fsx::unlock_one(&layout.state())?;
    survey::needed_to_go_on(layout).iter().try_for_each(|path| fsx::unlock_one(path))
}

/// What [`run`] would find, and what would become of it.
pub async fn preview<R: Runtime>(host: &Host<'_, R>, made: &Made, options: Options) -> Result<Vec<Thing>, ResetError> {
    let mut things = survey::look(host, made, options, &Reasons::new()).await?;
    things.extend(survey::last(host.layout, made, &Reasons::new()));
    things.retain(|thing| thing.state != State::Gone);
    things.sort();
    Ok(things)
}

/// Takes everything away that `made` lists.
pub async fn run<R: Runtime>(host: &Host<'_, R>, made: &Made, options: Options) -> Result<Report, ResetError> {
    let Host { layout, .. } = host;
    if layout.state().exists() {
        host.journal.append(&[Record::Begin { operation: Operation::Reset, at: host.clock.now() }])?;
    }

    let manager = match &host.launch {
        Launch::Service { manager, .. } => *manager,
        Launch::Foreground(_) => Manager::detect(layout),
    };
    let mut phase = host.printer.phase("agent-stop");
    phase.update("stopping the agent");
    manager.stop(layout).await?;
    phase.done("the agent is stopped");
    let made = &made.again(host).await?;
    remove_node(host, options).await;

    let mut reasons = Reasons::new();
    let mut phase = host.printer.phase("containers");
    phase.update("removing our containers");
    match remove_containers(host, made).await? {
        None => phase.done(&format!("removed {} containers; none of their processes runs", made.containers().len())),
        Some(error) => {
            phase.failed(&format!("none of their processes runs, but {error}"));
            reasons.insert(survey::CONTAINERS.to_owned(), error);
        }
    }

    let phase = host.printer.phase("files");
    unmount_pods(layout, &mut reasons)?;
    if options.images {
        remove_images(host, made, &mut reasons).await;
    }
    let owned: BTreeSet<PathBuf> = made.directories().collect();
    // Children before their directories, so that these are empty when their turn comes.
    let mut removable: Vec<&Creation> = made
        .creations()
        .filter(|one| survey::stays(one, options).is_none() && survey::name(one) != layout.binary().to_string_lossy())
        .collect();
    removable.sort_by_key(|creation| std::cmp::Reverse(depth(creation)));
    for creation in removable {
        if let Err(error) = remove(creation, &owned) {
            reasons.insert(survey::name(creation), explain(&error));
        }
    }
    empty_own_directories(layout, &mut reasons);
    if manager == Manager::Systemd {
        service::forget_unit().await?;
    }

    let mut things = survey::look(host, made, options, &reasons).await?;
    if things.iter().any(|thing| thing.state == State::There) {
        phase.failed("not everything could be removed");
    } else {
        phase.done("removed what plinth had made");
        remove_last(layout, made, &mut reasons);
    }
    things.extend(survey::last(layout, made, &reasons));
    things.sort();
    let complete = things.iter().all(|thing| thing.state != State::There);
    Ok(Report { complete, containers: made.containers().len(), things })
}

/// Removes the Node of this host and its mirror pods, where it is registered and the API server answers: it is the last
/// one who could. etcd's data may be kept, or be somebody else's.
async fn remove_node<R>(host: &Host<'_, R>, options: Options) {
    let read = |file: &str| std::fs::read_to_string(host.layout.kubernetes().join(file)).ok();
    let Some(node) = read(kubeconfig::KUBELET_FILE).and_then(|text| kubeconfig::node_of(&text)) else { return };
    let Some(super_admin) = read("super-admin.conf") else { return };
    let mut phase = host.printer.phase("node");
    phase.update(&format!("removing the Node {node}"));
    let why = match timeout(ASK_API_SERVER, cluster::node::remove(&super_admin, &node)).await {
        Ok(Ok(())) => return phase.done(&format!("removed the Node {node} and its mirror pods")),
        Ok(Err(error)) => with_causes(&error),
        Err(_) => "the API server does not answer".to_owned(),
    };
    if options.keep_etcd_data {
        phase.failed(&format!("the Node {node} stays in etcd's data"));
        host.printer.warning(&format!("{why}; when an API server runs on the data again: kubectl delete node {node}"));
    } else {
        phase.done(&format!("the Node {node} goes with etcd's data"));
    }
}

/// Removes our containers. Where the engine does not answer or refuses, their processes are killed without it, and its
/// error is returned: they are then still to be removed.
async fn remove_containers<R: Runtime>(host: &Host<'_, R>, made: &Made) -> Result<Option<String>, TakedownError> {
    let error = match made.engine_away() {
        Some(error) => error.to_owned(),
        None => match takedown::remove_containers(host.layout, host.runtime, host.journal).await {
            Ok(_) => return Ok(None),
            Err(TakedownError::Runtime(error)) => error.to_string(),
            Err(error) => return Err(error),
        },
    };
    takedown::kill_processes(host.layout, &made.containers().keys().cloned().collect()).await?;
    Ok(Some(error))
}

async fn remove_images<R: Runtime>(host: &Host<'_, R>, made: &Made, reasons: &mut Reasons) {
    for creation in made.creations() {
        if let Creation::Image { reference } = creation
            && let Err(error) = host.runtime.remove_image(reference).await
        {
            reasons.insert(survey::name(creation), error.to_string());
        }
    }
}

/// Position in removal: deeper paths first, and a directory's content before itself.
fn depth(creation: &Creation) -> (usize, bool) {
    match creation {
        Creation::File { path } | Creation::HostFile { path } | Creation::Tree { path } => {
            (path.components().count(), true)
        }
        Creation::Directory { path } => (path.components().count(), false),
        Creation::Container { .. } | Creation::Image { .. } | Creation::Unit { .. } => (usize::MAX, true),
    }
}

/// Removes `creation`. What is immutable (`chattr +i`) is made mutable for it, and so is the directory it is in if that
/// is one of those `owned`.
fn remove(creation: &Creation, owned: &BTreeSet<PathBuf>) -> Result<(), FsError> {
    let (Creation::File { path }
    | Creation::HostFile { path }
    | Creation::Directory { path }
    | Creation::Tree { path }) = creation
    else {
        // Containers are gone by now, images have their own turn, and the unit was disabled with the agent.
        return Ok(());
    };
    let attempt = || match creation {
        // With what a writer that was killed left beside it, which may be a key.
        Creation::File { .. } => fsx::remove_file(&fsx::temporary(path)).and(fsx::remove_file(path)).map(drop),
        Creation::Directory { .. } => fsx::remove_empty_directory(path).map(drop),
        Creation::Tree { .. } => fsx::empty_directory(path),
        _ => fsx::remove_file(path).map(drop),
    };
    let result = attempt();
    if !result.as_ref().is_err_and(is_locked) {
        return result;
    }
    let parent = path.parent().filter(|parent| owned.contains(*parent));
    fsx::unlock(path)?;
    fsx::unlock(&fsx::temporary(path))?;
    if let Some(parent) = parent {
        fsx::unlock_one(parent)?;
    }
    attempt()
}

/// Root may do anything to a file but to one with certain attributes, see chattr(1).
fn is_locked(error: &FsError) -> bool {
    error.source.kind() == std::io::ErrorKind::PermissionDenied
}

/// Takes away what is in the directories that are plinth's alone, but for what [`remove_last`] removes.
fn empty_own_directories(layout: &Layout, reasons: &mut Reasons) {
    let entries = std::fs::read_dir(layout.state()).into_iter().flatten().flatten();
    let others = entries.map(|entry| entry.path()).filter(|path| !survey::needed_to_go_on(layout).contains(path));
    for path in others.chain([layout.run()]) {
        let mut removed = fsx::remove_all(&path);
        if removed.as_ref().is_err_and(is_locked) {
            removed = fsx::unlock(&path).and_then(|()| fsx::remove_all(&path));
        }
        if let Err(error) = removed {
            reasons.insert(path.display().to_string(), explain(&error));
        }
    }
}

/// Takes away what the next reset would have needed: only when there is nothing for it to do.
fn remove_last(layout: &Layout, made: &Made, reasons: &mut Reasons) {
    let mut attempt = |path: PathBuf, result: Result<bool, FsError>| {
        if let Err(error) = result {
            reasons.insert(path.display().to_string(), explain(&error));
        }
    };
    // What a writer that was killed left beside it is plinth's, whoever has installed the program.
    let unfinished = fsx::temporary(&layout.binary());
    attempt(unfinished.clone(), fsx::remove_file(&unfinished));
    if made.has_binary(layout) {
        attempt(layout.binary(), fsx::remove_file(&layout.binary()));
    }
    // A power loss must not bring back what nobody would know of any more.
    if let Err(error) = survey::parents(layout, made).iter().try_for_each(|directory| fsx::sync_directory(directory)) {
        attempt(layout.journal(), Err(error));
        return;
    }
    // The lock after the journal, and then nothing but the directory: whoever gets the lock now begins a new journal.
    for path in survey::needed_to_go_on(layout) {
        attempt(path.clone(), fsx::remove_file(&path));
    }
    attempt(layout.state(), fsx::remove_empty_directory(&layout.state()));
}

/// Detaches every mount of pods: memory volumes, and what was mounted in volumes.
fn unmount_pods(layout: &Layout, reasons: &mut Reasons) -> Result<(), FsError> {
    for point in fsx::mounts_below(&layout.pods())? {
        let why = match fsx::unmount(&point) {
            Ok(Unmounted::Done) => continue,
            Ok(Unmounted::Detached) => "was in use: it is detached, and ends when its last user does".to_owned(),
            Err(error) => explain(&error),
        };
        reasons.insert(survey::mount(&point), why);
    }
    Ok(())
}

/// The error, and what to do where plinth cannot.
fn explain(error: &FsError) -> String {
    let path = error.path.display();
    let hint = match error.source.kind() {
        std::io::ErrorKind::PermissionDenied => {
            let parent = error.path.parent().unwrap_or(&error.path).display().to_string();
            format!("; look at `lsattr -d {parent} {path}`, take the attribute away with `chattr -i` and run it again")
        }
        std::io::ErrorKind::ResourceBusy => format!("; something is mounted there: `umount {path}` and run it again"),
        std::io::ErrorKind::ReadOnlyFilesystem => "; its file system is read-only: remount it and run it again".into(),
        _ => String::new(),
    };
    format!("{error}: {}{hint}", error.source)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::clock::Clock;
    use crate::journal::Journal;
    use crate::runtime::fake::FakeRuntime;
    use crate::service::AgentCommand;
    use crate::ui::{Format, Mode, Printer, Progress};

    /// Whether and why the thing of this path is there.
    fn of<'a>(report: &'a Report, path: &Path) -> (State, &'a str) {
        let found = report.things.iter().find(|thing| Path::new(&thing.what) == path);
        let found = found.unwrap_or_else(|| panic!("{} is not in {report:?}", path.display()));
        (found.state, found.why.as_str())
    }

    fn all_gone(report: &Report) -> bool {
        report.complete && report.things.iter().all(|thing| thing.state == State::Gone)
    }

    struct Fixture {
        root: tempfile::TempDir,
        layout: Layout,
        journal: Journal,
        runtime: FakeRuntime,
    }

    fn fixture() -> Fixture {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        fsx::create_directories(&layout.state(), 0o700).unwrap();
        let journal = Journal::of(&layout);
        Fixture { root, layout, journal, runtime: FakeRuntime::new(Clock::system()) }
    }

    impl Fixture {
        fn path(&self, name: &str) -> PathBuf {
            self.root.path().join(name)
        }

        /// Makes a file with its directories as plinth does: the journal first.
        fn make(&self, name: &str) {
            let path = self.path(name);
            let directories = fsx::missing_directories(path.parent().unwrap());
            let made = directories.into_iter().map(|path| Creation::Directory { path });
            let records: Vec<_> =
                made.chain([Creation::File { path: path.clone() }]).map(|what| Record::Make { what }).collect();
            self.journal.append(&records).unwrap();
            fsx::create_directories(path.parent().unwrap(), 0o755).unwrap();
            fsx::write_atomic(&path, b"x", 0o600).unwrap();
        }

        async fn reset(&self, options: Options) -> Report {
            let hidden = Mode { progress: Progress::Hidden, format: Format::Text, color: false };
            let runtime = &self.runtime;
            let host = Host {
                layout: &self.layout,
                journal: &self.journal,
                runtime,
                clock: &Clock::system(),
                printer: &Printer::capture(hidden).0,
                launch: Launch::Service {
                    manager: Manager::Detached,
                    command: AgentCommand { program: "/bin/false".into(), arguments: vec![] },
                },
            };
            let made = Made::find(&self.layout, runtime, &self.journal.ledger().unwrap()).await.unwrap();
            let mut expected = preview(&host, &made, options).await.unwrap();
            let report = run(&host, &made, options).await.unwrap();
            // What was to stay stays, and no more than that; no run finds anything that the preview has not shown.
            expected.retain(|thing| thing.state == State::Stays);
            let left: Vec<_> = report.things.iter().filter(|thing| thing.state != State::Gone).collect();
            assert!(expected.iter().all(|thing| left.contains(&thing)), "{expected:?} {left:?}");
            report
        }
    }

    #[tokio::test]
    async fn what_was_made_is_gone_and_the_report_says_so() {
        let fixture = fixture();
        fixture.make("etc/kubernetes/pki/ca.key");
        let report = fixture.reset(Options::default()).await;
        assert!(all_gone(&report), "{report:?}");
        assert_eq!(of(&report, &fixture.path("etc/kubernetes/pki/ca.key")), (State::Gone, ""));
        assert!(!fixture.path("etc").exists() && !fixture.layout.state().exists());
    }

    #[tokio::test]
    async fn what_a_killed_writer_left_goes_with_its_file() {
        let fixture = fixture();
        fixture.make("etc/kubernetes/pki/ca.key");
        let key = fixture.path("etc/kubernetes/pki/ca.key");
        std::fs::rename(&key, fsx::temporary(&key)).unwrap();
        let report = fixture.reset(Options::default()).await;
        assert!(all_gone(&report), "{report:?}");
        assert!(!fixture.path("etc").exists());
    }

    #[tokio::test]
    async fn foreign_files_stay_and_their_directory_is_named() {
        let fixture = fixture();
        fixture.make("etc/kubernetes/admin.conf");
        std::fs::write(fixture.path("etc/kubernetes/theirs"), "x").unwrap();
        let report = fixture.reset(Options::default()).await;
        assert!(report.complete);
        assert!(fixture.path("etc/kubernetes/theirs").exists() && !fixture.path("etc/kubernetes/admin.conf").exists());
        assert_eq!(
            of(&report, &fixture.path("etc/kubernetes")),
            (State::Stays, "holds files that plinth did not make")
        );
    }

    #[tokio::test]
    async fn a_file_for_a_container_goes_only_while_it_is_empty() {
        for (name, stays) in [("empty", false), ("gone", false), ("filled", true), ("directory", true), ("link", true)]
        {
            let fixture = fixture();
            let path = fixture.path("srv/made-for-a-container");
            let made = [Creation::Directory { path: fixture.path("srv") }, Creation::HostFile { path: path.clone() }];
            fixture.journal.append(&made.map(|what| Record::Make { what })).unwrap();
            std::fs::create_dir(fixture.path("srv")).unwrap();
            match name {
                "empty" => std::fs::write(&path, "").unwrap(),
                "filled" => std::fs::write(&path, "data").unwrap(),
                "directory" => std::fs::create_dir(&path).unwrap(),
                "link" => std::os::unix::fs::symlink("elsewhere", &path).unwrap(),
                _ => {}
            }
            let report = fixture.reset(Options::default()).await;
            assert!(report.complete && !fixture.layout.state().exists(), "{name}: {report:?}");
            let there = path.symlink_metadata().is_ok();
            assert_eq!((there, fixture.path("srv").exists()), (stays, stays), "{name}");
            let (state, why) = of(&report, &path);
            assert_eq!(state, if stays { State::Stays } else { State::Gone }, "{name}");
            assert_eq!(why.contains("made empty"), stays, "{name}: {report:?}");
        }
    }

    #[tokio::test]
    async fn etcd_data_goes_or_stays_as_asked() {
        for keep in [false, true] {
            let fixture = fixture();
            let data = fixture.path("var/lib/etcd");
            fixture.journal.append(&[Record::Make { what: Creation::Tree { path: data.clone() } }]).unwrap();
            fixture.journal.append(&[Record::Make { what: Creation::Directory { path: data.clone() } }]).unwrap();
            std::fs::create_dir_all(data.join("member/wal")).unwrap();
            let options = Options { keep_etcd_data: keep, images: false };
            let report = fixture.reset(options).await;
            assert!(report.complete, "{report:?}");
            assert_eq!(of(&report, &data).0, if keep { State::Stays } else { State::Gone });
            assert_eq!(data.join("member/wal").exists(), keep);
            assert_eq!(data.exists(), keep);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_removed_is_named_and_the_next_run_finishes() {
        let fixture = fixture();
        fixture.make("etc/kubernetes/admin.conf");
        // A directory where the file was cannot be removed as a file.
        let path = fixture.path("etc/kubernetes/admin.conf");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let report = fixture.reset(Options::default()).await;
        assert!(!report.complete && fixture.layout.journal().exists(), "{report:?}");
        let (state, why) = of(&report, &path);
        assert!(state == State::There && why.contains("cannot remove"), "{report:?}");
        assert_eq!(of(&report, &fixture.path("etc/kubernetes")).0, State::There, "not for somebody else's sake");
        std::fs::remove_dir(&path).unwrap();
        let report = fixture.reset(Options::default()).await;
        assert!(all_gone(&report) && !fixture.layout.state().exists(), "{report:?}");
    }

    #[tokio::test]
    async fn without_the_engine_all_but_the_containers_goes_and_the_next_run_finishes() {
        let fixture = fixture();
        fixture.make("etc/kubernetes/admin.conf");
        std::fs::write(fixture.layout.agent_id(), "a\n").unwrap();
        let id = "c".repeat(64);
        fixture.journal.append(&[Record::Make { what: Creation::Container { id } }]).unwrap();
        fixture.runtime.go_away();
        let report = fixture.reset(Options::default()).await;
        let [container] = &report.things.iter().filter(|thing| thing.kind == "container").collect::<Vec<_>>()[..]
        else {
            panic!("{report:?}")
        };
        assert!(container.state == State::There && container.why.contains("does not answer"), "{report:?}");
        assert!(!report.complete && !fixture.path("etc").exists() && fixture.layout.agent_id().exists());
        assert_eq!(of(&report, &fixture.layout.state()), (State::There, "is needed until all else is gone"));
        fixture.runtime.come_back();
        let report = fixture.reset(Options::default()).await;
        assert!(all_gone(&report) && !fixture.layout.state().exists(), "{report:?}");
    }

    #[tokio::test]
    async fn an_engine_that_cannot_be_asked_is_no_proof_that_it_has_nothing() {
        let fixture = fixture();
        fixture.make("etc/kubernetes/admin.conf");
        std::fs::write(fixture.layout.agent_id(), "a\n").unwrap();
        fixture.runtime.go_away();
        let report = fixture.reset(Options::default()).await;
        assert!(!report.complete && fixture.layout.journal().exists(), "{report:?}");
        fixture.runtime.come_back();
        let report = fixture.reset(Options::default()).await;
        assert!(all_gone(&report) && !fixture.layout.state().exists(), "{report:?}");
    }

    #[tokio::test]
    async fn plinth_itself_goes_last_and_only_where_it_was_installed_by_plinth() {
        for (ours, blocked) in [(true, false), (true, true), (false, false)] {
            let fixture = fixture();
            let binary = fixture.layout.binary();
            fsx::create_directories(binary.parent().unwrap(), 0o755).unwrap();
            std::fs::write(&binary, "plinth").unwrap();
            if ours {
                let what = Creation::File { path: binary.clone() };
                fixture.journal.append(&[Record::Make { what }]).unwrap();
            }
            fixture.make("etc/file");
            if blocked {
                std::fs::remove_file(fixture.path("etc/file")).unwrap();
                std::fs::create_dir(fixture.path("etc/file")).unwrap();
            }
            let report = fixture.reset(Options::default()).await;
            assert_eq!(report.complete, !blocked, "{report:?}");
            assert_eq!(binary.exists(), !ours || blocked, "{report:?}");
        }
    }

    #[tokio::test]
    async fn on_a_clean_host_there_is_nothing_to_do() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let runtime = FakeRuntime::new(Clock::system());
        let fixture = Fixture { journal: Journal::of(&layout), layout, root, runtime };
        let report = fixture.reset(Options::default()).await;
        assert!(all_gone(&report) && report.containers == 0);
        assert_eq!(std::fs::read_dir(fixture.root.path()).unwrap().count(), 0);
    }
}
