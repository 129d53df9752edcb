//! Kubelets, and whether they read our manifests: two supervisors of the same static pods would fight.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::units;
use crate::layout::Layout;
use crate::proc::{Proc, ProcError};

/// A kubelet that runs, or will run after a boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeletFacts {
    /// How it was found: `process 812`, `enabled unit kubelet.service`.
    pub found: String,
    /// What it does with manifests.
    pub manifests: Manifests,
}

/// Where a kubelet reads static pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manifests {
    /// In our manifests directory.
    Ours,
    /// Nowhere, or elsewhere.
    Elsewhere,
    /// Its configuration could not be read.
    Unknown,
}

/// The unit kubelets are packaged with.
const UNIT: &str = "kubelet.service";

/// Finds kubelets in all mount namespaces, and the enabled unit.
pub(super) fn find(proc: &Proc, layout: &Layout) -> Result<Vec<KubeletFacts>, ProcError> {
    let ours = layout.manifests();
    let mut found: Vec<_> = proc
        .kubelets()?
        .into_iter()
        .map(|kubelet| KubeletFacts {
            found: format!("process {}", kubelet.pid),
            // One in a container has another /etc/kubernetes, which is none of our business.
            manifests: manifests(&kubelet.arguments.join(" "), &proc.path(format!("{}/root", kubelet.pid)), &ours),
        })
        .collect();
    if units::systemd_runs(layout) && units::is_enabled(layout, UNIT) {
        let manifests = manifests(&unit_text(layout), layout.root(), &ours);
        found.push(KubeletFacts { found: format!("enabled unit {UNIT}"), manifests });
    }
    Ok(found)
}

/// Where the kubelet started as `command_line` says, in the file system at `root`, reads static pods.
fn manifests(command_line: &str, root: &Path, ours: &Path) -> Manifests {
    let directory = match (flag(command_line, "--pod-manifest-path"), flag(command_line, "--config")) {
        (Some(directory), _) => Some(directory.to_owned()),
        (None, None) => None,
        (None, Some(file)) => match std::fs::read_to_string(below(root, file)).ok().and_then(|text| parse(&text)) {
            Some(configuration) => configuration.static_pod_path,
            None => return Manifests::Unknown,
        },
    };
    match directory {
        Some(directory) if same_place(&below(root, &directory), ours) => Manifests::Ours,
        _ => Manifests::Elsewhere,
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct KubeletConfiguration {
    static_pod_path: Option<String>,
}

fn parse(text: &str) -> Option<KubeletConfiguration> {
    serde_yaml::from_str(text).ok()
}

/// Unit and drop-ins, one after the other; good enough to look for flags in.
fn unit_text(layout: &Layout) -> String {
    let mut text = String::new();
    for directory in units::directories(layout) {
        text += &std::fs::read_to_string(directory.join(UNIT)).unwrap_or_default();
        let drop_ins = std::fs::read_dir(directory.join(format!("{UNIT}.d"))).into_iter().flatten().flatten();
        for drop_in in drop_ins {
            text += &std::fs::read_to_string(drop_in.path()).unwrap_or_default();
        }
    }
    text
}

/// The value of a flag in a command line or a unit, as `--flag=value` or `--flag value`.
fn flag<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.match_indices(name).find_map(|(start, _)| {
        let rest = text[start + name.len()..].strip_prefix(['=', ' '])?;
        let value = rest.split([' ', '\n', '"', '\'']).next()?;
        (!value.is_empty()).then_some(value)
    })
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Whether two paths, seen through whatever mounts, are the same place; they need not exist yet.
fn same_place(one: &Path, other: &Path) -> bool {
    anchor(one).is_some_and(|place| Some(place) == anchor(other))
}

/// The nearest directory that exists, by device and inode, and the way from there.
fn anchor(path: &Path) -> Option<((u64, u64), &Path)> {
    path.ancestors().find_map(|ancestor| {
        let metadata = ancestor.metadata().ok()?;
        Some(((metadata.dev(), metadata.ino()), path.strip_prefix(ancestor).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn flags_are_found_in_command_lines_and_units() {
        for (text, expected) in [
            ("kubelet --config=/a.yaml --v=2", Some("/a.yaml")),
            ("kubelet --config /a.yaml", Some("/a.yaml")),
            ("Environment=\"KUBELET_CONFIG_ARGS=--config=/a.yaml\"\nExecStart=x", Some("/a.yaml")),
            ("kubelet --config-dir=/d --config=/a.yaml", Some("/a.yaml")),
            ("kubelet --v=2", None),
            ("kubelet --config", None),
        ] {
            assert_eq!(flag(text, "--config"), expected, "{text}");
        }
    }

    #[test]
    fn a_kubelet_is_in_the_way_only_on_our_directory() {
        let root = tempfile::tempdir().unwrap();
        let ours = root.path().join("etc/kubernetes/manifests");
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::write(
            root.path().join("ours.yaml"),
            "kind: KubeletConfiguration\nstaticPodPath: /etc/kubernetes/manifests\n",
        )
        .unwrap();
        fs::write(root.path().join("none.yaml"), "kind: KubeletConfiguration\n").unwrap();
        fs::write(root.path().join("broken.yaml"), "staticPodPath: [").unwrap();
        for (command_line, expected) in [
            ("kubelet", Manifests::Elsewhere),
            ("kubelet --pod-manifest-path=/etc/kubernetes/manifests/", Manifests::Ours),
            ("kubelet --pod-manifest-path=/etc/other", Manifests::Elsewhere),
            ("kubelet --config=/ours.yaml", Manifests::Ours),
            ("kubelet --config=/none.yaml", Manifests::Elsewhere),
            ("kubelet --config=/broken.yaml", Manifests::Unknown),
            ("kubelet --config=/missing.yaml", Manifests::Unknown),
        ] {
            assert_eq!(manifests(command_line, root.path(), &ours), expected, "{command_line}");
        }
    }

    #[test]
    fn the_same_path_in_another_mount_namespace_is_another_place() {
        let host = tempfile::tempdir().unwrap();
        let container = tempfile::tempdir().unwrap();
        let path = "etc/kubernetes/manifests";
        assert!(!same_place(&host.path().join(path), &container.path().join(path)));
        std::os::unix::fs::symlink(host.path(), container.path().join("etc")).unwrap();
        assert!(same_place(&host.path().join("kubernetes/manifests"), &container.path().join(path)));
    }

    #[test]
    fn an_enabled_unit_counts_like_a_process() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let system = root.path().join("etc/systemd/system");
        fs::create_dir_all(root.path().join("run/systemd/system")).unwrap();
        fs::create_dir_all(system.join("multi-user.target.wants")).unwrap();
        fs::create_dir_all(system.join("kubelet.service.d")).unwrap();
        fs::create_dir_all(root.path().join("var/lib/kubelet")).unwrap();
        fs::write(system.join("kubelet.service"), "[Service]\nExecStart=/usr/bin/kubelet\n").unwrap();
        fs::write(
            system.join("kubelet.service.d/10-kubeadm.conf"),
            "Environment=\"KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml\"\n",
        )
        .unwrap();
        let fixture = tempfile::tempdir().unwrap();
        let proc = Proc::new(fixture.path());
        assert_eq!(find(&proc, &layout).unwrap(), []);
        std::os::unix::fs::symlink("../kubelet.service", system.join("multi-user.target.wants/kubelet.service"))
            .unwrap();
        assert_eq!(find(&proc, &layout).unwrap()[0].manifests, Manifests::Unknown);
        fs::write(root.path().join("var/lib/kubelet/config.yaml"), "staticPodPath: /etc/kubernetes/manifests\n")
            .unwrap();
        let expected = KubeletFacts { found: "enabled unit kubelet.service".into(), manifests: Manifests::Ours };
        assert_eq!(find(&proc, &layout).unwrap(), [expected]);
    }
}
