//! Takes everything away again, and proves it.
//!
//! # Guarantees
//! - Only what the journal says plinth made is removed, and containers that carry our label. Foreign files stay, and
//!   so do a directory that still holds one and a file made for a container that has written to it.
//! - No data is removed before `/proc` shows that none of our processes runs.
//! - Interrupted anywhere, it can be run again: the journal goes last.
//! - The report comes from looking at the host again, not from memory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::apply::{Host, Launch};
use crate::fsx::{self, FsError};
use crate::journal::{Creation, JournalError, Ledger, Operation, Record};
use crate::layout::Layout;
use crate::runtime::{Runtime, RuntimeError};
use crate::service::{self, Manager, ServiceError};
use crate::takedown::{self, TakedownError};

/// What is to be kept or taken in addition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Leave etcd's data where it is.
    pub keep_etcd_data: bool,
    /// Remove the images that plinth pulled.
    pub images: bool,
}

/// What was found and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Things that plinth had made and that are gone.
    pub removed: Vec<String>,
    /// Things that plinth had made and that are left, each with the reason.
    pub left: Vec<Left>,
    /// How many containers were removed.
    pub containers: usize,
}

/// Something that is left.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Left {
    /// Path or name.
    pub what: String,
    /// Why.
    pub why: String,
    /// It was to be removed and could not be.
    pub failed: bool,
}

impl Report {
    /// Nothing is left that should be gone.
    pub fn is_complete(&self) -> bool {
        !self.left.iter().any(|left| left.failed)
    }
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
    /// The agent could not be stopped.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// Containers could not be removed, or do not end.
    #[error(transparent)]
    Takedown(#[from] TakedownError),
    /// The runtime is away while containers of ours may exist in it.
    #[error("our containers cannot be removed")]
    Runtime(#[from] RuntimeError),
}

/// What `reset` would remove: the creations of the journal, and the state directory.
pub fn preview(layout: &Layout, ledger: &Ledger, options: Options, etcd_data: &[PathBuf]) -> Vec<String> {
    let mut paths: BTreeSet<String> =
        ledger.creations().filter(|c| !is_kept(c, options, etcd_data) && !is_filled(c)).map(describe).collect();
    for path in [layout.state(), layout.run()] {
        if path.exists() {
            paths.insert(path.display().to_string());
        }
    }
    paths.into_iter().collect()
}

/// Takes everything away. `etcd_data` are the directories that [`Options::keep_etcd_data`] is about.
pub async fn run<R: Runtime>(
    host: &Host<'_, R>,
    options: Options,
    etcd_data: &[PathBuf],
) -> Result<Report, ResetError> {
    let ledger = host.journal.ledger()?;
    if host.layout.state().exists() {
        host.journal.append(&[Record::Begin { operation: Operation::Reset, at: host.clock.now() }])?;
    }

    let manager = match &host.launch {
        Launch::Service { manager, .. } => *manager,
        Launch::Foreground(_) => Manager::detect(host.layout),
    };
    let mut phase = host.printer.phase("agent-stop");
    phase.update("stopping the agent");
    manager.stop(host.layout).await?;
    phase.done("the agent is stopped");

    let mut phase = host.printer.phase("containers");
    phase.update("removing our containers");
    let containers = takedown::remove_containers(host.layout, host.runtime, host.journal).await?;
    phase.done(&format!("removed {containers} containers; none of their processes runs"));

    let phase = host.printer.phase("files");
    let mut left = unmount_below(&host.layout.pods())?;
    let mut removable: Vec<&Creation> = ledger.creations().collect();
    // Children before their directories, so that these are empty when their turn comes.
    removable.sort_by_key(|creation| std::cmp::Reverse(depth(creation)));
    for creation in &removable {
        if is_kept(creation, options, etcd_data) {
            left.push(Left { what: describe(creation), why: "kept as asked".to_owned(), failed: false });
        } else if is_filled(creation) {
            let why = "was made empty for a container, and is no empty file any more".to_owned();
            left.push(Left { what: describe(creation), why, failed: false });
        } else if let Creation::Image { reference } = creation {
            if options.images {
                host.runtime.remove_image(reference).await?;
            } else if host.runtime.image(reference).await?.is_some() {
                let why = "images are kept unless --images is given".to_owned();
                left.push(Left { what: format!("image {reference}"), why, failed: false });
            }
        } else if let Err(error) = remove(creation) {
            left.push(Left { what: describe(creation), why: with_cause(&error), failed: true });
        }
    }
    if manager == Manager::Systemd {
        service::forget_unit().await?;
    }
    remove_own_directories(host.layout, &mut left);
    phase.done("removed what plinth had made");

    Ok(look_again(host.layout, &ledger, left, containers))
}

fn is_kept(creation: &Creation, options: Options, etcd_data: &[PathBuf]) -> bool {
    options.keep_etcd_data
        && match creation {
            Creation::Tree { path } | Creation::Directory { path } => etcd_data.contains(path),
            _ => false,
        }
}

/// Whether it is a file for a container and something else by now than the empty file that plinth made.
fn is_filled(creation: &Creation) -> bool {
    let Creation::HostFile { path } = creation else { return false };
    path.symlink_metadata().is_ok_and(|meta| !meta.is_file() || meta.len() > 0)
}

fn describe(creation: &Creation) -> String {
    match creation {
        Creation::File { path }
        | Creation::HostFile { path }
        | Creation::Directory { path }
        | Creation::Tree { path } => path.display().to_string(),
        Creation::Container { id } => format!("container {id}"),
        Creation::Image { reference } => format!("image {reference}"),
        Creation::Unit { name } => format!("unit {name}"),
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

fn remove(creation: &Creation) -> Result<(), FsError> {
    match creation {
        // With what a writer that was killed left beside it, which may be a key.
        Creation::File { path } => fsx::remove_file(&fsx::temporary(path)).and(fsx::remove_file(path)).map(drop),
        Creation::HostFile { path } => fsx::remove_file(path).map(drop),
        Creation::Directory { path } => fsx::remove_empty_directory(path).map(drop),
        Creation::Tree { path } => fsx::empty_directory(path),
        // Containers are gone by now, images have their own turn, and the unit was disabled with the agent.
        Creation::Container { .. } | Creation::Image { .. } | Creation::Unit { .. } => Ok(()),
    }
}

/// Takes the state directory away, journal and lock last, and what a boot would clear.
fn remove_own_directories(layout: &Layout, left: &mut Vec<Left>) {
    let attempt = |left: &mut Vec<Left>, path: &Path, result: Result<bool, FsError>| {
        if let Err(error) = result {
            left.push(Left { what: path.display().to_string(), why: with_cause(&error), failed: true });
        }
    };
    attempt(left, &layout.run(), fsx::remove_tree(&layout.run()));
    let entries = std::fs::read_dir(layout.state()).into_iter().flatten().flatten();
    let last = [layout.journal(), layout.lock()];
    for path in entries.map(|entry| entry.path()).filter(|path| !last.contains(path)) {
        let removed = if path.is_dir() { fsx::remove_tree(&path) } else { fsx::remove_file(&path) };
        attempt(left, &path, removed);
    }
    if left.iter().any(|left| left.failed) {
        // The next reset needs the journal to know what is still to be removed.
        return;
    }
    // The lock after the journal, and then nothing but the directory: whoever gets the lock now begins a new journal.
    for path in &last {
        attempt(left, path, fsx::remove_file(path));
    }
    match fsx::remove_empty_directory(&layout.state()) {
        Err(error) if error.source.kind() == std::io::ErrorKind::ResourceBusy => {
            let why = "is a mount point, and empty".to_owned();
            left.push(Left { what: layout.state().display().to_string(), why, failed: false });
        }
        removed => attempt(left, &layout.state(), removed),
    }
}

/// Detaches every mount below `directory`: memory volumes of pods, and what was mounted in volumes.
fn unmount_below(directory: &Path) -> Result<Vec<Left>, FsError> {
    let points = fsx::mounts_below(directory)?.into_iter();
    Ok(points
        .filter_map(|point| {
            let error = fsx::unmount(&point).err()?;
            Some(Left { what: point.display().to_string(), why: with_cause(&error), failed: true })
        })
        .collect())
}

/// The report, from the host as it is now.
fn look_again(layout: &Layout, ledger: &Ledger, mut left: Vec<Left>, containers: usize) -> Report {
    let mut removed = BTreeSet::new();
    for creation in ledger.creations() {
        let path = match creation {
            Creation::File { path }
            | Creation::HostFile { path }
            | Creation::Directory { path }
            | Creation::Tree { path } => path,
            Creation::Container { .. } | Creation::Image { .. } | Creation::Unit { .. } => continue,
        };
        let what = path.display().to_string();
        if !exists(path) {
            removed.insert(what);
        } else if matches!(creation, Creation::File { .. })
            || matches!(creation, Creation::HostFile { .. }) && !is_filled(creation)
        {
            left.push(Left { what, why: "is still there".to_owned(), failed: true });
        } else if !left.iter().any(|left| left.what == what) && !fsx::is_empty_directory(path) {
            left.push(Left { what, why: "holds files that plinth did not make".to_owned(), failed: false });
        }
    }
    for path in [layout.state(), layout.run()] {
        if exists(&path) {
            let failed = !left.iter().any(|left| left.what == path.display().to_string());
            if failed {
                left.push(Left { what: path.display().to_string(), why: "is still there".to_owned(), failed });
            }
        } else {
            removed.insert(path.display().to_string());
        }
    }
    left.sort();
    left.dedup_by(|a, b| a.what == b.what);
    Report { removed: removed.into_iter().collect(), left, containers }
}

/// Whether there is something of this name, dangling symlinks included.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn with_cause(error: &FsError) -> String {
    format!("{error}: {}", error.source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::journal::Journal;
    use crate::runtime::fake::FakeRuntime;
    use crate::service::AgentCommand;
    use crate::ui::{Format, Mode, Printer, Progress};

    struct Fixture {
        root: tempfile::TempDir,
        layout: Layout,
        journal: Journal,
    }

    fn fixture() -> Fixture {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        fsx::create_directories(&layout.state(), 0o700).unwrap();
        let journal = Journal::of(&layout);
        Fixture { root, layout, journal }
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

        async fn reset(&self, options: Options, etcd_data: &[PathBuf]) -> Report {
            let mode = Mode { progress: Progress::Hidden, format: Format::Text, color: false };
            let runtime = FakeRuntime::new(Clock::system());
            let host = Host {
                layout: &self.layout,
                journal: &self.journal,
                runtime: &runtime,
                clock: &Clock::system(),
                printer: &Printer::capture(mode).0,
                launch: Launch::Service {
                    manager: Manager::Detached,
                    command: AgentCommand { program: "/bin/false".into(), arguments: vec![] },
                },
            };
            run(&host, options, etcd_data).await.unwrap()
        }
    }

    #[tokio::test]
    async fn what_was_made_is_gone_and_the_report_says_so() {
        let fixture = fixture();
        fixture.make("etc/kubernetes/pki/ca.key");
        let report = fixture.reset(Options::default(), &[]).await;
        assert!(report.is_complete() && report.left.is_empty(), "{report:?}");
        assert!(report.removed.contains(&fixture.path("etc/kubernetes/pki/ca.key").display().to_string()));
        assert!(!fixture.path("etc").exists() && !fixture.layout.state().exists());
    }

    #[tokio::test]
    async fn what_a_killed_writer_left_goes_with_its_file() {
        let fixture = fixture();
        fixture.make("etc/kubernetes/pki/ca.key");
        let key = fixture.path("etc/kubernetes/pki/ca.key");
        std::fs::rename(&key, fsx::temporary(&key)).unwrap();
        let report = fixture.reset(Options::default(), &[]).await;
        assert!(report.is_complete() && report.left.is_empty(), "{report:?}");
        assert!(!fixture.path("etc").exists());
    }

    #[tokio::test]
    async fn foreign_files_stay_and_their_directory_is_named() {
        let fixture = fixture();
        fixture.make("etc/kubernetes/admin.conf");
        std::fs::write(fixture.path("etc/kubernetes/theirs"), "x").unwrap();
        let report = fixture.reset(Options::default(), &[]).await;
        assert!(report.is_complete());
        assert!(fixture.path("etc/kubernetes/theirs").exists() && !fixture.path("etc/kubernetes/admin.conf").exists());
        assert!(report.left.iter().any(|l| l.what.ends_with("etc/kubernetes") && !l.failed), "{report:?}");
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
            let shown = preview(&fixture.layout, &fixture.journal.ledger().unwrap(), Options::default(), &[]);
            assert_eq!(shown.contains(&path.display().to_string()), !stays, "{name}");
            let report = fixture.reset(Options::default(), &[]).await;
            assert!(report.is_complete() && !fixture.layout.state().exists(), "{name}: {report:?}");
            assert_eq!((exists(&path), fixture.path("srv").exists()), (stays, stays), "{name}");
            let named = report.left.iter().any(|l| l.what.ends_with("container") && l.why.contains("made empty"));
            assert_eq!(named, stays, "{name}: {report:?}");
            assert_eq!(report.removed.contains(&path.display().to_string()), !stays, "{name}");
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
            let report = fixture.reset(options, std::slice::from_ref(&data)).await;
            assert!(report.is_complete(), "{report:?}");
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
        let report = fixture.reset(Options::default(), &[]).await;
        assert!(!report.is_complete() && fixture.layout.journal().exists(), "{report:?}");
        std::fs::remove_dir(&path).unwrap();
        let report = fixture.reset(Options::default(), &[]).await;
        assert!(report.is_complete() && !fixture.layout.state().exists(), "{report:?}");
    }

    #[tokio::test]
    async fn on_a_clean_host_there_is_nothing_to_do() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let fixture = Fixture { journal: Journal::of(&layout), layout, root };
        let report = fixture.reset(Options::default(), &[]).await;
        assert!(report.is_complete() && report.containers == 0);
        assert_eq!(std::fs::read_dir(fixture.root.path()).unwrap().count(), 0);
    }
}
