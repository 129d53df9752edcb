//! What the command line says.

use super::wire::{self, ClusterConfiguration, InitConfiguration};

/// Values of flags, unchecked; `None` where a flag was not given. Names follow kubeadm's flags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--apiserver-advertise-address`.
    pub apiserver_advertise_address: Option<String>,
    /// `--apiserver-bind-port`.
    pub apiserver_bind_port: Option<i32>,
    /// `--apiserver-cert-extra-sans`.
    pub apiserver_cert_extra_sans: Option<Vec<String>>,
    /// `--cert-dir`.
    pub cert_dir: Option<String>,
    /// `--control-plane-endpoint`.
    pub control_plane_endpoint: Option<String>,
    /// `--dry-run`.
    pub dry_run: Option<bool>,
    /// `--ignore-preflight-errors`.
    pub ignore_preflight_errors: Option<Vec<String>>,
    /// `--image-repository`.
    pub image_repository: Option<String>,
    /// `--kubernetes-version`.
    pub kubernetes_version: Option<String>,
    /// `--node-name`.
    pub node_name: Option<String>,
    /// `--pod-network-cidr`.
    pub pod_network_cidr: Option<String>,
    /// `--register-node`.
    pub register_node: Option<bool>,
    /// `--service-cidr`.
    pub service_cidr: Option<String>,
    /// `--service-dns-domain`.
    pub service_dns_domain: Option<String>,
    /// `--skip-phases`.
    pub skip_phases: Option<Vec<String>>,
}

/// A flag that was given, and the field it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Given {
    /// With its dashes.
    pub(super) flag: &'static str,
    /// Path in the configuration file.
    pub(super) field: &'static str,
    /// Whether it may stand beside `--config` (kubeadm: `isAllowedFlag`).
    pub(super) with_config: bool,
}

impl Overrides {
    /// Puts what was given in the place of what a configuration says; a list replaces a list. The node's name, which
    /// may stand beside a file, is left to the caller.
    pub(super) fn write_over(&self, init: &mut InitConfiguration, cluster: &mut ClusterConfiguration) {
        fn put<T: Clone>(over: &mut Option<T>, given: Option<&T>) {
            if let Some(given) = given {
                *over = Some(given.clone());
            }
        }
        let endpoint = init.local_api_endpoint.get_or_insert_default();
        put(&mut endpoint.advertise_address, self.apiserver_advertise_address.as_ref());
        put(&mut endpoint.bind_port, self.apiserver_bind_port.as_ref());
        if let Some(register) = self.register_node {
            let arguments = init.node_registration.get_or_insert_default().kubelet_extra_args.get_or_insert_default();
            arguments.retain(|argument| argument.name != wire::REGISTER_NODE);
            arguments.push(wire::Arg { name: wire::REGISTER_NODE.to_owned(), value: register.to_string() });
        }
        let api_server = cluster.api_server.get_or_insert_default();
        put(&mut api_server.cert_sans, self.apiserver_cert_extra_sans.as_ref());
        let networking = cluster.networking.get_or_insert_default();
        put(&mut networking.dns_domain, self.service_dns_domain.as_ref());
        put(&mut networking.pod_subnet, self.pod_network_cidr.as_ref());
        put(&mut networking.service_subnet, self.service_cidr.as_ref());
        put(&mut cluster.certificates_dir, self.cert_dir.as_ref());
        put(&mut cluster.control_plane_endpoint, self.control_plane_endpoint.as_ref());
        put(&mut cluster.image_repository, self.image_repository.as_ref());
        put(&mut cluster.kubernetes_version, self.kubernetes_version.as_ref());
    }

    /// The flags that were given.
    pub(super) fn given(&self) -> Vec<Given> {
        let row = |given: bool, flag, field| given.then_some(Given { flag, field, with_config: false });
        let beside = |given: bool, flag, field| given.then_some(Given { flag, field, with_config: true });
        [
            row(
                self.apiserver_advertise_address.is_some(),
                "--apiserver-advertise-address",
                "localAPIEndpoint.advertiseAddress",
            ),
            row(self.apiserver_bind_port.is_some(), "--apiserver-bind-port", "localAPIEndpoint.bindPort"),
            row(self.apiserver_cert_extra_sans.is_some(), "--apiserver-cert-extra-sans", "apiServer.certSANs"),
            row(self.cert_dir.is_some(), "--cert-dir", "certificatesDir"),
            row(self.control_plane_endpoint.is_some(), "--control-plane-endpoint", "controlPlaneEndpoint"),
            beside(self.dry_run.is_some(), "--dry-run", "dryRun"),
            beside(
                self.ignore_preflight_errors.is_some(),
                "--ignore-preflight-errors",
                "nodeRegistration.ignorePreflightErrors",
            ),
            row(self.image_repository.is_some(), "--image-repository", "imageRepository"),
            row(self.kubernetes_version.is_some(), "--kubernetes-version", "kubernetesVersion"),
            beside(self.node_name.is_some(), "--node-name", "nodeRegistration.name"),
            row(self.pod_network_cidr.is_some(), "--pod-network-cidr", "networking.podSubnet"),
            row(self.register_node.is_some(), "--register-node", "nodeRegistration.kubeletExtraArgs"),
            row(self.service_cidr.is_some(), "--service-cidr", "networking.serviceSubnet"),
            row(self.service_dns_domain.is_some(), "--service-dns-domain", "networking.dnsDomain"),
            beside(self.skip_phases.is_some(), "--skip-phases", "skipPhases"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
