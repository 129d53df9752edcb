//! The conditions of the node, as a kubelet computes them. The computing is pure.

use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::NodeCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use nix::sys::statvfs::statvfs;

use super::capacity::KEPT_MEMORY;
use crate::proc::Proc;

/// How long a pressure is told after it was last seen (kubelet: `evictionPressureTransitionPeriod`).
const TOLD: SignedDuration = SignedDuration::from_mins(5);

/// How long the agent may be in trouble before a node that is ready is no longer (kubelet: `maxWaitForContainerRuntime`).
const BORNE: Duration = Duration::from_secs(30);

/// Whether a problem that has lasted so long makes the node unready: not that of a short break, nor that of an agent
/// which has just been started and has not heard from the runtime yet.
pub fn counts(lasted: Duration, was_ready: bool) -> bool {
    !was_ready || lasted >= BORNE
}

/// What is free of what there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Free.
    pub free: u64,
    /// In all; 0 where it is not counted.
    pub all: u64,
}

impl Share {
    /// Whether less than `percent` of it is free.
    fn is_below(self, percent: u64) -> bool {
        self.all > 0 && u128::from(self.free) * 100 < u128::from(self.all) * u128::from(percent)
    }
}

/// A file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disk {
    /// Blocks.
    pub blocks: Share,
    /// Inodes.
    pub inodes: Share,
}

impl Disk {
    /// That of `path`; one of which nothing is known where it cannot be asked.
    pub fn of(path: &Path) -> Self {
        statvfs(path).map_or_else(
            |_| Self::default(),
            |facts| Self {
                blocks: Share { free: facts.blocks_available(), all: facts.blocks() },
                inodes: Share { free: facts.files_available(), all: facts.files() },
            },
        )
    }
}

/// What the host has left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Readings {
    /// Bytes of memory; `None` where it cannot be read.
    pub memory: Option<u64>,
    /// Where pods write.
    pub pods: Disk,
    /// Where the runtime has its images and containers.
    pub images: Disk,
    /// Process ids.
    pub pids: Share,
}

impl Readings {
    /// Those of this host now.
    pub fn take(proc: &Proc, pods: &Path, images: Option<&Path>) -> Self {
        let read = |name: &str| std::fs::read_to_string(proc.path(name)).unwrap_or_default();
        let number = |name: &str| read(name).trim().parse::<u64>().ok();
        let most = number("sys/kernel/pid_max").into_iter().chain(number("sys/kernel/threads-max")).min();
        // The fourth field is `running/all`.
        let load = read("loadavg");
        let used = load.split_whitespace().nth(3).and_then(|field| field.split_once('/')?.1.parse::<u64>().ok());
        let processes = most.zip(used).map(|(all, used)| Share { free: all.saturating_sub(used), all });
        Self {
            memory: proc.memory().ok().map(|memory| memory.available),
            pods: Disk::of(pods),
            images: images.map(Disk::of).unwrap_or_default(),
            pids: processes.unwrap_or_default(),
        }
    }

    /// The kubelet's hard thresholds: too little memory, disk, process ids.
    fn pressures(&self) -> [bool; 3] {
        let Self { memory, pods, images, pids } = self;
        let disk = pods.blocks.is_below(10) || images.blocks.is_below(15);
        let inodes = pods.inodes.is_below(5) || images.inodes.is_below(5);
        [memory.is_some_and(|free| free < KEPT_MEMORY), disk || inodes, pids.is_below(10)]
    }
}

/// When each pressure was last seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen([Option<Timestamp>; 3]);

/// The conditions now, without the time of their last change. The node is ready unless there is a `problem`.
pub fn conditions(readings: &Readings, seen: &mut Seen, problem: Option<&str>, now: Timestamp) -> Vec<NodeCondition> {
    const NAMES: [(&str, [&str; 2], [&str; 2]); 3] = [
        (
            "MemoryPressure",
            ["KubeletHasSufficientMemory", "KubeletHasInsufficientMemory"],
            ["the node has sufficient memory available", "the node has insufficient memory available"],
        ),
        (
            "DiskPressure",
            ["KubeletHasNoDiskPressure", "KubeletHasDiskPressure"],
            ["the node has no disk pressure", "the node has disk pressure"],
        ),
        (
            "PIDPressure",
            ["KubeletHasSufficientPID", "KubeletHasInsufficientPID"],
            ["the node has sufficient PID available", "the node has insufficient PID available"],
        ),
    ];
    let condition = |type_: &str, status: bool, reason: &str, message: &str| NodeCondition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: None,
    };
    let mut all = Vec::new();
    for (index, (pressed, (name, reasons, messages))) in readings.pressures().into_iter().zip(NAMES).enumerate() {
        if pressed {
            seen.0[index] = Some(now);
        }
        let told = seen.0[index].is_some_and(|at| now.duration_since(at) < TOLD);
        all.push(condition(name, told, reasons[usize::from(told)], messages[usize::from(told)]));
    }
    all.push(match problem {
        None => condition("Ready", true, "KubeletReady", "plinth runs this node's static pods"),
        Some(problem) => condition("Ready", false, "KubeletNotReady", problem),
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn told(readings: &Readings, seen: &mut Seen, problem: Option<&str>, now: i64) -> Vec<String> {
        let all = conditions(readings, seen, problem, at(now));
        all.iter().map(|one| format!("{}={} {}", one.type_, one.status, one.reason.as_deref().unwrap())).collect()
    }

    const WELL: [&str; 4] = [
        "MemoryPressure=False KubeletHasSufficientMemory",
        "DiskPressure=False KubeletHasNoDiskPressure",
        "PIDPressure=False KubeletHasSufficientPID",
        "Ready=True KubeletReady",
    ];

    #[test]
    fn thresholds_are_the_kubelets() {
        let half = Share { free: 50, all: 100 };
        let disk = Disk { blocks: half, inodes: half };
        let well = Readings { memory: Some(KEPT_MEMORY), pods: disk, images: disk, pids: half };
        let blocks = |free| Disk { blocks: Share { free, all: 100 }, inodes: half };
        let inodes = |free| Disk { blocks: half, inodes: Share { free, all: 100 } };
        let (memory, full) =
            ("MemoryPressure=True KubeletHasInsufficientMemory", "DiskPressure=True KubeletHasDiskPressure");
        let pids = "PIDPressure=True KubeletHasInsufficientPID";
        for (readings, expected) in [
            (well, None),
            (Readings::default(), None),
            (Readings { memory: Some(KEPT_MEMORY - 1), ..well }, Some((0, memory))),
            (Readings { pods: blocks(10), images: blocks(15), ..well }, None),
            (Readings { pods: blocks(9), ..well }, Some((1, full))),
            (Readings { images: blocks(14), ..well }, Some((1, full))),
            (Readings { pods: inodes(5), images: inodes(5), ..well }, None),
            (Readings { pods: inodes(4), ..well }, Some((1, full))),
            (Readings { images: inodes(4), ..well }, Some((1, full))),
            (Readings { pids: Share { free: 9, all: 100 }, ..well }, Some((2, pids))),
        ] {
            let mut all = WELL;
            if let Some((index, told)) = expected {
                all[index] = told;
            }
            assert_eq!(told(&readings, &mut Seen::default(), None, 0), all, "{readings:?}");
        }
    }

    #[test]
    fn a_pressure_is_told_for_five_minutes() {
        let mut seen = Seen::default();
        let (short, enough) = (Readings { memory: Some(0), ..Readings::default() }, Readings::default());
        let mut pressed = |readings, now| told(readings, &mut seen, None, now)[0].contains("=True");
        assert!(!pressed(&enough, 0));
        assert!(pressed(&short, 1));
        assert!(pressed(&enough, 300));
        assert!(!pressed(&enough, 301));
    }

    #[test]
    fn a_node_that_is_ready_bears_a_problem_for_half_a_minute() {
        for (seconds, was_ready, expected) in
            [(0, true, false), (29, true, false), (30, true, true), (0, false, true), (30, false, true)]
        {
            assert_eq!(counts(Duration::from_secs(seconds), was_ready), expected, "{seconds} s, {was_ready}");
        }
    }

    #[test]
    fn without_a_runtime_the_node_is_not_ready() {
        let all = conditions(&Readings::default(), &mut Seen::default(), Some("the container runtime is away"), at(0));
        let ready = all.last().unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("False", Some("KubeletNotReady")));
        assert_eq!(ready.message.as_deref(), Some("the container runtime is away"));
    }

    #[test]
    fn the_kernels_files_are_read() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("sys/kernel")).unwrap();
        for (name, text) in [
            ("meminfo", "MemTotal: 2048 kB\nMemAvailable: 1024 kB\n"),
            ("loadavg", "0.1 0.2 0.3 2/100 4711\n"),
            ("sys/kernel/pid_max", "4194304\n"),
            ("sys/kernel/threads-max", "1000\n"),
        ] {
            std::fs::write(root.path().join(name), text).unwrap();
        }
        let readings = Readings::take(&Proc::new(root.path()), root.path(), None);
        assert_eq!(readings.memory, Some(1 << 20));
        assert_eq!(readings.pids, Share { free: 900, all: 1000 });
        assert!(readings.pods.blocks.all > 0);
        assert_eq!(readings.images, Disk::default());
    }
}
