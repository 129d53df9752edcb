//! What it means for the data to replace etcd by another one, and a swap of it that has begun and not ended.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;

use super::Observed;
use super::file::checksum;
pub(super) use crate::etcd::Change;
use crate::etcd::{Course, Series};
use crate::fsx::{self, FsError, NewFile};
use crate::journal::{Ledger, SwapSide};
use crate::layout::Layout;
use crate::manifests::Manifest;
use crate::release::Component;
use crate::yaml;

/// Mode of the directory that holds the manifests of a swap.
const DIRECTORY_MODE: u32 = 0o700;
/// Mode of these manifests: there may be secrets in their environment.
const FILE_MODE: u32 = 0o600;

/// What replacing the etcd of image `old` by that of `new` means for the data. `None` where a tag does not tell the
/// version.
pub fn change_between(old: &str, new: &str) -> Option<Change> {
    if tag(old) == tag(new) { Some(Change::Patch) } else { Some(Change::between(series(old)?, series(new)?)) }
}

/// The series of an image, by its tag.
pub fn series(image: &str) -> Option<Series> {
    let tag = tag(image);
    tag.strip_prefix('v').unwrap_or(tag).parse().ok()
}

/// Image of the one container of a manifest; `None` where it cannot be read.
pub fn image_of(manifest: &str) -> Option<String> {
    let pod: Pod = yaml::manifest(manifest.as_bytes()).ok()?;
    pod.spec?.containers.into_iter().next()?.image
}

/// Whether an etcd of another version is to replace the one whose manifest is on disk; without one, the last one.
pub fn replaces_etcd(wanted: &[Manifest], observed: &Observed) -> bool {
    let Some(committed) = observed.standing.committed() else { return false };
    let wanted = wanted.iter().find(|manifest| manifest.component == Component::Etcd);
    let on_disk = observed.manifests.get(&Component::Etcd).map(|found| &found.content);
    let found = on_disk.or_else(|| committed.manifests.get(&Component::Etcd));
    let image = |text: &str| image_of(text).unwrap_or_default();
    wanted.zip(found).is_some_and(|(new, old)| tag(&image(&new.yaml)) != tag(&image(old)))
}

/// The tag of an image reference; empty where it has none.
pub(super) fn tag(image: &str) -> &str {
    image.rsplit_once(':').map_or("", |(_, tag)| tag)
}

/// A swap of etcd that has begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenSwap {
    /// Its name in the journal, and that of the copy.
    pub id: String,
    /// The manifest from before.
    pub old: String,
    /// The one that replaces it.
    pub new: String,
    /// The image from before.
    pub old_image: String,
    /// The one that replaces it.
    pub new_image: String,
    /// Where it was going.
    pub course: Course,
}

impl OpenSwap {
    /// That which `ledger` says has not ended.
    pub fn read(layout: &Layout, ledger: &Ledger) -> Result<Option<Self>, FsError> {
        let Some(swap) = ledger.etcd_swap.clone() else { return Ok(None) };
        let read = |name, side: &SwapSide| {
            let path = manifest(layout, name);
            let text = fsx::read_to_string(&path)?;
            if checksum(&text) == side.manifest {
                return Ok(text);
            }
            let other =
                std::io::Error::new(std::io::ErrorKind::InvalidData, "it is not the one that the journal names");
            Err(FsError::of("use", &path)(other))
        };
        let course = match (swap.failed, swap.served) {
            (_, true) => Course::Served,
            (true, false) => Course::Back,
            (false, false) => Course::Forward,
        };
        Ok(Some(Self {
            id: swap.id,
            old: read(OLD, &swap.old)?,
            new: read(NEW, &swap.new)?,
            old_image: swap.old.image,
            new_image: swap.new.image,
            course,
        }))
    }

    /// Where the manifest from before is kept.
    pub fn old_manifest(layout: &Layout) -> PathBuf {
        manifest(layout, OLD)
    }

    /// Keeps both manifests where [`OpenSwap::read`] finds them, and returns what the journal has to say of them.
    pub fn keep(&self, layout: &Layout) -> Result<[SwapSide; 2], FsError> {
        fsx::create_directories(&layout.etcd_swap(), DIRECTORY_MODE)?;
        let file = |name, text: &str| NewFile { path: manifest(layout, name), content: text.into(), mode: FILE_MODE };
        fsx::write_batch(&[file(OLD, &self.old), file(NEW, &self.new)])?;
        let side = |image: &str, text: &str| SwapSide { image: image.to_owned(), manifest: checksum(text) };
        Ok([side(&self.old_image, &self.old), side(&self.new_image, &self.new)])
    }
}

const OLD: &str = "old.yaml";
const NEW: &str = "new.yaml";

fn manifest(layout: &Layout, name: &str) -> PathBuf {
    layout.etcd_swap().join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Journal, Record};

    #[test]
    fn a_tag_tells_what_becomes_of_the_data() {
        for (old, new, expected) in [
            ("r/etcd:3.6.8-0", "r/etcd:3.7.0-0", Some(Change::Upgrade)),
            ("r/etcd:3.7.0-0", "r/etcd:3.6.8-0", Some(Change::Downgrade)),
            ("r/etcd:v3.6.6", "r/etcd:3.6.8-0", Some(Change::Patch)),
            ("r/etcd:mine", "m:5000/etcd:mine", Some(Change::Patch)),
            ("r/etcd:3.5.1-0", "r/etcd:3.7.0-0", Some(Change::Unsupported)),
            ("r/etcd:mine", "r/etcd:3.7.0-0", None),
        ] {
            assert_eq!(change_between(old, new), expected, "{old} {new}");
        }
    }

    #[test]
    fn a_swap_is_found_again_with_its_manifests_and_its_course() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let mut swap = OpenSwap {
            id: "7".into(),
            old: "old\n".into(),
            new: "new\n".into(),
            old_image: "etcd:3.6.8-0".into(),
            new_image: "etcd:3.7.0-0".into(),
            course: Course::Forward,
        };
        let journal = Journal::of(&layout);
        let read = || OpenSwap::read(&layout, &journal.ledger().unwrap());
        let [old, new] = swap.keep(&layout).unwrap();
        assert_eq!(read().unwrap(), None);
        journal.append(&[Record::EtcdSwap { id: "7".into(), old, new }]).unwrap();
        assert_eq!(read().unwrap().as_ref(), Some(&swap));
        journal.append(&[Record::EtcdSwapFailed { id: "7".into() }]).unwrap();
        assert_eq!(read().unwrap().unwrap().course, Course::Back);
        journal.append(&[Record::EtcdSwapServed { id: "7".into() }]).unwrap();
        assert_eq!(read().unwrap().unwrap().course, Course::Served);

        swap.old = "another\n".into();
        swap.keep(&layout).unwrap();
        assert!(read().is_err(), "not the one that was there");
        journal.append(&[Record::EtcdSwapDone { id: "7".into() }]).unwrap();
        assert_eq!(read().unwrap(), None);
    }
}
