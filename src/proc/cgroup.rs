//! Which container a process belongs to, and what cgroups the host has.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Proc, Result};

/// The containers a process is in, outermost first, by the text of its `/proc/<pid>/cgroup`.
///
/// A container's cgroup carries its id under both versions and both drivers: `/docker/<id>` (or below another parent)
/// from the cgroupfs driver, `/system.slice/docker-<id>.scope` from systemd's. A container inside a container has
/// both ids in its path, and a process may have gone on to a cgroup further down.
pub fn container_ids(cgroup: &str) -> Vec<String> {
    let mut ids = Vec::new();
    for line in cgroup.lines() {
        // hierarchy:controllers:path, and the path may contain colons.
        let Some(path) = line.splitn(3, ':').nth(2) else { continue };
        // The kernel adds this once the cgroup was removed below a process that has not been reaped.
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        for id in path.split('/').filter_map(container_id) {
            if !ids.iter().any(|known| known == id) {
                ids.push(id.to_owned());
            }
        }
    }
    ids
}

/// The id in one component of a cgroup path.
fn container_id(component: &str) -> Option<&str> {
    let name = component.strip_suffix(".scope").map_or(component, |scope| scope.rsplit('-').next().unwrap_or(scope));
    (name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)))
        .then_some(name)
}

/// The version of the cgroup file system the host uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One hierarchy per controller; also "hybrid" hosts, whose controllers are still here.
    V1,
    /// The unified hierarchy.
    V2,
}

/// The cgroups of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    /// Version in use.
    pub version: CgroupVersion,
    /// Controllers that are switched on, by their kernel names.
    pub controllers: BTreeSet<String>,
}

impl Proc {
    /// The cgroups of the host; `None` where none are mounted.
    pub fn cgroups(&self) -> Result<Option<Cgroups>> {
        let mounts = self.read("self/mountinfo")?;
        let of_type = |wanted: &str| {
            mounts.lines().find_map(|line| {
                let (mount, file_system) = line.split_once(" - ")?;
                (file_system.split(' ').next()? == wanted).then(|| mount.split(' ').nth(4))?
            })
        };
        if of_type("cgroup").is_some() {
            let controllers = v1_controllers(&self.read("cgroups")?);
            return Ok(Some(Cgroups { version: CgroupVersion::V1, controllers }));
        }
        let Some(mount_point) = of_type("cgroup2") else { return Ok(None) };
        let path = Path::new(mount_point).join("cgroup.controllers");
        let controllers = std::fs::read_to_string(&path).map_err(|source| super::ProcError::Read { path, source })?;
        let controllers = controllers.split_whitespace().map(str::to_owned).collect();
        Ok(Some(Cgroups { version: CgroupVersion::V2, controllers }))
    }
}

/// `/proc/cgroups`: name, hierarchy, number of cgroups, enabled.
fn v1_controllers(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            (fields.len() == 4 && fields[3] == "1").then(|| fields[0].to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, INNER, OUTER};
    use super::*;

    #[test]
    fn a_container_is_recognised_under_both_versions_and_drivers() {
        for (cgroup, expected) in [
            (format!("9:name=systemd:/docker/{INNER}\n8:pids:/docker/{INNER}\n"), vec![INNER]),
            (format!("9:name=systemd:/system.slice/docker-{INNER}.scope\n"), vec![INNER]),
            (format!("0::/docker/{INNER}\n"), vec![INNER]),
            (format!("0::/system.slice/docker-{INNER}.scope\n"), vec![INNER]),
            (format!("0::/../../docker/{INNER}\n"), vec![INNER]),
            (format!("0::/docker/{INNER}/init.scope\n"), vec![INNER]),
            (format!("0::/system.slice/docker-{INNER}.scope (deleted)\n"), vec![INNER]),
            (format!("4:memory:/docker/{OUTER}/docker/{INNER}\n"), vec![OUTER, INNER]),
            (format!("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{INNER}.scope\n"), vec![INNER]),
            ("0::/user.slice/user-0.slice/session-1.scope\n".to_owned(), vec![]),
            ("4:memory:/process_api/ec573386596951f3d44672b156d1b52c\n".to_owned(), vec![]),
            (format!("0::/docker/{}\n", INNER.to_uppercase()), vec![]),
            (String::new(), vec![]),
        ] {
            assert_eq!(container_ids(&cgroup), expected, "{cgroup}");
        }
    }

    #[test]
    fn cgroups_are_those_of_the_mounted_version() {
        let fixture = Fixture::new();
        let unified = fixture.root().join("unified");
        let v2 = format!("31 22 0:27 / {} rw - cgroup2 cgroup2 rw\n", unified.display());
        let v1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n";
        fixture.write("cgroups", "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t2\t1\nmemory\t0\t2\t0\n");
        fixture.write("unified/cgroup.controllers", "cpuset cpu pids\n");

        fixture.write("self/mountinfo", "22 27 0:21 / /proc rw - proc proc rw\n");
        assert_eq!(fixture.proc().cgroups().unwrap(), None);
        fixture.write("self/mountinfo", &v2);
        let cgroups = fixture.proc().cgroups().unwrap().unwrap();
        assert_eq!(cgroups.version, CgroupVersion::V2);
        assert_eq!(cgroups.controllers, ["cpu", "cpuset", "pids"].map(str::to_owned).into());
        fixture.write("self/mountinfo", &format!("{v2}{v1}"));
        let cgroups = fixture.proc().cgroups().unwrap().unwrap();
        assert_eq!(cgroups.version, CgroupVersion::V1);
        assert_eq!(cgroups.controllers, ["cpu"].map(str::to_owned).into());
    }
}
