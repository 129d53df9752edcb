use super::*;

fn read(fields: &str) -> Result<KubeletConfig, ConfigErrors> {
    let text = format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{fields}");
    KubeletConfig::read(&ConfigFile { name: "k.yaml", text: &text }, Path::new("/etc/k"))
}

fn errors(text: &str) -> String {
    KubeletConfig::read(&ConfigFile { name: "k.yaml", text }, Path::new("/")).unwrap_err().to_string()
}

#[test]
fn what_concerns_static_pods_is_read() {
    let config = read(
        "staticPodPath: manifests\nstaticPodURL: http://h/p\nstaticPodURLHeader: {A: [b, c], D: [e]}\n\
         fileCheckFrequency: 1m30s\nhttpCheckFrequency: 500ms\ncrashLoopBackOff: {maxContainerRestartPeriod: 5s}\n\
         podLogsDir: /logs/\ncontainerLogMaxSize: 1Mi\ncontainerLogMaxFiles: 3\n",
    )
    .unwrap();
    assert_eq!(config.static_pod_path.as_deref(), Some(Path::new("/etc/k/manifests")));
    assert_eq!(config.static_pod_url.as_deref(), Some("http://h/p"));
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(config.static_pod_url_header, [header("A", "b"), header("A", "c"), header("D", "e")]);
    assert_eq!(config.file_check_frequency, Some(Duration::from_secs(90)));
    assert_eq!(config.http_check_frequency, Some(Duration::from_millis(500)));
    assert_eq!(config.pod_logs_dir.as_deref(), Some(Path::new("/logs/")));
    assert_eq!(config.log_limits(), LogLimits { max_size: 1 << 20, max_files: 3 });
    assert_eq!(config.note("k.yaml"), None);
    assert!(!format!("{config:?}").contains("http"), "{config:?}");
}

#[test]
fn a_shorter_longest_back_off_also_shortens_the_first_wait() {
    for (period, initial, longest) in [("1s", 1, 1), ("10s", 10, 10), ("2m", 10, 120), ("300s", 10, 300)] {
        let mut timings = Timings::default();
        let config = read(&format!("crashLoopBackOff: {{maxContainerRestartPeriod: {period}}}\n")).unwrap();
        config.apply_back_off(&mut timings);
        assert_eq!((timings.crash_initial.as_secs(), timings.crash_max.as_secs()), (initial, longest), "{period}");
    }
    let mut timings = Timings::default();
    read("crashLoopBackOff: {}\n").unwrap().apply_back_off(&mut timings);
    assert_eq!(timings, Timings::default());
}

#[test]
fn log_rotation_can_be_turned_off() {
    assert_eq!(read("containerLogMaxSize: '-1'\n").unwrap().log_limits(), LogLimits { max_size: 0, max_files: 0 });
    assert_eq!(read("").unwrap().log_limits(), LogLimits { max_size: 10 << 20, max_files: 5 });
}

/// As `kubeadm init` writes it to /var/lib/kubelet/config.yaml.
#[test]
fn what_kubeadm_writes_is_accepted_with_one_note() {
    let config = read(
        "authentication:\n  anonymous: {enabled: false}\n  webhook: {cacheTTL: 0s, enabled: true}\n  \
         x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}\nauthorization:\n  mode: Webhook\n  \
         webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}\ncgroupDriver: systemd\nclusterDNS: [10.96.0.10]\n\
         clusterDomain: cluster.local\ncontainerRuntimeEndpoint: ''\ncpuManagerReconcilePeriod: 0s\n\
         crashLoopBackOff: {}\nevictionPressureTransitionPeriod: 0s\nfileCheckFrequency: 0s\n\
         healthzBindAddress: 127.0.0.1\nhealthzPort: 10248\nhttpCheckFrequency: 0s\nimageMaximumGCAge: 0s\n\
         imageMinimumGCAge: 0s\nlogging:\n  flushFrequency: 0\n  options: {json: {infoBufferSize: '0'}, text: {infoBufferSize: '0'}}\n  \
         verbosity: 0\nmemorySwap: {}\nnodeStatusReportFrequency: 0s\nnodeStatusUpdateFrequency: 0s\n\
         rotateCertificates: true\nruntimeRequestTimeout: 0s\nshutdownGracePeriod: 0s\n\
         shutdownGracePeriodCriticalPods: 0s\nstaticPodPath: /etc/kubernetes/manifests\n\
         streamingConnectionIdleTimeout: 0s\nsyncFrequency: 0s\nvolumeStatsAggPeriod: 0s\n",
    )
    .unwrap();
    assert_eq!(config.static_pod_path.as_deref(), Some(Path::new("/etc/kubernetes/manifests")));
    assert_eq!((config.file_check_frequency, config.http_check_frequency), (None, None));
    let note = config.note("k.yaml").unwrap();
    assert!(
        note.starts_with("k.yaml: ignored") && note.contains("authentication, authorization, cgroupDriver"),
        "{note}"
    );
    assert!(!note.contains("containerRuntimeEndpoint"), "it says nothing: {note}");
}

#[test]
fn what_port_10250_is_served_with_is_read() {
    let config = read(
        "address: '::'\nport: 10260\nenableServer: true\nauthentication: {x509: {clientCAFile: pki/ca.crt}}\n\
         tlsCertFile: /k.crt\ntlsPrivateKeyFile: k.key\n",
    )
    .unwrap();
    let file = |path: &str| Some(Path::new("/etc/k").join(path));
    let expected = ServerConfig {
        enabled: Some(true),
        address: "::".parse().ok(),
        port: Some(10260),
        client_ca_file: file("pki/ca.crt"),
        tls_cert_file: file("/k.crt"),
        tls_private_key_file: file("k.key"),
    };
    assert_eq!((config.server, config.ignored), (expected, vec![]));
    let config = read("address: ''\nport: 0\nauthentication: {anonymous: {enabled: true}}\n").unwrap();
    assert_eq!((config.server, config.ignored), (ServerConfig::default(), vec!["authentication".to_owned()]));
}

#[test]
fn fields_that_a_kubelet_does_not_know_are_errors_with_their_place() {
    let errors = read(
        "staticPodUrl: http://h\nauthentication:\n  webhook:\n    enabeld: true\nmemorySwap: {a: 1}\n\
         registerWithTaints: [{key: a}]\nlogging: {anything: 1}\nfoo: null\n",
    )
    .unwrap_err();
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "k.yaml:3: staticPodUrl: unknown field; did you mean `staticPodURL`?",
            "k.yaml:6: authentication.webhook.enabeld: unknown field; did you mean `enabled`?",
            "k.yaml:7: memorySwap.a: unknown field",
            "k.yaml:10: foo: unknown field",
        ]
    );
}

/// Each row: fields, and what the error says.
#[test]
fn values_of_the_wrong_kind_are_errors_with_their_place() {
    for (fields, expected) in [
        ("staticPodPath: [a]", "staticPodPath: `[…]` is no text"),
        ("staticPodPath: 5", "staticPodPath: `5` is no text"),
        ("fileCheckFrequency: 20", "fileCheckFrequency: `20` is no duration"),
        ("httpCheckFrequency: -1s", "httpCheckFrequency: `-1s` is no duration"),
        ("containerLogMaxFiles: 1", "containerLogMaxFiles: `1` is no number of files"),
        ("containerLogMaxFiles: '5'", "containerLogMaxFiles: `5` is no number of files"),
        ("containerLogMaxSize: lots", "containerLogMaxSize: `lots` is no size"),
        ("containerLogMaxSize: '0'", "containerLogMaxSize: `0` is no size"),
        ("crashLoopBackOff: {maxContainerRestartPeriod: 301s}", "maxContainerRestartPeriod: `301s` is out of range"),
        ("crashLoopBackOff: {maxContainerRestartPeriod: 999ms}", "maxContainerRestartPeriod: `999ms` is out of range"),
        ("crashLoopBackOff: {maxContainerRestartPeriod: 5}", "maxContainerRestartPeriod: `5` is no duration"),
        ("staticPodURLHeader: {A: secret}", "staticPodURLHeader: expected a list of texts"),
        ("staticPodURLHeader: [secret]", "staticPodURLHeader: expected a list of texts"),
        ("staticPodURLHeader: {A: [5]}", "staticPodURLHeader: expected a list of texts"),
        ("address: localhost", "address: `localhost` is no address"),
        ("port: 65536", "port: `65536` is no port"),
        ("port: '10250'", "port: `10250` is no port"),
        ("enableServer: 1", "enableServer: `1` is neither true nor false"),
        ("authentication: {x509: {clientCAFile: 1}}", "authentication.x509.clientCAFile: `1` is no text"),
        ("staticPodPath: a\nstaticPodPath: b", "duplicate"),
    ] {
        let error = read(fields).unwrap_err().to_string();
        assert!(error.starts_with("k.yaml:") && error.contains(expected), "{fields}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn other_files_are_refused() {
    for (text, expected) in [
        ("", "k.yaml: `kind` is missing"),
        ("kind: KubeletConfiguration\n", "k.yaml:1: `apiVersion` is missing"),
        ("apiVersion: kubelet.config.k8s.io/v1beta1\n", "k.yaml:1: `kind` is missing"),
        ("apiVersion: v1\nkind: Pod\n", "k.yaml:1: `Pod` of `v1`; expected `KubeletConfiguration`"),
        (
            "apiVersion: kubelet.config.k8s.io/v1alpha1\nkind: KubeletConfiguration\n",
            "k.yaml:1: `KubeletConfiguration` of `kubelet.config.k8s.io/v1alpha1`; expected",
        ),
        ("apiVersion: [", "k.yaml:1:"),
        (
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n---\na: b\n",
            "k.yaml:4: a second document",
        ),
    ] {
        let error = errors(text);
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}
