//! Not among the kubelet's forty: what a container finds inside, and what keeps it from being made.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::host::{docker, shell};
use crate::node::{IMAGE, Manifest, STAY, eventually, node, one};

/// Waits until `/status` says this of a pod.
#[track_caller]
fn until_told(pod: &str, words: &str) -> String {
    eventually(|| {
        let status = node().status();
        let full = format!("{pod}-{}", crate::node::NAME);
        let told = status["pods"].as_array().unwrap().iter().find(|one| one["name"] == full.as_str()).cloned();
        let message = told.unwrap_or_default()["message"].as_str().unwrap_or_default().to_owned();
        if message.contains(words) { Ok(message) } else { Err(format!("of {pod} it is said: {message}")) }
    })
}

pub(crate) fn extra_names_are_looked_up_as_the_pod_wants() {
    let wishes = "hostAliases: [{ip: 10.9.9.9, hostnames: [one, two]}]
subdomain: sub
dnsPolicy: None
dnsConfig: {nameservers: [192.0.2.53], searches: [a.example], options: [{name: ndots, value: '3'}, {name: rotate}]}";
    let pod = Manifest::named("x-names").own_network().spec(wishes).and(&one("other", IMAGE, STAY, ""));
    node().put("x-names.yaml", &pod.text());
    let on_host = Manifest::named("x-host-names").spec("hostAliases: [{ip: 10.9.9.9, hostnames: [one, two]}]");
    node().put("x-host-names.yaml", &on_host.text());

    let c = node().until_runs("x-names", "c", |_| true);
    let other = node().until_runs("x-names", "other", |_| true);
    let address = node().until_shown("x-names", |pod| pod["status"]["podIP"].as_str().map(str::to_owned));
    let hosts = node().within(&c, "cat /etc/hosts");
    assert!(hosts.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{hosts}");
    let own = format!("\n{address}\tx-names-node-1.sub.default.svc.cluster.local\tx-names-node-1\n");
    assert!(hosts.contains(&own) && hosts.ends_with("\n10.9.9.9\tone\ttwo"), "{hosts}");
    assert_eq!(node().within(&other, "cat /etc/hosts"), hosts);
    let dns = "search a.example\nnameserver 192.0.2.53\noptions ndots:3 rotate";
    assert_eq!(node().within(&c, "cat /etc/resolv.conf"), dns);

    let c = node().until_runs("x-host-names", "c", |_| true);
    let hosts = node().within(&c, "cat /etc/hosts");
    let of_node = fs::read_to_string("/etc/hosts").unwrap();
    let begin = format!("# Kubernetes-managed hosts file (host network).\n{of_node}");
    assert!(hosts.starts_with(&begin) && hosts.ends_with("\n10.9.9.9\tone\ttwo"), "{hosts}");
}

pub(crate) fn extra_a_host_port_that_is_taken_is_named_and_waited_for() {
    let pod = |name: &str, port: u16| {
        let serve = "mkdir /w; echo from here >/w/index.html; exec httpd -f -p 80 -h /w";
        let ports = format!("ports: [{{containerPort: 80, hostPort: {port}}}, {{containerPort: 81}}]");
        let grace = "terminationGracePeriodSeconds: 1";
        node().put(
            &format!("{name}.yaml"),
            &Manifest::named(name).own_network().spec(grace).script(serve).container(&ports).text(),
        );
    };
    let taken = TcpListener::bind(("0.0.0.0", 18_500)).unwrap();
    pod("x-port-process", 18_500);
    pod("x-port-first", 18_501);
    let first = node().until_runs("x-port-first", "c", |_| true);
    pod("x-port-second", 18_501);

    until_told("x-port-second", "hostPort 18501/TCP is held by pod default/x-port-first-node-1");
    let told = until_told("x-port-process", "hostPort 18500/TCP is held by ");
    assert!(told.contains(&format!("(process {})", std::process::id())), "{told}");
    assert!(node().lives("x-port-process").is_empty() && node().lives("x-port-second").is_empty());
    let get = |port: u16| shell(&format!("wget -q -T 5 -O - http://127.0.0.1:{port}/")).stdout.trim().to_owned();
    eventually(|| if get(18_501) == "from here" { Ok(()) } else { Err("no answer".to_owned()) });
    assert!(!docker("ps --format {{.Ports}}").contains("->81/tcp"), "without a hostPort it is not published");

    drop(taken);
    node().take("x-port-first.yaml");
    node().until_runs("x-port-process", "c", |_| true);
    let second = node().until_runs("x-port-second", "c", |_| true);
    assert_ne!(first.uid, second.uid);
}

pub(crate) fn extra_a_container_has_the_rights_that_its_pod_gives() {
    let pod = Manifest::named("x-rights")
        .container("securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}")
        .container("volumeMounts: [{name: v, mountPath: /v}]")
        .spec("securityContext: {runAsUser: 1000, runAsGroup: 2000, supplementalGroups: [3000], fsGroup: 4000, runAsNonRoot: true}\nvolumes: [{name: v, emptyDir: {}}]");
    node().put("x-rights.yaml", &pod.text());
    let usual = "securityContext: {capabilities: {add: [NET_ADMIN]}}";
    node().put("x-rights-more.yaml", &Manifest::named("x-rights-more").container(usual).text());
    let root = "securityContext: {runAsNonRoot: true}";
    node().put("x-rights-root.yaml", &Manifest::named("x-rights-root").container(root).text());

    let c = node().until_runs("x-rights", "c", |_| true);
    let within = |line: &str| node().within(&c, line);
    assert_eq!(within("id"), "uid=1000 gid=2000 groups=2000,3000,4000");
    let of_process = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\n\\t'";
    assert_eq!(within(of_process), "CapEff:0000000000000000NoNewPrivs:1Seccomp:2");
    assert_eq!(
        within("stat -c '%a %g' /v; touch /v/f; stat -c %g /v/f; touch /f 2>/dev/null || echo no"),
        "2777 4000\n4000\nno"
    );
    let c = node().until_runs("x-rights-more", "c", |_| true);
    assert_eq!(node().within(&c, of_process), "CapEff:00000000a80435fbNoNewPrivs:0Seccomp:0");
    until_told("x-rights-root", "runAsNonRoot is set, but the container would run as root");
    assert!(node().lives("x-rights-root").is_empty());
}

pub(crate) fn extra_a_seccomp_profile_may_be_the_nodes() {
    let directory = "/var/lib/kubelet/seccomp";
    fs::create_dir_all(format!("{directory}/profiles")).unwrap();
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [{"names": ["chmod", "fchmod", "fchmodat"], "action": "SCMP_ACT_ERRNO"}]}"#;
    fs::write(format!("{directory}/profiles/no-chmod.json"), profile).unwrap();
    fs::write(format!("{directory}/broken.json"), "{nope").unwrap();
    let pod = |name: &str, file: &str| {
        let context = format!("securityContext: {{seccompProfile: {{type: Localhost, localhostProfile: {file}}}}}");
        node().put(&format!("{name}.yaml"), &Manifest::named(name).container(&context).text());
    };
    pod("x-seccomp", "profiles/no-chmod.json");
    pod("x-seccomp-broken", "broken.json");
    pod("x-seccomp-none", "none.json");
    let c = node().until_runs("x-seccomp", "c", |_| true);
    let tried = node().within(&c, "touch /f; chmod 600 /f 2>/dev/null && echo done || echo refused");
    assert_eq!(tried, "refused");
    until_told("x-seccomp-broken", "/var/lib/kubelet/seccomp/broken.json is not JSON");
    until_told("x-seccomp-none", "there is no seccomp profile /var/lib/kubelet/seccomp/none.json");
    pod("x-seccomp-none", "profiles/no-chmod.json");
    node().until_runs("x-seccomp-none", "c", |_| true);
}

pub(crate) fn extra_a_grpc_probe_asks_the_health_service() {
    // etcd has one: it serves as a whole, and knows no service of this name.
    let etcd = |name: &str, service: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  containers:\n  - name: c\n    \
             image: registry.k8s.io/etcd:3.7.0-0\n    command: [etcd, --data-dir=/tmp/etcd, \
             '--listen-client-urls=http://0.0.0.0:2379', '--advertise-client-urls=http://127.0.0.1:2379']\n    \
             readinessProbe: {{grpc: {{port: 2379{service}}}, periodSeconds: 1}}\n"
        )
    };
    node().put("x-grpc.yaml", &etcd("x-grpc", ""));
    node().put("x-grpc-none.yaml", &etcd("x-grpc-none", ", service: nobody"));
    node().until_shown("x-grpc", |pod| pod["status"]["containerStatuses"][0]["ready"].as_bool().filter(|ready| *ready));
    until_told("x-grpc-none", "health check of `nobody` at ");
    node().take("x-grpc.yaml");
    node().take("x-grpc-none.yaml");
}

pub(crate) fn extra_a_registry_gets_the_credentials_of_dockers_file() {
    // A registry that lets in one user and has nothing. The engine takes loopback addresses without TLS.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let registry = listener.local_addr().unwrap();
    // base64 of `me:p~~?>w`
    let expected = "authorization: basic bwu6cH5+Pz53".to_lowercase();
    let let_in = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&let_in);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).to_lowercase();
            let status = if request.contains(&expected) {
                seen.lock().unwrap().push(request.lines().next().unwrap_or_default().to_owned());
                "404 Not Found\r\n"
            } else {
                "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"test\"\r\n"
            };
            let _ = write!(stream, "HTTP/1.1 {status}Content-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    fs::create_dir_all("/var/lib/kubelet").unwrap();
    let file = format!(r#"{{"auths": {{"http://{registry}/v2/": {{"auth": "bWU6cH5+Pz53"}}}}}}"#);
    fs::write("/var/lib/kubelet/config.json", file).unwrap();
    node().put("x-registry.yaml", &Manifest::named("x-registry").image(&format!("'{registry}/app:1'")).text());
    eventually(|| {
        let let_in = let_in.lock().unwrap();
        let asked = let_in.iter().any(|line| line.contains("/v2/app/manifests/1"));
        if asked { Ok(()) } else { Err(format!("it let in {let_in:?}")) }
    });
    until_told("x-registry", "cannot pull image");
    assert!(!shell("cat /var/log/plinth/agent.log").stdout.contains("p~~?>w"));
}

pub(crate) fn extra_a_container_may_choose_its_stop_signal() {
    let pod = Manifest::named("x-signal")
        .script("trap 'echo told >/v/signal; exit 0' USR1; while :; do sleep 0.05; done")
        .container("lifecycle: {stopSignal: SIGUSR1}")
        .container("volumeMounts: [{name: v, mountPath: /v}]")
        .spec("os: {name: linux}\nvolumes: [{name: v, hostPath: {path: /opt/work/x-signal, type: DirectoryOrCreate}}]")
        .spec("terminationGracePeriodSeconds: 60");
    node().put("x-signal.yaml", &pod.text());
    let c = node().until_runs("x-signal", "c", |_| true);
    assert_eq!(node().inspect(&c)["Config"]["StopSignal"], "SIGUSR1");
    // Until the shell has set its trap, the signal would end it.
    eventually(|| {
        let caught = node().within(&c, "grep SigCgt /proc/1/status");
        let mask = u64::from_str_radix(caught.trim_start_matches("SigCgt:").trim(), 16).unwrap();
        if mask & (1 << 9) == 0 { Err(caught) } else { Ok(()) }
    });
    node().take("x-signal.yaml");
    node().until_gone("x-signal");
    assert_eq!(fs::read_to_string("/opt/work/x-signal/signal").unwrap(), "told\n");
}
