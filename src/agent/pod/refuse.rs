//! What is refused, and why: manifests the kubelet refuses, references to API objects, and fields that this agent
//! does not implement and whose silent loss would change what the pod means.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, HTTPGetAction, LifecycleHandler, PodSpec, Probe, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::PodKey;
use crate::agent::{projection, quantity};

/// Names of Linux capabilities, hosts and volumes are checked by the runtime; here is what it would not notice.
pub(super) fn check(
    key: &PodKey,
    metadata: &ObjectMeta,
    spec: &PodSpec,
    warnings: &mut Vec<String>,
) -> Result<(), Vec<String>> {
    let mut found = Found::default();
    found.require(is_subdomain(&key.name), || format!("metadata.name: `{}` is not a DNS subdomain", key.name));
    found.require(is_label(&key.namespace), || format!("metadata.namespace: `{}` is not a DNS label", key.namespace));
    if let Some(uid) = metadata.uid.as_deref().filter(|uid| !uid.is_empty()) {
        let plain = uid.len() <= 63 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        found.require(plain, || format!("metadata.uid: `{uid}` is not made of letters, digits and dashes"));
    }
    check_pod(spec, &mut found, warnings);
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        check_volume(&format!("spec.volumes[{index}] ({})", volume.name), volume, spec, &mut found);
    }
    let mut names = BTreeSet::new();
    let init = spec.init_containers.iter().flatten().map(|container| (container, true));
    for (container, init) in init.chain(spec.containers.iter().map(|container| (container, false))) {
        let at = format!("{} `{}`", if init { "init container" } else { "container" }, container.name);
        found.require(is_label(&container.name), || format!("{at}: the name is not a DNS label"));
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
    found.unsupported(spec.set_hostname_as_fqdn == Some(true), "spec.setHostnameAsFQDN");
    found.unsupported(named(&spec.hostname_override), "spec.hostnameOverride");
    found.unsupported(spec.resources.is_some(), "spec.resources (limits of the whole pod)");
    found.unsupported(spec.scheduling_gates.iter().flatten().next().is_some(), "spec.schedulingGates");
    found.unsupported(spec.readiness_gates.iter().flatten().next().is_some(), "spec.readinessGates");
    found.unsupported(spec.os.as_ref().is_some_and(|os| os.name != "linux"), "spec.os.name other than linux");
    if let Some(context) = &spec.security_context {
        found.unsupported(context.se_linux_options.is_some(), "spec.securityContext.seLinuxOptions");
        found.unsupported(context.windows_options.is_some(), "spec.securityContext.windowsOptions");
        found.unsupported(
            context.seccomp_profile.as_ref().is_some_and(|profile| profile.type_ == "Localhost"),
            "spec.securityContext.seccompProfile of type Localhost",
        );
    }
    if spec.node_selector.as_ref().is_some_and(|selector| !selector.is_empty()) || spec.affinity.is_some() {
        warnings.push("spec.nodeSelector and spec.affinity are ignored: a static pod is where its file is".to_owned());
    }
    if spec.subdomain.is_some() {
        warnings.push("spec.subdomain is ignored: there is no cluster DNS behind a static pod".to_owned());
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
        if let Some(limit) = &empty_dir.size_limit {
            found.require(quantity::bytes(&limit.0).is_some(), || {
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
    found.require(container.image.as_ref().is_some_and(|image| !image.trim().is_empty()), || {
        format!("{at}: it has no image")
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
        let Some(from) = &variable.value_from else { continue };
        let at = format!("{at}, env {}", variable.name);
        found.api_object(from.config_map_key_ref.is_some(), &at, "configmaps");
        found.api_object(from.secret_key_ref.is_some(), &at, "secrets");
        found.unsupported(from.file_key_ref.is_some(), &format!("{at}: fileKeyRef"));
    }
    if let Some(resources) = &container.resources {
        found.api_object(resources.claims.iter().flatten().next().is_some(), at, "resourceclaims");
        for (name, value) in resources.limits.iter().flatten().chain(resources.requests.iter().flatten()) {
            found.require(quantity::milli(&value.0).is_some(), || format!("{at}: {name} `{}` is no quantity", value.0));
        }
    }
    check_mounts(at, container, spec, found);
    check_security(at, container, found);

    for port in container.ports.iter().flatten() {
        let valid = |port: i32| (1..=65535).contains(&port);
        found.require(valid(port.container_port), || format!("{at}: containerPort {} is no port", port.container_port));
        if let Some(host_port) = port.host_port.filter(|port| *port != 0) {
            found.require(valid(host_port), || format!("{at}: hostPort {host_port} is no port"));
            found.require(spec.host_network != Some(true) || host_port == port.container_port, || {
                format!("{at}: hostPort {host_port} must equal containerPort on the host's network")
            });
        }
    }
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
        found.unsupported(lifecycle.stop_signal.is_some(), &format!("{at}: lifecycle.stopSignal"));
        for (name, handler) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
            let grace = spec.termination_grace_period_seconds.unwrap_or(0);
            if let Some(handler) = handler {
                check_hook(&format!("{at}, {name}"), handler, grace, container, found);
            }
        }
    }
}

fn check_hook(at: &str, handler: &LifecycleHandler, grace: i64, container: &Container, found: &mut Found) {
    let handlers =
        [handler.exec.is_some(), handler.http_get.is_some(), handler.sleep.is_some(), handler.tcp_socket.is_some()];
    let count = handlers.into_iter().filter(|present| *present).count();
    found.require(count == 1, || format!("{at}: it needs exactly one of exec, httpGet, sleep"));
    // A kubelet accepts it and lets it fail.
    found.unsupported(handler.tcp_socket.is_some(), &format!("{at}: tcpSocket"));
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
        let sub_paths =
            || [&mount.sub_path, &mount.sub_path_expr].into_iter().flatten().filter(|path| !path.is_empty());
        found.require(sub_paths().count() < 2, || format!("{at}: subPath and subPathExpr exclude each other"));
        for path in sub_paths() {
            found.require(is_below(path), || format!("{at}: subPath `{path}` is not a relative path without `..`"));
        }
        let recursive = mount.recursive_read_only.as_deref().is_some_and(|value| value != "Disabled");
        found.unsupported(recursive, &format!("{at}: recursiveReadOnly"));
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
    found.unsupported(context.se_linux_options.is_some(), &format!("{at}: seLinuxOptions"));
    found.unsupported(context.windows_options.is_some(), &format!("{at}: windowsOptions"));
    found.unsupported(context.proc_mount.as_deref().is_some_and(|p| p != "Default"), &format!("{at}: procMount"));
    found.unsupported(
        context.seccomp_profile.as_ref().is_some_and(|profile| profile.type_ == "Localhost"),
        &format!("{at}: seccompProfile of type Localhost"),
    );
    let contradiction = context.allow_privilege_escalation == Some(false) && context.privileged == Some(true);
    found
        .require(!contradiction, || format!("{at}: privileged and allowPrivilegeEscalation: false exclude each other"));
}

fn check_probe(at: &str, name: &str, probe: &Probe, container: &Container, found: &mut Found) {
    let handlers = [probe.exec.is_some(), probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.grpc.is_some()];
    let count = handlers.into_iter().filter(|present| *present).count();
    found.require(count == 1, || format!("{at}: it needs exactly one of exec, httpGet, tcpSocket, grpc"));
    found.unsupported(probe.grpc.is_some(), &format!("{at}: grpc"));
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

fn check_http_get(at: &str, get: &HTTPGetAction, found: &mut Found) {
    let scheme = get.scheme.as_deref().unwrap_or("HTTP");
    found.require(matches!(scheme, "HTTP" | "HTTPS"), || format!("{at}: scheme `{scheme}` is not HTTP or HTTPS"));
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

/// RFC 1123 label, at most 63 bytes.
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= 63 && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// RFC 1123 subdomain, at most 253 bytes.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|part| {
            let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-')
        })
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
            ("", "envFrom: [{configMapRef: {name: m}}]", "configmaps"),
            ("", "env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]", "secrets"),
        ] {
            let reason = error(&with(spec, container));
            assert!(reason.contains(&format!("may not reference {what}")), "{reason}");
        }
        let projected = "projected: {sources: [{secret: {name: s}}, {downwardAPI: {}}]}";
        assert!(error(&with("", "").replace("hostPath: {path: /x}", projected)).contains("may not reference secrets"));
        let volume = with("", "").replace("hostPath: {path: /x}", "secret: {secretName: s}");
        assert!(error(&volume).contains("may not reference secrets"));
    }

    #[test]
    fn what_would_be_lost_in_silence_is_refused() {
        for (spec, container, what) in [
            ("activeDeadlineSeconds: 5", "", "activeDeadlineSeconds"),
            ("hostUsers: false", "", "hostUsers"),
            ("initContainers: [{name: s, image: i, restartPolicy: OnFailure}]", "", "its own restartPolicy"),
            ("", "restartPolicy: Always", "its own restartPolicy"),
            ("", "lifecycle: {preStop: {tcpSocket: {port: 1}}}", "tcpSocket"),
            ("", "livenessProbe: {grpc: {port: 1}}", "grpc"),
            ("securityContext: {seccompProfile: {type: Localhost, localhostProfile: p}}", "", "Localhost"),
        ] {
            let reason = error(&with(spec, container));
            assert!(reason.contains(what) && reason.contains("not supported"), "{reason}");
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
            ("initContainers: [{name: s, image: i, livenessProbe: {tcpSocket: {port: 1}}}]", "", "have no probes"),
        ] {
            let reason = error(&with(spec, container));
            assert!(reason.contains(what), "{reason}");
        }
        assert!(error(&with("", "").replace("path: /x", "path: /x/../y")).contains("`..`"));
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
        let reason = error(&with("serviceAccountName: sa", "livenessProbe: {grpc: {port: 1}}"));
        assert_eq!(reason.split("; ").count(), 2, "{reason}");
    }

    #[test]
    fn what_does_not_matter_here_is_accepted_with_a_warning() {
        let pod = pod(&with("nodeSelector: {a: b}", ""));
        assert_eq!(pod.warnings.len(), 1);
    }
}
