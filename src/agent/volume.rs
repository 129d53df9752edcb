//! Volumes on the host: what has to exist before a container can be created.
//!
//! # Guarantees
//! - Preparing is idempotent and done before every creation, so that a tmpfs lost at a boot is there again.
//! - What is made outside our own state directory is recorded by the [`Writer`] before it is made.
//! - Rules and modes are the kubelet's (`pkg/volume/hostpath`, `pkg/volume/emptydir`).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, HostPathVolumeSource, Volume};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, fchmod, mkdirat};
use tokio::runtime::Handle;

use super::blocking::apart;
use super::ledger::{LedgerError, Writer};
use super::pod::StaticPod;
use super::quantity;
use crate::fsx::{self, FsError};
use crate::journal::{Creation, Record};

/// A volume that cannot be prepared. The container waits and it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The host path is missing or of another type than asked for.
    #[error("volume `{volume}`: hostPath `{}` is not a {wanted}", path.display())]
    WrongType {
        /// Name of the volume.
        volume: String,
        /// The host path.
        path: PathBuf,
        /// What the manifest asks for.
        wanted: &'static str,
    },
    /// The host refused.
    #[error("volume `{volume}`: {source}")]
    Files {
        /// Name of the volume.
        volume: String,
        /// What was refused.
        #[source]
        source: FsError,
    },
    /// A sub path leads out of its volume, or something in the way is no directory.
    #[error("volume `{volume}`: subPath `{path}`: {source}")]
    SubPath {
        /// Name of the volume.
        volume: String,
        /// Relative to the volume.
        path: String,
        /// What the kernel says: `EXDEV` for a symbolic link that leads out.
        #[source]
        source: io::Error,
    },
    /// The creation could not be recorded, so nothing was made.
    #[error("volume `{volume}`: cannot record what is made for it")]
    Ledger {
        /// Name of the volume.
        volume: String,
        /// What the ledger says.
        #[source]
        source: LedgerError,
    },
}

/// Prepares the volumes that `container` mounts (others are left alone) and returns where they are, by name. What is
/// mounted there may not answer, and so files are asked for on a thread of their own.
pub async fn prepare(
    pod: &StaticPod,
    container: &Container,
    pods: &Path,
    ledger: &Writer,
) -> Result<BTreeMap<String, PathBuf>, VolumeError> {
    let mounted = mounted(pod, container);
    if !mounted.iter().any(|volume| volume.host_path.is_some() || volume.empty_dir.is_some()) {
        return Ok(BTreeMap::new());
    }
    let (pod, pods, ledger, runtime) = (pod.clone(), pods.to_owned(), ledger.clone(), Handle::current());
    apart(move || runtime.block_on(prepare_here(&pod, &mounted, &pods, &ledger))).await
}

/// The volumes that `container` mounts.
fn mounted(pod: &StaticPod, container: &Container) -> Vec<Volume> {
    let is_mounted = |name: &str| container.volume_mounts.iter().flatten().any(|mount| mount.name == name);
    pod.spec.volumes.iter().flatten().filter(|volume| is_mounted(&volume.name)).cloned().collect()
}

async fn prepare_here(
    pod: &StaticPod,
    volumes: &[Volume],
    pods: &Path,
    ledger: &Writer,
) -> Result<BTreeMap<String, PathBuf>, VolumeError> {
    let mut found = BTreeMap::new();
    for volume in volumes {
        let path = if let Some(host_path) = &volume.host_path {
            host(&volume.name, host_path, ledger).await?
        } else if let Some(empty_dir) = &volume.empty_dir {
            let fs_group = pod.spec.security_context.as_ref().and_then(|context| context.fs_group);
            let path = empty_dir_path(pods, &pod.uid, &volume.name);
            empty(&path, empty_dir, memory_size(pod, empty_dir), fs_group)
                .map_err(|source| VolumeError::Files { volume: volume.name.clone(), source })?;
            path
        } else {
            continue;
        };
        found.insert(volume.name.clone(), path);
    }
    Ok(found)
}

/// Finds the parts of `volumes` that `wanted` names (by mount path of `container`, relative to their volume), and
/// makes those that are missing: directories with the mode of their volume. Symbolic links are followed as long as they
/// stay in the volume.
pub async fn sub_paths(
    pod: &StaticPod,
    container: &Container,
    volumes: &BTreeMap<String, PathBuf>,
    wanted: &BTreeMap<String, String>,
    ledger: &Writer,
) -> Result<BTreeMap<String, PathBuf>, VolumeError> {
    let mut found = BTreeMap::new();
    for mount in container.volume_mounts.iter().flatten() {
        if let (Some(root), Some(path)) = (volumes.get(&mount.name), wanted.get(&mount.mount_path)) {
            // An emptyDir is in our own state directory.
            let outside = pod.spec.volumes.iter().flatten().any(|v| v.name == mount.name && v.host_path.is_some());
            let ledger = outside.then(|| ledger.clone());
            let (name, root, path, runtime) = (mount.name.clone(), root.clone(), path.clone(), Handle::current());
            let sub_path = move || runtime.block_on(sub_path(&name, &root, &path, ledger.as_ref()));
            found.insert(mount.mount_path.clone(), apart(sub_path).await?);
        }
    }
    Ok(found)
}

async fn sub_path(volume: &str, root: &Path, path: &str, ledger: Option<&Writer>) -> Result<PathBuf, VolumeError> {
    let wrong = |source: io::Error| VolumeError::SubPath { volume: volume.to_owned(), path: path.to_owned(), source };
    let top = fs::File::open(root).map_err(wrong)?;
    let mode = top.metadata().map_err(wrong)?.mode() & 0o7777;
    let mut parent = beneath(&top, Path::new(".")).map_err(wrong)?;
    let mut reached = PathBuf::new();
    for part in path.split('/').filter(|part| !matches!(*part, "" | ".")) {
        reached.push(part);
        parent = match beneath(&top, &reached) {
            Ok(present) => present,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(ledger) = ledger {
                    let what = Creation::Directory { path: root.join(&reached) };
                    ledger
                        .record(vec![Record::Make { what }])
                        .await
                        .map_err(|source| VolumeError::Ledger { volume: volume.to_owned(), source })?;
                }
                make_beneath(&parent, part, mode).map_err(wrong)?;
                beneath(&top, &reached).map_err(wrong)?
            }
            Err(error) => return Err(wrong(error)),
        };
    }
    // Where the links have led to, so that they are not followed once more by whoever mounts it.
    fs::read_link(format!("/proc/self/fd/{}", parent.as_raw_fd())).map_err(wrong)
}

/// Opens `path` below `top`, which no link may leave.
fn beneath(top: &fs::File, path: &Path) -> io::Result<OwnedFd> {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_BENEATH);
    Ok(openat2(top, path, how)?)
}

/// Makes the directory `name` in `parent`. A dangling link of that name is an error.
fn make_beneath(parent: &OwnedFd, name: &str, mode: u32) -> io::Result<()> {
    mkdirat(parent, name, Mode::from_bits_truncate(mode))?;
    let created = openat2(
        parent,
        name,
        OpenHow::new().flags(OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS),
    )?;
    // The umask had its say.
    Ok(fchmod(&created, Mode::from_bits_truncate(mode))?)
}

/// UIDs of the pods that have a directory.
pub fn present(pods: &Path) -> Vec<String> {
    let entries = fs::read_dir(pods).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Unmounts what is mounted in the directory of the pod `uid` (memory volumes, and what a container with bidirectional
/// propagation left in its volumes), and removes it. Nothing is removed below a mount that stays.
pub fn discard(pods: &Path, uid: &str) -> Result<(), FsError> {
    let directory = pods.join(uid);
    for point in fsx::mounts_below(&directory)? {
        fsx::unmount(&point)?;
    }
    fsx::remove_tree(&directory)?;
    Ok(())
}

fn empty_dir_path(pods: &Path, uid: &str, volume: &str) -> PathBuf {
    pods.join(uid).join("volumes/kubernetes.io~empty-dir").join(volume)
}

async fn host(volume: &str, source: &HostPathVolumeSource, ledger: &Writer) -> Result<PathBuf, VolumeError> {
    let path = PathBuf::from(&source.path);
    let files = |source: FsError| VolumeError::Files { volume: volume.to_owned(), source };
    let record = async |creations: Vec<Creation>| {
        let records = creations.into_iter().map(|what| Record::Make { what }).collect();
        ledger.record(records).await.map_err(|source| VolumeError::Ledger { volume: volume.to_owned(), source })
    };
    let kind = source.type_.as_deref().unwrap_or_default();
    let present = fs::metadata(&path).ok();
    match kind {
        // Without a type the runtime would make the directory; then nobody would know that it is ours.
        "" | "DirectoryOrCreate" if present.is_none() => {
            let missing = fsx::missing_directories(&path);
            record(missing.into_iter().map(|path| Creation::Directory { path }).collect()).await?;
            fsx::create_directories(&path, 0o755).map_err(files)?;
        }
        "FileOrCreate" if present.is_none() => {
            record(vec![Creation::HostFile { path: path.clone() }]).await?;
            fsx::open_append(&path, 0o644).map_err(files)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
                .map_err(|error| files(FsError::of("set the mode of", &path)(error)))?;
        }
        _ => {
            let is = |test: fn(&fs::FileType) -> bool| present.as_ref().is_some_and(|meta| test(&meta.file_type()));
            let (holds, wanted) = match kind {
                "Directory" | "DirectoryOrCreate" => (is(fs::FileType::is_dir), "directory"),
                "File" | "FileOrCreate" => (is(fs::FileType::is_file), "file"),
                "Socket" => (is(fs::FileType::is_socket), "socket"),
                "CharDevice" => (is(fs::FileType::is_char_device), "character device"),
                "BlockDevice" => (is(fs::FileType::is_block_device), "block device"),
                _ => (true, ""),
            };
            if !holds {
                return Err(VolumeError::WrongType { volume: volume.to_owned(), path, wanted });
            }
        }
    }
    Ok(path)
}

/// The size of a volume in memory: its own limit or that of the pod, whichever is less.
fn memory_size(pod: &StaticPod, source: &EmptyDirVolumeSource) -> Option<i64> {
    let of = |container: &Container| {
        let limit = container.resources.as_ref()?.limits.as_ref()?.get("memory")?;
        quantity::bytes(&limit.0)
    };
    let pod: Option<i64> = pod.containers().iter().map(of).sum();
    let own = source.size_limit.as_ref().and_then(|limit| quantity::bytes(&limit.0));
    [own, pod].into_iter().flatten().filter(|bytes| *bytes > 0).min()
}

fn mount_tmpfs(path: &Path, size: Option<i64>) -> nix::Result<()> {
    let size = size.map(|bytes| format!("size={bytes}"));
    let mount = |more: Option<&str>| {
        let options = size.as_deref().into_iter().chain(more).collect::<Vec<_>>().join(",");
        let options = (!options.is_empty()).then_some(options.as_str());
        nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), options)
    };
    // Linux before 6.3 does not know it.
    match mount(Some("noswap")) {
        Err(Errno::EINVAL) => mount(None),
        result => result,
    }
}

fn empty(
    path: &Path,
    source: &EmptyDirVolumeSource,
    memory_size: Option<i64>,
    fs_group: Option<i64>,
) -> Result<(), FsError> {
    fsx::create_directories(path, 0o750)?;
    let memory = source.medium.as_deref() == Some("Memory");
    if memory && !is_mount(path) {
        mount_tmpfs(path, memory_size).map_err(|error| FsError::of("mount a tmpfs on", path)(error.into()))?;
    }
    let group = fs_group.and_then(|group| u32::try_from(group).ok());
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group)).map_err(FsError::of("set the group of", path))?;
    }
    let mode = match (group, memory) {
        (Some(_), _) => 0o2777,
        (None, true) => 0o1777,
        (None, false) => 0o777,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(FsError::of("set the mode of", path))
}

fn is_mount(path: &Path) -> bool {
    let device = |path: &Path| -> io::Result<u64> { Ok(fs::metadata(path)?.dev()) };
    match (device(path), path.parent().map(device)) {
        (Ok(own), Some(Ok(parent))) => own != parent,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::agent::ledger::Ledger;
    use crate::agent::pod::tests::pod;
    use crate::journal::JournalError;

    #[derive(Clone, Default)]
    struct Recorder(Arc<Mutex<Vec<PathBuf>>>);

    impl Recorder {
        fn writer(&self) -> Writer {
            Writer::new(Arc::new(self.clone()))
        }
    }

    impl Ledger for Recorder {
        fn record(&self, records: &[Record]) -> Result<(), JournalError> {
            for record in records {
                let Record::Make { what: Creation::Directory { path } | Creation::HostFile { path } } = record else {
                    panic!("{record:?}");
                };
                assert!(!path.exists(), "recorded before it is made");
                self.0.lock().unwrap().push(path.clone());
            }
            Ok(())
        }
    }

    async fn try_prepare(source: &str, directory: &Path, ledger: &Recorder) -> Result<PathBuf, VolumeError> {
        let pod = pod(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  volumes: [{{name: v, {source}}}, \
             {{name: unused, hostPath: {{path: /nonexistent, type: File}}}}]\n  \
             containers: [{{name: c, image: i, volumeMounts: [{{name: v, mountPath: /v}}]}}]\n"
        ));
        prepare(&pod, &pod.containers()[0], directory, &ledger.writer()).await.map(|mut paths| {
            assert_eq!(paths.len(), 1);
            paths.remove("v").unwrap()
        })
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn host_paths_are_made_with_the_kubelets_modes_and_recorded_first() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().display().to_string();
        let ledger = Recorder::default();
        for kind in ["", "DirectoryOrCreate"] {
            let source = format!("hostPath: {{path: {base}/a{kind}/b, type: '{kind}'}}");
            let path = try_prepare(&source, directory.path(), &ledger).await.unwrap();
            assert!(path.is_dir());
            assert_eq!(mode(&path), 0o755);
        }
        let file = format!("hostPath: {{path: {base}/file, type: FileOrCreate}}");
        let path = try_prepare(&file, directory.path(), &ledger).await.unwrap();
        assert_eq!(mode(&path), 0o644);
        try_prepare(&file, directory.path(), &ledger).await.unwrap();
        assert_eq!(ledger.0.lock().unwrap().len(), 5, "two directories twice, and the file once");
    }

    #[tokio::test]
    async fn a_missing_or_wrong_host_path_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().display().to_string();
        for kind in ["Directory", "File", "Socket", "CharDevice", "BlockDevice"] {
            let source = format!("hostPath: {{path: {base}/nope, type: {kind}}}");
            let error = try_prepare(&source, directory.path(), &Recorder::default()).await.unwrap_err();
            assert!(error.to_string().contains("/nope"), "{error}");
        }
        let source = format!("hostPath: {{path: {base}, type: File}}");
        assert!(try_prepare(&source, directory.path(), &Recorder::default()).await.is_err());
    }

    async fn try_sub_path(root: &Path, path: &str, ledger: &Recorder) -> Result<PathBuf, VolumeError> {
        let pod = pod(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  volumes: [{{name: v, hostPath: {{path: /x}}}}]\n  \
             containers: [{{name: c, image: i, volumeMounts: [{{name: v, mountPath: /v, subPath: {path}}}]}}]\n"
        ));
        let volumes = [("v".to_owned(), root.to_path_buf())].into();
        let wanted = [("/v".to_owned(), path.to_owned())].into();
        let found = sub_paths(&pod, &pod.containers()[0], &volumes, &wanted, &ledger.writer()).await;
        found.map(|mut found| found.remove("/v").unwrap())
    }

    #[tokio::test]
    async fn a_missing_sub_path_is_made_with_the_mode_of_its_volume_and_recorded_first() {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
        let ledger = Recorder::default();
        for _ in 0..2 {
            let path = try_sub_path(&root, "./a//b", &ledger).await.unwrap();
            assert_eq!((path.as_path(), mode(&path), mode(&root.join("a"))), (&*root.join("a/b"), 0o777, 0o777));
        }
        assert_eq!(*ledger.0.lock().unwrap(), [root.join("a"), root.join("a/b")]);
    }

    #[tokio::test]
    async fn a_sub_path_may_be_a_file_and_go_through_links_that_stay_inside() {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        fs::create_dir(root.join("real")).unwrap();
        fs::write(root.join("real/file"), "").unwrap();
        std::os::unix::fs::symlink("real", root.join("link")).unwrap();
        let path = try_sub_path(&root, "link/file", &Recorder::default()).await.unwrap();
        assert_eq!(path, root.join("real/file"), "the link is resolved");
    }

    #[tokio::test]
    async fn a_sub_path_never_leaves_its_volume() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("volume");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("file"), "").unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        for (name, target) in [("up", "../outside"), ("etc", "/etc"), ("dangling", "nowhere")] {
            std::os::unix::fs::symlink(target, root.join(name)).unwrap();
        }
        for path in ["up", "up/new", "etc", "etc/passwd", "dangling", "dangling/new", "file/new"] {
            let error = try_sub_path(&root, path, &Recorder::default()).await.unwrap_err();
            assert!(matches!(error, VolumeError::SubPath { .. }), "{path}: {error}");
        }
        assert_eq!(fs::read_dir(directory.path().join("outside")).unwrap().count(), 0);
    }

    #[test]
    fn memory_is_limited_by_volume_and_pod() {
        for (volume, one, other, expected) in [
            ("{medium: Memory}", "", "", None),
            ("{medium: Memory, sizeLimit: 8Mi}", "", "", Some(8 << 20)),
            ("{medium: Memory}", "4Mi", "2Mi", Some(6 << 20)),
            ("{medium: Memory, sizeLimit: 8Mi}", "4Mi", "2Mi", Some(6 << 20)),
            ("{medium: Memory, sizeLimit: 1Mi}", "4Mi", "2Mi", Some(1 << 20)),
            ("{medium: Memory, sizeLimit: 8Mi}", "4Mi", "", Some(8 << 20)),
        ] {
            let limit = |limit: &str| match limit {
                "" => String::new(),
                limit => format!(", resources: {{limits: {{memory: {limit}}}}}"),
            };
            let pod = pod(&format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  volumes: [{{name: v, emptyDir: {volume}}}]\n  \
                 containers: [{{name: a, image: i{}}}, {{name: b, image: i{}}}]\n",
                limit(one),
                limit(other),
            ));
            let source = pod.spec.volumes.as_ref().unwrap()[0].empty_dir.as_ref().unwrap();
            assert_eq!(memory_size(&pod, source), expected, "{volume} {one} {other}");
        }
    }

    #[tokio::test]
    async fn an_empty_dir_is_open_to_all_and_goes_with_the_pod() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Recorder::default();
        let path = try_prepare("emptyDir: {}", directory.path(), &ledger).await.unwrap();
        assert_eq!(mode(&path), 0o777);
        fs::write(path.join("x"), "x").unwrap();
        try_prepare("emptyDir: {}", directory.path(), &ledger).await.unwrap();
        assert!(path.join("x").exists(), "preparing again keeps the content");
        let uid = fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().file_name();
        discard(directory.path(), uid.to_str().unwrap()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(ledger.0.lock().unwrap().is_empty(), "our own state directory needs no record");
    }
}
