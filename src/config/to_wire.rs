//! [`Cluster`] → kubeadm's format.

use serde_json::Value;

use super::wire::{self, ClusterConfiguration, InitConfiguration};
use super::{Cluster, ComponentOptions, San, duration};
use crate::yaml;

/// The effective configuration as a file of kubeadm's format: an `InitConfiguration` and a `ClusterConfiguration`,
/// every value written out, fields in alphabetical order.
///
/// On the same host it loads back to an equal cluster, but for [`Cluster::version_pinned`]: every value is named in it.
pub fn to_wire_yaml(cluster: &Cluster) -> String {
    let header = |kind: &str| (Some(wire::API_VERSION.to_owned()), Some(kind.to_owned()));
    let (api_version, kind) = header("InitConfiguration");
    let init = InitConfiguration {
        api_version,
        kind,
        local_api_endpoint: Some(wire::ApiEndpoint {
            advertise_address: Some(cluster.advertise_address.to_string()),
            bind_port: Some(cluster.bind_port.into()),
        }),
        node_registration: Some(wire::NodeRegistration {
            kubelet_extra_args: cluster
                .registration
                .is_some()
                .then(|| vec![wire::Arg { name: wire::REGISTER_NODE.to_owned(), value: true.to_string() }]),
            name: Some(cluster.node_name.clone()),
            taints: cluster.registration.as_ref().map(|registration| registration.taints.clone()),
            ..wire::NodeRegistration::default()
        }),
        timeouts: Some(wire::Timeouts {
            control_plane_component_health_check: Some(duration::format(
                cluster.timeouts.control_plane_component_health_check,
            )),
            kubernetes_api_call: Some(duration::format(cluster.timeouts.kubernetes_api_call)),
            ..wire::Timeouts::default()
        }),
        ..InitConfiguration::default()
    };

    let (api_version, kind) = header("ClusterConfiguration");
    let api_server = component(&cluster.api_server.options);
    let etcd = component(&cluster.etcd.options);
    let configuration = ClusterConfiguration {
        api_version,
        kind,
        api_server: Some(wire::ApiServer {
            cert_sans: sans(&cluster.api_server.cert_sans),
            extra_args: api_server.extra_args,
            extra_envs: api_server.extra_envs,
            extra_volumes: api_server.extra_volumes,
        }),
        ca_certificate_validity_period: Some(duration::format(cluster.certificates.ca_validity)),
        certificate_validity_period: Some(duration::format(cluster.certificates.leaf_validity)),
        certificates_dir: Some(cluster.cert_dir.display().to_string()),
        cluster_name: Some(cluster.cluster_name.clone()),
        control_plane_endpoint: cluster.control_plane_endpoint.as_ref().map(ToString::to_string),
        controller_manager: Some(component(&cluster.controller_manager)),
        encryption_algorithm: Some(cluster.certificates.algorithm.name().to_owned()),
        etcd: Some(wire::Etcd {
            external: None,
            local: Some(wire::LocalEtcd {
                data_dir: Some(cluster.etcd.data_dir.display().to_string()),
                extra_args: etcd.extra_args,
                extra_envs: etcd.extra_envs,
                image_repository: cluster.etcd.image_repository.clone(),
                image_tag: cluster.etcd.image_tag.clone(),
                peer_cert_sans: sans(&cluster.etcd.peer_cert_sans),
                server_cert_sans: sans(&cluster.etcd.server_cert_sans),
            }),
        }),
        image_repository: Some(cluster.image_repository.clone()),
        kubernetes_version: Some(cluster.version.to_string()),
        networking: Some(wire::Networking {
            dns_domain: Some(cluster.networking.dns_domain.clone()),
            pod_subnet: list(&cluster.networking.pod_subnets),
            service_subnet: list(&cluster.networking.service_subnets),
        }),
        scheduler: Some(component(&cluster.scheduler)),
        ..ClusterConfiguration::default()
    };
    format!("{}---\n{}", document(&init), document(&configuration))
}

fn document<T: serde::Serialize>(wire: &T) -> String {
    let mut value = serde_json::to_value(wire).unwrap_or_default();
    drop_empty(&mut value);
    // Plain texts, numbers and lists of them: there is nothing that YAML cannot hold.
    yaml::to_string(&value).unwrap_or_default()
}

/// Drops nulls and what is empty without them.
fn drop_empty(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(drop_empty);
            fields.retain(|_, value| !value.is_null() && value.as_object().is_none_or(|fields| !fields.is_empty()));
        }
        Value::Array(items) => items.iter_mut().for_each(drop_empty),
        _ => {}
    }
}

fn component(options: &ComponentOptions) -> wire::ControlPlaneComponent {
    let args = options.extra_args.iter().map(|(name, value)| wire::Arg { name: name.clone(), value: value.clone() });
    let volumes = options.extra_volumes.iter().map(|volume| wire::HostPathMount {
        host_path: volume.host_path.clone(),
        mount_path: volume.mount_path.clone(),
        name: volume.name.clone(),
        path_type: Some(volume.path_type.clone()).filter(|path_type| !path_type.is_empty()),
        read_only: volume.read_only.then_some(true),
    });
    let envs = options.extra_envs.iter().map(|env| wire::EnvVar {
        name: env.name.clone(),
        value: env.value.clone(),
        value_from: env.value_from.clone(),
    });
    wire::ControlPlaneComponent {
        extra_args: some_unless_empty(args.collect()),
        extra_envs: some_unless_empty(envs.collect()),
        extra_volumes: some_unless_empty(volumes.collect()),
    }
}

fn sans(sans: &[San]) -> Option<Vec<String>> {
    some_unless_empty(sans.iter().map(ToString::to_string).collect())
}

fn list<T: ToString>(items: &[T]) -> Option<String> {
    some_unless_empty(items.iter().map(ToString::to_string).collect()).map(|items: Vec<String>| items.join(","))
}

fn some_unless_empty<T>(items: Vec<T>) -> Option<Vec<T>> {
    Some(items).filter(|items| !items.is_empty())
}
