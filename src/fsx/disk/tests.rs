use super::*;
use crate::fsx;

struct Watched {
    root: tempfile::TempDir,
    disk: Disk,
}

impl Watched {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("run")).unwrap();
        fs::write(root.path().join("old"), "old").unwrap();
        let disk = Disk::watch(root.path());
        Self { root, disk }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.disk.forget();
    }
}

/// Names with their content, `/` for directories.
fn shown(tree: &Tree) -> Vec<String> {
    let entry = |(path, entry): (&OsString, &Entry)| match entry {
        Entry::File { content, .. } => format!("{}={}", path.display(), String::from_utf8_lossy(&content.bytes)),
        Entry::Directory { .. } => format!("{}/", path.display()),
        other => format!("{} {other:?}", path.display()),
    };
    tree.0.iter().map(entry).collect()
}

#[test]
fn what_was_never_synced_is_lost_by_name_or_by_content() {
    let watched = Watched::new();
    fs::write(watched.path("new"), "new").unwrap();
    fs::write(watched.path("old"), "changed").unwrap();
    let crash = watched.disk.crash();
    assert_eq!(shown(&crash.killed), ["new=new", "old=changed", "run/"]);
    assert_eq!(shown(&crash.unsynced_lost), ["old=old", "run/"]);
    assert_eq!(shown(&crash.content_lost), ["new=", "old=old", "run/"]);
}

#[test]
fn a_name_and_a_content_are_made_durable_each_by_itself() {
    let watched = Watched::new();
    let (new, root) = (watched.path("new"), watched.path(""));
    fs::write(&new, "new").unwrap();
    fsx::sync_directory(&root).unwrap();
    assert_eq!(shown(&watched.disk.crash().unsynced_lost), ["new=", "old=old", "run/"], "the name without the content");
    sync(&new, || ());
    assert_eq!(shown(&watched.disk.crash().unsynced_lost), ["new=new", "old=old", "run/"]);
    fs::rename(&new, watched.path("old")).unwrap();
    let crash = watched.disk.crash();
    assert_eq!(shown(&crash.unsynced_lost), ["new=new", "old=old", "run/"], "a rename that is not synced is undone");
    assert_eq!(shown(&crash.content_lost), ["old=new", "run/"]);
    fs::remove_file(watched.path("old")).unwrap();
    fsx::sync_directory(&root).unwrap();
    assert_eq!(shown(&watched.disk.crash().unsynced_lost), ["run/"]);
}

#[test]
fn a_directory_that_is_not_synced_loses_its_names_wherever_it_is() {
    let watched = Watched::new();
    fsx::create_directories(&watched.path("a"), 0o700).unwrap();
    fs::create_dir(watched.path("a/b")).unwrap();
    fs::write(watched.path("a/b/c"), "c").unwrap();
    sync(&watched.path("a/b/c"), || ());
    assert_eq!(shown(&watched.disk.crash().unsynced_lost), ["a/", "old=old", "run/"]);
    fsx::rename(&watched.path("a/b"), &watched.path("b")).unwrap();
    assert_eq!(shown(&watched.disk.crash().unsynced_lost), ["a/", "b/", "old=old", "run/"]);
    fsx::sync_directory(&watched.path("b")).unwrap();
    assert_eq!(shown(&watched.disk.crash().unsynced_lost), ["a/", "b/", "b/c=c", "old=old", "run/"]);
}

#[test]
fn a_boot_clears_what_lives_in_memory() {
    let watched = Watched::new();
    fsx::write_atomic(&watched.path("run/x"), b"x", 0o600).unwrap();
    let crash = watched.disk.crash();
    assert_eq!(shown(&crash.killed), ["old=old", "run/", "run/x=x"]);
    assert_eq!(shown(&crash.unsynced_lost), ["old=old", "run/"]);
    assert_eq!(shown(&crash.content_lost), ["old=old", "run/"]);
}

#[test]
fn an_atomic_write_is_old_or_new_at_every_point() {
    let watched = Watched::new();
    let points = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&points);
    watched.disk.observe(move |_, crash| seen.lock().unwrap().push(crash));
    fsx::write_atomic(&watched.path("old"), b"new", 0o600).unwrap();
    watched.disk.look_away();
    let points = points.lock().unwrap();
    assert_eq!(points.len(), 7, "absent temporary removed, created, mode, written, synced, renamed, names synced");
    for Crash { killed, unsynced_lost, content_lost, .. } in points.iter() {
        for tree in [killed, unsynced_lost, content_lost] {
            assert!(shown(tree).iter().any(|one| one == "old=old" || one == "old=new"), "{tree:?}");
        }
    }
    let last = points.last().unwrap();
    assert_eq!(shown(&last.unsynced_lost), ["old=new", "run/"]);
}

#[test]
fn what_is_restored_is_what_was_there() {
    let watched = Watched::new();
    fsx::create_directories(&watched.path("a"), 0o750).unwrap();
    fsx::write_atomic(&watched.path("a/key"), b"key", 0o600).unwrap();
    symlink("key", watched.path("a/link")).unwrap();
    let tree = Tree::of(watched.root.path());
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("left"), "over").unwrap();
    tree.restore(other.path());
    assert_eq!(tree.difference(&Tree::of(other.path())), Vec::<String>::new());
    assert_eq!(tree.paths().count(), 5);
}

#[test]
fn what_is_forgotten_before_it_is_gone_comes_back_unknown() {
    let watched = Watched::new();
    fsx::create_directories(&watched.path("var/lib/plinth"), 0o700).unwrap();
    fsx::write_atomic(&watched.path("var/lib/plinth/journal"), b"old", 0o600).unwrap();
    fs::remove_file(watched.path("old")).unwrap();
    fs::remove_file(watched.path("var/lib/plinth/journal")).unwrap();
    let Crash { unsynced_lost, state_kept, .. } = watched.disk.crash();
    let directories = ["run/", "var/", "var/lib/", "var/lib/plinth/"];
    assert_eq!(shown(&state_kept)[0], "old=old");
    assert_eq!(shown(&state_kept)[1..], directories);
    assert_eq!(shown(&unsynced_lost).last().unwrap(), "var/lib/plinth/journal=old");
}
