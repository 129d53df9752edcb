//! API defaulting of a Pod (`pkg/apis/core/v1/defaults.go`), as far as the agent's behaviour depends on it.
//!
//! Every value here is part of the hash of [`super::identity`]: adding one restarts every pod.

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, HTTPGetAction, PodSpec, Probe};

/// `terminationGracePeriodSeconds` of a pod that says nothing (`DefaultTerminationGracePeriodSeconds`).
pub(in crate::agent) const DEFAULT_GRACE: i64 = 30;

/// Fills in what the manifest leaves open.
pub(super) fn fill(spec: &mut PodSpec) {
    spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".to_owned());
    spec.scheduler_name.get_or_insert_with(|| "default-scheduler".to_owned());
    spec.termination_grace_period_seconds.get_or_insert(DEFAULT_GRACE);
    spec.security_context.get_or_insert_default();
    spec.enable_service_links.get_or_insert(true);
    let host_network = spec.host_network == Some(true);
    for volume in spec.volumes.iter_mut().flatten() {
        if let Some(host_path) = &mut volume.host_path {
            host_path.type_.get_or_insert_default();
        } else if serde_json::to_value(&*volume).is_ok_and(|fields| fields.as_object().is_some_and(|f| f.len() == 1)) {
            // Only the name: no source at all.
            volume.empty_dir = Some(EmptyDirVolumeSource::default());
        }
    }
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        fill_container(container, host_network);
    }
}

fn fill_container(container: &mut Container, host_network: bool) {
    let image = container.image.as_deref().unwrap_or_default();
    let policy = if tag_is_latest(image) { "Always" } else { "IfNotPresent" };
    container.image_pull_policy.get_or_insert_with(|| policy.to_owned());
    container.termination_message_path.get_or_insert_with(|| "/dev/termination-log".to_owned());
    container.termination_message_policy.get_or_insert_with(|| "File".to_owned());
    for port in container.ports.iter_mut().flatten() {
        port.protocol.get_or_insert_with(|| "TCP".to_owned());
        if host_network {
            port.host_port.get_or_insert(port.container_port);
        }
    }
    if let Some(resources) = &mut container.resources
        && let Some(limits) = &resources.limits
    {
        let requests = resources.requests.get_or_insert_default();
        for (name, quantity) in limits {
            requests.entry(name.clone()).or_insert_with(|| quantity.clone());
        }
    }
    for variable in container.env.iter_mut().flatten() {
        if let Some(field) = variable.value_from.as_mut().and_then(|from| from.field_ref.as_mut()) {
            field.api_version.get_or_insert_with(|| "v1".to_owned());
        }
    }
    [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe]
        .into_iter()
        .flatten()
        .for_each(fill_probe);
    if let Some(lifecycle) = &mut container.lifecycle {
        let handlers = [&mut lifecycle.post_start, &mut lifecycle.pre_stop].into_iter().flatten();
        handlers.filter_map(|handler| handler.http_get.as_mut()).for_each(fill_http_get);
    }
}

fn fill_probe(probe: &mut Probe) {
    let or = |value: &mut Option<i32>, default: i32| {
        if value.is_none_or(|value| value == 0) {
            *value = Some(default);
        }
    };
    or(&mut probe.timeout_seconds, 1);
    or(&mut probe.period_seconds, 10);
    or(&mut probe.success_threshold, 1);
    or(&mut probe.failure_threshold, 3);
    probe.http_get.iter_mut().for_each(fill_http_get);
}

fn fill_http_get(get: &mut HTTPGetAction) {
    get.path.get_or_insert_with(|| "/".to_owned());
    get.scheme.get_or_insert_with(|| "HTTP".to_owned());
}

/// Whether an image reference has the tag `latest`, or neither tag nor digest.
fn tag_is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    // A colon before the last slash belongs to the registry's port.
    let name = image.rsplit('/').next().unwrap_or(image);
    name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

#[cfg(test)]
mod tests {
    use super::super::tests::pod;
    use super::*;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, latest) in [
            ("busybox", true),
            ("busybox:latest", true),
            ("busybox:1", false),
            ("localhost:5000/busybox", true),
            ("localhost:5000/busybox:1", false),
            ("busybox@sha256:00", false),
        ] {
            assert_eq!(tag_is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn probes_requests_and_host_ports_get_their_defaults() {
        let pod = pod("
apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  hostNetwork: true
  volumes: [{name: scratch}, {name: host, hostPath: {path: /x}}]
  containers:
  - name: c
    image: i
    ports: [{containerPort: 80}]
    resources: {limits: {memory: 1Gi}}
    readinessProbe: {httpGet: {port: 80}}
");
        let container = &pod.containers()[0];
        let probe = container.readiness_probe.as_ref().unwrap();
        assert_eq!(
            (probe.period_seconds, probe.timeout_seconds, probe.failure_threshold),
            (Some(10), Some(1), Some(3))
        );
        assert_eq!(probe.http_get.as_ref().unwrap().path.as_deref(), Some("/"));
        assert_eq!(container.ports.as_ref().unwrap()[0].host_port, Some(80));
        assert_eq!(container.resources.as_ref().unwrap().requests.as_ref().unwrap()["memory"].0, "1Gi");
        let volumes = pod.spec.volumes.as_ref().unwrap();
        assert!(volumes[0].empty_dir.is_some());
        assert_eq!(volumes[1].host_path.as_ref().unwrap().type_.as_deref(), Some(""));
    }
}
