use super::super::pod::tests::pod;
use super::*;

pub(crate) fn node(may_protect_from_oom: bool) -> Node {
    Node {
        name: "Node-1".into(),
        address: "192.0.2.2".parse().unwrap(),
        memory: 24 << 30,
        storage: 1 << 30,
        cpus: 2,
        dns: Dns { servers: vec!["10.0.0.1".into()], searches: vec!["lan".into()], options: vec!["ndots:1".into()] },
        may_protect_from_oom,
        apparmor: true,
    }
}

/// Nothing but the node.
pub(crate) fn bare<'a>(node: &'a Node, paths: &'a BTreeMap<String, PathBuf>) -> Context<'a> {
    Context {
        agent_id: "agent",
        node,
        log_limits: LogLimits::default(),
        sandbox: None,
        pod_ip: None,
        volumes: paths,
        sub_paths: paths,
        message_file: None,
        lookup: None,
        image_user: None,
        seccomp: None,
    }
}

fn translated(spec: &str, of: &str) -> Result<ContainerSpec, TranslateError> {
    let pod = pod_of(spec, of);
    let volumes = [("v".to_owned(), PathBuf::from("/host/v"))].into();
    let node = node(true);
    let sandbox = pod.needs_sandbox().then_some("sandbox-id");
    let pod_ip = Some("172.17.0.2".parse().unwrap());
    let context = Context {
        sandbox,
        pod_ip,
        volumes: &volumes,
        sub_paths: &[("/sub".to_owned(), PathBuf::from("/host/v/part"))].into(),
        message_file: Some(Path::new("/pods/uid/containers/c/00000003")),
        image_user: Some("nobody"),
        seccomp: Some("{}"),
        ..bare(&node, &volumes)
    };
    container(&pod, &pod.containers()[0], 3, &context)
}

fn pod_of(spec: &str, of: &str) -> StaticPod {
    pod(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, labels: {{app: x}}}}\nspec:\n  \
         volumes: [{{name: v, hostPath: {{path: /host/v}}}}]\n  {spec}\n  containers:\n  - name: c\n    image: 'i:1'\n    {of}\n"
    ))
}

fn spec(spec: &str, container: &str) -> ContainerSpec {
    translated(spec, container).unwrap()
}

const HOST: &str = "hostNetwork: true";

#[test]
fn a_control_plane_pod_becomes_one_container_on_the_host() {
    let spec = spec(
        "hostNetwork: true\n  priorityClassName: system-node-critical\n  securityContext: {seccompProfile: {type: RuntimeDefault}}",
        "command: [kube-apiserver, --secure-port=6443]\n    resources: {requests: {cpu: 250m}}\n    \
         volumeMounts: [{name: v, mountPath: /etc/kubernetes/pki, readOnly: true}]",
    );
    assert!(spec.name.starts_with("k8s_c_web-node-1_default_") && spec.name.ends_with("_3"), "{}", spec.name);
    assert_eq!((spec.network.as_str(), spec.uts.as_str(), spec.ipc.as_str()), ("host", "host", ""));
    assert_eq!(spec.entrypoint, ["kube-apiserver", "--secure-port=6443"]);
    assert_eq!(spec.resources, Resources { cpu_shares: 256, ..Resources::default() });
    assert_eq!(spec.oom_score_adj, Some(-997));
    assert_eq!(spec.security_options, Vec::<String>::new());
    assert_eq!((spec.log_max_size, spec.log_max_files), (10 << 20, 5));
    let mount = &spec.mounts[0];
    assert_eq!((mount.target.as_str(), mount.read_only), ("/etc/kubernetes/pki", true));
    assert_eq!(spec.labels[labels::RESTART_COUNT], "3");
    assert_eq!(spec.labels[labels::AGENT], "agent");
    assert_eq!(spec.labels[GRACE_LABEL], "30");
    assert!(!spec.labels.contains_key("io.kubernetes.docker.type"), "cri-dockerd would claim it");
}

#[test]
fn the_termination_message_has_its_file() {
    for (path, target) in [("''", "/dev/termination-log"), ("tmp/why", "/tmp/why"), ("/x", "/x")] {
        let mounts = spec(HOST, &format!("terminationMessagePath: {path}")).mounts;
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].source, Path::new("/pods/uid/containers/c/00000003"));
        assert_eq!((mounts[0].target.as_str(), mounts[0].read_only), (target, false), "{path}");
    }
    let own = spec(HOST, "volumeMounts: [{name: v, mountPath: /dev/termination-log}]").mounts;
    assert_eq!((own.len(), own[0].source.as_path()), (1, Path::new("/host/v")), "a volume there goes first");
}

#[test]
fn a_sidecar_knows_its_place_and_is_as_safe_from_the_oom_killer_as_what_it_serves() {
    let init = "hostNetwork: true\n  initContainers: [{name: i, image: 'i:1'}, \
                {name: s, image: 'i:1', restartPolicy: Always, resources: {requests: {memory: 1Gi}}}]";
    for (request, sidecar) in [("12Gi", 500), ("100Mi", 959)] {
        let pod = pod_of(init, &format!("resources: {{requests: {{memory: {request}}}}}"));
        assert!(pod.needs_sandbox(), "two containers that last share what a sandbox holds");
        let of = |name: &str| oom_score(&pod, pod.container(name).unwrap(), &node(true));
        assert_eq!((of("s"), of("i")), (sidecar, 999), "{request}");
        let volumes = BTreeMap::new();
        let node = node(true);
        let context = Context { sandbox: Some("id"), ..bare(&node, &volumes) };
        let place = |name: &str| {
            let spec = container(&pod, pod.container(name).unwrap(), 0, &context).unwrap();
            spec.labels.get(SIDECAR_LABEL).cloned()
        };
        assert_eq!((place("i"), place("s"), place("c")), (None, Some("1".to_owned()), None));
    }
}

#[test]
fn a_sub_path_is_mounted_in_place_of_its_volume() {
    let mounts =
        spec(HOST, "volumeMounts: [{name: v, mountPath: /sub, subPath: part}, {name: v, mountPath: /all}]").mounts;
    let sources: Vec<_> = mounts.iter().map(|mount| mount.source.display().to_string()).collect();
    assert_eq!(sources[..2], ["/host/v/part", "/host/v"]);
}

#[test]
fn a_sub_path_may_be_made_of_the_environment() {
    let found = |mount: &str| {
        let env = "env: [{name: A, value: a/b}, {name: UP, value: '../x'}, {name: P, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]";
        let pod = pod_of(HOST, &format!("{env}\n    volumeMounts: [{{name: v, mountPath: /sub, {mount}}}]"));
        let node = node(true);
        let empty = BTreeMap::new();
        let context = bare(&node, &empty);
        sub_paths(&pod, &pod.containers()[0], &context).map(|mut found| found.remove("/sub"))
    };
    for (mount, expected) in [
        ("readOnly: true", None),
        ("subPath: ''", None),
        ("subPath: $(A)", Some("$(A)")),
        ("subPathExpr: $(A)/$(P)", Some("a/b/web-node-1")),
    ] {
        assert_eq!(found(mount).unwrap().as_deref(), expected, "{mount}");
    }
    for (mount, reason) in
        [("subPathExpr: $(NOPE)", "`NOPE`, which is not set"), ("subPathExpr: $(UP)", "without `..`")]
    {
        let error = found(mount).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn an_engine_that_goes_down_gives_each_container_the_grace_its_pod_asks_for() {
    for (grace, seconds) in
        [("", None), ("terminationGracePeriodSeconds: 90", Some(90)), ("terminationGracePeriodSeconds: 0", Some(2))]
    {
        let spec = spec(&format!("{HOST}\n  {grace}"), "");
        assert_eq!(spec.stop_timeout, seconds.map(std::time::Duration::from_secs), "{grace}");
    }
}

#[test]
fn env_is_expanded_in_the_order_of_declaration() {
    let spec = spec(
        HOST,
        "env: [{name: A, value: a}, {name: B, value: '$(A)$(C)$$(A)'}, {name: C, value: c}]\n    command: [x, '$(B) $(NOPE) $']",
    );
    assert_eq!(spec.env, ["A=a", "B=a$(C)$(A)", "C=c"]);
    assert_eq!(spec.entrypoint, ["x", "a$(C)$(A) $(NOPE) $"]);
}

#[test]
fn fields_and_resources_can_be_referred_to() {
    let fields = [
        ("metadata.name", "web-node-1"),
        ("metadata.namespace", "default"),
        ("metadata.labels['app']", "x"),
        ("spec.nodeName", "Node-1"),
        ("status.hostIP", "192.0.2.2"),
        ("status.hostIPs", "192.0.2.2"),
        ("status.podIP", "172.17.0.2"),
        ("status.podIPs", "172.17.0.2"),
        ("metadata.annotations['nope']", ""),
        ("spec.serviceAccountName", ""),
    ];
    for (path, value) in fields {
        let env = format!("env: [{{name: A, valueFrom: {{fieldRef: {{fieldPath: \"{path}\"}}}}}}]");
        assert_eq!(spec(HOST, &env).env, [format!("A={value}")], "{path}");
    }
    let resources = "resources: {limits: {memory: 64Mi}, requests: {cpu: 1500m}}";
    for (reference, value) in [
        ("resource: limits.memory", "67108864"),
        ("resource: limits.memory, divisor: 1Mi", "64"),
        ("resource: requests.cpu", "2"),
        ("resource: requests.cpu, divisor: 1m", "1500"),
        ("resource: limits.cpu", "2"),
        ("resource: requests.memory", "67108864"),
        ("resource: limits.ephemeral-storage, divisor: 1Mi", "1024"),
    ] {
        let env = format!("{resources}\n    env: [{{name: A, valueFrom: {{resourceFieldRef: {{{reference}}}}}}}]");
        assert_eq!(spec(HOST, &env).env, [format!("A={value}")], "{reference}");
    }
    let unlimited = "env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}]";
    assert_eq!(spec(HOST, unlimited).env, [format!("A={}", (24 << 10) - 100)], "what the kubelet leaves for pods");
    let unknown = "env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.nope}}}]";
    assert!(matches!(translated(HOST, unknown), Err(TranslateError::Reference { .. })));
}

#[test]
fn resources_become_shares_quota_and_memory() {
    for (resources, shares, quota, memory) in [
        ("{}", 2, 0, 0),
        ("{requests: {cpu: 100m}}", 102, 0, 0),
        ("{limits: {cpu: 500m, memory: 64Mi}}", 512, 50_000, 64 << 20),
        ("{limits: {cpu: 1m}}", 2, 1000, 0),
        ("{requests: {cpu: 1k}}", 262_144, 0, 0),
    ] {
        let resources = spec(HOST, &format!("resources: {resources}")).resources;
        assert_eq!((resources.cpu_shares, resources.cpu_quota, resources.memory), (shares, quota, memory));
    }
}

#[test]
fn the_oom_score_follows_class_and_quality_of_service() {
    for (pod, resources, score, class) in [
        ("", "{}", 1000, "BestEffort"),
        ("", "{requests: {memory: 32Mi}}", 999, "Burstable"),
        ("", "{requests: {memory: 12Gi}}", 500, "Burstable"),
        ("", "{limits: {cpu: 1, memory: 1Gi}}", -997, "Guaranteed"),
        ("\n  priorityClassName: system-node-critical", "{}", -997, "BestEffort"),
    ] {
        let (pod, resources) = (format!("{HOST}{pod}"), format!("resources: {resources}"));
        assert_eq!(spec(&pod, &resources).oom_score_adj, Some(score), "{resources}");
        assert_eq!(qos_class(&pod_of(&pod, &resources)), class);
    }
    assert_eq!(allowed(-997, &node(false)), None, "runc would fail");
    assert_eq!(allowed(999, &node(false)), Some(999));
}

#[test]
fn security_of_the_container_comes_before_that_of_the_pod() {
    let spec = spec(
        "hostNetwork: true\n  securityContext: {runAsUser: 1, runAsGroup: 2, supplementalGroups: [3], fsGroup: 4, seccompProfile: {type: RuntimeDefault}}",
        "securityContext: {runAsUser: 5, privileged: true, readOnlyRootFilesystem: true, capabilities: {add: [NET_ADMIN], drop: [ALL]}, seccompProfile: {type: Unconfined}}",
    );
    assert_eq!(spec.user.as_deref(), Some("5:2"));
    assert_eq!(spec.groups, ["3", "4"]);
    assert!(spec.privileged && spec.read_only);
    assert_eq!((spec.capabilities_add, spec.capabilities_drop), (vec!["NET_ADMIN".into()], vec!["ALL".into()]));
    assert_eq!(spec.security_options, ["seccomp=unconfined"]);
    let other = self::spec(HOST, "securityContext: {allowPrivilegeEscalation: false}");
    assert_eq!(other.security_options, ["no-new-privileges", "seccomp=unconfined"]);
}

#[test]
fn who_must_not_be_root_is_not_started_as_root() {
    let with = |user: &str| translated(HOST, &format!("securityContext: {{runAsNonRoot: true{user}}}"));
    assert!(with(", runAsUser: 5").is_ok());
    assert_eq!(with(", runAsUser: 0"), Err(TranslateError::Root("user `0`".into())));
    assert_eq!(with(""), Err(TranslateError::Root("user `nobody`".into())), "a name may be anybody");
    assert_eq!(translated(HOST, "securityContext: {runAsGroup: 5}"), Err(TranslateError::GroupWithoutUser));
}

#[test]
fn others_join_a_sandbox_that_has_the_ports_the_name_and_the_addresses() {
    let text = "shareProcessNamespace: true\n  \
                securityContext: {sysctls: [{name: net/ipv4/tcp_syncookies, value: '1'}]}";
    let ports = "ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 81}]";
    let joined = spec(text, ports);
    assert_eq!(joined.network, "container:sandbox-id");
    assert_eq!((joined.ipc.as_str(), joined.pid.as_str()), ("container:sandbox-id", "container:sandbox-id"));
    assert!(joined.ports.is_empty() && joined.hostname.is_empty() && joined.sysctls.is_empty());

    let node = node(true);
    let volumes = BTreeMap::new();
    let context = bare(&node, &volumes);
    let sandbox = sandbox(&pod_of(text, ports), "pause:1", 0, &context).unwrap();
    assert!(sandbox.name.starts_with("k8s_POD_web-node-1_default_"));
    assert_eq!((sandbox.network.as_str(), sandbox.ipc.as_str()), ("default", "shareable"));
    assert_eq!(sandbox.hostname, "web-node-1");
    assert_eq!(sandbox.sysctls["net.ipv4.tcp_syncookies"], "1");
    assert_eq!(sandbox.ports.len(), 1, "only what has a hostPort");
    assert_eq!((sandbox.ports[0].host_port, sandbox.ports[0].protocol.as_str()), (8080, "tcp"));
    assert_eq!(sandbox.oom_score_adj, Some(-998));
}

#[test]
fn a_pods_hosts_file_and_resolv_conf_are_mounted_unless_a_volume_is() {
    let node = node(true);
    let volumes = [("v".to_owned(), PathBuf::from("/host/v"))].into();
    let targets = |resolv_conf: Option<&str>, of: &str| {
        let files = lookup::Files { hosts: "/pods/uid/etc-hosts".into(), resolv_conf: resolv_conf.map(PathBuf::from) };
        let context = Context { lookup: Some(&files), ..bare(&node, &volumes) };
        let pod = pod_of(HOST, of);
        let mounts = container(&pod, &pod.containers()[0], 0, &context).unwrap().mounts;
        mounts.into_iter().map(|mount| format!("{}:{}", mount.source.display(), mount.target)).collect::<Vec<_>>()
    };
    assert_eq!(targets(None, ""), ["/pods/uid/etc-hosts:/etc/hosts"]);
    assert_eq!(targets(Some("/r"), ""), ["/pods/uid/etc-hosts:/etc/hosts", "/r:/etc/resolv.conf"]);
    assert_eq!(targets(None, "volumeMounts: [{name: v, mountPath: etc/hosts}]"), ["/host/v:/etc/hosts"]);
}

#[test]
fn a_host_name_is_short_unless_the_pod_wants_the_whole() {
    let long = "h".repeat(60);
    for (spec, expected) in [
        (String::new(), Ok("web-node-1".to_owned())),
        ("hostname: h\n  subdomain: s".to_owned(), Ok("h".to_owned())),
        ("setHostnameAsFQDN: true".to_owned(), Ok("web-node-1".to_owned())),
        (
            "hostname: h\n  subdomain: s\n  setHostnameAsFQDN: true".to_owned(),
            Ok("h.s.default.svc.cluster.local".to_owned()),
        ),
        (
            format!("hostname: {long}\n  subdomain: s\n  setHostnameAsFQDN: true"),
            Err(TranslateError::HostnameTooLong(format!("{long}.s.default.svc.cluster.local"))),
        ),
    ] {
        let (node, paths) = (node(true), BTreeMap::new());
        let made = sandbox(&pod_of(&spec, ""), "pause:1", 0, &bare(&node, &paths)).map(|spec| spec.hostname);
        assert_eq!(made, expected, "{spec}");
    }
}

#[test]
fn profiles_and_labels_become_options_of_the_engine() {
    let annotated = |value: &str| format!("hostNetwork: true\n  securityContext: {{appArmorProfile: {value}}}");
    for (pod, own, expected) in [
        (HOST, "{}", vec!["seccomp=unconfined"]),
        (HOST, "{seccompProfile: {type: RuntimeDefault}}", vec![]),
        (HOST, "{seccompProfile: {type: Localhost, localhostProfile: p.json}}", vec!["seccomp={}"]),
        (HOST, "{appArmorProfile: {type: RuntimeDefault}}", vec!["seccomp=unconfined"]),
        (HOST, "{appArmorProfile: {type: Unconfined}}", vec!["seccomp=unconfined", "apparmor=unconfined"]),
        (HOST, "{appArmorProfile: {type: Localhost, localhostProfile: p}}", vec!["seccomp=unconfined", "apparmor=p"]),
        (
            &annotated("{type: Localhost, localhostProfile: q}"),
            "{appArmorProfile: {type: Unconfined}}",
            vec!["seccomp=unconfined", "apparmor=unconfined"],
        ),
        (&annotated("{type: Localhost, localhostProfile: q}"), "{}", vec!["seccomp=unconfined", "apparmor=q"]),
        (
            HOST,
            "{seLinuxOptions: {type: spc_t, level: 's0:c1,c2'}}",
            vec!["label=type:spc_t", "label=level:s0:c1,c2", "seccomp=unconfined"],
        ),
    ] {
        assert_eq!(spec(pod, &format!("securityContext: {own}")).security_options, expected, "{pod} {own}");
    }
}

#[test]
fn the_old_annotation_names_an_apparmor_profile_where_no_field_does() {
    let with = |value: &str, own: &str, enabled: bool| {
        let mut pod = pod_of(HOST, own);
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(format!("{APPARMOR_ANNOTATION}c"), value.to_owned());
        let (node, paths) = (Node { apparmor: enabled, ..node(true) }, BTreeMap::new());
        let spec = container(&pod, &pod.containers()[0], 0, &bare(&node, &paths))?;
        Ok(spec.security_options.into_iter().find(|option| option.starts_with("apparmor=")))
    };
    for (value, own, enabled, expected) in [
        ("runtime/default", "", true, Ok(None)),
        ("unconfined", "", true, Ok(Some("apparmor=unconfined"))),
        ("localhost/p", "", true, Ok(Some("apparmor=p"))),
        (
            "localhost/p",
            "securityContext: {appArmorProfile: {type: Unconfined}}",
            true,
            Ok(Some("apparmor=unconfined")),
        ),
        ("localhost/p", "", false, Err(TranslateError::NoAppArmor("p".to_owned()))),
        ("unconfined", "", false, Ok(None)),
    ] {
        assert_eq!(with(value, own, enabled), expected.map(|option| option.map(str::to_owned)), "{value} {own}");
    }
}

#[test]
fn a_stop_signal_and_recursive_read_only_mounts_reach_the_runtime() {
    assert_eq!(spec(HOST, "").stop_signal, None);
    let os = "hostNetwork: true\n  os: {name: linux}";
    assert_eq!(spec(os, "lifecycle: {stopSignal: SIGUSR1}").stop_signal.as_deref(), Some("SIGUSR1"));
    for (wish, below) in
        [("Disabled", Below::Writable), ("IfPossible", Below::ReadOnlyIfPossible), ("Enabled", Below::ReadOnly)]
    {
        let mount = format!("volumeMounts: [{{name: v, mountPath: /v, readOnly: true, recursiveReadOnly: {wish}}}]");
        assert_eq!(spec(HOST, &mount).mounts[0].below, below, "{wish}");
    }
}
