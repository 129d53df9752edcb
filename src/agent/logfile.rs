//! Where log collectors look for what containers write: symbolic links at the kubelet's paths to the engine's files.
//!
//! | link | leads to |
//! |---|---|
//! | `/var/log/pods/<namespace>_<pod>_<uid>/<container>/<attempt>.log` | the engine's file |
//! | `/var/log/containers/<pod>_<namespace>_<container>-<id>.log` | the link above |
//!
//! This is what a kubelet with cri-dockerd leaves there: the content is Docker's json-file, not the CRI's text.
//! Sandboxes have none.
//!
//! # Guarantees
//! - What is made is announced first ([`Changes::creations`]), directories that were missing among it.
//! - Only links of pods that are ours are removed, and only directories that are empty. A file in the way of a link
//!   stays.
//! - What is right is left alone; what an agent that was killed left is found by looking at the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::pod::PodKey;
use super::step::{SANDBOX, attempt_of, name_of, uid_of};
use crate::fsx::{self, FsError};
use crate::journal::Creation;
use crate::runtime::Container;

/// Bytes of a file's name before `.log` (kubelet: `ext4MaxFileNameLen` less its suffix).
const NAME_LIMIT: usize = 251;
/// Mode of directories (kubelet: 0755).
const MODE: u32 = 0o755;

/// The two directories.
#[derive(Debug, Clone)]
pub struct LogDirectories {
    /// By pod; `/var/log/pods` unless the kubelet's configuration says otherwise.
    pub pods: PathBuf,
    /// Flat; `/var/log/containers`.
    pub containers: PathBuf,
}

/// What differs between the links there are and those there should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Links to make, with where they lead. An older one of the name is replaced.
    make: BTreeMap<PathBuf, PathBuf>,
    /// Links to remove.
    remove: BTreeSet<PathBuf>,
}

impl LogDirectories {
    /// Compares what is on the disk with the containers there are of the pod `key`, of whatever UID.
    pub fn compare<'a>(&self, key: &PodKey, containers: impl Iterator<Item = &'a Container>) -> Changes {
        let mut wanted = BTreeMap::new();
        let mut directories = BTreeSet::new();
        for container in containers {
            directories.insert(self.directory(key, uid_of(container)));
            wanted.extend(self.links(key, container).into_iter().flatten());
        }
        let present = self.present(&directories);
        Changes {
            remove: present.keys().filter(|path| !wanted.contains_key(*path)).cloned().collect(),
            make: wanted
                .into_iter()
                .filter(|(path, target)| present.get(path) != Some(target) && !is_foreign(path))
                .collect(),
        }
    }

    /// Makes and removes, and returns what is gone.
    pub fn perform(&self, changes: &Changes) -> Result<Vec<Creation>, FsError> {
        let mut gone = Vec::new();
        for path in &changes.remove {
            fsx::remove_file(path)?;
            gone.push(Creation::File { path: path.clone() });
        }
        for (path, target) in &changes.make {
            fsx::link(path, target, MODE)?;
        }
        let parents: BTreeSet<_> = changes.remove.iter().filter_map(|path| path.parent()).collect();
        for parent in parents.into_iter().filter(|parent| *parent != self.containers) {
            if fsx::remove_empty_directory(parent)? {
                gone.push(Creation::Directory { path: parent.to_path_buf() });
            }
        }
        Ok(gone)
    }

    /// Removes the links and directories of the pods with this UID, of which nothing runs any more, and returns what
    /// is gone.
    pub fn discard(&self, uid: &str) -> Result<Vec<Creation>, FsError> {
        let is_of_uid = |name: &str| name.splitn(3, '_').nth(2) == Some(uid);
        let mut directories: BTreeSet<_> =
            names(&self.pods).filter(|name| is_of_uid(name)).map(|name| self.pods.join(name)).collect();
        // Also where the directory went first.
        for target in names(&self.containers).filter_map(|name| fs::read_link(self.containers.join(name)).ok()) {
            directories.extend(
                self.directory_of(&target)
                    .filter(|directory| directory.file_name().and_then(|name| name.to_str()).is_some_and(is_of_uid)),
            );
        }
        let remove = self.present(&directories).into_keys().collect();
        let mut gone = self.perform(&Changes { remove, ..Changes::default() })?;
        for directory in directories {
            if fsx::remove_empty_directory(&directory)? {
                gone.push(Creation::Directory { path: directory });
            }
        }
        Ok(gone)
    }

    fn directory(&self, key: &PodKey, uid: &str) -> PathBuf {
        self.pods.join(format!("{}_{}_{uid}", key.namespace, key.name))
    }

    /// The two links of a container; `None` for one that has no log.
    fn links(&self, key: &PodKey, container: &Container) -> Option<[(PathBuf, PathBuf); 2]> {
        let (name, file) = (name_of(container), container.log_path.as_ref()?);
        if name == SANDBOX {
            return None;
        }
        let directory = self.directory(key, uid_of(container));
        let inner = directory.join(name).join(format!("{}.log", attempt_of(container)));
        let mut outer = format!("{}_{}_{name}-{}", key.name, key.namespace, container.id);
        // Names and ids are ASCII.
        outer.truncate(NAME_LIMIT);
        Some([(self.containers.join(format!("{outer}.log")), inner.clone()), (inner, file.clone())])
    }

    /// The links of the pods whose directories these are.
    fn present(&self, directories: &BTreeSet<PathBuf>) -> BTreeMap<PathBuf, PathBuf> {
        let outer = names(&self.containers).map(|name| self.containers.join(name)).filter_map(|path| {
            let target = fs::read_link(&path).ok()?;
            self.directory_of(&target)
                .is_some_and(|directory| directories.contains(&directory))
                .then_some((path, target))
        });
        let inner = directories.iter().flat_map(|pod| names(pod).map(|name| pod.join(name))).flat_map(|container| {
            let paths: Vec<_> = names(&container).map(|name| container.join(name)).collect();
            paths.into_iter().filter_map(|path| Some((path.clone(), fs::read_link(path).ok()?)))
        });
        outer.chain(inner).collect()
    }

    /// The pod's directory that a link in `/var/log/containers` leads into.
    fn directory_of(&self, target: &Path) -> Option<PathBuf> {
        let pod = target.strip_prefix(&self.pods).ok()?.components().next()?;
        Some(self.pods.join(pod))
    }
}

impl Changes {
    /// There is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.make.is_empty() && self.remove.is_empty()
    }

    /// What [`LogDirectories::perform`] makes, for the journal.
    pub fn creations(&self) -> Vec<Creation> {
        let parents: BTreeSet<_> = self.make.keys().filter_map(|path| path.parent()).collect();
        let missing: BTreeSet<_> = parents.into_iter().flat_map(fsx::missing_directories).collect();
        let directories = missing.into_iter().map(|path| Creation::Directory { path });
        directories.chain(self.make.keys().map(|path| Creation::File { path: path.clone() })).collect()
    }
}

/// Names of what is in a directory; nothing where it cannot be read.
fn names(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Whether something is there that is no link: another runtime writes its logs there itself.
fn is_foreign(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| !meta.is_symlink())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use jiff::Timestamp;

    use super::*;
    use crate::runtime::{State, labels};

    const ID: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";

    fn container(name: &str, attempt: u32, id: &str) -> Container {
        let labels = [
            (labels::CONTAINER_NAME, name.to_owned()),
            (labels::POD_UID, "u1".to_owned()),
            (labels::RESTART_COUNT, attempt.to_string()),
        ];
        Container {
            id: id.to_owned(),
            name: String::new(),
            labels: labels.map(|(key, value)| (key.to_owned(), value)).into(),
            image: String::new(),
            image_id: String::new(),
            state: State::Created { error: None },
            created_at: Timestamp::UNIX_EPOCH,
            ip: None,
            log_path: Some(format!("/docker/{id}-json.log").into()),
        }
    }

    struct Host {
        root: tempfile::TempDir,
        directories: LogDirectories,
        key: PodKey,
    }

    fn exists(creation: &Creation) -> bool {
        let (Creation::File { path } | Creation::Directory { path }) = creation else { panic!("{creation:?}") };
        path.symlink_metadata().is_ok()
    }

    impl Host {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let directories = LogDirectories {
                pods: root.path().join("var/log/pods"),
                containers: root.path().join("var/log/containers"),
            };
            Self { root, directories, key: PodKey { namespace: "ns".into(), name: "web-node".into() } }
        }

        fn compare(&self, containers: &[Container]) -> Changes {
            self.directories.compare(&self.key, containers.iter())
        }

        /// Brings the disk up to date; what was announced, and what was said to be gone.
        fn update(&self, containers: &[Container]) -> (Vec<String>, Vec<String>) {
            let changes = self.compare(containers);
            let creations = changes.creations();
            assert!(creations.iter().all(|creation| !exists(creation)), "announced before it is made");
            let gone = self.directories.perform(&changes).unwrap();
            assert!(creations.iter().all(exists));
            assert!(gone.iter().all(|creation| !exists(creation)));
            assert!(self.compare(containers).is_empty(), "what is right is left alone");
            (self.paths(&creations), self.paths(&gone))
        }

        fn paths(&self, creations: &[Creation]) -> Vec<String> {
            let path = |creation: &Creation| {
                let (Creation::File { path } | Creation::Directory { path }) = creation else { panic!("{creation:?}") };
                path.strip_prefix(self.root.path()).unwrap().display().to_string()
            };
            creations.iter().map(path).collect()
        }

        /// Everything below the root, with where links lead.
        fn tree(&self) -> Vec<String> {
            fn walk(root: &Path, directory: &Path, found: &mut Vec<String>) {
                for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
                    let name = path.strip_prefix(root).unwrap().display();
                    match fs::read_link(&path) {
                        Ok(target) => {
                            let target = target.strip_prefix(root).unwrap_or(&target).display();
                            found.push(format!("{name} -> {target}"));
                        }
                        Err(_) if path.is_dir() => walk(root, &path, found),
                        Err(_) => found.push(name.to_string()),
                    }
                }
            }
            let mut found = Vec::new();
            walk(self.root.path(), self.root.path(), &mut found);
            found.sort();
            found
        }
    }

    #[test]
    fn links_are_where_a_kubelet_makes_them() {
        let host = Host::new();
        let (made, gone) = host.update(&[container("c", 2, ID), container("POD", 0, "sandbox")]);
        assert_eq!(
            made,
            [
                "var".to_owned(),
                "var/log".to_owned(),
                "var/log/containers".to_owned(),
                "var/log/pods".to_owned(),
                "var/log/pods/ns_web-node_u1".to_owned(),
                "var/log/pods/ns_web-node_u1/c".to_owned(),
                format!("var/log/containers/web-node_ns_c-{ID}.log"),
                "var/log/pods/ns_web-node_u1/c/2.log".to_owned(),
            ]
        );
        assert!(gone.is_empty());
        assert_eq!(
            host.tree(),
            [
                format!("var/log/containers/web-node_ns_c-{ID}.log -> var/log/pods/ns_web-node_u1/c/2.log"),
                format!("var/log/pods/ns_web-node_u1/c/2.log -> /docker/{ID}-json.log"),
            ]
        );
        let meta = fs::metadata(host.root.path().join("var/log/pods/ns_web-node_u1/c")).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o755);
    }

    #[test]
    fn a_container_without_a_log_has_no_links() {
        let host = Host::new();
        let never_started = Container { log_path: None, ..container("c", 0, "a") };
        assert!(host.compare(&[never_started]).is_empty());
    }

    #[test]
    fn links_go_with_their_container_and_directories_with_the_pod() {
        let host = Host::new();
        let (first, second, other) = (container("c", 0, "a"), container("c", 1, "b"), container("d", 0, "e"));
        host.update(&[first.clone(), other.clone()]);
        let (made, gone) = host.update(&[first, second.clone(), other]);
        assert_eq!(made, ["var/log/containers/web-node_ns_c-b.log", "var/log/pods/ns_web-node_u1/c/1.log"]);
        assert!(gone.is_empty());
        let (made, gone) = host.update(&[second]);
        assert!(made.is_empty());
        assert_eq!(
            gone,
            [
                "var/log/containers/web-node_ns_c-a.log",
                "var/log/containers/web-node_ns_d-e.log",
                "var/log/pods/ns_web-node_u1/c/0.log",
                "var/log/pods/ns_web-node_u1/d/0.log",
                "var/log/pods/ns_web-node_u1/d",
            ]
        );
        let gone = host.directories.discard("u1").unwrap();
        assert_eq!(
            host.paths(&gone),
            [
                "var/log/containers/web-node_ns_c-b.log",
                "var/log/pods/ns_web-node_u1/c/1.log",
                "var/log/pods/ns_web-node_u1/c",
                "var/log/pods/ns_web-node_u1",
            ]
        );
        assert_eq!(host.tree(), [] as [&str; 0]);
        assert!(host.directories.containers.is_dir() && host.directories.pods.is_dir());
        assert!(host.directories.discard("u1").unwrap().is_empty());
    }

    #[test]
    fn wrong_and_missing_links_are_made_anew() {
        let host = Host::new();
        let c = container("c", 0, "a");
        host.update(std::slice::from_ref(&c));
        let right = host.tree();
        let inner = host.directories.pods.join("ns_web-node_u1/c/0.log");
        fs::remove_file(&inner).unwrap();
        symlink("/docker/other-json.log", &inner).unwrap();
        fs::remove_file(host.directories.containers.join("web-node_ns_c-a.log")).unwrap();
        assert!(!host.compare(std::slice::from_ref(&c)).is_empty());
        host.directories.perform(&host.compare(&[c])).unwrap();
        assert_eq!(host.tree(), right);
    }

    #[test]
    fn what_others_have_there_stays() {
        let host = Host::new();
        let (pods, containers) = (&host.directories.pods, &host.directories.containers);
        fs::create_dir_all(pods.join("ns_web-node_u2/c")).unwrap();
        fs::create_dir_all(pods.join("ns_web-node_u1/c")).unwrap();
        fs::create_dir_all(containers).unwrap();
        symlink("/elsewhere", pods.join("ns_web-node_u2/c/0.log")).unwrap();
        symlink(pods.join("ns_web-node_u2/c/0.log"), containers.join("web-node_ns_c-x.log")).unwrap();
        symlink("/elsewhere", containers.join("web-node_ns_c-y.log")).unwrap();
        fs::write(containers.join("web-node_ns_c-z.log"), "").unwrap();
        fs::write(pods.join("ns_web-node_u1/c/0.log"), "written by another runtime").unwrap();
        let theirs = host.tree();
        let (made, _) = host.update(&[container("c", 0, "a")]);
        assert_eq!(made, ["var/log/containers/web-node_ns_c-a.log"], "a file in the way is not touched");
        let gone = host.directories.discard("u1").unwrap();
        assert_eq!(host.paths(&gone), ["var/log/containers/web-node_ns_c-a.log"]);
        assert_eq!(host.tree(), theirs);
    }

    #[test]
    fn long_names_are_cut_as_a_kubelet_cuts_them() {
        let mut host = Host::new();
        host.key.name = "n".repeat(200);
        host.update(&[container("c", 0, ID)]);
        let name = names(&host.directories.containers).next().unwrap();
        assert_eq!(name.len(), 255);
        assert!(Some(&format!("{}_ns_c-{ID}", host.key.name)[..251]) == name.strip_suffix(".log"));
        host.directories.discard("u1").unwrap();
        assert_eq!(host.tree(), [] as [&str; 0]);
    }
}
