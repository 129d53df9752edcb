//! What is refused, and why: manifests the kubelet refuses, references to API objects, and fields that this agent
//! does not implement and whose silent loss would change what the pod means.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, DownwardAPIVolumeFile, EnvVar, ExecAction, HTTPGetAction, LifecycleHandler,
    PodSecurityContext, PodSpec, Probe, ResourceRequirements, SeccompProfile, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{PodKey, SURGE, UPDATE};
use crate::agent::translate::APPARMOR_ANNOTATION;
use crate::agent::{projection, quantity};
use crate::names::{is_dns_label, is_dns_subdomain, is_label_value, is_qualified_name};

/// Names of Linux capabilities, hosts and volumes are checked by the runtime; here is what it would not notice.
pub(super) fn check(
    key: &PodKey,
    metadata: &ObjectMeta,
    spec: &PodSpec,
    warnings: &mut Vec<String>,
) -> Result<(), Vec<String>> {
    let mut found = Found::default();
    found.require(is_dns_subdomain(&key.name), || format!("metadata.name: `{}` is not a DNS subdomain", key.name));
    found.require(is_dns_label(&key.namespace), || {
        format!("metadata.namespace: `{}` is not a DNS label", key.namespace)
    });
    if let Some(uid) = metadata.uid.as_deref().filter(|uid| !uid.is_empty()) {
        let plain = uid.len() <= 63 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        found.require(plain, || format!("metadata.uid: `{uid}` is not made of letters, digits and dashes"));
    }
    for (name, value) in metadata.labels.iter().flatten() {
        let good = is_qualified_name(name) && (value.is_empty() || is_label_value(value));
        found.require(good, || format!("metadata.labels: `{name}: {value}` is not a label"));
    }
    for (name, value) in metadata.annotations.iter().flatten() {
        // The API takes capital letters here.
        found.require(is_qualified_name(&name.to_lowercase()), || {
            format!("metadata.annotations: `{name}` is not a name")
        });
        if name.starts_with(APPARMOR_ANNOTATION) {
            let known = matches!(value.as_str(), "" | "runtime/default" | "unconfined")
                || value.strip_prefix("localhost/").is_some_and(|profile| !profile.is_empty());
            found.require(known, || format!("metadata.annotations: {name}: `{value}` is not an AppArmor profile"));
        }
    }
    if let Some(update) = metadata.annotations.as_ref().and_then(|annotations| annotations.get(UPDATE)) {
        check_update(update, spec, &mut found);
    }
    check_pod(spec, &mut found, warnings);
    check_lookup(spec, &mut found);
    let mut names = BTreeSet::new();
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let at = format!("spec.volumes[{index}] ({})", volume.name);
        found.require(is_dns_label(&volume.name), || format!("{at}: the name is not a DNS label"));
        found.require(names.insert(&volume.name), || format!("{at}: the name is used twice"));
        check_volume(&at, volume, spec, &mut found);
    }
    check_host_ports(spec, &mut found);
    let mut names = BTreeSet::new();
    let init = spec.init_containers.iter().flatten().map(|container| (container, true));
    for (container, init) in init.chain(spec.containers.iter().map(|container| (container, false))) {
        let at = format!("{} `{}`", if init { "init container" } else { "container" }, container.name);
        found.require(is_dns_label(&container.name), || format!("{at}: the name is not a DNS label"));
        found.require(names.insert(&container.name), || format!("{at}: the name is used twice"));
        check_container(&at, container, init, spec, &mut found);
    }
    found.finish()
}

#[derive(Default)]
struct Found(Vec<String>);

impl Found {
    fn require(&mut self, holds: bool, reason: impl FnOnce() -> String) {
        if !holds {
            self.0.push(reason());
        }
    }

    fn api_object(&mut self, present: bool, at: &str, what: &str) {
        self.require(!present, || format!("{at}: static pods may not reference {what}"));
    }

    fn unsupported(&mut self, present: bool, at: &str) {
        self.require(!present, || format!("{at} is not supported by this plinth"));
    }

    fn finish(self) -> Result<(), Vec<String>> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }
}

fn check_pod(spec: &PodSpec, found: &mut Found, warnings: &mut Vec<String>) {
    found.require(!spec.containers.is_empty(), || "the pod has no containers".to_owned());
    let policy = spec.restart_policy.as_deref().unwrap_or_default();
    found.require(matches!(policy, "Always" | "OnFailure" | "Never"), || {
        format!("spec.restartPolicy: `{policy}` is not Always, OnFailure or Never")
    });
    let named = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
    let any = |items: bool, at: &str, what: &str, found: &mut Found| found.api_object(items, at, what);
    any(
        named(&spec.service_account_name) || named(&spec.service_account),
        "spec.serviceAccountName",
        "serviceaccounts",
        found,
    );
    any(spec.image_pull_secrets.iter().flatten().next().is_some(), "spec.imagePullSecrets", "secrets", found);
    any(spec.resource_claims.iter().flatten().next().is_some(), "spec.resourceClaims", "resourceclaims", found);
    any(named(&spec.runtime_class_name), "spec.runtimeClassName", "runtimeclasses", found);

    found.unsupported(spec.ephemeral_containers.iter().flatten().next().is_some(), "spec.ephemeralContainers");
    found.unsupported(spec.active_deadline_seconds.is_some(), "spec.activeDeadlineSeconds");
    found.unsupported(spec.host_users == Some(false), "spec.hostUsers: false");
    found.unsupported(named(&spec.hostname_override), "spec.hostnameOverride");
    found.unsupported(spec.resources.is_some(), "spec.resources (limits of the whole pod)");
    found.unsupported(spec.scheduling_gates.iter().flatten().next().is_some(), "spec.schedulingGates");
    found.unsupported(spec.readiness_gates.iter().flatten().next().is_some(), "spec.readinessGates");
    found.unsupported(spec.os.as_ref().is_some_and(|os| os.name != "linux"), "spec.os.name other than linux");
    found.require(!(spec.host_pid == Some(true) && spec.share_process_namespace == Some(true)), || {
        "spec.hostPID and spec.shareProcessNamespace exclude each other".to_owned()
    });
    if let Some(context) = &spec.security_context {
        let at = "spec.securityContext";
        found.unsupported(context.windows_options.is_some(), &format!("{at}.windowsOptions"));
        check_ids(at, [context.run_as_user, context.run_as_group, context.fs_group], found);
        check_ids(at, context.supplemental_groups.iter().flatten().map(|group| Some(*group)), found);
        check_profiles(at, context.seccomp_profile.as_ref(), context.app_armor_profile.as_ref(), found);
        check_sysctls(spec, context, found);
        check_policies(context, found);
    }
    if spec.node_selector.as_ref().is_some_and(|selector| !selector.is_empty())
        || spec.affinity.is_some()
        || spec.topology_spread_constraints.iter().flatten().next().is_some()
    {
        let fields = "spec.nodeSelector, spec.affinity and spec.topologySpreadConstraints";
        warnings.push(format!("{fields} are ignored: a static pod is where its file is"));
    }
    check_disk(spec, warnings);
}

/// A kubelet measures what pods have on its disk and evicts them; nothing here does.
fn check_disk(spec: &PodSpec, warnings: &mut Vec<String>) {
    let volumes = spec.volumes.iter().flatten().filter(|volume| {
        let on_disk = volume.empty_dir.as_ref().filter(|source| source.medium.as_deref() != Some("Memory"));
        on_disk.is_some_and(|source| source.size_limit.is_some())
    });
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers).filter(|container| {
        let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
        limits.is_some_and(|limits| limits.contains_key("ephemeral-storage"))
    });
    let limits: Vec<_> = volumes
        .map(|volume| format!("sizeLimit of volume `{}`", volume.name))
        .chain(containers.map(|container| format!("ephemeral-storage limit of container `{}`", container.name)))
        .collect();
    if !limits.is_empty() {
        warnings.push(format!("limits of disk space are not enforced: {}", limits.join(", ")));
    }
}

/// Who may be replaced new-first: the two must be able to run beside each other, on one port, and be told apart there.
fn check_update(update: &str, spec: &PodSpec, found: &mut Found) {
    let at = format!("metadata.annotations: {UPDATE}: {update}");
    found.require(update == SURGE, || format!("{at}: the only way is `{SURGE}`"));
    found.require(spec.host_network == Some(true), || format!("{at}: the pod is not on the host's network"));
    // Two of them on one data directory destroy it.
    let is_etcd = |container: &Container| {
        let program = container.command.iter().chain(&container.args).flatten().next();
        container.name == "etcd" || program.is_some_and(|program| program.rsplit('/').next() == Some("etcd"))
    };
    found.require(!spec.containers.iter().any(is_etcd), || format!("{at}: two of etcd never run beside each other"));
    let probe =
        |container: &Container| container.readiness_probe.as_ref().is_some_and(|probe| probe.http_get.is_some());
    found.require(spec.containers.iter().filter(|container| probe(container)).count() == 1, || {
        format!("{at}: not exactly one container has a readinessProbe with httpGet")
    });
}

/// Host name, aliases and DNS.
fn check_lookup(spec: &PodSpec, found: &mut Found) {
    for (field, name) in [("hostname", &spec.hostname), ("subdomain", &spec.subdomain)] {
        if let Some(name) = name.as_deref().filter(|name| !name.is_empty()) {
            found.require(is_dns_label(name), || format!("spec.{field}: `{name}` is not a DNS label"));
        }
    }
    for alias in spec.host_aliases.iter().flatten() {
        let ip = &alias.ip;
        found.require(is_address(ip), || format!("spec.hostAliases: `{ip}` is not an IP address"));
        for name in alias.hostnames.iter().flatten() {
            found.require(is_dns_subdomain(name), || format!("spec.hostAliases: `{name}` is not a DNS name"));
        }
    }
    let config = spec.dns_config.as_ref();
    let servers = config.and_then(|config| config.nameservers.as_deref()).unwrap_or_default();
    let searches = config.and_then(|config| config.searches.as_deref()).unwrap_or_default();
    match spec.dns_policy.as_deref().unwrap_or_default() {
        "None" => {
            found.require(!servers.is_empty(), || {
                "spec.dnsPolicy None needs at least one name server in spec.dnsConfig".to_owned()
            });
        }
        "Default" | "ClusterFirst" | "ClusterFirstWithHostNet" => {}
        other => found.0.push(format!("spec.dnsPolicy: `{other}` is unknown")),
    }
    found.require(servers.len() <= 3, || "spec.dnsConfig: it has more than 3 name servers".to_owned());
    for server in servers {
        found.require(is_address(server), || format!("spec.dnsConfig: `{server}` is not an IP address"));
    }
    found.require(searches.len() <= 32 && searches.join(" ").len() <= 2048, || {
        "spec.dnsConfig: it has more than 32 search domains or 2048 characters of them".to_owned()
    });
    for search in searches {
        let plain = search.trim_end_matches('.');
        let good = search == "." || is_dns_subdomain(&plain.replace('_', "-"));
        found.require(good, || format!("spec.dnsConfig: `{search}` is not a search domain"));
    }
    for option in config.iter().flat_map(|config| config.options.iter().flatten()) {
        found.require(option.name.as_ref().is_some_and(|name| !name.is_empty()), || {
            "spec.dnsConfig: an option has no name".to_owned()
        });
    }
}

/// What belongs to a network or IPC namespace; a pod may set it only in one of its own.
fn check_sysctls(spec: &PodSpec, context: &PodSecurityContext, found: &mut Found) {
    let mut names = BTreeSet::new();
    for sysctl in context.sysctls.iter().flatten() {
        let name = sysctl.name.replace('/', ".");
        let at = format!("spec.securityContext.sysctls: `{}`", sysctl.name);
        let of = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        let ipc = name == "kernel.sem" || of(&["kernel.shm", "kernel.msg", "fs.mqueue."]);
        let net = of(&["net."]);
        found.require(ipc || net, || format!("{at} is of the whole node, not of a pod"));
        found.require(!(net && spec.host_network == Some(true)), || format!("{at} is the node's with hostNetwork"));
        found.require(!(ipc && spec.host_ipc == Some(true)), || format!("{at} is the node's with hostIPC"));
        found.require(names.insert(name), || format!("{at} is set twice"));
    }
}

/// How groups and labels are applied. The policies for volumes save work where these have many files; ours are made
/// with their group, and none is relabelled.
fn check_policies(context: &PodSecurityContext, found: &mut Found) {
    let at = "spec.securityContext";
    let fields = [
        ("supplementalGroupsPolicy", &context.supplemental_groups_policy, ["Merge", "Strict"]),
        ("fsGroupChangePolicy", &context.fs_group_change_policy, ["OnRootMismatch", "Always"]),
        ("seLinuxChangePolicy", &context.se_linux_change_policy, ["MountOption", "Recursive"]),
    ];
    for (field, value, known) in fields {
        let Some(value) = value.as_deref() else { continue };
        found.require(known.contains(&value), || format!("{at}.{field}: `{value}` is not {}", known.join(" or ")));
    }
    // Docker adds the groups that the image's /etc/group gives the user, and has no way not to.
    let strict = context.supplemental_groups_policy.as_deref() == Some("Strict");
    found.unsupported(strict, &format!("{at}.supplementalGroupsPolicy: Strict"));
}

/// Users and groups.
fn check_ids(at: &str, ids: impl IntoIterator<Item = Option<i64>>, found: &mut Found) {
    for id in ids.into_iter().flatten() {
        found.require((0..=i64::from(i32::MAX)).contains(&id), || format!("{at}: {id} is not a user or group"));
    }
}

fn check_profiles(at: &str, seccomp: Option<&SeccompProfile>, apparmor: Option<&AppArmorProfile>, found: &mut Found) {
    let check = |field: &str, kind: &str, profile: Option<&str>, found: &mut Found| {
        let at = format!("{at}, {field}");
        found.require(matches!(kind, "RuntimeDefault" | "Unconfined" | "Localhost"), || {
            format!("{at}: type `{kind}` is not RuntimeDefault, Unconfined or Localhost")
        });
        let named = profile.is_some_and(|profile| !profile.trim().is_empty());
        found.require(named == (kind == "Localhost"), || {
            format!("{at}: localhostProfile is for type Localhost, and needed there")
        });
    };
    if let Some(profile) = seccomp {
        check("seccompProfile", &profile.type_, profile.localhost_profile.as_deref(), found);
        let path = profile.localhost_profile.as_deref().unwrap_or_default();
        found.require(is_below(path), || format!("{at}, seccompProfile: `{path}` is not a relative path without `..`"));
    }
    if let Some(profile) = apparmor {
        check("appArmorProfile", &profile.type_, profile.localhost_profile.as_deref(), found);
    }
}

/// A port of the host is for one container of a pod.
fn check_host_ports(spec: &PodSpec, found: &mut Found) {
    let mut taken = BTreeSet::new();
    for port in spec.containers.iter().flat_map(|container| container.ports.iter().flatten()) {
        let Some(number) = port.host_port.filter(|port| *port != 0) else { continue };
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let address = port.host_ip.as_deref().unwrap_or_default();
        found.require(taken.insert((number, protocol, address)), || {
            format!("hostPort {number}/{protocol} is used twice in this pod")
        });
    }
}

fn check_volume(at: &str, volume: &Volume, spec: &PodSpec, found: &mut Found) {
    let api = [
        (volume.config_map.is_some(), "configmaps"),
        (volume.secret.is_some(), "secrets"),
        (volume.persistent_volume_claim.is_some(), "persistentvolumeclaims"),
        (volume.ephemeral.is_some(), "persistentvolumeclaims"),
        (volume.csi.is_some(), "csidrivers"),
        (volume.azure_file.is_some() || volume.glusterfs.is_some(), "secrets or endpoints"),
    ];
    let fields = serde_json::to_value(volume).ok();
    let sources = fields.as_ref().and_then(serde_json::Value::as_object).map_or(0, |fields| fields.len() - 1);
    found.require(sources <= 1, || format!("{at}: it has more than one source"));
    let mut refused = false;
    for (present, what) in api {
        found.api_object(present, at, what);
        refused |= present;
    }
    if let Some(projected) = &volume.projected {
        for source in projected.sources.iter().flatten() {
            found.api_object(source.cluster_trust_bundle.is_some(), at, "clustertrustbundles");
            found.api_object(source.pod_certificate.is_some(), at, "podcertificaterequests");
            found.api_object(source.config_map.is_some(), at, "configmaps");
            found.api_object(source.secret.is_some(), at, "secrets");
            found.api_object(source.service_account_token.is_some(), at, "serviceaccounts");
        }
    }
    if let Some(host_path) = &volume.host_path {
        let path = &host_path.path;
        found.require(path.starts_with('/'), || format!("{at}: hostPath `{path}` is not absolute"));
        found.require(!path.split('/').any(|part| part == ".."), || format!("{at}: hostPath `{path}` contains `..`"));
        let kind = host_path.type_.as_deref().unwrap_or_default();
        let known =
            ["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];
        found.require(known.contains(&kind), || format!("{at}: hostPath type `{kind}` is unknown"));
    } else if let Some(empty_dir) = &volume.empty_dir {
        let medium = empty_dir.medium.as_deref().unwrap_or_default();
        found.require(matches!(medium, "" | "Memory"), || format!("{at}: emptyDir medium `{medium}` is not supported"));
        found.unsupported(empty_dir.mode.is_some(), &format!("{at}: emptyDir.mode"));
        if let Some(limit) = &empty_dir.size_limit {
            found.require(quantity::bytes(&limit.0).is_some_and(|bytes| bytes >= 0), || {
                format!("{at}: sizeLimit `{}` is no quantity", limit.0)
            });
        }
    } else if let Some((items, default_mode)) = projection::items(volume) {
        let mut paths = BTreeSet::new();
        for item in items {
            let at = format!("{at}, `{}`", item.path);
            found.require(paths.insert(&item.path), || format!("{at}: the path is used twice"));
            check_item(&at, item, default_mode, spec, found);
        }
    } else if !refused {
        found.unsupported(true, &format!("{at}: a volume other than hostPath, emptyDir and downwardAPI"));
    }
}

fn check_item(at: &str, item: &DownwardAPIVolumeFile, default_mode: i32, spec: &PodSpec, found: &mut Found) {
    let path = &item.path;
    found.require(!path.is_empty() && is_below(path) && !path.starts_with(".."), || {
        format!("{at}: the path is not a relative one without `..`")
    });
    let mode = item.mode.unwrap_or(default_mode);
    found.require((0..=0o777).contains(&mode), || format!("{at}: mode {mode:o} is not within 0 and 777 (octal)"));
    found.require(item.field_ref.is_some() != item.resource_field_ref.is_some(), || {
        format!("{at}: it needs exactly one of fieldRef, resourceFieldRef")
    });
    if let Some(field) = &item.field_ref {
        let path = field.field_path.as_str();
        let whole = ["name", "namespace", "uid", "labels", "annotations"];
        let known = path.strip_prefix("metadata.").is_some_and(|rest| {
            whole.contains(&rest) || rest.starts_with("labels['") || rest.starts_with("annotations['")
        });
        found.require(known, || format!("{at}: fieldPath `{path}` is not for volumes"));
    }
    if let Some(resource) = &item.resource_field_ref {
        let name = resource.container_name.as_deref().unwrap_or_default();
        let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
        found.require(all.any(|container| container.name == name), || {
            format!("{at}: resourceFieldRef names no container of the pod (`{name}`)")
        });
    }
}

fn check_container(at: &str, container: &Container, init: bool, spec: &PodSpec, found: &mut Found) {
    let image = container.image.as_deref().unwrap_or_default();
    found.require(!image.is_empty(), || format!("{at}: it has no image"));
    found.require(image == image.trim(), || format!("{at}: there is space around the name of its image"));
    let policy = container.termination_message_policy.as_deref().unwrap_or_default();
    found.require(matches!(policy, "File" | "FallbackToLogsOnError"), || {
        format!("{at}: terminationMessagePolicy `{policy}` is not File or FallbackToLogsOnError")
    });
    let policy = container.image_pull_policy.as_deref().unwrap_or_default();
    found.require(matches!(policy, "Always" | "IfNotPresent" | "Never"), || {
        format!("{at}: imagePullPolicy `{policy}` is not Always, IfNotPresent or Never")
    });
    let sidecar = init && container.restart_policy.as_deref() == Some("Always");
    found.unsupported(!sidecar && container.restart_policy.is_some(), &format!("{at}: its own restartPolicy"));
    found.unsupported(container.restart_policy_rules.is_some(), &format!("{at}: restartPolicyRules"));
    found.unsupported(container.volume_devices.iter().flatten().next().is_some(), &format!("{at}: volumeDevices"));

    for source in container.env_from.iter().flatten() {
        found.api_object(source.config_map_ref.is_some(), &format!("{at}, envFrom"), "configmaps");
        found.api_object(source.secret_ref.is_some(), &format!("{at}, envFrom"), "secrets");
    }
    for variable in container.env.iter().flatten() {
        check_variable(at, variable, found);
    }
    if let Some(resources) = &container.resources {
        check_resources(at, resources, found);
    }
    check_mounts(at, container, spec, found);
    check_security(at, container, found);

    check_ports(at, container, spec, found);
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (name, probe) in probes {
        let Some(probe) = probe else { continue };
        let at = format!("{at}, {name}");
        found.require(!init || sidecar, || format!("{at}: init containers have no probes"));
        check_probe(&at, name, probe, container, found);
    }
    if let Some(lifecycle) = &container.lifecycle {
        found.require(!init || sidecar, || format!("{at}: init containers have no lifecycle"));
        if let Some(signal) = &lifecycle.stop_signal {
            let known = signal.strip_prefix("SIG").is_some_and(|name| {
                name.strip_prefix("RTM").is_some() || signal.parse::<nix::sys::signal::Signal>().is_ok()
            });
            found.require(known, || format!("{at}: lifecycle.stopSignal `{signal}` is no signal"));
            found.require(spec.os.is_some(), || format!("{at}: lifecycle.stopSignal needs spec.os.name"));
        }
        for (name, handler) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
            let grace = spec.termination_grace_period_seconds.unwrap_or(0);
            if let Some(handler) = handler {
                check_hook(&format!("{at}, {name}"), handler, grace, container, found);
            }
        }
    }
}

fn check_variable(at: &str, variable: &EnvVar, found: &mut Found) {
    let name = &variable.name;
    let at = format!("{at}, env {name}");
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'=' || byte == b' ');
    found.require(plain, || format!("{at}: the name is empty, or has characters that names do not have"));
    let Some(from) = &variable.value_from else { return };
    found.require(variable.value.as_ref().is_none_or(String::is_empty), || {
        format!("{at}: value and valueFrom exclude each other")
    });
    found.api_object(from.config_map_key_ref.is_some(), &at, "configmaps");
    found.api_object(from.secret_key_ref.is_some(), &at, "secrets");
    found.unsupported(from.file_key_ref.is_some(), &format!("{at}: fileKeyRef"));
    let given = [
        from.field_ref.is_some(),
        from.resource_field_ref.is_some(),
        from.config_map_key_ref.is_some(),
        from.secret_key_ref.is_some(),
        from.file_key_ref.is_some(),
    ];
    found.require(given.into_iter().filter(|given| *given).count() == 1, || {
        format!("{at}: valueFrom needs exactly one source")
    });
    if let Some(field) = &from.field_ref {
        let path = field.field_path.as_str();
        let known = [
            "metadata.name",
            "metadata.namespace",
            "metadata.uid",
            "spec.nodeName",
            "spec.serviceAccountName",
            "status.hostIP",
            "status.hostIPs",
            "status.podIP",
            "status.podIPs",
        ];
        let keyed = ["metadata.labels['", "metadata.annotations['"];
        let keyed = keyed.iter().any(|start| path.starts_with(start)) && path.ends_with("']");
        found.require(known.contains(&path) || keyed, || format!("{at}: fieldPath `{path}` is not for variables"));
    }
}

fn check_resources(at: &str, resources: &ResourceRequirements, found: &mut Found) {
    found.api_object(resources.claims.iter().flatten().next().is_some(), at, "resourceclaims");
    for (name, value) in resources.limits.iter().flatten().chain(resources.requests.iter().flatten()) {
        found.unsupported(
            !matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage"),
            &format!("{at}: the resource `{name}`"),
        );
        found.require(quantity::milli(&value.0).is_some_and(|value| value >= 0), || {
            format!("{at}: {name} `{}` is no quantity", value.0)
        });
    }
    for (name, request) in resources.requests.iter().flatten() {
        let limit = resources.limits.as_ref().and_then(|limits| limits.get(name));
        if let Some((limit, request)) = limit.and_then(|l| Some((quantity::milli(&l.0)?, quantity::milli(&request.0)?)))
        {
            found.require(request <= limit, || format!("{at}: it requests more {name} than its limit"));
        }
    }
}

fn check_ports(at: &str, container: &Container, spec: &PodSpec, found: &mut Found) {
    let mut names = BTreeSet::new();
    for port in container.ports.iter().flatten() {
        let valid = |port: i32| (1..=65535).contains(&port);
        found.require(valid(port.container_port), || format!("{at}: containerPort {} is no port", port.container_port));
        if let Some(host_port) = port.host_port.filter(|port| *port != 0) {
            found.require(valid(host_port), || format!("{at}: hostPort {host_port} is no port"));
            found.require(spec.host_network != Some(true) || host_port == port.container_port, || {
                format!("{at}: hostPort {host_port} must equal containerPort on the host's network")
            });
        }
        let protocol = port.protocol.as_deref().unwrap_or_default();
        found.require(matches!(protocol, "TCP" | "UDP" | "SCTP"), || {
            format!("{at}: protocol `{protocol}` is not TCP, UDP or SCTP")
        });
        if let Some(address) = port.host_ip.as_deref().filter(|address| !address.is_empty()) {
            found.require(is_address(address), || format!("{at}: hostIP `{address}` is not an IP address"));
        }
        if let Some(name) = port.name.as_ref().filter(|name| !name.is_empty()) {
            found.require(is_port_name(name), || format!("{at}: `{name}` is not a name for a port"));
            found.require(names.insert(name), || format!("{at}: the port name `{name}` is used twice"));
        }
    }
}

fn check_hook(at: &str, handler: &LifecycleHandler, grace: i64, container: &Container, found: &mut Found) {
    let handlers =
        [handler.exec.is_some(), handler.http_get.is_some(), handler.sleep.is_some(), handler.tcp_socket.is_some()];
    let count = handlers.into_iter().filter(|present| *present).count();
    found.require(count == 1, || format!("{at}: it needs exactly one of exec, httpGet, sleep"));
    // A kubelet accepts it and lets it fail, which after a start means a container that is killed for ever.
    found.unsupported(handler.tcp_socket.is_some(), &format!("{at}: tcpSocket (deprecated; no kubelet performs it)"));
    check_command(at, handler.exec.as_ref(), found);
    if let Some(pause) = &handler.sleep {
        found.require((0..=grace.max(1)).contains(&pause.seconds), || {
            format!("{at}: sleep of {} s is not within the termination grace of {grace} s", pause.seconds)
        });
    }
    if let Some(get) = &handler.http_get {
        let unnamed = matches!(&get.port, IntOrString::String(name) if name.is_empty());
        check_http_get(at, get, found);
        if !unnamed {
            check_port(at, &get.port, container, found);
        }
    }
}

fn check_mounts(at: &str, container: &Container, spec: &PodSpec, found: &mut Found) {
    let mut targets = BTreeSet::new();
    for mount in container.volume_mounts.iter().flatten() {
        let at = format!("{at}, mount {}", mount.name);
        found.require(spec.volumes.iter().flatten().any(|volume| volume.name == mount.name), || {
            format!("{at}: there is no such volume")
        });
        found.require(targets.insert(&mount.mount_path), || format!("{at}: `{}` is mounted twice", mount.mount_path));
        found.require(!mount.mount_path.is_empty(), || format!("{at}: it has no mountPath"));
        found.require(!mount.mount_path.contains(':'), || format!("{at}: `{}` contains `:`", mount.mount_path));
        let sub_paths =
            || [&mount.sub_path, &mount.sub_path_expr].into_iter().flatten().filter(|path| !path.is_empty());
        found.require(sub_paths().count() < 2, || format!("{at}: subPath and subPathExpr exclude each other"));
        for path in sub_paths() {
            found.require(is_below(path), || format!("{at}: subPath `{path}` is not a relative path without `..`"));
        }
        match mount.recursive_read_only.as_deref() {
            None | Some("Disabled") => {}
            Some("IfPossible" | "Enabled") => {
                let plain = mount.mount_propagation.as_deref().is_none_or(|propagation| propagation == "None");
                found.require(plain && mount.read_only == Some(true), || {
                    format!("{at}: recursiveReadOnly needs readOnly, and no mountPropagation")
                });
            }
            Some(other) => found.0.push(format!("{at}: recursiveReadOnly `{other}` is unknown")),
        }
        found.unsupported(
            mount.bind_mount_options.iter().flatten().next().is_some(),
            &format!("{at}: bindMountOptions"),
        );
        match mount.mount_propagation.as_deref() {
            None | Some("None" | "HostToContainer") => {}
            Some("Bidirectional") => {
                let privileged = container.security_context.as_ref().is_some_and(|c| c.privileged == Some(true));
                found.require(privileged, || format!("{at}: Bidirectional needs a privileged container"));
            }
            Some(other) => found.0.push(format!("{at}: mountPropagation `{other}` is unknown")),
        }
    }
}

fn check_security(at: &str, container: &Container, found: &mut Found) {
    let Some(context) = &container.security_context else { return };
    found.unsupported(context.windows_options.is_some(), &format!("{at}: windowsOptions"));
    found.unsupported(context.proc_mount.as_deref().is_some_and(|p| p != "Default"), &format!("{at}: procMount"));
    check_ids(at, [context.run_as_user, context.run_as_group], found);
    check_profiles(at, context.seccomp_profile.as_ref(), context.app_armor_profile.as_ref(), found);
    let contradiction = context.allow_privilege_escalation == Some(false) && context.privileged == Some(true);
    found
        .require(!contradiction, || format!("{at}: privileged and allowPrivilegeEscalation: false exclude each other"));
}

fn check_probe(at: &str, name: &str, probe: &Probe, container: &Container, found: &mut Found) {
    let handlers = [probe.exec.is_some(), probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.grpc.is_some()];
    let count = handlers.into_iter().filter(|present| *present).count();
    found.require(count == 1, || format!("{at}: it needs exactly one of exec, httpGet, tcpSocket, grpc"));
    if let Some(grpc) = &probe.grpc {
        check_port(at, &IntOrString::Int(grpc.port), container, found);
        let mode = grpc.mode.as_deref().unwrap_or("Plaintext");
        found.unsupported(mode != "Plaintext", &format!("{at}: grpc.mode {mode}"));
    }
    check_command(at, probe.exec.as_ref(), found);
    found.require(probe.termination_grace_period_seconds.is_none_or(|seconds| seconds > 0), || {
        format!("{at}: terminationGracePeriodSeconds is not positive")
    });
    found.require(name == "readinessProbe" || probe.success_threshold.is_none_or(|n| n == 1), || {
        format!("{at}: successThreshold must be 1")
    });
    found.require(name != "readinessProbe" || probe.termination_grace_period_seconds.is_none(), || {
        format!("{at}: terminationGracePeriodSeconds is not for readiness probes")
    });
    let numbers = [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("periodSeconds", probe.period_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("failureThreshold", probe.failure_threshold),
        ("successThreshold", probe.success_threshold),
    ];
    for (field, value) in numbers {
        found.require(value.is_none_or(|value| value >= 0), || format!("{at}: {field} is negative"));
    }
    if let Some(get) = &probe.http_get {
        check_http_get(at, get, found);
    }
    let port = probe.http_get.as_ref().map(|get| &get.port).or(probe.tcp_socket.as_ref().map(|tcp| &tcp.port));
    if let Some(port) = port {
        check_port(at, port, container, found);
    }
}

fn check_command(at: &str, exec: Option<&ExecAction>, found: &mut Found) {
    let empty = exec.is_some_and(|exec| exec.command.as_ref().is_none_or(Vec::is_empty));
    found.require(!empty, || format!("{at}: exec has no command"));
}

fn check_http_get(at: &str, get: &HTTPGetAction, found: &mut Found) {
    let scheme = get.scheme.as_deref().unwrap_or("HTTP");
    found.require(matches!(scheme, "HTTP" | "HTTPS"), || format!("{at}: scheme `{scheme}` is not HTTP or HTTPS"));
    for header in get.http_headers.iter().flatten() {
        let good = reqwest::header::HeaderName::try_from(header.name.as_str()).is_ok()
            && reqwest::header::HeaderValue::try_from(header.value.as_str()).is_ok();
        found.require(good, || format!("{at}: `{}` is not an HTTP header", header.name));
    }
    found.unsupported(get.protocol.is_some(), &format!("{at}: httpGet.protocol"));
}

fn check_port(at: &str, port: &IntOrString, container: &Container, found: &mut Found) {
    match port {
        IntOrString::Int(port) => found.require((1..=65535).contains(port), || format!("{at}: {port} is no port")),
        IntOrString::String(name) => {
            let known = container.ports.iter().flatten().any(|port| port.name.as_ref() == Some(name));
            found.require(known || name.parse::<u16>().is_ok(), || format!("{at}: the container has no port `{name}`"));
        }
    }
}

/// Whether the path stays below the directory that it is taken from, as far as its text says.
pub(in crate::agent) fn is_below(path: &str) -> bool {
    !path.starts_with('/') && !path.split('/').any(|part| part == "..")
}

fn is_address(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
}

/// IANA service name: letters, digits and single dashes, at most 15, a letter among them.
fn is_port_name(text: &str) -> bool {
    is_dns_label(text) && text.len() <= 15 && !text.contains("--") && text.bytes().any(|byte| byte.is_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{error, pod};

    fn with(spec: &str, container: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  volumes: [{{name: v, hostPath: {{path: /x}}}}]\n  \
             {spec}\n  containers:\n  - name: c\n    image: i:1\n    {container}\n"
        )
    }

    #[test]
    fn references_to_api_objects_are_refused() {
        for (spec, container, what) in [
            ("serviceAccountName: sa", "", "serviceaccounts"),
            ("imagePullSecrets: [{name: s}]", "", "secrets"),
            ("resourceClaims: [{name: gpu, resourceClaimName: g}]", "", "resourceclaims"),
            ("runtimeClassName: kata", "", "runtimeclasses"),
            ("", "envFrom: [{configMapRef: {name: m}}]", "configmaps"),
            ("", "envFrom: [{secretRef: {name: s}}]", "secrets"),
            ("", "env: [{name: A, valueFrom: {configMapKeyRef: {name: m, key: k}}}]", "configmaps"),
            ("", "env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]", "secrets"),
            ("", "resources: {claims: [{name: gpu}]}", "resourceclaims"),
        ] {
            let reason = error(&with(spec, container));
            assert!(reason.contains(&format!("may not reference {what}")), "{reason}");
        }
        for (volume, what) in [
            ("configMap: {name: m}", "configmaps"),
            ("secret: {secretName: s}", "secrets"),
            ("persistentVolumeClaim: {claimName: c}", "persistentvolumeclaims"),
            ("ephemeral: {volumeClaimTemplate: {spec: {}}}", "persistentvolumeclaims"),
            ("csi: {driver: d}", "csidrivers"),
            ("azureFile: {shareName: s, secretName: s}", "secrets"),
            ("glusterfs: {endpoints: e, path: p}", "endpoints"),
            ("projected: {sources: [{configMap: {name: m}}]}", "configmaps"),
            ("projected: {sources: [{secret: {name: s}}, {downwardAPI: {}}]}", "secrets"),
            ("projected: {sources: [{serviceAccountToken: {path: p}}]}", "serviceaccounts"),
            ("projected: {sources: [{clusterTrustBundle: {path: p}}]}", "clustertrustbundles"),
            ("projected: {sources: [{podCertificate: {signerName: s, keyType: k}}]}", "podcertificaterequests"),
        ] {
            let reason = error(&with("", "").replace("hostPath: {path: /x}", volume));
            assert!(reason.contains("may not reference") && reason.contains(what), "{volume}: {reason}");
        }
    }

    #[test]
    fn what_would_be_lost_in_silence_is_refused() {
        for (spec, container, what) in [
            ("activeDeadlineSeconds: 5", "", "activeDeadlineSeconds"),
            ("hostUsers: false", "", "hostUsers"),
            ("initContainers: [{name: s, image: i, restartPolicy: OnFailure}]", "", "its own restartPolicy"),
            ("", "restartPolicy: Always", "its own restartPolicy"),
            ("", "lifecycle: {preStop: {tcpSocket: {port: 1}}}", "tcpSocket"),
            ("", "livenessProbe: {grpc: {port: 1, mode: TLS}}", "grpc.mode TLS"),
            ("", "livenessProbe: {httpGet: {port: 1, protocol: HTTP2}}", "httpGet.protocol"),
            ("", "resources: {limits: {hugepages-2Mi: 4Mi}}", "hugepages-2Mi"),
            ("", "resources: {limits: {example.com/gpu: 1}}", "example.com/gpu"),
            ("", "securityContext: {procMount: Unmasked}", "procMount"),
            ("", "env: [{name: A, valueFrom: {fileKeyRef: {volumeName: v, path: p, key: k}}}]", "fileKeyRef"),
            ("hostnameOverride: x", "", "hostnameOverride"),
            ("securityContext: {supplementalGroupsPolicy: Strict}", "", "supplementalGroupsPolicy: Strict"),
            ("resources: {limits: {cpu: 1}}", "", "limits of the whole pod"),
        ] {
            let reason = error(&with(spec, container));
            assert!(reason.contains(what) && reason.contains("not supported"), "{reason}");
        }
        let reason = error(&with("", "").replace("hostPath: {path: /x}", "emptyDir: {mode: 0o700}"));
        assert!(reason.contains("emptyDir.mode is not supported"), "{reason}");
    }

    #[test]
    fn only_who_can_run_beside_itself_is_replaced_new_first() {
        let probe = "readinessProbe: {httpGet: {port: 1}}";
        let read = |value: &str, network: &str, name: &str, container: &str| {
            let text = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, annotations: {{plinth.dev/update: {value}}}}}\nspec:\n  \
                 {network}\n  containers:\n  - name: {name}\n    image: i\n    {container}\n"
            );
            super::super::StaticPod::read(&text, std::path::Path::new("/m/p.yaml"), "n")
                .map_err(|error| error.to_string())
        };
        assert!(read("surge", "hostNetwork: true", "c", probe).unwrap().surges());
        let etcd = format!("{probe}\n    command: [/usr/local/bin/etcd, --name=x]");
        for (value, network, name, container, what) in [
            ("other", "hostNetwork: true", "c", probe, "the only way is `surge`"),
            ("surge", "hostNetwork: false", "c", probe, "not on the host's network"),
            ("surge", "hostNetwork: true", "etcd", probe, "two of etcd"),
            ("surge", "hostNetwork: true", "c", &etcd, "two of etcd"),
            (
                "surge",
                "hostNetwork: true",
                "c",
                "readinessProbe: {tcpSocket: {port: 1}}",
                "readinessProbe with httpGet",
            ),
        ] {
            let reason = read(value, network, name, container).unwrap_err();
            assert!(reason.contains(what), "{reason}");
        }
    }

    #[test]
    fn what_the_kubelet_refuses_is_refused() {
        for (spec, container, what) in [
            ("restartPolicy: Sometimes", "", "restartPolicy"),
            ("", "volumeMounts: [{name: nope, mountPath: /x}]", "no such volume"),
            ("", "volumeMounts: [{name: v, mountPath: /x}, {name: v, mountPath: /x}]", "mounted twice"),
            ("", "volumeMounts: [{name: v, mountPath: /x, mountPropagation: Bidirectional}]", "privileged"),
            ("", "volumeMounts: [{name: v, mountPath: /x, subPath: a/../b}]", "without `..`"),
            ("", "volumeMounts: [{name: v, mountPath: /x, subPathExpr: /a}]", "not a relative path"),
            ("", "volumeMounts: [{name: v, mountPath: /x, subPath: a, subPathExpr: b}]", "exclude each other"),
            ("", "livenessProbe: {exec: {command: [a]}, tcpSocket: {port: 1}}", "exactly one"),
            ("", "livenessProbe: {tcpSocket: {port: 1}, successThreshold: 2}", "successThreshold"),
            ("", "readinessProbe: {tcpSocket: {port: 1}, terminationGracePeriodSeconds: 2}", "readiness"),
            ("", "livenessProbe: {tcpSocket: {port: web}}", "no port `web`"),
            ("", "ports: [{containerPort: 70000}]", "70000"),
            ("", "lifecycle: {preStop: {}}", "exactly one"),
            ("", "lifecycle: {preStop: {sleep: {seconds: 31}}}", "grace of 30 s"),
            ("", "lifecycle: {postStart: {httpGet: {port: web}}}", "no port `web`"),
            ("initContainers: [{name: s, image: i, lifecycle: {}}]", "", "have no lifecycle"),
            ("hostNetwork: true", "ports: [{containerPort: 80, hostPort: 81}]", "must equal"),
            ("", "resources: {limits: {memory: lots}}", "no quantity"),
            ("initContainers: [{name: c, image: i}]", "", "used twice"),
            ("hostPID: true\n  shareProcessNamespace: true", "", "exclude each other"),
            ("hostname: A", "", "spec.hostname"),
            ("subdomain: a.b", "", "spec.subdomain"),
            ("hostAliases: [{ip: '10.0.0', hostnames: [a]}]", "", "not an IP address"),
            ("hostAliases: [{ip: 10.0.0.1, hostnames: [a_b]}]", "", "not a DNS name"),
            ("dnsPolicy: Cluster", "", "`Cluster` is unknown"),
            ("dnsPolicy: None", "", "at least one name server"),
            ("dnsConfig: {nameservers: [1.1.1.1, 1.1.1.2, 1.1.1.3, 1.1.1.4]}", "", "more than 3"),
            ("dnsConfig: {nameservers: [dns]}", "", "`dns` is not an IP address"),
            ("dnsConfig: {searches: ['a b']}", "", "not a search domain"),
            ("dnsConfig: {options: [{value: '1'}]}", "", "an option has no name"),
            ("securityContext: {runAsUser: -1}", "", "not a user or group"),
            ("securityContext: {supplementalGroups: [4294967296]}", "", "not a user or group"),
            ("securityContext: {sysctls: [{name: vm.swappiness, value: '1'}]}", "", "of the whole node"),
            (
                "hostNetwork: true\n  securityContext: {sysctls: [{name: net.core.somaxconn, value: '1'}]}",
                "",
                "hostNetwork",
            ),
            ("hostIPC: true\n  securityContext: {sysctls: [{name: kernel/sem, value: '1'}]}", "", "hostIPC"),
            ("securityContext: {supplementalGroupsPolicy: strict}", "", "`strict` is not Merge or Strict"),
            ("securityContext: {fsGroupChangePolicy: Never}", "", "`Never` is not OnRootMismatch or Always"),
            ("securityContext: {seLinuxChangePolicy: ''}", "", "`` is not MountOption or Recursive"),
            ("securityContext: {seccompProfile: {type: Local}}", "", "`Local` is not"),
            ("securityContext: {seccompProfile: {type: Localhost}}", "", "localhostProfile"),
            ("securityContext: {seccompProfile: {type: Localhost, localhostProfile: /p}}", "", "relative path"),
            ("securityContext: {seccompProfile: {type: Unconfined, localhostProfile: p}}", "", "localhostProfile"),
            ("", "securityContext: {appArmorProfile: {type: Localhost}}", "localhostProfile"),
            ("", "securityContext: {privileged: true, allowPrivilegeEscalation: false}", "exclude each other"),
            ("", "ports: [{containerPort: 80, protocol: ICMP}]", "`ICMP` is not"),
            ("", "ports: [{containerPort: 80, hostIP: lo, hostPort: 80}]", "hostIP `lo`"),
            ("", "ports: [{containerPort: 80, name: Web}]", "not a name for a port"),
            ("", "ports: [{containerPort: 80, name: a}, {containerPort: 81, name: a}]", "used twice"),
            ("", "ports: [{containerPort: 80, hostPort: 1}, {containerPort: 81, hostPort: 1}]", "used twice"),
            ("", "env: [{name: 'A=B', value: x}]", "the name is empty"),
            ("", "env: [{name: A, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]", "exclude each other"),
            ("", "env: [{name: A, valueFrom: {}}]", "exactly one source"),
            ("", "env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.nope}}}]", "not for variables"),
            ("", "resources: {limits: {memory: 1Mi}, requests: {memory: 2Mi}}", "more memory than its limit"),
            ("", "resources: {limits: {cpu: -1}}", "no quantity"),
            ("", "terminationMessagePolicy: Log", "terminationMessagePolicy"),
            ("", "livenessProbe: {exec: {command: []}}", "no command"),
            ("", "livenessProbe: {grpc: {port: 0}}", "0 is no port"),
            ("", "livenessProbe: {tcpSocket: {port: 1}, terminationGracePeriodSeconds: 0}", "not positive"),
            ("", "livenessProbe: {httpGet: {port: 1, httpHeaders: [{name: 'a b', value: x}]}}", "not an HTTP header"),
            ("", "volumeMounts: [{name: v, mountPath: 'a:b'}]", "contains `:`"),
            ("", "volumeMounts: [{name: v, mountPath: /x, recursiveReadOnly: Enabled}]", "needs readOnly"),
            (
                "",
                "volumeMounts: [{name: v, mountPath: /x, readOnly: true, recursiveReadOnly: Enabled, mountPropagation: HostToContainer}]",
                "no mountPropagation",
            ),
            ("os: {name: linux}", "lifecycle: {stopSignal: SIGNOPE}", "is no signal"),
            ("", "lifecycle: {stopSignal: SIGUSR1}", "spec.os.name"),
            ("initContainers: [{name: s, image: i, livenessProbe: {tcpSocket: {port: 1}}}]", "", "have no probes"),
        ] {
            let reason = error(&with(spec, container));
            assert!(reason.contains(what), "{reason}");
        }
        for (from, to, what) in [
            ("path: /x", "path: /x/../y", "`..`"),
            ("{path: /x}", "{path: /x, type: Fifo}", "type `Fifo` is unknown"),
            ("hostPath: {path: /x}", "hostPath: {path: /x}, emptyDir: {}", "more than one source"),
            ("hostPath: {path: /x}", "emptyDir: {medium: HugePages}", "medium `HugePages`"),
            ("name: v", "name: V", "not a DNS label"),
            ("hostPath: {path: /x}}", "emptyDir: {}}, {name: v, emptyDir: {}}", "used twice"),
            ("name: a}", "name: a, labels: {a b: c}}", "is not a label"),
            ("name: a}", "name: a, labels: {a: '-'}}", "is not a label"),
            ("name: a}", "name: a, annotations: {a/b/c: d}}", "is not a name"),
            (
                "name: a}",
                "name: a, annotations: {container.apparmor.security.beta.kubernetes.io/c: nope}}",
                "not an AppArmor profile",
            ),
            ("image: i:1", "image: ' i:1'", "space around"),
        ] {
            let reason = error(&with("", "").replacen(from, to, 1));
            assert!(reason.contains(what), "{to}: {reason}");
        }
    }

    #[test]
    fn files_of_the_downward_api_are_checked() {
        let name = "fieldRef: {fieldPath: metadata.name}";
        for (items, what) in [
            (format!("[{{path: ../a, {name}}}]"), "without `..`"),
            (format!("[{{path: ..a, {name}}}]"), "without `..`"),
            (format!("[{{path: /a, {name}}}]"), "without `..`"),
            (format!("[{{path: a, mode: 01000, {name}}}]"), "mode 1000"),
            (format!("[{{path: a, {name}}}, {{path: a, {name}}}]"), "used twice"),
            ("[{path: a}]".to_owned(), "exactly one"),
            ("[{path: a, fieldRef: {fieldPath: status.podIP}}]".to_owned(), "not for volumes"),
            ("[{path: a, resourceFieldRef: {resource: limits.cpu}}]".to_owned(), "names no container"),
        ] {
            for volume in [
                format!("downwardAPI: {{items: {items}}}"),
                format!("projected: {{sources: [{{downwardAPI: {{items: {items}}}}}]}}"),
            ] {
                let reason = error(&with("", "").replace("hostPath: {path: /x}", &volume));
                assert!(reason.contains(what), "{volume}: {reason}");
            }
        }
    }

    #[test]
    fn all_reasons_are_given_at_once() {
        let reason = error(&with("serviceAccountName: sa", "livenessProbe: {grpc: {port: 1, mode: TLS}}"));
        assert_eq!(reason.split("; ").count(), 2, "{reason}");
    }

    #[test]
    fn what_does_not_matter_here_is_accepted_with_a_warning() {
        for spec in [
            "nodeSelector: {a: b}",
            "topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule}]",
            "dnsPolicy: ClusterFirst",
            "hostNetwork: true\n  dnsPolicy: ClusterFirstWithHostNet",
        ] {
            assert_eq!(pod(&with(spec, "")).warnings.len(), 1, "{spec}");
        }
    }

    #[test]
    fn limits_of_disk_space_are_named_once_for_a_pod() {
        let limit = "resources: {limits: {ephemeral-storage: 1Gi}}";
        let (container, init) = ("container `c`", format!("initContainers: [{{name: s, image: i, {limit}}}]"));
        let (of, volume) = ("ephemeral-storage limit of", "sizeLimit of volume `v`");
        for (source, spec, container, expected) in [
            ("emptyDir: {sizeLimit: 1Gi}", "", "", volume.to_owned()),
            ("hostPath: {path: /x}", "", limit, format!("{of} {container}")),
            ("emptyDir: {sizeLimit: 1Gi}", &init, limit, format!("{volume}, {of} container `s`, {of} {container}")),
        ] {
            let warnings = pod(&with(spec, container).replace("hostPath: {path: /x}", source)).warnings;
            assert_eq!(warnings, [format!("limits of disk space are not enforced: {expected}")], "{source} {spec}");
        }
        let memory = with("", "").replace("hostPath: {path: /x}", "emptyDir: {medium: Memory, sizeLimit: 1Gi}");
        assert_eq!(pod(&memory).warnings, Vec::<String>::new(), "the size of a tmpfs is enforced");
    }

    #[test]
    fn what_a_kubelet_takes_is_taken_without_a_word() {
        for (spec, container) in [
            (
                "securityContext: {sysctls: [{name: net/ipv4/tcp_syncookies, value: '1'}, {name: kernel.sem, value: '1'}]}",
                "",
            ),
            ("securityContext: {supplementalGroupsPolicy: Merge, fsGroupChangePolicy: Always}", ""),
            ("securityContext: {fsGroupChangePolicy: OnRootMismatch, seLinuxChangePolicy: Recursive}", ""),
            ("dnsConfig: {searches: [., a_b.c.], options: [{name: rotate}]}", ""),
            ("os: {name: linux}", "lifecycle: {stopSignal: SIGRTMIN+3}"),
            ("", "livenessProbe: {grpc: {port: 1, service: s}}"),
            ("", "env: [{name: my.env-1, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['x']\"}}}]"),
            ("hostNetwork: true\n  dnsPolicy: ClusterFirst", ""),
            ("terminationGracePeriodSeconds: -1", "resources: {requests: {ephemeral-storage: 1Gi}}"),
            ("", "volumeMounts: [{name: v, mountPath: rel, readOnly: true, recursiveReadOnly: IfPossible}]"),
            ("", "ports: [{containerPort: 53, hostPort: 53}, {containerPort: 53, hostPort: 53, protocol: UDP}]"),
        ] {
            assert_eq!(pod(&with(spec, container)).warnings, Vec::<String>::new(), "{spec} {container}");
        }
    }
}
