//! The faults, each with its preflight error where there is one, its autopsy, and its repair.

use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd};

use crate::command::start;
use crate::host::{LONG, Tree, docker, eventually, plinth, plinth_command, service, shell};
use crate::patient::{autopsy, config, mended, preflight_refuses, reset_to, status_tells};

pub(crate) fn port_taken() {
    let empty = Tree::of_host();
    let listener = TcpListener::bind("0.0.0.0:6443").unwrap();
    let pid = std::process::id().to_string();
    preflight_refuses("", "Port-6443", &["6443", &pid]);
    let ignoring = format!("{} --ignore-preflight-errors=Port-6443", config(15, "", ""));
    let found = autopsy(&ignoring, 30, "port-taken", &["6443", &pid]);
    assert_eq!(found["component"], "kube-apiserver");
    status_tells(&["kube-apiserver crashed", "bind: address already in use"]);
    // Traces of our own are in nobody's way, and what is in the way still is.
    let ended = plinth("init -o json").exits(3).json();
    let errors = ended["findings"].as_array().unwrap().iter().filter(|one| one["level"] == "error");
    assert_eq!(errors.map(|one| one["name"].as_str().unwrap()).collect::<Vec<_>>(), ["Port-6443"]);
    drop(listener);
    mended(&ignoring);
    reset_to(&empty);
}

/// Data of a single member is served by etcd as its own; that of several has no quorum.
pub(crate) fn etcd_data_of_another_cluster() {
    let empty = Tree::of_host();
    let (client, peer) = ("http://127.0.0.1:12379", "http://127.0.0.1:12380");
    shell("mkdir -m 700 /var/lib/etcd").ok();
    docker(&format!(
        "run --detach --name old --network host --volume /var/lib/etcd:/data registry.k8s.io/etcd:3.7.0-0 etcd \
         --name old --data-dir /data --listen-client-urls {client} --advertise-client-urls {client} \
         --listen-peer-urls {peer} --initial-advertise-peer-urls {peer} --initial-cluster old={peer}"
    ));
    let add = format!("docker exec old etcdctl --endpoints {client} member add two --peer-urls http://127.0.0.1:12390");
    eventually(LONG, || shell_succeeds(&add));
    docker("rm --force old");

    preflight_refuses("", "DirAvailable--var-lib-etcd", &["/var/lib/etcd", "not ours"]);
    // Before the API server's first requests time out, after 14 s, and fill etcd's log.
    let ignoring = format!("{} --ignore-preflight-errors=DirAvailable--var-lib-etcd", config(10, "", ""));
    let found = autopsy(&ignoring, 30, "etcd-foreign-data", &["/var/lib/etcd"]);
    assert_eq!(found["component"], "etcd");
    shell("mv /var/lib/etcd $PLINTH_SANDBOX_DIR/other").ok();
    mended(&format!("{} --ignore-preflight-errors=DirAvailable--var-lib-etcd", config(240, "", "")));
    reset_to(&empty);
    assert!(Path::new(&std::env::var("PLINTH_SANDBOX_DIR").unwrap()).join("other/member/wal").exists());
}

fn shell_succeeds(line: &str) -> Result<(), String> {
    let ended = shell(line);
    if ended.status.success() { Ok(()) } else { Err(ended.to_string()) }
}

/// Given up long before the four minutes of the default, because flags stay as they are.
pub(crate) fn flags_that_are_not_understood() {
    let empty = Tree::of_host();
    for (component, section, flag, value) in [
        ("kube-apiserver", "apiServer: {extraArgs: [", "bogus", "1"),
        ("kube-apiserver", "apiServer: {extraArgs: [", "event-ttl", "soon"),
        ("etcd", "etcd: {local: {extraArgs: [", "quota-backend-bytes", "lots"),
    ] {
        let closing = if component == "etcd" { "]}}" } else { "]}" };
        let arguments = config(240, "", &format!("{section}{{name: {flag}, value: {value:?}}}{closing}"));
        let found = autopsy(&arguments, 30, "bad-flag", &[flag]);
        assert_eq!(found["component"], component);
        assert!(found["fix"].as_str().unwrap().contains("extraArgs`"), "{found}");
        status_tells(&[component, "crashed", flag]);
    }
    mended(&config(240, "", ""));
    reset_to(&empty);
}

pub(crate) fn image_missing() {
    let empty = Tree::of_host();
    // Nobody listens there, which is known at once.
    let nowhere = config(240, "", "imageRepository: 127.0.0.1:1/nowhere");
    let ended = plinth(&format!("init -o json {nowhere}")).exits(3);
    assert!(ended.took < Duration::from_secs(30), "{ended}");
    for word in ["127.0.0.1:1/nowhere/etcd:3.7.0-0", "connection refused", "docker load", "--image-repository"] {
        assert!(ended.stderr.contains(word), "{word}: {ended}");
    }
    let ignoring = format!("{nowhere} --ignore-preflight-errors=ImagePull");
    autopsy(&ignoring, 40, "image-missing", &["127.0.0.1:1/nowhere/etcd:3.7.0-0", "connection refused"]);
    status_tells(&["etcd", "127.0.0.1:1/nowhere/etcd:3.7.0-0"]);
    mended("");
    let reset = plinth("reset --force -o json").ok().json();
    let things = reset["things"].as_array().unwrap();
    assert!(things.iter().all(|thing| thing["state"] == "gone"), "{reset}");
    assert_eq!(empty.difference(&Tree::of_host()), Vec::<String>::new());
}

pub(crate) fn engine_down() {
    let empty = Tree::of_host();
    stop_engine("TERM");
    preflight_refuses("", "Docker", &["docker.sock"]);
    start_engine();

    let arguments = config(8, "", "");
    let init = start(&mut plinth_command(&format!("init -o json {arguments}")));
    eventually(LONG, || {
        if Path::new("/etc/kubernetes/manifests/kube-scheduler.yaml").exists() { Ok(()) } else { Err("nothing".into()) }
    });
    stop_engine("KILL");
    let ended = init.end(LONG).exits(1);
    let found = ended.json();
    assert_eq!(found["autopsy"]["code"], "docker-down", "{ended}");
    let cause = found["autopsy"]["cause"].as_str().unwrap();
    assert!(cause.ends_with("connection refused"), "{cause}");
    status_tells(&["does not answer", "connection refused"]);
    start_engine();
    mended(&arguments);
    reset_to(&empty);
}

fn stop_engine(signal: &str) {
    shell(&format!(
        "pid=$(cat /run/docker.pid); kill -{signal} $pid; while kill -0 $pid; do sleep 0.05; done 2>/dev/null"
    ))
    .ok();
}

fn start_engine() {
    shell("rm -f /run/docker.pid").ok();
    service("dockerd", "/var/log/dockerd.log");
    eventually(LONG, || shell_succeeds("docker version"));
}

/// On a file system of its own, which can be neither renamed nor removed.
pub(crate) fn disk_full() {
    shell("mkdir /var/lib/etcd && mount -t tmpfs -o size=20m tmpfs /var/lib/etcd").ok();
    preflight_refuses("", "Disk-etcd", &["20 MiB", "/var/lib/etcd"]);
    let ignoring = format!("{} --ignore-preflight-errors=Disk-etcd", config(9, "", ""));
    autopsy(&ignoring, 25, "disk-full", &["/var/lib/etcd"]);
    status_tells(&["etcd crashed"]);

    shell("mount -o remount,size=1g /var/lib/etcd").ok();
    mended(&ignoring);
    plinth("reset --force").ok();
    shell("test -z \"$(ls -A /var/lib/etcd)\"").ok();
}

/// A clock that is behind is told before anything is done: the certificates that are there would be useless.
pub(crate) fn certificates_of_the_future() {
    let key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "kubernetes");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    ca.not_before = date_time_ymd(2090, 1, 1);
    ca.not_after = date_time_ymd(2095, 1, 1);
    shell("mkdir -p /etc/kubernetes/pki").ok();
    std::fs::write("/etc/kubernetes/pki/ca.crt", ca.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write("/etc/kubernetes/pki/ca.key", key.serialize_pem()).unwrap();
    shell("chmod 600 /etc/kubernetes/pki/ca.key").ok();
    let before = Tree::of_host();
    let ended = plinth("init").exits(1);
    for word in ["ca.crt", "not valid before 2090-01-01", "clock", "date -u"] {
        assert!(ended.stderr.contains(word), "{word}: {ended}");
    }
    assert!(ended.took < Duration::from_secs(30), "{ended}");
    assert_eq!(before.difference(&Tree::of_host()), Vec::<String>::new());
    shell("rm -r /etc/kubernetes").ok();
    plinth("init --dry-run").ok();
}

/// Mended by another flag: what the first attempt made for the wrong address is made anew.
pub(crate) fn address_of_another_host() {
    let empty = Tree::of_host();
    preflight_refuses("--apiserver-advertise-address 192.0.2.7", "AdvertiseAddress", &["192.0.2.7", "10.213.0.2"]);
    let elsewhere = config(9, "localAPIEndpoint: {advertiseAddress: 192.0.2.7}", "");
    let ignoring = format!("{elsewhere} --ignore-preflight-errors=AdvertiseAddress");
    autopsy(&ignoring, 25, "address-not-ours", &["192.0.2.7"]);
    status_tells(&["etcd crashed", "bind: cannot assign requested address"]);
    mended("");
    reset_to(&empty);
}

pub(crate) fn killed_again_and_again() {
    static GO_ON: AtomicBool = AtomicBool::new(true);
    let empty = Tree::of_host();
    let killer = thread::spawn(|| {
        while GO_ON.load(Ordering::Relaxed) {
            shell("pkill -KILL -x kube-apiserver || true").ok();
            thread::sleep(Duration::from_millis(300));
        }
    });
    // In the ten seconds before the second restart, on a fast machine and on a slow one.
    let arguments = config(10, "", "");
    let found = autopsy(&arguments, 25, "crash", &["kube-apiserver", "SIGKILL"]);
    assert!(found["components"][1]["restarts"].as_u64().is_some_and(|restarts| restarts >= 1), "{found}");
    status_tells(&["kube-apiserver crashed", "exit code 137"]);
    GO_ON.store(false, Ordering::Relaxed);
    killer.join().unwrap();
    mended(&config(60, "", ""));
    reset_to(&empty);
}

pub(crate) fn broken_manifest_of_somebody_else() {
    shell("mkdir -p /etc/kubernetes/manifests").ok();
    std::fs::write("/etc/kubernetes/manifests/mine.yaml", "kind: Pod\n  broken: [\n").unwrap();
    let before = Tree::of_host();
    // It is not taken for the cause of anything else.
    autopsy(&config(240, "", "apiServer: {extraArgs: [{name: bogus, value: \"1\"}]}"), 30, "bad-flag", &["bogus"]);
    plinth("init").ok();
    status_tells(&["/etc/kubernetes/manifests/mine.yaml is not run", "line 2"]);
    reset_to(&before);
}
