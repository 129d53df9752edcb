use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::error::Hint;

fn host() -> HostFacts {
    HostFacts {
        hostname: "Master-1".into(),
        interfaces: vec![Interface {
            name: "eth0".into(),
            up: true,
            addresses: vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)), "2001:db8::10".parse().unwrap()],
            ..Interface::default()
        }],
        default_routes: Some(vec![
            DefaultRoute { interface: "eth0".into(), ipv6: false },
            DefaultRoute { interface: "eth0".into(), ipv6: true },
        ]),
        ..HostFacts::default()
    }
}

fn from_file(text: &str) -> Result<Loaded, ConfigErrors> {
    load(Some(ConfigFile { name: "c.yaml", text }), &Overrides::default(), &host())
}

/// A `ClusterConfiguration` whose first field stands in line 3.
fn cluster_file(fields: &str) -> Result<Loaded, ConfigErrors> {
    from_file(&format!("apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n{fields}"))
}

fn init_file(fields: &str) -> Result<Loaded, ConfigErrors> {
    from_file(&format!("apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\n{fields}"))
}

fn flags(overrides: &Overrides) -> Result<Loaded, ConfigErrors> {
    load(None, overrides, &host())
}

#[test]
fn without_file_and_flags_everything_has_a_default() {
    let Loaded { cluster, running, skip_phases, ignore_preflight_errors, dry_run, warnings } =
        flags(&Overrides::default()).unwrap();
    assert_eq!(running, None);
    assert!(!cluster.version_pinned);
    assert_eq!(cluster.node_name, "master-1");
    assert_eq!(cluster.version.to_string(), "v1.37.1");
    assert_eq!(cluster.advertise_address.to_string(), "192.0.2.10");
    assert_eq!(cluster.bind_port, 6443);
    assert_eq!(cluster.control_plane_endpoint, None);
    assert_eq!(cluster.cluster_name, "kubernetes");
    assert_eq!(cluster.cert_dir, Path::new("/etc/kubernetes/pki"));
    assert_eq!(cluster.image_repository, "registry.k8s.io");
    assert_eq!(cluster.networking.service_subnets, ["10.96.0.0/12".parse().unwrap()]);
    assert_eq!(cluster.networking.pod_subnets, []);
    assert_eq!(cluster.networking.dns_domain, "cluster.local");
    assert_eq!(cluster.certificates.algorithm, KeyAlgorithm::EcdsaP256);
    assert_eq!(cluster.certificates.leaf_validity, Duration::from_hours(8760));
    assert_eq!(cluster.certificates.ca_validity, Duration::from_hours(87600));
    assert_eq!(cluster.etcd.data_dir, Path::new("/var/lib/etcd"));
    assert_eq!(cluster.timeouts.control_plane_component_health_check, Duration::from_mins(4));
    assert_eq!(cluster.timeouts.kubernetes_api_call, Duration::from_mins(1));
    assert_eq!((skip_phases, ignore_preflight_errors, dry_run, warnings), (vec![], vec![], false, vec![]));
}

#[test]
fn flags_are_taken() {
    let text = |text: &str| Some(text.to_owned());
    let loaded = flags(&Overrides {
        apiserver_advertise_address: text("203.0.113.9"),
        apiserver_bind_port: Some(8443),
        apiserver_cert_extra_sans: Some(vec!["API.Example.com".into(), "*.example.com".into(), "10.0.0.1".into()]),
        cert_dir: text("/srv/pki/"),
        control_plane_endpoint: text("api.example.com"),
        dry_run: Some(true),
        ignore_preflight_errors: Some(vec!["Swap".into(), "NumCPU".into(), "swap".into()]),
        image_repository: text("mirror.example.com:5000/k8s"),
        kubernetes_version: text("1.36.3"),
        node_name: text("Node-9"),
        pod_network_cidr: text("10.244.0.0/16"),
        register_node: Some(true),
        service_cidr: text("10.0.0.0/16"),
        service_dns_domain: text("corp.example"),
        skip_phases: Some(vec!["preflight".into()]),
    })
    .unwrap();
    let cluster = &loaded.cluster;
    // Not an address of this host: that is for preflight to say.
    assert_eq!(cluster.local_api_url(), "https://203.0.113.9:8443");
    assert_eq!(cluster.api_url(), "https://api.example.com:8443");
    let sans: Vec<_> = cluster.api_server.cert_sans.iter().map(ToString::to_string).collect();
    assert_eq!(sans, ["api.example.com", "*.example.com", "10.0.0.1"]);
    assert_eq!(cluster.cert_dir, Path::new("/srv/pki"));
    assert_eq!(cluster.node_name, "node-9");
    let taints: Vec<_> =
        cluster.registration.iter().flat_map(|one| &one.taints).map(|taint| taint.key.as_str()).collect();
    assert_eq!(taints, ["node-role.kubernetes.io/control-plane"]);
    assert_eq!(cluster.networking.dns_domain, "corp.example");
    assert_eq!(cluster.networking.pod_subnets, ["10.244.0.0/16".parse().unwrap()]);
    assert_eq!(
        image_list(cluster),
        [
            "mirror.example.com:5000/k8s/kube-apiserver:v1.36.3",
            "mirror.example.com:5000/k8s/kube-controller-manager:v1.36.3",
            "mirror.example.com:5000/k8s/kube-scheduler:v1.36.3",
            "mirror.example.com:5000/k8s/pause:3.10.2",
            "mirror.example.com:5000/k8s/etcd:3.6.8-0",
        ]
    );
    assert!(loaded.dry_run);
    assert_eq!(loaded.skip_phases, ["preflight"]);
    assert_eq!(loaded.ignore_preflight_errors, ["numcpu", "swap"]);
}

#[test]
fn a_file_of_both_kinds_is_taken() {
    let loaded = from_file(FULL).unwrap();
    let cluster = &loaded.cluster;
    assert_eq!(cluster.node_name, "cp-1");
    assert_eq!(cluster.advertise_address.to_string(), "2001:db8::10");
    assert_eq!(cluster.api_url(), "https://[2001:db8::99]:443");
    assert_eq!(cluster.api_server.options.extra_args, [("v".into(), "4".into()), ("v".into(), "5".into())]);
    assert_eq!(cluster.api_server.options.extra_volumes[0].path_type, "FileOrCreate");
    let reference = cluster.scheduler.extra_envs[1].value_from.as_ref().unwrap().field_ref.as_ref().unwrap();
    assert_eq!(reference.api_version.as_deref(), Some("v1"));
    assert_eq!(cluster.certificates.algorithm, KeyAlgorithm::Rsa3072);
    assert_eq!(cluster.timeouts.control_plane_component_health_check, Duration::from_secs(90));
    assert_eq!(loaded.skip_phases, ["addon"]);
    assert_eq!(loaded.ignore_preflight_errors, ["mem"]);
    let warned: Vec<_> = loaded.warnings.iter().map(String::as_str).collect();
    assert_eq!(
        warned,
        [
            "c.yaml:3: bootstrapTokens is ignored: plinth makes no bootstrap tokens yet",
            "c.yaml:7: nodeRegistration.criSocket is ignored: plinth runs containers with Docker",
            "c.yaml:16: KubeletConfiguration is ignored: plinth runs no kubelet",
            "controlPlaneEndpoint: port 443 is not that of this API server, 6443",
        ]
    );
}

const FULL: &str = "\
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
bootstrapTokens:
- ttl: 24h0m0s
nodeRegistration:
  name: cp-1
  criSocket: unix:///var/run/cri-dockerd.sock
  imagePullPolicy: IfNotPresent
  ignorePreflightErrors: [Mem]
localAPIEndpoint:
  advertiseAddress: 2001:db8::10
skipPhases: [addon]
timeouts:
  controlPlaneComponentHealthCheck: 1m30s
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: systemd
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
controlPlaneEndpoint: '[2001:db8::99]:443'
encryptionAlgorithm: RSA-3072
networking:
  serviceSubnet: fd00:10::/108,10.96.0.0/12
  podSubnet: fd00:20::/48,10.244.0.0/16
dns: {}
proxy: {disabled: true}
etcd:
  local: {dataDir: /srv/etcd, imageTag: 3.6.8-0, serverCertSANs: [etcd.example.com], extraArgs: [{name: quota-backend-bytes, value: \"8589934592\"}]}
apiServer:
  certSANs: [api.example.com]
  extraArgs: [{name: v, value: \"4\"}, {name: v, value: \"5\"}]
  extraVolumes: [{name: audit, hostPath: /etc/audit.yaml, mountPath: /etc/audit.yaml, readOnly: true, pathType: FileOrCreate}]
scheduler:
  extraEnvs: [{name: A, value: \"yes\"}, {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}]
";

#[test]
fn what_is_written_loads_back() {
    for text in [FULL, "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n"] {
        let cluster = from_file(text).unwrap().cluster;
        let written = to_wire_yaml(&cluster);
        let loaded = from_file(&written).unwrap_or_else(|errors| panic!("{errors}\n{written}"));
        // What is written names the version.
        assert_eq!(loaded.cluster, Cluster { version_pinned: true, ..cluster }, "{written}");
        assert_eq!(to_wire_yaml(&loaded.cluster), written);
    }
}

proptest::proptest! {
    #[test]
    fn anything_that_loads_is_written_so_that_it_loads_back(
        name in "[a-z0-9]{1,8}(-[a-z0-9]{1,3})?",
        cluster_name in "\\PC{1,12}",
        port in 1_i32..=65535,
        args in proptest::collection::vec(("[a-z-]{1,8}", "\\PC{0,12}"), 0..4),
        value in "\\PC{0,12}",
        minutes in 1_u64..1_000_000,
    ) {
        let args: Vec<_> = args.iter().map(|(name, value)| serde_json::json!({"name": format!("x{name}"), "value": value})).collect();
        let init = serde_json::json!({
            "apiVersion": wire::API_VERSION, "kind": "InitConfiguration",
            "nodeRegistration": {"name": name}, "localAPIEndpoint": {"bindPort": port},
        });
        let cluster = serde_json::json!({
            "apiVersion": wire::API_VERSION, "kind": "ClusterConfiguration", "clusterName": cluster_name,
            "controllerManager": {"extraArgs": args, "extraEnvs": [{"name": "E", "value": value}]},
            "certificateValidityPeriod": format!("{minutes}m"),
        });
        let loaded = from_file(&format!("{init}\n---\n{cluster}\n")).unwrap();
        let written = to_wire_yaml(&loaded.cluster);
        let cluster = Cluster { version_pinned: true, ..loaded.cluster };
        proptest::prop_assert_eq!(from_file(&written).unwrap().cluster, cluster);
    }

    #[test]
    fn loading_never_panics(text in "((apiVersion: kubeadm.k8s.io/v1beta4|kind: ClusterConfiguration|kind: InitConfiguration|networking:|  podSubnet: |etcd: \\{local: |---|\\PC{0,8})\n?){0,12}") {
        let _ = from_file(&text);
    }
}

/// Each row: a file's fields from line 3 on, and the whole text of its errors.
#[test]
fn mistakes_in_a_file_are_named_with_line_field_and_remedy() {
    for (fields, expected) in [
        (
            "networking:\n  serviceSubnets: 10.0.0.0/16\n",
            "c.yaml:4: networking.serviceSubnets: unknown field; did you mean `serviceSubnet`?",
        ),
        (
            "clusterNames: a\nnetworking:\n  podCIDR: b\n",
            "c.yaml:3: clusterNames: unknown field; did you mean `clusterName`?\nc.yaml:5: networking.podCIDR: unknown field",
        ),
        (
            "apiServer:\n  extraEnvs:\n  - name: A\n    valeu: b\n",
            "c.yaml:6: apiServer.extraEnvs[0].valeu: unknown field; did you mean `value`?",
        ),
        (
            "networking:\n  serviceSubnet: 10.96.0.0/33\n",
            "c.yaml:4: networking.serviceSubnet: `10.96.0.0/33` is not a network; expected one network like \
             10.96.0.0/12, or one of each family, separated by a comma",
        ),
        (
            "networking:\n  podSubnet: 10.96.0.0/16\n",
            "c.yaml:4: networking.podSubnet: `10.96.0.0/16` overlaps networking.serviceSubnet 10.96.0.0/12; expected \
             two networks without a common address",
        ),
        (
            "networking: {podSubnet: 10.244.0.0/25}\n",
            "c.yaml:3: networking.podSubnet: `10.244.0.0/25` is smaller than the /24 that each node takes of it; \
             expected a prefix from /8 to /24",
        ),
        (
            "networking: {serviceSubnet: 'fd00::/108'}\n",
            "c.yaml:3: networking.serviceSubnet: `fd00::/108` is of another family than the advertised address \
             192.0.2.10; expected an IPv4 network, first in the list",
        ),
        (
            "networking: {serviceSubnet: '10.0.0.0/8,11.0.0.0/29'}\n",
            "c.yaml:3: networking.serviceSubnet: `10.0.0.0/8,11.0.0.0/29` is neither one network nor one of each \
             family; expected one network like 10.96.0.0/12, or one of each family, separated by a comma\n\
             c.yaml:3: networking.serviceSubnet: `11.0.0.0/29` is too small; expected at least 10 addresses\n\
             c.yaml:3: networking.serviceSubnet: `10.0.0.0/8` is too large for services; expected /12 or narrower",
        ),
        (
            "apiServer:\n  certSANs:\n  - ok.example.com\n  - not_ok\n",
            "c.yaml:6: apiServer.certSANs[1]: `not_ok` cannot be in a certificate; expected an address, a DNS name, or \
             one that begins with `*.`",
        ),
        (
            "kubernetesVersion: v1.38.0\n",
            "c.yaml:3: kubernetesVersion: Kubernetes v1.38.0 is not supported by this plinth; supported: v1.35.x, v1.36.x, v1.37.x",
        ),
        (
            "kubernetesVersion: 1.37\n",
            "c.yaml:3: kubernetesVersion: `1.37` is not a version; expected one like `v1.37.1`",
        ),
        (
            "certificatesDir: pki\nimageRepository: https://mirror\n",
            "c.yaml:3: certificatesDir: `pki` is not an absolute path; expected one that begins with `/` and is free of \
             `..`\nc.yaml:4: imageRepository: `https://mirror` is not an image repository; expected a registry with an \
             optional path, like registry.example.com:5000/k8s, and no scheme",
        ),
        (
            "controlPlaneEndpoint: https://api:6443\n",
            "c.yaml:3: controlPlaneEndpoint: `https://api:6443` is neither a DNS name nor an address; expected HOST or \
             HOST:PORT, e.g. api.example.com:6443 or [2001:db8::1]:6443",
        ),
        (
            "controlPlaneEndpoint: api:0\n",
            "c.yaml:3: controlPlaneEndpoint: `api:0` has a port that is none; expected a port from 1 to 65535",
        ),
        (
            "encryptionAlgorithm: RSA\n",
            "c.yaml:3: encryptionAlgorithm: `RSA` is not an algorithm; expected one of ECDSA-P256, ECDSA-P384, \
             RSA-2048, RSA-3072, RSA-4096",
        ),
        (
            "certificateValidityPeriod: 1y\n",
            "c.yaml:3: certificateValidityPeriod: `1y` is not a duration; expected hours, minutes, seconds, e.g. 8760h \
             or 1h30m",
        ),
        (
            "scheduler:\n  extraArgs:\n  - {name: --v, value: \"2\"}\n",
            "c.yaml:5: scheduler.extraArgs[0]: `--v` is not the name of a flag; expected its name without dashes and \
             value",
        ),
        (
            "scheduler:\n  extraArgs:\n    v: \"2\"\n",
            "c.yaml:4: scheduler.extraArgs: a mapping; expected a list of `name` and `value`",
        ),
        (
            "scheduler:\n  extraVolumes:\n  - {name: a, hostPath: x, mountPath: /a, pathType: Dir}\n",
            "c.yaml:5: scheduler.extraVolumes[0].hostPath: `x` is not an absolute path; expected one that begins with \
             `/` and is free of `..`\nc.yaml:5: scheduler.extraVolumes[0].pathType: `Dir` is not a type of path; expected \
             one of DirectoryOrCreate, Directory, FileOrCreate, File, Socket, CharDevice, BlockDevice",
        ),
        (
            "etcd:\n  external: {endpoints: ['https://e:2379']}\nfeatureGates: {RootlessControlPlane: true}\n",
            "c.yaml:4: etcd.external: not supported by this plinth: etcd runs on this host; remove the field or use \
             `etcd.local`\nc.yaml:5: featureGates: not supported by this plinth: it has no feature gates; those of a \
             component are set by its extraArgs, as `feature-gates`",
        ),
    ] {
        let errors = cluster_file(fields).unwrap_err();
        assert_eq!(errors.to_string(), expected, "{fields}");
    }
}

#[test]
fn mistakes_in_an_init_configuration() {
    for (fields, expected) in [
        (
            "localAPIEndpoint:\n  advertiseAddress: eth0\n  bindPort: 70000\n",
            "c.yaml:4: localAPIEndpoint.advertiseAddress: `eth0` is not an address; expected an address of this host \
             that others can reach, e.g. 192.0.2.10\nc.yaml:5: localAPIEndpoint.bindPort: `70000` is not a port; \
             expected 1 to 65535",
        ),
        (
            "localAPIEndpoint: {advertiseAddress: 224.0.0.1}\n",
            "c.yaml:3: localAPIEndpoint.advertiseAddress: `224.0.0.1` cannot be reached by others; expected an address \
             of this host that others can reach, e.g. 192.0.2.10",
        ),
        (
            "nodeRegistration:\n  name: my_node\n",
            "c.yaml:4: nodeRegistration.name: `my_node` is not a node name; expected lower case letters, digits, `-` and \
             `.`, beginning and ending with a letter or digit",
        ),
        (
            "patches: {directory: /etc/patches}\n",
            "c.yaml:3: patches.directory: not supported by this plinth: use extraArgs, extraEnvs and extraVolumes \
             instead of patches",
        ),
        (
            "nodeRegistration: {ignorePreflightErrors: [all, Swap]}\n",
            "c.yaml:3: nodeRegistration.ignorePreflightErrors: `all,swap` names checks beside `all`; expected `all` alone",
        ),
    ] {
        let errors = init_file(fields).unwrap_err();
        assert_eq!(errors.to_string(), expected, "{fields}");
    }
}

#[test]
fn documents_that_are_not_understood_are_errors() {
    let cluster = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n";
    for (text, expected) in [
        ("", "c.yaml: neither an InitConfiguration nor a ClusterConfiguration".to_owned()),
        ("a: 1\n", "c.yaml:1: `apiVersion` is missing\nc.yaml:1: `kind` is missing".to_owned()),
        (
            "\n---\napiVersion: kubeadm.k8s.io/v1beta3\nkind: ClusterConfiguration\n",
            "c.yaml:3: apiVersion: `kubeadm.k8s.io/v1beta3` is not read; expected `kubeadm.k8s.io/v1beta4`".to_owned(),
        ),
        (
            "apiVersion: v1\nkind: Pod\n",
            "c.yaml:2: unknown kind `Pod` of `v1`; expected InitConfiguration or ClusterConfiguration".to_owned(),
        ),
        (
            &format!("{cluster}---\n{cluster}"),
            "c.yaml:4: a second ClusterConfiguration; the first one begins at line 1".to_owned(),
        ),
    ] {
        assert_eq!(from_file(text).unwrap_err().to_string(), expected, "{text}");
    }
    for (fields, expected) in [
        ("networking: [a]\n", "c.yaml:3: networking: expected a mapping"),
        ("apiServer:\n  certSANs: api\n", "c.yaml:4: apiServer.certSANs: expected a list"),
        (
            "apiServer:\n  extraArgs:\n  - name: v\n    value: {a: 1}\n",
            "c.yaml:6: apiServer.extraArgs[0].value: expected a text",
        ),
        ("featureGates: {A: maybe}\n", "c.yaml:3: featureGates: invalid boolean"),
        ("clusterName: a\nclusterName: b\n", "c.yaml:4: duplicate mapping key: clusterName"),
        ("networking:\n podSubnet: a\n  x: b\n", "c.yaml:5: mapping values are not allowed in this context"),
    ] {
        assert_eq!(cluster_file(fields).unwrap_err().to_string(), expected, "{fields}");
    }
    // What says nothing is no mistake.
    assert!(cluster_file("apiServer: null\nnetworking:\nclusterName: ''\n").is_ok());
    let error = from_file(&format!("{cluster}networking:\n  podSubnet: [a\n")).unwrap_err().to_string();
    assert!(error.starts_with("c.yaml:4: ") || error.starts_with("c.yaml:5: "), "{error}");
    let error = from_file(&format!(
        "{cluster}---\n{}bindPort: x\n",
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nlocalAPIEndpoint:\n  "
    ))
    .unwrap_err()
    .to_string();
    assert!(error.starts_with("c.yaml:7: ") && !error.contains('\n'), "{error}");
}

#[test]
fn mistakes_on_the_command_line_name_the_flag() {
    let overrides = Overrides {
        service_cidr: Some("10.96.0.0".into()),
        apiserver_bind_port: Some(-1),
        apiserver_cert_extra_sans: Some(vec!["a b".into()]),
        kubernetes_version: Some("latest".into()),
        ..Overrides::default()
    };
    let errors = flags(&overrides).unwrap_err().to_string();
    assert_eq!(
        errors,
        "--kubernetes-version (kubernetesVersion): `latest` is not a version; expected one like `v1.37.1`\n\
         --apiserver-bind-port (localAPIEndpoint.bindPort): `-1` is not a port; expected 1 to 65535\n\
         --service-cidr (networking.serviceSubnet): `10.96.0.0` is not a network; expected one network like 10.96.0.0/12, \
         or one of each family, separated by a comma\n\
         --apiserver-cert-extra-sans (apiServer.certSANs[0]): `a b` cannot be in a certificate; expected an address, a \
         DNS name, or one that begins with `*.`"
    );
}

#[test]
fn only_some_flags_may_stand_beside_a_file() {
    let file = ConfigFile {
        name: "c.yaml",
        text: "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nskipPhases: [a]\n\
               nodeRegistration: {name: x, ignorePreflightErrors: [Mem]}\n",
    };
    let beside = Overrides {
        node_name: Some("y".into()),
        skip_phases: Some(vec!["b".into()]),
        ignore_preflight_errors: Some(vec!["Swap".into()]),
        dry_run: Some(true),
        ..Overrides::default()
    };
    let loaded = load(Some(file), &beside, &host()).unwrap();
    assert_eq!(loaded.cluster.node_name, "y");
    assert_eq!(loaded.skip_phases, ["b"]);
    assert_eq!(loaded.ignore_preflight_errors, ["mem", "swap"]);
    assert!(loaded.dry_run);

    let refused =
        Overrides { service_cidr: Some("10.0.0.0/16".into()), kubernetes_version: Some("v1.36.3".into()), ..beside };
    let errors = load(Some(file), &refused, &host()).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "--kubernetes-version (kubernetesVersion): cannot be used together with --config\n\
         --service-cidr (networking.serviceSubnet): cannot be used together with --config"
    );
    assert_eq!(
        errors.hints(),
        [
            "instead of --kubernetes-version set `kubernetesVersion` in the file",
            "instead of --service-cidr set `networking.serviceSubnet` in the file",
        ]
    );
}

#[test]
fn a_host_that_offers_nothing_is_an_error_with_the_way_out() {
    let bare = HostFacts { hostname: "My_Host".into(), default_routes: Some(vec![]), ..HostFacts::default() };
    let errors = load(None, &Overrides::default(), &bare).unwrap_err();
    let text = errors.to_string();
    assert!(text.contains("nodeRegistration.name: the host name `My_Host` is not a node name"), "{text}");
    assert!(text.contains("localAPIEndpoint.advertiseAddress: no interface with a default route"), "{text}");
    assert!(errors.hints().iter().any(|hint| hint.contains("--apiserver-advertise-address")), "{:?}", errors.hints());
}

#[test]
fn hints_say_what_to_do() {
    let migrate = from_file("apiVersion: kubeadm.k8s.io/v1beta3\nkind: InitConfiguration\n").unwrap_err();
    assert!(migrate.hints()[0].contains("kubeadm config migrate"), "{:?}", migrate.hints());
    let known = cluster_file("networking: {cni: calico}\n").unwrap_err();
    assert_eq!(known.hints(), ["fields known beside `networking.cni`: dnsDomain, podSubnet, serviceSubnet"]);
}

#[test]
fn special_addresses_stand_for_others_as_in_kubeadm() {
    let mut facts = host();
    facts.interfaces.push(Interface {
        name: "lo".into(),
        up: true,
        loopback: true,
        addresses: vec!["127.0.0.1".parse().unwrap(), "198.51.100.7".parse().unwrap()],
        ..Interface::default()
    });
    for (named, subnet, expected) in [
        ("0.0.0.0", "10.96.0.0/12", "192.0.2.10"),
        ("::", "fd00::/108", "2001:db8::10"),
        ("127.0.0.1", "10.96.0.0/12", "198.51.100.7"),
    ] {
        let overrides = Overrides {
            apiserver_advertise_address: Some(named.into()),
            service_cidr: Some(subnet.into()),
            ..Overrides::default()
        };
        let cluster = load(None, &overrides, &facts).unwrap().cluster;
        assert_eq!(cluster.advertise_address.to_string(), expected, "{named}");
    }
}

#[test]
fn odd_but_acceptable_values_are_warnings() {
    for (fields, expected) in [
        ("kubernetesVersion: stable-1\n", "kubernetesVersion: `stable-1` is taken for v1.37.1: plinth asks no server"),
        (
            "networking: {serviceSubnet: 10.96.0.1/12}\n",
            "networking.serviceSubnet: 10.96.0.1/12 is taken for 10.96.0.0/12",
        ),
        (
            "certificateValidityPeriod: 9000h\n",
            "certificateValidityPeriod: 9000h0m0s is more than the recommended 8760h0m0s",
        ),
        ("dns: {imageTag: v1}\n", "c.yaml:3: dns is ignored: plinth installs no DNS yet"),
    ] {
        assert_eq!(cluster_file(fields).unwrap().warnings, [expected], "{fields}");
    }
    // Values that kubeadm's own defaults spell out are not worth a word.
    let quiet = "nodeRegistration: {imagePullPolicy: IfNotPresent, imagePullSerial: true, taints: null}\n\
                 timeouts: {discovery: 5m0s, etcdAPICall: 2m0s, kubeletHealthCheck: 4m0s, tlsBootstrap: 5m0s, upgradeManifests: 5m0s}\n";
    assert_eq!(init_file(quiet).unwrap().warnings, Vec::<String>::new());
}

#[test]
fn a_node_is_registered_by_the_flag_of_a_kubelet() {
    let arguments = |value: &str| format!("  kubeletExtraArgs: [{{name: register-node, value: '{value}'}}]\n");
    let taint = "  taints: [{key: example.com/a, value: b, effect: NoExecute}]\n";
    for (fields, taints, warning) in [
        (String::new(), None, None),
        (arguments("false"), None, None),
        (arguments("true"), Some(vec!["node-role.kubernetes.io/control-plane"]), None),
        (arguments("true") + "  taints: []\n", Some(vec![]), None),
        (arguments("true") + taint, Some(vec!["example.com/a"]), None),
        (
            taint.to_owned(),
            None,
            Some("nodeRegistration.taints is ignored: the node is not registered (register-node)"),
        ),
        (
            "  kubeletExtraArgs: [{name: node-ip, value: 10.0.0.1}]\n".to_owned(),
            None,
            Some("nodeRegistration.kubeletExtraArgs `node-ip` is ignored: plinth runs no kubelet"),
        ),
    ] {
        let loaded = init_file(&format!("nodeRegistration:\n  name: a\n{fields}")).unwrap();
        let keys = |one: &Registration| one.taints.iter().map(|taint| taint.key.clone()).collect::<Vec<_>>();
        assert_eq!(
            loaded.cluster.registration.as_ref().map(keys).as_deref(),
            taints.map(|all: Vec<&str>| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>()).as_deref(),
            "{fields}"
        );
        assert_eq!(loaded.warnings, Vec::from_iter(warning), "{fields}");
        // What is kept says the same, and nothing where there is nothing to say.
        let kept = to_wire_yaml(&loaded.cluster);
        assert_eq!(from_file(&kept).unwrap().cluster.registration, loaded.cluster.registration);
        assert_eq!(kept.contains("kubeletExtraArgs"), loaded.cluster.registration.is_some());
    }
    for fields in [
        arguments("on"),
        arguments("true") + "  taints: [{key: a, effect: Never}]\n",
        arguments("true") + "  taints: [{key: a, value: x, effect: NoExecute}, {key: a, effect: NoExecute}]\n",
    ] {
        let errors = init_file(&format!("nodeRegistration:\n  name: a\n{fields}")).unwrap_err();
        assert_eq!(errors.iter().count(), 1, "{errors}");
    }
    // A rerun may turn it off and on.
    let off = Overrides { register_node: Some(false), ..Overrides::default() };
    let running = format!(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nnodeRegistration:\n  name: a\n{}",
        arguments("true")
    );
    let loaded = over(&running, false, None, &off).unwrap();
    assert_eq!((loaded.running.unwrap().registration.is_some(), loaded.cluster.registration), (true, None));
}

/// A cluster that runs with this configuration and was then asked for something else.
fn over(
    running: &str,
    version_pinned: bool,
    file: Option<&str>,
    overrides: &Overrides,
) -> Result<Loaded, ConfigErrors> {
    let stored = to_wire_yaml(&from_file(running).unwrap().cluster);
    let running = Running { config: ConfigFile { name: "stored", text: &stored }, version_pinned };
    load_over(file.map(|text| ConfigFile { name: "c.yaml", text }), Some(&running), overrides, &host())
}

fn cluster_text(fields: &str) -> String {
    format!("apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n{fields}")
}

#[test]
fn a_rerun_starts_from_what_runs_and_flags_replace_single_values() {
    let running = cluster_text(
        "imageRepository: mirror.example.com\napiServer:\n  certSANs: [a.example]\nscheduler:\n  extraArgs: [{name: v, value: '2'}]\n",
    );
    let same = over(&running, false, None, &Overrides::default()).unwrap();
    assert_eq!(Some(&same.cluster), same.running.as_ref());

    let flags = Overrides {
        apiserver_cert_extra_sans: Some(vec!["b.example".into()]),
        pod_network_cidr: Some("10.244.0.0/16".into()),
        ..Overrides::default()
    };
    let changed = over(&running, false, None, &flags).unwrap().cluster;
    assert_eq!(changed.image_repository, "mirror.example.com");
    assert_eq!(changed.api_server.cert_sans, [San::Dns("b.example".into())]);
    assert_eq!(changed.networking.pod_subnets, ["10.244.0.0/16".parse().unwrap()]);
    assert_eq!(changed.scheduler.extra_args, [("v".into(), "2".into())]);

    let replaced = over(&running, false, Some(&cluster_text("clusterName: other\n")), &Overrides::default());
    let replaced = replaced.unwrap().cluster;
    assert_eq!(replaced.cluster_name, "other");
    assert_eq!((replaced.scheduler.extra_args, replaced.api_server.cert_sans), (vec![], vec![]));
    assert_eq!(replaced.image_repository, "registry.k8s.io");
}

#[test]
fn a_version_is_kept_where_it_was_named_and_lowered_only_by_name() {
    let (older, newest, newer) = ("v1.36.3", crate::release::DEFAULT_VERSION, "v1.37.99");
    let flag = |version: &str| Overrides { kubernetes_version: Some(version.into()), ..Overrides::default() };
    let none = Overrides::default();
    let silent = cluster_text("clusterName: kubernetes\n");
    let names = cluster_text("kubernetesVersion: v1.36.3\n");
    for (what, running, pinned, file, flags, expected) in [
        ("a newer default is taken", older, false, None, &none, (newest, false)),
        ("a named one stays", older, true, None, &none, (older, true)),
        ("an older plinth lowers nothing", newer, false, None, &none, (newer, false)),
        ("a flag", older, false, None, &flag(newest), (newest, true)),
        ("a flag, downwards", newest, false, None, &flag(older), (older, true)),
        ("a label names nothing", older, true, None, &flag("stable"), (newest, false)),
        ("a label lowers nothing", newer, true, None, &flag("stable"), (newer, false)),
        ("a file that names one", newest, false, Some(&names), &none, (older, true)),
        ("a file that names none", older, false, Some(&silent), &none, (newest, false)),
        ("a file that names none, over a named one", older, true, Some(&silent), &none, (older, true)),
    ] {
        let running = cluster_text(&format!("kubernetesVersion: {running}\n"));
        let cluster = over(&running, pinned, file.map(String::as_str), flags).unwrap().cluster;
        assert_eq!((cluster.version.to_string().as_str(), cluster.version_pinned), expected, "{what}");
    }
}

#[test]
fn an_address_is_kept_while_it_is_on_the_host_and_named_ones_are_taken() {
    // The host's default route is at 192.0.2.10.
    let file = |address: &str| format!("apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\n{address}");
    let named = |address: &str| file(&format!("localAPIEndpoint: {{advertiseAddress: {address}}}\n"));
    let flag = |address: &str| Overrides { apiserver_advertise_address: Some(address.into()), ..Overrides::default() };
    let none = Overrides::default();
    let (silent, elsewhere) = (file(""), named("203.0.113.9"));
    for (what, running, file, flags, expected, warns) in [
        ("it stays", "127.0.0.1", None, &none, "192.0.2.10", false),
        ("a second one of this host stays", "198.51.100.7", None, &none, "198.51.100.7", false),
        ("also where a file names none", "198.51.100.7", Some(&silent), &none, "198.51.100.7", false),
        ("one that is gone gives way", "203.0.113.1", None, &none, "192.0.2.10", true),
        ("also where a file names none", "203.0.113.1", Some(&silent), &none, "192.0.2.10", true),
        ("a flag", "198.51.100.7", None, &flag("192.0.2.10"), "192.0.2.10", false),
        (
            "a flag that names one elsewhere is for preflight",
            "198.51.100.7",
            None,
            &flag("203.0.113.9"),
            "203.0.113.9",
            false,
        ),
        ("a file", "203.0.113.1", Some(&elsewhere), &none, "203.0.113.9", false),
    ] {
        let running = named(running).replace("127.0.0.1", "192.0.2.10");
        let config = ConfigFile { name: "stored", text: &running };
        let mut host = host();
        host.interfaces[0].addresses.push("198.51.100.7".parse().unwrap());
        let running = Running { config, version_pinned: false };
        let file = file.map(|text| ConfigFile { name: "c.yaml", text });
        let loaded = load_over(file, Some(&running), flags, &host).unwrap();
        assert_eq!(loaded.cluster.advertise_address.to_string(), expected, "{what}");
        let told =
            loaded.warnings.iter().any(|line| line.contains("203.0.113.1 is no longer on this host; 192.0.2.10"));
        assert_eq!(told, warns, "{what}: {:?}", loaded.warnings);
    }
}

#[test]
fn what_a_live_cluster_cannot_change_is_refused_all_of_it_by_name() {
    let running = cluster_text("clusterName: kubernetes\n");
    let flags = Overrides {
        service_cidr: Some("10.97.0.0/16".into()),
        service_dns_domain: Some("other.example".into()),
        node_name: Some("other".into()),
        cert_dir: Some("/srv/pki".into()),
        ..Overrides::default()
    };
    let errors = over(&running, false, None, &flags).unwrap_err();
    let refused: Vec<_> = errors.iter().map(|error| (error.place.clone(), error.field.as_str())).collect();
    assert_eq!(
        refused,
        [
            (Place::Flag("--service-cidr"), "networking.serviceSubnet"),
            (Place::Flag("--service-dns-domain"), "networking.dnsDomain"),
            (Place::Flag("--node-name"), "nodeRegistration.name"),
            (Place::Flag("--cert-dir"), "certificatesDir"),
        ]
    );
    assert_eq!(
        errors.to_string().lines().next(),
        Some(
            "--service-cidr (networking.serviceSubnet): `10.97.0.0/16` cannot take the place of `10.96.0.0/12` while the \
             cluster lives: Services keep the addresses they were given, the one of the API server among them"
        )
    );
    assert_eq!(errors.hints().len(), 1);

    // Together with what is wrong for another reason, and once each.
    let file = cluster_text("etcd:\n  local:\n    dataDir: /srv/etcd\nnetworking:\n  serviceSubnet: nonsense\n");
    let errors = over(&running, false, Some(&file), &Overrides::default()).unwrap_err();
    let lines: Vec<_> = errors.iter().map(|error| (error.place.clone(), error.field.as_str())).collect();
    let at = |line| Place::File { name: "c.yaml".into(), line: Some(line) };
    assert_eq!(lines, [(at(7), "networking.serviceSubnet"), (at(5), "etcd.local.dataDir")]);
}

#[test]
fn the_issuer_of_tokens_may_change_only_while_the_old_one_is_believed() {
    let issuers = |values: &[&str]| {
        let flags = values.iter().map(|value| format!("  - {{name: service-account-issuer, value: '{value}'}}\n"));
        cluster_text(&format!("apiServer:\n  extraArgs:\n  - {{name: v, value: '2'}}\n{}", flags.collect::<String>()))
    };
    let default = "https://kubernetes.default.svc.cluster.local";
    let (a, b) = ("https://a.example", "https://b.example");
    for (before, after, fine) in [
        (vec![], vec![], true),
        (vec![], vec![default], true),
        (vec![], vec![a], false),
        (vec![], vec![a, default], true),
        (vec![a], vec![], false),
        (vec![a], vec![b, a], true),
        (vec![a, b], vec![a], true),
        (vec![a, b], vec![b], false),
    ] {
        let result = over(&issuers(&before), false, Some(&issuers(&after)), &Overrides::default());
        assert_eq!(result.is_ok(), fine, "{before:?} → {after:?}: {result:?}");
    }
}
