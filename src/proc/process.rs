//! Processes: what runs, in which container, and kubelets among them.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{Proc, ProcError, Result, container_ids, optional};

/// A process that runs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Process {
    /// Its id in our PID namespace.
    pub pid: i32,
    /// Name of its program, without directories and arguments.
    pub command: String,
    /// Full id of the (innermost) container it is in.
    pub container: Option<String>,
}

/// Whether a process does anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessState {
    /// It runs, sleeps or is stopped.
    Running,
    /// It has ended and waits for its parent to notice.
    Zombie,
    /// There is no such process.
    Gone,
}

/// A kubelet that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubelet {
    /// Its id in our PID namespace.
    pub pid: i32,
    /// Its command line, the program's name included.
    pub arguments: Vec<String>,
}

impl Proc {
    /// Ids of all processes, ascending, zombies included.
    pub(super) fn pids(&self) -> Result<Vec<i32>> {
        let path = self.path("");
        let entries = std::fs::read_dir(&path).map_err(|source| ProcError::Read { path, source })?;
        let mut pids: Vec<i32> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        pids.sort_unstable();
        Ok(pids)
    }

    /// Whether process `pid` does anything.
    pub fn process_state(&self, pid: i32) -> Result<ProcessState> {
        let name = format!("{pid}/stat");
        let Some(stat) = self.read_optional(&name)? else { return Ok(ProcessState::Gone) };
        // The command, in parentheses, may itself contain parentheses and blanks.
        let fields: Vec<_> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        let (Some(state), Some(threads)) = (fields.first(), fields.get(17)) else {
            return Err(self.malformed(&name, "state and number of threads"));
        };
        Ok(match *state {
            // A first thread that has ended while others go on looks like a zombie, too.
            "Z" if *threads == "1" || *threads == "0" => ProcessState::Zombie,
            "X" | "x" => ProcessState::Gone,
            _ => ProcessState::Running,
        })
    }

    /// Process `pid`, or `None` when it does not run.
    pub fn process(&self, pid: i32) -> Result<Option<Process>> {
        if self.process_state(pid)? != ProcessState::Running {
            return Ok(None);
        }
        let container = self.containers_of(pid)?.pop();
        Ok(self.command(pid)?.map(|command| Process { pid, command, container }))
    }

    /// The processes that run in any of the containers `ids` (full ids), ascending by pid.
    pub fn processes_in_containers(&self, ids: &BTreeSet<String>) -> Result<Vec<Process>> {
        let mut found = Vec::new();
        for pid in self.pids()? {
            if self.containers_of(pid)?.iter().any(|id| ids.contains(id)) {
                found.extend(self.process(pid)?);
            }
        }
        Ok(found)
    }

    /// Whether process `pid` has the file `path` open, by whatever name. Unknown counts as no: see the guarantees.
    pub fn has_open(&self, pid: i32, path: &Path) -> Result<bool> {
        let identity = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
        let Some(file) = identity(path) else { return Ok(false) };
        let path = self.path(format!("{pid}/fd"));
        let entries = optional(std::fs::read_dir(&path).map_err(|source| ProcError::Read { path, source }))?;
        Ok(entries.into_iter().flatten().flatten().any(|entry| identity(&entry.path()) == Some(file)))
    }

    /// The kubelets that run, in whatever container or mount namespace.
    pub fn kubelets(&self) -> Result<Vec<Kubelet>> {
        let mut found = Vec::new();
        for pid in self.pids()? {
            let Some(arguments) = self.arguments(pid)? else { continue };
            if is_kubelet(&arguments) && self.process_state(pid)? == ProcessState::Running {
                found.push(Kubelet { pid, arguments });
            }
        }
        Ok(found)
    }

    /// The command line of process `pid`; empty for a zombie and for a thread of the kernel.
    pub fn arguments(&self, pid: i32) -> Result<Option<Vec<String>>> {
        let text = self.read_optional(&format!("{pid}/cmdline"))?;
        Ok(text.map(|text| text.split_terminator('\0').map(str::to_owned).collect()))
    }

    /// The containers process `pid` is in, outermost first.
    pub(super) fn containers_of(&self, pid: i32) -> Result<Vec<String>> {
        Ok(self.read_optional(&format!("{pid}/cgroup"))?.map(|text| container_ids(&text)).unwrap_or_default())
    }

    fn command(&self, pid: i32) -> Result<Option<String>> {
        let Some(comm) = self.read_optional(&format!("{pid}/comm"))? else { return Ok(None) };
        let comm = comm.trim_end_matches('\n');
        if comm.len() < COMM_LENGTH {
            return Ok(Some(comm.to_owned()));
        }
        let arguments = self.arguments(pid)?.unwrap_or_default();
        let whole = arguments.first().map(|program| base_name(program)).filter(|name| name.starts_with(comm));
        Ok(Some(whole.unwrap_or(comm).to_owned()))
    }
}

/// The kernel cuts names of programs to this many bytes (`TASK_COMM_LEN` without the final NUL).
const COMM_LENGTH: usize = 15;

fn is_kubelet(arguments: &[String]) -> bool {
    let mut names = arguments.iter().map(|argument| base_name(argument));
    match names.next() {
        Some("kubelet") => true,
        Some("hyperkube") => names.next() == Some("kubelet"),
        _ => false,
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, INNER, OUTER};
    use super::*;

    #[test]
    fn a_zombie_does_not_run_unless_other_threads_do() {
        let fixture = Fixture::new();
        for (pid, state, threads, expected) in [
            (10, 'R', 1, ProcessState::Running),
            (11, 'S', 9, ProcessState::Running),
            (12, 'T', 1, ProcessState::Running),
            (13, 'Z', 1, ProcessState::Zombie),
            (14, 'Z', 4, ProcessState::Running),
            (15, 'X', 1, ProcessState::Gone),
        ] {
            fixture.process(pid, &["sleep"], state, threads, None);
            assert_eq!(fixture.proc().process_state(pid).unwrap(), expected, "{state} {threads}");
        }
        assert_eq!(fixture.proc().process_state(99).unwrap(), ProcessState::Gone);
        fixture.write("16/stat", "16 (a) Z b) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 25\n");
        assert_eq!(fixture.proc().process_state(16).unwrap(), ProcessState::Running);
        fixture.write("17/stat", "17 (sleep)\n");
        let error = fixture.proc().process_state(17).unwrap_err();
        assert!(error.to_string().ends_with("17/stat` has no state and number of threads"), "{error}");
    }

    #[test]
    fn long_names_are_completed_from_the_command_line() {
        let fixture = Fixture::new();
        fixture.process(7, &["/usr/local/bin/kube-controller-manager", "--v=2"], 'S', 9, None);
        assert_eq!(fixture.proc().process(7).unwrap().unwrap().command, "kube-controller-manager");
    }

    #[test]
    fn processes_of_containers_are_found_by_cgroup() {
        let fixture = Fixture::new();
        fixture.process(1, &["init"], 'S', 1, None);
        fixture.process(20, &["etcd"], 'S', 9, Some(INNER));
        fixture.process(21, &["etcd"], 'Z', 1, Some(INNER));
        fixture.process(22, &["other"], 'S', 1, Some(OUTER));
        fixture.process(23, &["nested"], 'S', 1, Some(&format!("{INNER}/docker/{OUTER}")));
        let found = fixture.proc().processes_in_containers(&[INNER.to_owned()].into()).unwrap();
        assert_eq!(
            found,
            [
                Process { pid: 20, command: "etcd".into(), container: Some(INNER.into()) },
                Process { pid: 23, command: "nested".into(), container: Some(OUTER.into()) },
            ]
        );
    }

    #[test]
    fn kubelets_are_found_by_their_program() {
        let fixture = Fixture::new();
        fixture.process(30, &["/usr/bin/kubelet", "--config=/x"], 'S', 9, None);
        fixture.process(31, &["/hyperkube", "kubelet"], 'S', 9, None);
        fixture.process(32, &["grep", "kubelet"], 'S', 1, None);
        fixture.process(33, &["kubelet"], 'Z', 1, None);
        let pids: Vec<_> = fixture.proc().kubelets().unwrap().into_iter().map(|kubelet| kubelet.pid).collect();
        assert_eq!(pids, [30, 31]);
    }

    #[test]
    fn an_open_file_is_found_whatever_its_name() {
        let fixture = Fixture::new();
        fixture.process(40, &["agent"], 'S', 1, None);
        fixture.write("lock", "");
        fixture.write("other", "");
        let path = fixture.root().join("lock");
        assert!(!fixture.proc().has_open(40, &path).unwrap());
        fixture.open(40, 3, fixture.root().join("other").to_str().unwrap());
        fixture.open(40, 4, "socket:[7]");
        assert!(!fixture.proc().has_open(40, &path).unwrap());
        fixture.open(40, 5, fixture.root().join("etc/../lock").to_str().unwrap());
        assert!(!fixture.proc().has_open(40, &path).unwrap(), "no such directory");
        fixture.open(40, 6, path.to_str().unwrap());
        assert!(fixture.proc().has_open(40, &path).unwrap());
        assert!(!fixture.proc().has_open(41, &path).unwrap(), "no such process");
        assert!(!fixture.proc().has_open(40, &fixture.root().join("none")).unwrap(), "no such file");
    }

    #[test]
    fn this_process_is_seen_by_the_kernels_own_proc() {
        let pid = std::process::id().cast_signed();
        let process = Proc::default().process(pid).unwrap().unwrap();
        assert!(process.command.starts_with("plinth"), "{process:?}");
    }
}
