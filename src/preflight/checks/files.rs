//! Files in the way, and room for ours.

use std::ffi::OsStr;
use std::path::Path;

use super::super::{DiskSpace, Facts, Ownership};
use super::Check;
use crate::config::Cluster;
use crate::layout::Layout;
use crate::release::Component;

const MIB: u64 = 1 << 20;

/// etcd allocates two segments of its log (`wal.SegmentSizeBytes`, 64 MiB) before it serves.
const ETCD_START: u64 = 256 * MIB;

/// etcd's database may grow to its default quota (`DefaultQuotaBytes`, 2 GiB).
const ETCD_FULL: u64 = 2048 * MIB;

/// Unpacked images of the four components, and their layers while they are pulled.
const IMAGES: u64 = 1024 * MIB;

/// Four components' logs, 10 MiB × 5 each.
const LOGS: u64 = 200 * MIB;

/// Certificates, manifests, journal, generations, pod directories: some hundred KiB, with room to spare.
const SMALL: u64 = 16 * MIB;

/// Fewer files than this left is as bad as no bytes left.
const FILES: u64 = 1000;

pub(super) fn checks(cluster: &Cluster, owned: &Ownership, facts: &Facts) -> Vec<Check> {
    let host = &facts.host;
    let mut checks: Vec<_> = Component::ALL.iter().map(|&component| manifest(component, owned, facts)).collect();
    let started_before = owned.has_path(&host.etcd_data) && !host.etcd_data_entries.is_empty();
    let pull = if facts.missing_images().is_empty() { 0 } else { IMAGES };
    let engine = facts.engine.as_ref().ok();
    let engine_root = engine.map_or(Path::new("/var/lib/docker"), |engine| &engine.info.data_root);
    let layout = Layout::default();
    checks.extend([
        etcd_data(cluster, owned, facts),
        // What is there already needs no room to be allocated.
        disk("etcd", &cluster.etcd.data_dir, host.etcd_space, if started_before { 0 } else { ETCD_START }, ETCD_FULL),
        disk("docker", engine_root, engine.and_then(|engine| engine.space), pull, pull + LOGS),
        disk("plinth", &layout.state(), host.state_space, SMALL, SMALL),
        disk("kubernetes", &layout.kubernetes(), host.kubernetes_space, SMALL, SMALL),
    ]);
    checks
}

/// kubeadm's names have a path in them, with `-` for `/`.
fn path_name(check: &str, path: &Path) -> String {
    format!("{check}-{}", path.display().to_string().replace('/', "-"))
}

fn manifest(component: Component, owned: &Ownership, facts: &Facts) -> Check {
    // The name has the path of a real host, wherever this root is.
    let path = Layout::default().manifests().join(format!("{component}.yaml"));
    let foreign = facts.host.manifests.get(&component).filter(|path| !owned.has_path(path));
    Check::new(path_name("FileAvailable", &path), "move it away if it is not needed; after kubeadm: kubeadm reset")
        .error(foreign.map(|path| format!("`{}` is there already, and not ours", path.display())))
}

fn etcd_data(cluster: &Cluster, owned: &Ownership, facts: &Facts) -> Check {
    let host = &facts.host;
    let foreign = host.etcd_data_entries.iter().find(|path| {
        // A file system of its own has that one from the beginning.
        !owned.has_path(path) && path.file_name() != Some(OsStr::new("lost+found"))
    });
    Check::new(
        path_name("DirAvailable", &cluster.etcd.data_dir),
        "move another cluster's data away, or choose another etcd.local.dataDir; ignored, that data is what this \
         cluster begins with",
    )
    .error(
        foreign.filter(|_| !owned.has_path(&host.etcd_data)).map(|path| {
            format!("`{}` is not empty, and not ours: it has `{}`", host.etcd_data.display(), name_of(path))
        }),
    )
}

fn name_of(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

/// Room at `path`: less than `needed` is an error, less than `wanted` a warning. Unknown room is not judged.
fn disk(name: &str, path: &Path, space: Option<DiskSpace>, needed: u64, wanted: u64) -> Check {
    let room = |least: u64| {
        space
            .filter(|space| space.bytes < least)
            .map(|space| format!("{} MiB free at `{}`; {} are needed", space.bytes / MIB, path.display(), least / MIB))
    };
    let files = space.and_then(|space| space.files).filter(|files| *files < FILES);
    Check::new(format!("Disk-{name}"), format!("make room at `{}`, or give it a larger disk", path.display()))
        .error(room(needed))
        .error(files.map(|files| format!("{files} files can still be made at `{}`", path.display())))
        .warning(room(wanted))
}

#[cfg(test)]
mod tests {
    use super::super::super::{ImagePresence, Level};
    use super::super::testing::{good, ours, ownership, says};
    use super::*;

    #[test]
    fn a_manifest_is_missing_or_ours_or_in_the_way() {
        let name = "FileAvailable--etc-kubernetes-manifests-etcd.yaml";
        let cluster = Cluster::example();
        assert_eq!(says(&cluster, &Ownership::default(), &good(), name), None);
        assert_eq!(says(&cluster, &ownership(), &ours(), name), None);
        let text = "`/etc/kubernetes/manifests/etcd.yaml` is there already, and not ours";
        // A directory that is ours does not make a file in it ours.
        let directory = Ownership { paths: ["/etc/kubernetes/manifests".into()].into(), ..Ownership::default() };
        assert_eq!(says(&cluster, &directory, &ours(), name), Some((Level::Error, text.to_owned())));
    }

    #[test]
    fn etcds_directory_is_empty_or_ours_or_in_the_way() {
        let name = "DirAvailable--var-lib-etcd";
        let cluster = Cluster::example();
        let says = |owned: &Ownership, facts: &Facts| says(&cluster, owned, facts, name);
        assert_eq!(says(&ownership(), &ours()), None);
        let member = Ownership { paths: ["/var/lib/etcd/member".into()].into(), ..Ownership::default() };
        assert_eq!(says(&member, &ours()), None);
        let text = "`/var/lib/etcd` is not empty, and not ours: it has `member`";
        assert_eq!(says(&Ownership::default(), &ours()), Some((Level::Error, text.to_owned())));
        let mut facts = good();
        facts.host.etcd_data_entries = ["/var/lib/etcd/lost+found".into()].into();
        assert_eq!(says(&Ownership::default(), &facts), None);
    }

    #[test]
    fn room_is_judged_by_what_will_be_written() {
        let cluster = Cluster::example();
        let space = |mib: u64| Some(DiskSpace { bytes: mib * MIB, files: Some(100_000) });
        let level = |owned: &Ownership, facts: &Facts, name| says(&cluster, owned, facts, name).map(|(level, _)| level);
        let fresh = Ownership::default();
        for (mib, owned, mut facts, expected) in [
            (255, &fresh, good(), Some(Level::Error)),
            (256, &fresh, good(), Some(Level::Warning)),
            (2048, &fresh, good(), None),
            (10, &ownership(), good(), Some(Level::Error)), // made, but never started
            (10, &ownership(), ours(), Some(Level::Warning)),
        ] {
            facts.host.etcd_space = space(mib);
            assert_eq!(level(owned, &facts, "Disk-etcd"), expected, "{mib}");
        }
        let mut facts = good();

        for (mib, image, expected) in [
            (1000, ImagePresence::Missing, Some(Level::Error)),
            (1100, ImagePresence::Missing, Some(Level::Warning)),
            (1300, ImagePresence::Missing, None),
            (100, ImagePresence::Present, Some(Level::Warning)),
            (200, ImagePresence::Present, None),
        ] {
            facts.engine.as_mut().unwrap().space = space(mib);
            facts.images[0].1 = image;
            assert_eq!(level(&fresh, &facts, "Disk-docker"), expected, "{mib}");
        }

        facts.host.kubernetes_space = Some(DiskSpace { bytes: 15 * MIB, files: None });
        facts.host.state_space = Some(DiskSpace { bytes: 16 * MIB, files: Some(3) });
        let text = |name| says(&cluster, &fresh, &facts, name).unwrap().1;
        assert_eq!(text("Disk-kubernetes"), "15 MiB free at `/etc/kubernetes`; 16 are needed");
        assert_eq!(text("Disk-plinth"), "3 files can still be made at `/var/lib/plinth`");
    }
}
