//! A container of a pod in the runtime's terms. Pure; the mapping is cri-dockerd's, so that what ran under a kubelet
//! on Docker runs the same here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, EnvVarSource, PodSecurityContext, SeccompProfile, SecurityContext, VolumeMount,
};

use super::host::Dns;
use super::pod::{DEFAULT_GRACE, StaticPod, is_below};
use super::step::{GRACE_LABEL, SANDBOX, SIDECAR_LABEL};
use super::{lookup, message, projection, quantity};
use crate::runtime::{Below, ContainerSpec, Mount, PortBinding, Propagation, Resources, labels};

/// Longest argument or variable that Linux takes, bytes (`MAX_ARG_STRLEN`). Nothing is expanded beyond it.
const LONGEST_TEXT: usize = 128 << 10;
/// Most arguments and variables that Linux takes together, bytes (`_STK_LIM / 4 * 3`).
const LONGEST_ENVIRONMENT: usize = 6 << 20;

/// Rotation of a container's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes per file (kubelet: `containerLogMaxSize`, 10Mi); 0 for no rotation.
    pub max_size: u64,
    /// Files, the one that is written among them (kubelet: `containerLogMaxFiles`, 5).
    pub max_files: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { max_size: 10 << 20, max_files: 5 }
    }
}
/// Microseconds (kubelet: `cpuCFSQuotaPeriod`, 100 ms).
const CPU_PERIOD: i64 = 100_000;
/// The domain of the cluster (kubeadm's default): all that a static pod's `subdomain` is good for is its hosts file.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// Bytes of memory that the kubelet keeps from its pods (`evictionHard`, `memory.available<100Mi`).
const KEPT_MEMORY: u64 = 100 << 20;
/// Annotation with a container's `AppArmor` profile, before there was a field for it; the container's name follows.
pub const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
/// Weights the kernel takes.
const CPU_SHARES: std::ops::RangeInclusive<i64> = 2..=262_144;

/// Facts about the node that containers may ask for or that limit them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Name of the node.
    pub name: String,
    /// Its address, for `status.hostIP` and probes on the host's network.
    pub address: IpAddr,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of the file system that pods write to.
    pub storage: u64,
    /// Number of CPUs.
    pub cpus: u64,
    /// The host's resolv.conf.
    pub dns: Dns,
    /// Whether an `oom_score_adj` below the present one may be set (`CAP_SYS_RESOURCE`); without it runc fails, so
    /// negative ones are left out.
    pub may_protect_from_oom: bool,
    /// Whether the kernel enforces `AppArmor` profiles. Where it does not, the engine ignores them in silence.
    pub apparmor: bool,
}

/// Everything besides the pod that a container is made from.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Value of [`labels::AGENT`].
    pub agent_id: &'a str,
    /// The node.
    pub node: &'a Node,
    /// What is kept of the log.
    pub log_limits: LogLimits,
    /// Id of the pod's sandbox, when it has one.
    pub sandbox: Option<&'a str>,
    /// The pod's address; the node's on the host's network.
    pub pod_ip: Option<IpAddr>,
    /// Volumes on the host, by name.
    pub volumes: &'a BTreeMap<String, PathBuf>,
    /// What [`sub_paths`] asks for, on the host, by mount path.
    pub sub_paths: &'a BTreeMap<String, PathBuf>,
    /// File on the host for the termination message.
    pub message_file: Option<&'a Path>,
    /// The pod's hosts file and resolv.conf on the host; none before the pod has an address.
    pub lookup: Option<&'a lookup::Files>,
    /// User of the image; `None` when nobody asked.
    pub image_user: Option<&'a str>,
    /// Text of the profile that [`seccomp_file`] names.
    pub seccomp: Option<&'a str>,
}

/// A container that cannot be made as its pod wants it; the kubelet's `CreateContainerConfigError`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TranslateError {
    /// `runAsNonRoot`, but it would be root.
    #[error("runAsNonRoot is set, but the container would run as {0}")]
    Root(String),
    /// With this variable the environment is longer than any program can be given.
    #[error("with env `{0}` the environment is longer than the 6 MiB that Linux takes")]
    Environment(String),
    /// `runAsGroup` without a user.
    #[error("runAsGroup is set without runAsUser")]
    GroupWithoutUser,
    /// A field or resource reference to something that does not exist.
    #[error("env {variable}: `{reference}` is not known")]
    Reference {
        /// Name of the variable.
        variable: String,
        /// What it refers to.
        reference: String,
    },
    /// The same in a downwardAPI volume.
    #[error("volume {volume}: `{reference}` is not known")]
    VolumeReference {
        /// Name of the volume.
        volume: String,
        /// What it refers to.
        reference: String,
    },
    /// A `subPathExpr` that comes to nothing.
    #[error("mount {volume}: subPathExpr `{expression}` {reason}")]
    SubPath {
        /// Name of the volume.
        volume: String,
        /// As the manifest has it.
        expression: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An address in `hostIP` that is none.
    #[error("`{0}` is not an IP address")]
    Address(String),
    /// A profile that nobody would enforce.
    #[error("AppArmor profile `{0}` is asked for, but AppArmor is not enabled on this host")]
    NoAppArmor(String),
    /// `setHostnameAsFQDN`, and a name that the kernel does not take.
    #[error("setHostnameAsFQDN: `{0}` is longer than the 64 bytes that a host name may have")]
    HostnameTooLong(String),
}

/// Name of a container on the host.
pub fn container_name(pod: &StaticPod, container: &str, attempt: u32) -> String {
    format!("k8s_{container}_{}_{}_{}_{attempt}", pod.key.name, pod.key.namespace, pod.uid)
}

/// The part of its volume that is mounted, where it is not all of it: by mount path, relative, without `..`.
pub fn sub_paths(
    pod: &StaticPod,
    container: &Container,
    context: &Context<'_>,
) -> Result<BTreeMap<String, String>, TranslateError> {
    let mut found = BTreeMap::new();
    if !container.volume_mounts.iter().flatten().any(has_sub_path) {
        return Ok(found);
    }
    let env = environment(pod, container, context)?;
    for mount in container.volume_mounts.iter().flatten().filter(|mount| has_sub_path(mount)) {
        let path = match mount.sub_path_expr.as_deref().filter(|expression| !expression.is_empty()) {
            None => mount.sub_path.clone().unwrap_or_default(),
            Some(expression) => {
                let wrong = |reason: String| TranslateError::SubPath {
                    volume: mount.name.clone(),
                    expression: expression.to_owned(),
                    reason,
                };
                let mut unknown = None;
                let path = expand_or(expression, &env, |name| unknown = Some(name.to_owned()));
                if let Some(name) = unknown {
                    return Err(wrong(format!("names `{name}`, which is not set")));
                }
                if !is_below(&path) {
                    return Err(wrong(format!("comes to `{path}`, which is not a relative path without `..`")));
                }
                path
            }
        };
        found.insert(mount.mount_path.clone(), path);
    }
    Ok(found)
}

fn has_sub_path(mount: &VolumeMount) -> bool {
    [&mount.sub_path, &mount.sub_path_expr].into_iter().flatten().any(|path| !path.is_empty())
}

/// Whether the user of the image has to be known to translate this container.
pub fn needs_image_user(pod: &StaticPod, container: &Container) -> bool {
    let security = Security::of(pod, container);
    security.non_root && security.user.is_none()
}

/// Whether the pod loses protection from the OOM killer on a node that may not give it.
pub fn wants_oom_protection(pod: &StaticPod, node: &Node) -> bool {
    pod.needs_sandbox() || pod.all_containers().any(|container| oom_score(pod, container, node) < 0)
}

/// The container `container` of `pod`.
pub fn container(
    pod: &StaticPod,
    container: &Container,
    attempt: u32,
    context: &Context<'_>,
) -> Result<ContainerSpec, TranslateError> {
    let env = environment(pod, container, context)?;
    let expand = |texts: &Option<Vec<String>>| texts.iter().flatten().map(|text| expand(text, &env)).collect();
    let mut spec = ContainerSpec {
        name: container_name(pod, &container.name, attempt),
        image: container.image.clone().unwrap_or_default(),
        entrypoint: expand(&container.command),
        command: expand(&container.args),
        env: env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        working_dir: container.working_dir.clone().filter(|path| !path.is_empty()),
        labels: self::labels(pod, &container.name, attempt, context),
        mounts: mounts(pod, container, context),
        stop_timeout: stop_timeout(pod),
        stop_signal: container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone()),
        resources: resources(container),
        oom_score_adj: allowed(oom_score(pod, container, context.node), context.node),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        log_max_size: context.log_limits.max_size,
        log_max_files: context.log_limits.max_files,
        ..ContainerSpec::default()
    };
    Security::of(pod, container).apply(&mut spec, context)?;
    match context.sandbox {
        Some(sandbox) => {
            let joined = format!("container:{sandbox}");
            if pod.spec.share_process_namespace == Some(true) {
                spec.pid.clone_from(&joined);
            }
            spec.ipc.clone_from(&joined);
            spec.network = joined;
        }
        None => own_namespaces(pod, &mut spec),
    }
    if pod.host_network() {
        "host".clone_into(&mut spec.uts);
    }
    if pod.spec.host_pid == Some(true) {
        "host".clone_into(&mut spec.pid);
    }
    Ok(spec)
}

/// The sandbox of `pod`: a pause container that holds what its containers share.
pub fn sandbox(
    pod: &StaticPod,
    image: &str,
    attempt: u32,
    context: &Context<'_>,
) -> Result<ContainerSpec, TranslateError> {
    let mut spec = ContainerSpec {
        name: container_name(pod, SANDBOX, attempt),
        image: image.to_owned(),
        labels: self::labels(pod, SANDBOX, attempt, context),
        resources: Resources { cpu_shares: *CPU_SHARES.start(), ..Resources::default() },
        oom_score_adj: allowed(-998, context.node),
        log_max_size: context.log_limits.max_size,
        log_max_files: context.log_limits.max_files,
        ..ContainerSpec::default()
    };
    "shareable".clone_into(&mut spec.ipc);
    own_namespaces(pod, &mut spec);
    if pod.spec.host_pid == Some(true) {
        "host".clone_into(&mut spec.pid);
    }
    if !pod.host_network() {
        spec.hostname = kernel_hostname(pod)?;
        for port in pod.all_containers().flat_map(|container| container.ports.iter().flatten()) {
            let number = |port: i32| u16::try_from(port).ok().filter(|port| *port != 0);
            let (Some(container_port), Some(host_port)) =
                (number(port.container_port), port.host_port.and_then(number))
            else {
                continue;
            };
            let host_ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty()).map(address).transpose()?;
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
            spec.ports.push(PortBinding { container_port, protocol, host_ip, host_port });
        }
    }
    Ok(spec)
}

/// What belongs to the container that owns the pod's namespaces: the sandbox, or the only container there is.
fn own_namespaces(pod: &StaticPod, spec: &mut ContainerSpec) {
    let network = if pod.host_network() { "host" } else { "default" };
    network.clone_into(&mut spec.network);
    if pod.spec.host_ipc == Some(true) {
        "host".clone_into(&mut spec.ipc);
    }
    let sysctls = pod.spec.security_context.as_ref().and_then(|context| context.sysctls.as_ref());
    spec.sysctls =
        sysctls.into_iter().flatten().map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value.clone())).collect();
}

fn address(text: &str) -> Result<IpAddr, TranslateError> {
    text.parse().map_err(|_| TranslateError::Address(text.to_owned()))
}

fn labels(pod: &StaticPod, container: &str, attempt: u32, context: &Context<'_>) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<_, _> = [
        (labels::AGENT, context.agent_id.to_owned()),
        (labels::SPEC_HASH, pod.hash.clone()),
        (labels::RESTART_COUNT, attempt.to_string()),
        (labels::POD_NAME, pod.key.name.clone()),
        (labels::POD_NAMESPACE, pod.key.namespace.clone()),
        (labels::POD_UID, pod.uid.clone()),
        (labels::SOURCE, pod.source.as_str().to_owned()),
        (labels::CONTAINER_NAME, container.to_owned()),
        (GRACE_LABEL, pod.grace().as_secs().to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    if pod.is_sidecar(container) {
        let place = pod.init_containers().iter().position(|init| init.name == container).unwrap_or_default();
        labels.insert(SIDECAR_LABEL.to_owned(), place.to_string());
    }
    labels
}

/// `spec.hostname` or the pod's name, at most 63 bytes, not ending in `-` or `.`.
pub fn hostname(pod: &StaticPod) -> String {
    let name = pod.spec.hostname.as_deref().filter(|name| !name.is_empty()).unwrap_or(&pod.key.name);
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The name of the pod in the cluster's domain; only a pod with a `subdomain` has one.
pub fn fqdn(pod: &StaticPod) -> Option<String> {
    let subdomain = pod.spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty())?;
    Some(format!("{}.{subdomain}.{}.svc.{CLUSTER_DOMAIN}", hostname(pod), pod.key.namespace))
}

/// What `hostname` says inside.
fn kernel_hostname(pod: &StaticPod) -> Result<String, TranslateError> {
    match fqdn(pod).filter(|_| pod.spec.set_hostname_as_fqdn == Some(true)) {
        Some(fqdn) if fqdn.len() > 64 => Err(TranslateError::HostnameTooLong(fqdn)),
        Some(fqdn) => Ok(fqdn),
        None => Ok(hostname(pod)),
    }
}

/// What the engine gives the containers of `pod` when it goes down itself. A grace that is only the default leaves it
/// the engine's ten seconds: an API server that loses its etcd in the same moment would use every second that it gets,
/// at each restart of the engine and each shutdown of the host.
fn stop_timeout(pod: &StaticPod) -> Option<Duration> {
    (pod.spec.termination_grace_period_seconds != Some(DEFAULT_GRACE)).then(|| pod.grace())
}

fn mounts(pod: &StaticPod, container: &Container, context: &Context<'_>) -> Vec<Mount> {
    // What the agent writes there is not for the container to change.
    let ours = |name: &str| {
        let mut volumes = pod.spec.volumes.iter().flatten();
        volumes.any(|volume| volume.name == name && projection::items(volume).is_some())
    };
    let mut mounts: Vec<_> = container
        .volume_mounts
        .iter()
        .flatten()
        .filter_map(|mount| {
            let target = &mount.mount_path;
            Some(Mount {
                source: if has_sub_path(mount) {
                    context.sub_paths.get(&mount.mount_path)?.clone()
                } else {
                    context.volumes.get(&mount.name)?.clone()
                },
                // The kubelet takes a relative mountPath from the root.
                target: if target.starts_with('/') { target.clone() } else { format!("/{target}") },
                read_only: mount.read_only == Some(true) || ours(&mount.name),
                below: match mount.recursive_read_only.as_deref() {
                    Some("Enabled") => Below::ReadOnly,
                    Some("IfPossible") => Below::ReadOnlyIfPossible,
                    _ => Below::Writable,
                },
                propagation: match mount.mount_propagation.as_deref() {
                    Some("HostToContainer") => Propagation::HostToContainer,
                    Some("Bidirectional") => Propagation::Bidirectional,
                    _ => Propagation::Private,
                },
            })
        })
        .collect();
    let own = [
        (context.message_file, message::target(container)),
        (context.lookup.map(|files| files.hosts.as_path()), "/etc/hosts".to_owned()),
        (context.lookup.and_then(|files| files.resolv_conf.as_deref()), "/etc/resolv.conf".to_owned()),
    ];
    for (file, target) in own {
        // A volume in this place goes first.
        if let Some(file) = file
            && !mounts.iter().any(|mount| mount.target == target)
        {
            mounts.push(Mount { source: file.to_path_buf(), target, ..Mount::default() });
        }
    }
    mounts
}

fn quantity(container: &Container, requests: bool, name: &str) -> Option<String> {
    let resources = container.resources.as_ref()?;
    let map = if requests { &resources.requests } else { &resources.limits };
    map.as_ref()?.get(name).map(|quantity| quantity.0.clone())
}

fn milli(container: &Container, requests: bool, name: &str) -> i64 {
    quantity(container, requests, name).and_then(|text| quantity::milli(&text)).unwrap_or(0)
}

fn whole(container: &Container, requests: bool, name: &str) -> i64 {
    quantity(container, requests, name).and_then(|text| quantity::bytes(&text)).unwrap_or(0)
}

fn resources(container: &Container) -> Resources {
    let shares = milli(container, true, "cpu").saturating_mul(1024) / 1000;
    let limit = milli(container, false, "cpu");
    // 1000 is the kernel's smallest quota.
    let quota = if limit > 0 { (limit.saturating_mul(CPU_PERIOD) / 1000).max(1000) } else { 0 };
    Resources {
        cpu_shares: shares.clamp(*CPU_SHARES.start(), *CPU_SHARES.end()),
        cpu_quota: quota,
        cpu_period: if quota > 0 { CPU_PERIOD } else { 0 },
        memory: whole(container, false, "memory"),
    }
}

/// Quality of service of a pod, as `status.qosClass` names it.
pub fn qos_class(pod: &StaticPod) -> &'static str {
    let names = ["cpu", "memory"];
    let guaranteed = |container: &Container| {
        names.iter().all(|name| {
            let limit = milli(container, false, name);
            limit > 0 && limit == milli(container, true, name)
        })
    };
    let none = |container: &Container| {
        names.iter().all(|name| milli(container, false, name) == 0 && milli(container, true, name) == 0)
    };
    if pod.all_containers().all(none) {
        "BestEffort"
    } else if pod.all_containers().all(guaranteed) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// kubelet: `pkg/kubelet/qos/policy.go`. Being static alone does not protect a pod; its class does.
fn oom_score(pod: &StaticPod, container: &Container, node: &Node) -> i64 {
    if pod.spec.priority_class_name.as_deref() == Some("system-node-critical") {
        return -997;
    }
    let burstable = |memory: i64| {
        let capacity = i128::from(node.memory.max(1));
        let share = i128::from(memory) * 1000 / capacity;
        i64::try_from(1000 - share).unwrap_or(0).clamp(3, 999)
    };
    let request = |container: &Container| whole(container, true, "memory");
    match qos_class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        // A sidecar is never likelier to be killed than the regular container that is likeliest.
        _ if pod.is_sidecar(&container.name) => {
            let least = pod.containers().iter().map(request).min().unwrap_or(0);
            burstable(request(container).max(least))
        }
        _ => burstable(request(container)),
    }
}

fn allowed(score: i64, node: &Node) -> Option<i64> {
    (score >= 0 || node.may_protect_from_oom).then_some(score)
}

/// Security settings of a container, its own before its pod's.
struct Security<'a> {
    own: Option<&'a SecurityContext>,
    pod: Option<&'a PodSecurityContext>,
    user: Option<i64>,
    group: Option<i64>,
    non_root: bool,
    apparmor: Option<String>,
}

impl<'a> Security<'a> {
    fn of(pod: &'a StaticPod, container: &'a Container) -> Self {
        let apparmor = apparmor(pod, container);
        let own = container.security_context.as_ref();
        let pod = pod.spec.security_context.as_ref();
        Self {
            apparmor,
            own,
            pod,
            user: own.and_then(|c| c.run_as_user).or_else(|| pod.and_then(|c| c.run_as_user)),
            group: own.and_then(|c| c.run_as_group).or_else(|| pod.and_then(|c| c.run_as_group)),
            non_root: own.and_then(|c| c.run_as_non_root).or_else(|| pod.and_then(|c| c.run_as_non_root)) == Some(true),
        }
    }

    fn apply(&self, spec: &mut ContainerSpec, context: &Context<'_>) -> Result<(), TranslateError> {
        spec.user = match (self.user, self.group) {
            (Some(user), Some(group)) => Some(format!("{user}:{group}")),
            (Some(user), None) => Some(user.to_string()),
            (None, Some(_)) => return Err(TranslateError::GroupWithoutUser),
            (None, None) => None,
        };
        if self.non_root {
            let user = self.user.map(|user| user.to_string());
            let user =
                user.or_else(|| context.image_user.map(|user| user.split(':').next().unwrap_or(user).to_owned()));
            let user = user.unwrap_or_default();
            if !user.parse::<u64>().is_ok_and(|user| user > 0) {
                let shown = if user.is_empty() { "root".to_owned() } else { format!("user `{user}`") };
                return Err(TranslateError::Root(shown));
            }
        }
        if let Some(pod) = self.pod {
            let groups = pod.supplemental_groups.iter().flatten().chain(&pod.fs_group);
            spec.groups = groups.map(ToString::to_string).collect();
        }
        if let Some(own) = self.own {
            spec.privileged = own.privileged == Some(true);
            spec.read_only = own.read_only_root_filesystem == Some(true);
            if let Some(capabilities) = &own.capabilities {
                spec.capabilities_add = capabilities.add.clone().unwrap_or_default();
                spec.capabilities_drop = capabilities.drop.clone().unwrap_or_default();
            }
            if own.allow_privilege_escalation == Some(false) {
                spec.security_options.push("no-new-privileges".to_owned());
            }
        }
        let linux = self.own.and_then(|c| c.se_linux_options.as_ref());
        if let Some(linux) = linux.or_else(|| self.pod.and_then(|c| c.se_linux_options.as_ref())) {
            let parts = [("user", &linux.user), ("role", &linux.role), ("type", &linux.type_), ("level", &linux.level)];
            let given = parts.into_iter().filter_map(|(part, value)| Some((part, value.as_deref()?)));
            let labels =
                given.filter(|(_, value)| !value.is_empty()).map(|(part, value)| format!("label={part}:{value}"));
            spec.security_options.extend(labels);
        }
        // The engine's default profile is RuntimeDefault; without a profile the kubelet's default is none at all.
        match self.seccomp().map_or("Unconfined", |profile| profile.type_.as_str()) {
            "Unconfined" => spec.security_options.push("seccomp=unconfined".to_owned()),
            "Localhost" => spec.security_options.push(format!("seccomp={}", context.seccomp.unwrap_or_default())),
            _ => {}
        }
        if let Some(profile) = &self.apparmor {
            let (name, enforced) = match profile.split_once('/') {
                Some(("localhost", name)) => (name, true),
                _ if profile == "unconfined" => ("unconfined", false),
                _ => return Ok(()),
            };
            if context.node.apparmor {
                spec.security_options.push(format!("apparmor={name}"));
            } else if enforced {
                return Err(TranslateError::NoAppArmor(name.to_owned()));
            }
        }
        Ok(())
    }

    fn seccomp(&self) -> Option<&'a SeccompProfile> {
        let own = self.own.and_then(|c| c.seccomp_profile.as_ref());
        own.or_else(|| self.pod.and_then(|c| c.seccomp_profile.as_ref()))
    }
}

/// The `AppArmor` profile of `container` as the annotation has it (`runtime/default`, `unconfined`, `localhost/<name>`):
/// from its own field, its pod's, or the annotation.
fn apparmor(pod: &StaticPod, container: &Container) -> Option<String> {
    let own = container.security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref());
    let profile = own.or_else(|| pod.spec.security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref()));
    if let Some(profile) = profile {
        return Some(match profile.type_.as_str() {
            "Unconfined" => "unconfined".to_owned(),
            "Localhost" => format!("localhost/{}", profile.localhost_profile.as_deref().unwrap_or_default()),
            _ => "runtime/default".to_owned(),
        });
    }
    pod.metadata.annotations.as_ref()?.get(&format!("{APPARMOR_ANNOTATION}{}", container.name)).cloned()
}

/// The file that has the seccomp profile of `container`, relative to the kubelet's directory of them.
pub fn seccomp_file<'a>(pod: &'a StaticPod, container: &'a Container) -> Option<&'a str> {
    let profile = Security::of(pod, container).seccomp().filter(|profile| profile.type_ == "Localhost")?;
    profile.localhost_profile.as_deref()
}

type Environment = Vec<(String, String)>;

fn environment(pod: &StaticPod, container: &Container, context: &Context<'_>) -> Result<Environment, TranslateError> {
    let mut env = Environment::new();
    let mut total = 0;
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(from)) => {
                let unknown = |reference| TranslateError::Reference { variable: variable.name.clone(), reference };
                reference(pod, container, from, context).map_err(unknown)?
            }
            (value, None) => expand(value.as_deref().unwrap_or_default(), &env),
        };
        total += variable.name.len() + value.len();
        if total > LONGEST_ENVIRONMENT {
            return Err(TranslateError::Environment(variable.name.clone()));
        }
        match env.iter_mut().find(|(name, _)| *name == variable.name) {
            Some((_, present)) => *present = value,
            None => env.push((variable.name.clone(), value)),
        }
    }
    Ok(env)
}

/// The value of a `fieldRef` or `resourceFieldRef`, or the reference if there is no such thing.
pub(super) fn reference(
    pod: &StaticPod,
    container: &Container,
    from: &EnvVarSource,
    context: &Context<'_>,
) -> Result<String, String> {
    if let Some(field) = &from.field_ref {
        let path = field.field_path.as_str();
        let keyed = |map: &Option<BTreeMap<String, String>>, name: &str| {
            let key = path.strip_prefix(name)?.strip_prefix("['")?.strip_suffix("']")?;
            Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
        };
        return match path {
            "metadata.name" => Some(pod.key.name.clone()),
            "metadata.namespace" => Some(pod.key.namespace.clone()),
            "metadata.uid" => Some(pod.uid.clone()),
            "spec.nodeName" => Some(context.node.name.clone()),
            "spec.serviceAccountName" => Some(String::new()),
            "status.hostIP" | "status.hostIPs" => Some(context.node.address.to_string()),
            "status.podIP" | "status.podIPs" => {
                Some(context.pod_ip.map(|address| address.to_string()).unwrap_or_default())
            }
            _ => keyed(&pod.metadata.labels, "metadata.labels")
                .or_else(|| keyed(&pod.metadata.annotations, "metadata.annotations")),
        }
        .ok_or_else(|| path.to_owned());
    }
    if let Some(resource) = &from.resource_field_ref {
        let unknown = || resource.resource.clone();
        let of = match resource.container_name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => pod.container(name).ok_or_else(unknown)?,
            None => container,
        };
        let (list, name) = resource.resource.split_once('.').ok_or_else(unknown)?;
        let requests = match list {
            "requests" => true,
            "limits" => false,
            _ => return Err(unknown()),
        };
        let value = match milli(of, requests, name) {
            0 if requests => 0,
            // Without a limit it is what the node gives its pods.
            0 => {
                let whole = match name {
                    "cpu" => context.node.cpus,
                    "memory" => context.node.memory.saturating_sub(KEPT_MEMORY),
                    "ephemeral-storage" => context.node.storage,
                    _ => return Err(unknown()),
                };
                i64::try_from(whole).unwrap_or(i64::MAX).saturating_mul(1000)
            }
            value => value,
        };
        let divisor = resource.divisor.as_ref().and_then(|divisor| quantity::milli(&divisor.0)).filter(|d| *d > 0);
        let divisor = divisor.unwrap_or(1000);
        return Ok((value / divisor + i64::from(value % divisor != 0)).to_string());
    }
    Ok(String::new())
}

/// `$(NAME)` → its value, `$$` → `$`; names that are not known stay as they are (`expansion.Expand` of the API).
pub(super) fn expand(text: &str, env: &[(String, String)]) -> String {
    expand_or(text, env, |_| {})
}

/// The same; tells of each name that is not known.
fn expand_or(text: &str, env: &[(String, String)], mut unknown: impl FnMut(&str)) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    // A few variables that name each other several times come to any length.
    while expanded.len() < LONGEST_TEXT
        && let Some(at) = rest.find('$')
    {
        expanded.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        if let Some(after) = tail.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = tail.strip_prefix('(').and_then(|tail| tail.split_once(')')) {
            if let Some((_, value)) = env.iter().find(|(known, _)| known == name) {
                expanded.push_str(value);
            } else {
                unknown(name);
                expanded.extend(["$(", name, ")"]);
            }
            rest = after;
        } else {
            expanded.push('$');
            rest = tail;
        }
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
pub(crate) mod tests;
