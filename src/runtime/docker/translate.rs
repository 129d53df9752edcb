//! Between our terms and the engine's. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;

use bollard::auth::DockerCredentials;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, CreateImageInfo, EventMessage, HealthConfig, HostConfig,
    HostConfigLogConfig, ImageInspect, Mount as EngineMount, MountBindOptions, MountBindOptionsPropagationEnum,
    MountType, NetworkSettings, PortBinding as EnginePort, RestartPolicy, RestartPolicyNameEnum, SystemInfo,
    SystemInfoCgroupDriverEnum, SystemInfoCgroupVersionEnum, SystemVersion,
};
use jiff::Timestamp;

use super::credentials::Secret;
use crate::runtime::{
    Below, CgroupDriver, Container, ContainerSpec, Event, EventKind, Image, Mount, PortBinding, Propagation,
    PullProgress, RuntimeInfo, State, Termination, labels,
};

/// The container events we listen to; all others (an exec probe makes three) are filtered out by the engine.
pub(super) const EVENTS: [&str; 5] = ["start", "die", "destroy", "oom", "kill"];

/// How Docker writes "never".
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The request that creates a container.
///
/// `recursive_read_only`: the engine makes mounts below a read-only mount read-only too unless told otherwise
/// (Docker since API 1.44). Kubernetes does so only when asked, so it is told.
pub(super) fn create_body(spec: &ContainerSpec, recursive_read_only: bool) -> ContainerCreateBody {
    let resources = &spec.resources;
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        entrypoint: filled(&spec.entrypoint),
        cmd: filled(&spec.command),
        env: filled(&spec.env),
        working_dir: spec.working_dir.clone(),
        labels: Some(spec.labels.clone().into_iter().collect()),
        hostname: text(&spec.hostname),
        user: spec.user.clone(),
        open_stdin: Some(spec.stdin),
        stdin_once: Some(spec.stdin_once),
        tty: Some(spec.tty),
        stop_timeout: spec.stop_timeout.and_then(|time| i64::try_from(time.as_secs()).ok()),
        stop_signal: spec.stop_signal.clone(),
        exposed_ports: filled(&spec.ports).map(|ports| ports.iter().map(port_name).collect()),
        // An image's HEALTHCHECK would be a second prober beside the pod's probes.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        host_config: Some(HostConfig {
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            log_config: Some(log_config(spec)),
            network_mode: text(&spec.network),
            ipc_mode: text(&spec.ipc),
            pid_mode: text(&spec.pid),
            uts_mode: text(&spec.uts),
            mounts: Some(spec.mounts.iter().map(|mount| engine_mount(mount, recursive_read_only)).collect()),
            security_opt: filled(&spec.security_options),
            cap_add: filled(&spec.capabilities_add),
            cap_drop: filled(&spec.capabilities_drop),
            privileged: Some(spec.privileged),
            readonly_rootfs: Some(spec.read_only),
            group_add: filled(&spec.groups),
            sysctls: (!spec.sysctls.is_empty()).then(|| spec.sysctls.clone().into_iter().collect()),
            port_bindings: (!spec.ports.is_empty()).then(|| port_bindings(&spec.ports)),
            cpu_shares: set(resources.cpu_shares),
            cpu_quota: set(resources.cpu_quota),
            cpu_period: set(resources.cpu_period),
            memory: set(resources.memory),
            // Memory and swap together: equal to the memory limit means no swap.
            memory_swap: set(resources.memory),
            oom_score_adj: spec.oom_score_adj,
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

fn log_config(spec: &ContainerSpec) -> HostConfigLogConfig {
    let mut options = HashMap::new();
    if spec.log_max_size > 0 {
        options.insert("max-size".to_owned(), spec.log_max_size.to_string());
    }
    if spec.log_max_files > 0 {
        options.insert("max-file".to_owned(), spec.log_max_files.to_string());
    }
    HostConfigLogConfig { typ: Some("json-file".to_owned()), config: Some(options) }
}

/// A mount and not a "bind": with those the engine would make a missing source itself, always as a directory.
fn engine_mount(mount: &Mount, recursive_read_only: bool) -> EngineMount {
    let propagation = match mount.propagation {
        Propagation::Private => MountBindOptionsPropagationEnum::RPRIVATE,
        Propagation::HostToContainer => MountBindOptionsPropagationEnum::RSLAVE,
        Propagation::Bidirectional => MountBindOptionsPropagationEnum::RSHARED,
    };
    EngineMount {
        typ: Some(MountType::BIND),
        source: Some(mount.source.to_string_lossy().into_owned()),
        target: Some(mount.target.clone()),
        read_only: Some(mount.read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(propagation),
            read_only_non_recursive: (mount.read_only && recursive_read_only && mount.below == Below::Writable)
                .then_some(true),
            read_only_force_recursive: (mount.read_only && mount.below == Below::ReadOnly).then_some(true),
            ..MountBindOptions::default()
        }),
        ..EngineMount::default()
    }
}

fn port_name(port: &PortBinding) -> String {
    format!("{}/{}", port.container_port, port.protocol.to_lowercase())
}

fn port_bindings(ports: &[PortBinding]) -> HashMap<String, Option<Vec<EnginePort>>> {
    let mut bindings: HashMap<String, Option<Vec<EnginePort>>> = HashMap::new();
    for port in ports {
        bindings.entry(port_name(port)).or_default().get_or_insert_default().push(EnginePort {
            host_ip: port.host_ip.map(|ip| ip.to_string()),
            host_port: Some(port.host_port.to_string()),
        });
    }
    bindings
}

fn filled<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

fn set(limit: i64) -> Option<i64> {
    (limit != 0).then_some(limit)
}

/// An inspected container.
pub(super) fn container(answer: ContainerInspectResponse) -> Container {
    let config = answer.config.unwrap_or_default();
    Container {
        id: answer.id.unwrap_or_default(),
        name: answer.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        image: config.image.unwrap_or_default(),
        image_id: answer.image.unwrap_or_default(),
        state: state(answer.state.unwrap_or_default()),
        created_at: point(answer.created.as_deref()).unwrap_or_default(),
        ip: answer.network_settings.as_ref().and_then(bridge_address),
        log_path: answer.log_path.filter(|path| !path.is_empty()).map(PathBuf::from),
    }
}

fn state(state: bollard::models::ContainerState) -> State {
    let error = state.error.filter(|words| !words.is_empty());
    let started_at = point(state.started_at.as_deref());
    match (state.running.unwrap_or(false), started_at) {
        (true, started_at) => State::Running {
            pid: state.pid.and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default(),
            started_at: started_at.unwrap_or_default(),
        },
        (false, None) => State::Created { error },
        (false, Some(started_at)) => State::Exited(Termination {
            exit_code: state.exit_code.unwrap_or_default(),
            oom_killed: state.oom_killed.unwrap_or(false),
            error: error.unwrap_or_default(),
            started_at,
            finished_at: point(state.finished_at.as_deref()).unwrap_or(started_at),
        }),
    }
}

fn point(text: Option<&str>) -> Option<Timestamp> {
    text.filter(|text| *text != NEVER)?.parse().ok()
}

/// `bridge` is the network that Docker's default mode means.
fn bridge_address(settings: &NetworkSettings) -> Option<IpAddr> {
    settings.networks.as_ref()?.get("bridge")?.ip_address.as_ref()?.parse().ok()
}

/// An inspected image.
pub(super) fn image(answer: ImageInspect) -> Image {
    Image {
        id: answer.id.unwrap_or_default(),
        size: unsigned(answer.size),
        digests: answer.repo_digests.unwrap_or_default(),
        user: answer.config.and_then(|config| config.user).unwrap_or_default(),
    }
}

/// An event, if it is one of those we listen to.
pub(super) fn event(message: EventMessage) -> Option<Event> {
    let kind = match message.action.as_deref()? {
        "start" => EventKind::Started,
        "die" => EventKind::Died,
        "destroy" => EventKind::Removed,
        action if EVENTS.contains(&action) => EventKind::Other,
        _ => return None,
    };
    let actor = message.actor?;
    let pod_uid = actor.attributes.unwrap_or_default().remove(labels::POD_UID).unwrap_or_default();
    Some(Event { container: actor.id?, pod_uid, kind })
}

/// What goes along with a pull.
pub(super) fn credentials(server: String, secret: Secret) -> DockerCredentials {
    let empty = DockerCredentials { serveraddress: Some(server), ..DockerCredentials::default() };
    match secret {
        Secret::Password { user, password } => {
            DockerCredentials { username: Some(user), password: Some(password), ..empty }
        }
        Secret::IdentityToken(token) => DockerCredentials { identitytoken: Some(token), ..empty },
        Secret::RegistryToken(token) => DockerCredentials { registrytoken: Some(token), ..empty },
    }
}

/// One line of a pull.
pub(super) fn pull_progress(line: CreateImageInfo) -> PullProgress {
    let bytes = line.progress_detail.and_then(|detail| match (detail.current, detail.total) {
        (Some(done), Some(total)) if total > 0 => Some((unsigned(Some(done)), unsigned(Some(total)))),
        _ => None,
    });
    PullProgress { layer: line.id.unwrap_or_default(), status: line.status.unwrap_or_default(), bytes }
}

/// Facts about the engine.
pub(super) fn info(info: SystemInfo, version: SystemVersion) -> RuntimeInfo {
    let options = info.security_options.unwrap_or_default();
    RuntimeInfo {
        name: "docker",
        version: version.version.unwrap_or_default(),
        api_version: version.api_version.unwrap_or_default(),
        storage_driver: info.driver.unwrap_or_default(),
        data_root: PathBuf::from(info.docker_root_dir.unwrap_or_default()),
        cgroup_driver: match info.cgroup_driver {
            Some(SystemInfoCgroupDriverEnum::SYSTEMD) => CgroupDriver::Systemd,
            Some(SystemInfoCgroupDriverEnum::NONE) => CgroupDriver::None,
            _ => CgroupDriver::Cgroupfs,
        },
        // Engines before 20.10 know only version 1 and do not say so.
        cgroup_version: if info.cgroup_version == Some(SystemInfoCgroupVersionEnum::_2) { 2 } else { 1 },
        logging_driver: info.logging_driver.unwrap_or_default(),
        rootless: options.iter().any(|option| option == "name=rootless"),
        cpus: unsigned(info.ncpu),
        memory: unsigned(info.mem_total),
        warnings: info.warnings.unwrap_or_default(),
    }
}

fn unsigned(value: Option<i64>) -> u64 {
    value.and_then(|value| u64::try_from(value).ok()).unwrap_or_default()
}

/// The reference with `:latest` when it has neither tag nor digest: without one the engine pulls *all* tags.
pub(super) fn tagged(reference: &str) -> String {
    let name = reference.rsplit('/').next().unwrap_or(reference);
    if name.contains([':', '@']) { reference.to_owned() } else { format!("{reference}:latest") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::runtime::Resources;

    fn body(spec: &ContainerSpec, recursive_read_only: bool) -> Value {
        serde_json::to_value(create_body(spec, recursive_read_only)).unwrap()
    }

    #[test]
    fn an_empty_spec_asks_for_nothing_but_the_house_rules() {
        let spec = ContainerSpec { image: "i".to_owned(), network: "host".to_owned(), ..ContainerSpec::default() };
        assert_eq!(
            body(&spec, true),
            json!({
                "Image": "i", "Labels": {}, "OpenStdin": false, "StdinOnce": false, "Tty": false,
                "Healthcheck": {"Test": ["NONE"]},
                "HostConfig": {
                    "RestartPolicy": {"Name": "no"}, "LogConfig": {"Type": "json-file", "Config": {}},
                    "NetworkMode": "host", "Mounts": [], "Privileged": false, "ReadonlyRootfs": false,
                },
            })
        );
    }

    #[test]
    fn every_field_of_a_spec_reaches_the_engine() {
        let strings = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let spec = ContainerSpec {
            name: "n".to_owned(), // travels in the query
            image: "i".to_owned(),
            entrypoint: strings(&["/e"]),
            command: strings(&["c"]),
            env: strings(&["A=b"]),
            working_dir: Some("/w".to_owned()),
            labels: BTreeMap::from([("l".to_owned(), "v".to_owned())]),
            mounts: vec![Mount {
                source: PathBuf::from("/s"),
                target: "/t".to_owned(),
                read_only: true,
                below: Below::Writable,
                propagation: Propagation::HostToContainer,
            }],
            network: "default".to_owned(),
            ipc: "shareable".to_owned(),
            pid: "host".to_owned(),
            uts: "host".to_owned(),
            hostname: "h".to_owned(),
            ports: vec![PortBinding {
                container_port: 80,
                protocol: "TCP".to_owned(),
                host_ip: Some(IpAddr::from([127, 0, 0, 1])),
                host_port: 8080,
            }],
            user: Some("1:2".to_owned()),
            groups: strings(&["3"]),
            privileged: true,
            read_only: true,
            capabilities_add: strings(&["NET_ADMIN"]),
            capabilities_drop: strings(&["ALL"]),
            security_options: strings(&["seccomp=unconfined"]),
            sysctls: BTreeMap::from([("k".to_owned(), "1".to_owned())]),
            stop_timeout: Some(std::time::Duration::from_secs(45)),
            stop_signal: Some("SIGUSR1".to_owned()),
            resources: Resources { cpu_shares: 2, cpu_quota: 5, cpu_period: 100, memory: 4096 },
            oom_score_adj: Some(-7),
            stdin: true,
            stdin_once: true,
            tty: true,
            log_max_size: 10 << 20,
            log_max_files: 5,
        };
        assert_eq!(
            body(&spec, true),
            json!({
                "Image": "i", "Entrypoint": ["/e"], "Cmd": ["c"], "Env": ["A=b"], "WorkingDir": "/w",
                "Labels": {"l": "v"}, "Hostname": "h", "User": "1:2",
                "OpenStdin": true, "StdinOnce": true, "Tty": true, "StopTimeout": 45, "StopSignal": "SIGUSR1",
                "ExposedPorts": {"80/tcp": {}}, "Healthcheck": {"Test": ["NONE"]},
                "HostConfig": {
                    "RestartPolicy": {"Name": "no"},
                    "LogConfig": {"Type": "json-file", "Config": {"max-size": "10485760", "max-file": "5"}},
                    "NetworkMode": "default", "IpcMode": "shareable", "PidMode": "host", "UTSMode": "host",
                    "Mounts": [{
                        "Type": "bind", "Source": "/s", "Target": "/t", "ReadOnly": true,
                        "BindOptions": {"Propagation": "rslave", "ReadOnlyNonRecursive": true},
                    }],
                    "SecurityOpt": ["seccomp=unconfined"], "CapAdd": ["NET_ADMIN"], "CapDrop": ["ALL"],
                    "Privileged": true, "ReadonlyRootfs": true, "GroupAdd": ["3"], "Sysctls": {"k": "1"},
                    "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]},
                    "CpuShares": 2, "CpuQuota": 5, "CpuPeriod": 100, "Memory": 4096, "MemorySwap": 4096,
                    "OomScoreAdj": -7,
                },
            })
        );
    }

    #[test]
    fn mounts_below_a_read_only_one_are_read_only_when_asked_for() {
        for (read_only, below, new, old) in [
            (true, Below::Writable, json!({"ReadOnlyNonRecursive": true}), json!({})),
            (true, Below::ReadOnlyIfPossible, json!({}), json!({})),
            (true, Below::ReadOnly, json!({"ReadOnlyForceRecursive": true}), json!({"ReadOnlyForceRecursive": true})),
            (false, Below::Writable, json!({}), json!({})),
        ] {
            let mount = Mount { read_only, below, ..Mount::default() };
            for (recursive, expected) in [(true, new), (false, old)] {
                let spec = ContainerSpec { mounts: vec![mount.clone()], ..ContainerSpec::default() };
                let mut options = body(&spec, recursive)["HostConfig"]["Mounts"][0]["BindOptions"].clone();
                assert_eq!(options.as_object_mut().unwrap().remove("Propagation"), Some(json!("rprivate")));
                assert_eq!(options, expected, "{below:?}");
            }
        }
    }

    fn inspected(state: &Value) -> Container {
        container(
            serde_json::from_value(json!({
                "Id": "abc", "Name": "/n", "Created": "2026-01-02T03:04:05.678901234Z", "Image": "sha256:1",
                "Config": {"Image": "etcd:1", "Labels": {"l": "v"}}, "LogPath": "", "State": state,
                "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2"}}},
            }))
            .unwrap(),
        )
    }

    #[test]
    fn states_of_the_engine_become_ours() {
        let started_at: Timestamp = "2026-01-02T03:04:06Z".parse().unwrap();
        let finished_at: Timestamp = "2026-01-02T03:04:07.5Z".parse().unwrap();
        let ended = |exit_code, oom_killed| {
            State::Exited(Termination { exit_code, oom_killed, error: String::new(), started_at, finished_at })
        };
        let (never, started, finished) = (NEVER, "2026-01-02T03:04:06Z", "2026-01-02T03:04:07.5Z");
        let cases = [
            (
                json!({"Status": "created", "StartedAt": never, "FinishedAt": never, "Error": ""}),
                State::Created { error: None },
            ),
            (
                json!({"Status": "created", "StartedAt": never, "Error": "no such file", "ExitCode": 127}),
                State::Created { error: Some("no such file".to_owned()) },
            ),
            (
                json!({"Status": "running", "Running": true, "Pid": 7, "StartedAt": started, "FinishedAt": never}),
                State::Running { pid: 7, started_at },
            ),
            (
                json!({"Status": "paused", "Running": true, "Paused": true, "Pid": 7, "StartedAt": started}),
                State::Running { pid: 7, started_at },
            ),
            (json!({"Status": "exited", "ExitCode": 3, "StartedAt": started, "FinishedAt": finished}), ended(3, false)),
            (
                json!({"Status": "exited", "ExitCode": 137, "OOMKilled": true, "StartedAt": started, "FinishedAt": finished}),
                ended(137, true),
            ),
            (
                json!({"Status": "dead", "Dead": true, "ExitCode": 0, "StartedAt": started, "FinishedAt": finished}),
                ended(0, false),
            ),
        ];
        for (answer, want) in cases {
            assert_eq!(inspected(&answer).state, want, "{answer}");
        }
    }

    #[test]
    fn an_inspected_container_keeps_its_facts() {
        let container = inspected(&json!({"Status": "created", "StartedAt": NEVER}));
        assert_eq!((container.id.as_str(), container.name.as_str()), ("abc", "n"));
        assert_eq!((container.image.as_str(), container.image_id.as_str()), ("etcd:1", "sha256:1"));
        assert_eq!(container.labels, BTreeMap::from([("l".to_owned(), "v".to_owned())]));
        assert_eq!(container.created_at, "2026-01-02T03:04:05.678901234Z".parse().unwrap());
        assert_eq!(container.ip, Some(IpAddr::from([172, 17, 0, 2])));
        assert_eq!(container.log_path, None);
    }

    #[test]
    fn events_say_which_container_and_pod() {
        let cases = [
            ("start", Some(EventKind::Started)),
            ("die", Some(EventKind::Died)),
            ("destroy", Some(EventKind::Removed)),
            ("oom", Some(EventKind::Other)),
            ("kill", Some(EventKind::Other)),
            ("exec_create: sh", None),
        ];
        for (action, kind) in cases {
            let actor = json!({"ID": "abc", "Attributes": {"io.kubernetes.pod.uid": "u"}});
            let message = json!({"Type": "container", "Action": action, "Actor": actor});
            let want = kind.map(|kind| Event { container: "abc".to_owned(), pod_uid: "u".to_owned(), kind });
            assert_eq!(event(serde_json::from_value(message).unwrap()), want, "{action}");
        }
    }

    #[test]
    fn both_cgroup_drivers_and_versions_are_told_apart() {
        let facts = |cgroup_driver, cgroup_version| {
            let info =
                info(SystemInfo { cgroup_driver, cgroup_version, ..SystemInfo::default() }, SystemVersion::default());
            (info.cgroup_driver, info.cgroup_version)
        };
        let (systemd, cgroupfs) = (SystemInfoCgroupDriverEnum::SYSTEMD, SystemInfoCgroupDriverEnum::CGROUPFS);
        let [v1, v2] = [SystemInfoCgroupVersionEnum::_1, SystemInfoCgroupVersionEnum::_2];
        assert_eq!(facts(Some(systemd), Some(v2)), (CgroupDriver::Systemd, 2));
        assert_eq!(facts(Some(systemd), Some(v1)), (CgroupDriver::Systemd, 1));
        assert_eq!(facts(Some(cgroupfs), Some(v2)), (CgroupDriver::Cgroupfs, 2));
        assert_eq!(facts(Some(cgroupfs), Some(v1)), (CgroupDriver::Cgroupfs, 1));
        assert_eq!(facts(Some(SystemInfoCgroupDriverEnum::NONE), Some(v1)), (CgroupDriver::None, 1));
        assert_eq!(facts(None, None), (CgroupDriver::Cgroupfs, 1));
    }

    #[test]
    fn only_a_bare_name_gets_a_tag() {
        for (reference, want) in [
            ("busybox", "busybox:latest"),
            ("busybox:1", "busybox:1"),
            ("host:5000/busybox", "host:5000/busybox:latest"),
            ("host:5000/busybox:1", "host:5000/busybox:1"),
            ("busybox@sha256:12", "busybox@sha256:12"),
        ] {
            assert_eq!(tagged(reference), want);
        }
    }
}
