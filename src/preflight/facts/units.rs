//! Which systemd units start at boot, by the links that `systemctl enable` makes: asking systemd takes longer than
//! all other facts together.

use std::path::PathBuf;

use crate::layout::Layout;
use crate::service::Manager;

/// The units that start Docker, whoever packaged it.
pub(super) const DOCKER: [&str; 3] = ["docker.service", "docker.socket", "snap.docker.dockerd.service"];

/// Whether systemd is PID 1.
pub(super) fn systemd_runs(layout: &Layout) -> bool {
    Manager::detect(layout) == Manager::Systemd
}

/// Where units are, see systemd.unit(5).
pub(super) fn directories(layout: &Layout) -> impl Iterator<Item = PathBuf> {
    let root = layout.root().to_path_buf();
    ["etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system"]
        .into_iter()
        .map(move |directory| root.join(directory))
}

/// Whether something that starts at boot wants `unit`.
pub(super) fn is_enabled(layout: &Layout, unit: &str) -> bool {
    directories(layout)
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flat_map(Iterator::flatten)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wants" || extension == "requires"))
        .any(|wants| wants.join(unit).symlink_metadata().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_enabled_by_a_link() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        assert!(!is_enabled(&layout, "docker.service"));
        let wants = root.path().join("etc/systemd/system/multi-user.target.wants");
        std::fs::create_dir_all(&wants).unwrap();
        assert!(!is_enabled(&layout, "docker.service"));
        std::os::unix::fs::symlink("/lib/systemd/system/docker.service", wants.join("docker.service")).unwrap();
        assert!(is_enabled(&layout, "docker.service"));
        assert!(!is_enabled(&layout, "docker.socket"));
    }
}
