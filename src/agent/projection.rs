//! downwardAPI volumes: files that tell a container about its pod.
//!
//! # Guarantees
//! - The files appear and change all at once, as with the kubelet's `AtomicWriter`: they are in a directory of their
//!   own, `..data` is a link to it, and what the container opens are links through `..data`.
//! - Writing the same content again changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use k8s_openapi::api::core::v1::{Container, DownwardAPIVolumeFile, EnvVarSource, Volume};

use super::pod::{StaticPod, identity};
use super::translate::{self, Context, TranslateError};
use crate::fsx::{self, FsError};

/// Mode of files for which the manifest says none.
const DEFAULT_MODE: i32 = 0o644;
/// The link to the present files.
const DATA: &str = "..data";

/// One file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Relative to the volume.
    pub path: String,
    /// Permissions.
    pub mode: u32,
    /// What is in it.
    pub content: String,
}

/// The items of a downwardAPI volume, or of all the downwardAPI sources of a projected one, each with the mode of those
/// that have none; `None` for any other volume.
pub fn items(volume: &Volume) -> Option<(Vec<&DownwardAPIVolumeFile>, i32)> {
    if let Some(source) = &volume.downward_api {
        return Some((source.items.iter().flatten().collect(), source.default_mode.unwrap_or(DEFAULT_MODE)));
    }
    let source = volume.projected.as_ref()?;
    let sources = source.sources.iter().flatten().filter_map(|source| source.downward_api.as_ref());
    Some((
        sources.flat_map(|source| source.items.iter().flatten()).collect(),
        source.default_mode.unwrap_or(DEFAULT_MODE),
    ))
}

/// The files of the downwardAPI volumes that `container` mounts, by name of the volume. Pure.
pub fn files(
    pod: &StaticPod,
    container: &Container,
    context: &Context<'_>,
) -> Result<BTreeMap<String, Vec<File>>, TranslateError> {
    let mut found = BTreeMap::new();
    for volume in pod.spec.volumes.iter().flatten() {
        if !container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name) {
            continue;
        }
        let Some((items, default_mode)) = items(volume) else { continue };
        let mut files = Vec::new();
        for item in items {
            let unknown = |reference| TranslateError::VolumeReference { volume: volume.name.clone(), reference };
            let text = content(pod, container, item, context).map_err(unknown)?;
            let mode = u32::try_from(item.mode.unwrap_or(default_mode)).unwrap_or(0) & 0o777;
            files.push(File { path: item.path.clone(), mode, content: text });
        }
        found.insert(volume.name.clone(), files);
    }
    Ok(found)
}

fn content(
    pod: &StaticPod,
    container: &Container,
    item: &DownwardAPIVolumeFile,
    context: &Context<'_>,
) -> Result<String, String> {
    match item.field_ref.as_ref().map(|field| field.field_path.as_str()) {
        Some("metadata.labels") => Ok(lines(pod.metadata.labels.iter().flatten())),
        Some("metadata.annotations") => Ok(lines(pod.metadata.annotations.iter().flatten())),
        _ => {
            let from = EnvVarSource {
                field_ref: item.field_ref.clone(),
                resource_field_ref: item.resource_field_ref.clone(),
                ..EnvVarSource::default()
            };
            translate::reference(pod, container, &from, context)
        }
    }
}

/// `key="value"`, sorted, one a line, without a line feed at the end (kubelet: `fieldpath.FormatMap`).
fn lines<'a>(map: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    map.map(|(key, value)| format!("{key}={}", quoted(value))).collect::<Vec<_>>().join("\n")
}

/// As Go's `%q` has it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{b}' => quoted.push_str("\\v"),
            '\u{c}' => quoted.push_str("\\f"),
            _ if character.is_ascii_control() => {
                // Writing to a String does not fail.
                let _ = write!(quoted, "\\x{:02x}", u32::from(character));
            }
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

/// Writes the files of the volume `name` and returns where it is. With `group` they belong to that group, which may
/// read them.
pub fn write(pods: &Path, uid: &str, name: &str, files: &[File], group: Option<u32>) -> Result<PathBuf, FsError> {
    let volume = pods.join(uid).join("volumes/kubernetes.io~downward-api").join(name);
    fsx::create_directories(&volume, 0o755)?;
    set_mode(&volume, 0o755, group)?;
    let digest = digest::digest(&digest::SHA256, format!("{files:?} {group:?}").as_bytes());
    let version = format!("..{}", identity::hex(&digest.as_ref()[..8]));
    let data = volume.join(&version);
    if !data.is_dir() {
        let unfinished = volume.join(format!("{version}.new"));
        fsx::remove_tree(&unfinished)?;
        fsx::create_directories(&unfinished, 0o755)?;
        set_mode(&unfinished, 0o755, group)?;
        for file in files {
            write_file(&unfinished, file, group)?;
        }
        fsx::rename(&unfinished, &data)?;
    }
    link(&version, &volume.join(DATA))?;
    let tops: BTreeSet<_> = files.iter().filter_map(|file| file.path.split('/').next()).collect();
    for top in &tops {
        link(&format!("{DATA}/{top}"), &volume.join(top))?;
    }
    // What an earlier version had and this one has not.
    for entry in fs::read_dir(&volume).map_err(FsError::of("read", &volume))?.flatten() {
        let entry_name = entry.file_name().to_string_lossy().into_owned();
        if entry_name.starts_with("..") && entry_name != DATA && entry_name != version {
            if entry.path().is_symlink() {
                fsx::remove_file(&entry.path())?
            } else {
                fsx::remove_tree(&entry.path())?
            };
        } else if !entry_name.starts_with("..") && !tops.contains(entry_name.as_str()) {
            fsx::remove_file(&entry.path())?;
        }
    }
    Ok(volume)
}

fn write_file(directory: &Path, file: &File, group: Option<u32>) -> Result<(), FsError> {
    let path = directory.join(&file.path);
    if let Some(parent) = path.parent() {
        for made in fsx::create_directories(parent, 0o755)? {
            set_mode(&made, 0o755, group)?;
        }
    }
    fs::write(&path, &file.content).map_err(FsError::of("write", &path))?;
    set_mode(&path, if group.is_some() { file.mode | 0o440 } else { file.mode }, group)
}

fn set_mode(path: &Path, mode: u32, group: Option<u32>) -> Result<(), FsError> {
    if group.is_some() {
        std::os::unix::fs::chown(path, None, group).map_err(FsError::of("set the group of", path))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(FsError::of("set the mode of", path))
}

/// Makes `path` a link to `target`, at once if there is another one.
fn link(target: &str, path: &Path) -> Result<(), FsError> {
    if fs::read_link(path).is_ok_and(|present| present == Path::new(target)) {
        return Ok(());
    }
    let mut name = std::ffi::OsString::from("..new-");
    name.push(path.file_name().unwrap_or_default());
    let temporary = path.with_file_name(name);
    fsx::remove_file(&temporary)?;
    symlink(target, &temporary).map_err(FsError::of("make the link", &temporary))?;
    fsx::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_written_as_the_kubelet_writes_them() {
        let map: BTreeMap<_, _> =
            [("b", "two\nlines \"x\" ä"), ("a", "1")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(lines(map.iter()), "a=\"1\"\nb=\"two\\nlines \\\"x\\\" ä\"");
        assert_eq!(quoted("\u{1}\u{7}\\"), r#""\x01\a\\""#);
    }

    fn file(path: &str, mode: u32, content: &str) -> File {
        File { path: path.to_owned(), mode, content: content.to_owned() }
    }

    fn names(volume: &Path) -> Vec<String> {
        let entries = fs::read_dir(volume).unwrap().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.retain(|name| name == DATA || !name.starts_with(".."));
        names.sort();
        names
    }

    #[test]
    fn files_are_reached_through_one_link_that_is_swapped() {
        let directory = tempfile::tempdir().unwrap();
        let write = |files: &[File]| write(directory.path(), "uid", "v", files, None).unwrap();
        let first = [file("name", 0o400, "web"), file("deep/er/labels", 0o644, "a")];
        let volume = write(&first);
        assert_eq!(volume, directory.path().join("uid/volumes/kubernetes.io~downward-api/v"));
        assert_eq!(names(&volume), ["..data", "deep", "name"]);
        assert_eq!(fs::read_to_string(volume.join("deep/er/labels")).unwrap(), "a");
        let mode = |path: &str| fs::metadata(volume.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("name"), mode("deep/er/labels"), mode("deep/er")), (0o400, 0o644, 0o755));
        assert_eq!(fs::read_link(volume.join("name")).unwrap(), Path::new("..data/name"));

        let present = fs::read_link(volume.join(DATA)).unwrap();
        write(&first);
        assert_eq!(fs::read_link(volume.join(DATA)).unwrap(), present, "the same content changes nothing");

        write(&[file("name", 0o400, "other")]);
        assert_eq!(
            (names(&volume), fs::read_to_string(volume.join("name")).unwrap()),
            (vec!["..data".to_owned(), "name".to_owned()], "other".to_owned())
        );
        assert!(!volume.join(present).exists(), "the old version is gone");
    }

    #[test]
    fn what_a_killed_agent_left_is_no_obstacle() {
        let directory = tempfile::tempdir().unwrap();
        let files = [file("a", 0o644, "1")];
        let volume = write(directory.path(), "uid", "v", &files, None).unwrap();
        let version = fs::read_link(volume.join(DATA)).unwrap();
        fs::create_dir(volume.join(format!("{}.new", version.display()))).unwrap();
        symlink("nowhere", volume.join("..new-..data")).unwrap();
        fs::remove_file(volume.join(DATA)).unwrap();
        fs::remove_dir_all(volume.join(version)).unwrap();
        write(directory.path(), "uid", "v", &files, None).unwrap();
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "1");
        assert_eq!(fs::read_dir(&volume).unwrap().count(), 3);
    }
}
