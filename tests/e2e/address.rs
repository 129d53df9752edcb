//! The host gets another address, and the API server another port.

use serde_json::{Value, json};

use crate::host::{
    COMPONENTS, LONG, SOON, all_running, check, container_ids, eventually, healthy, kubectl, plinth, shell, status,
};
use crate::sandbox::note;

const OLD: &str = "10.213.0.2";
const NEW: &str = "10.213.0.3";

pub(crate) fn a_control_plane_moves_with_its_host() {
    plinth("init").ok();
    kubectl("create configmap before --from-literal=at=old").ok();
    the_address_is_gone();
    move_to(NEW, 6443, "init");
    an_earlier_generation_is_where_nobody_can_be();
    a_bad_move_comes_back();
    move_to(NEW, 7443, "init --apiserver-bind-port 7443");
    shell("ip address add 10.213.0.4/24 dev eth0").ok();
    move_to("10.213.0.4", 7443, "init --apiserver-advertise-address 10.213.0.4");
    plinth("reset --force").ok();
    assert!(container_ids().is_empty());
}

fn the_address_is_gone() {
    shell(&format!(
        "ip address add {NEW}/24 dev eth0; ip address del {OLD}/24 dev eth0
         ip address show dev eth0 | grep -q {NEW}/24 || ip address add {NEW}/24 dev eth0
         ip route replace default via 10.213.0.1"
    ))
    .ok();
    let problems = status()["problems"].clone();
    let first = problems[0].as_str().unwrap();
    let told = [format!("{OLD} is no longer on this host"), format!("moves the control plane to {NEW}")];
    assert!(told.iter().all(|text| first.contains(text)), "{problems}");

    let named = plinth(&format!("init --apiserver-advertise-address {OLD}"));
    assert!(named.stdout.is_empty() && named.stderr.contains("is not on this host"), "{named}");

    let plan = plinth("plan --detailed-exitcode").exits(10);
    for text in [
        &format!("the control plane moves: {OLD}:6443 → {NEW}:6443\n"),
        "certs/apiserver: ",
        "certs/etcd-server: ",
        "certs/etcd-peer: ",
        "kubeconfig/admin: its server is ",
        "[restart of etcd, API gap expected]",
        "[restart of kube-apiserver, API gap expected]",
        "[restart of kube-scheduler]",
    ] {
        assert!(plan.stdout.contains(text), "{text} is missing: {plan}");
    }
    assert!(plan.stderr.contains(&format!("{OLD} is no longer on this host; {NEW}")), "{plan}");
}

/// `arguments` move the control plane to `address` and `port`, with all that is in it.
fn move_to(address: &str, port: u16, arguments: &str) {
    let before = all_running(SOON);
    let moved = plinth(arguments).ok();
    note(&format!("{arguments}: to {address}:{port} in {:.2} s", moved.took.as_secs_f64()));
    let after = all_running(SOON);
    for component in COMPONENTS {
        // etcd knows nothing of the port.
        let stays = component == "etcd" && moved.stderr.contains("kube-apiserver") && !moved.stderr.contains("etcd: ");
        assert_eq!(after[component].id == before[component].id, stays, "{component}: {moved}");
    }
    let server = format!("https://{address}:{port}");
    for user in ["admin", "super-admin", "controller-manager", "scheduler", "plinth-agent"] {
        let kubeconfig = std::fs::read_to_string(format!("/etc/kubernetes/{user}.conf")).unwrap();
        assert!(kubeconfig.contains(&format!("server: {server}\n")), "{user}: {kubeconfig}");
    }
    eventually(SOON, || {
        let status = status();
        check(status["well"] == true, || status["problems"].to_string())
    });
    kubectl("get configmap before").ok();
    eventually(LONG, || {
        let endpoints = kubectl("get endpointslice kubernetes -o json").ok().json();
        let found: Vec<_> =
            endpoints["endpoints"].as_array().into_iter().flatten().map(|one| &one["addresses"]).collect();
        check(found == [&json!([address])] && endpoints["ports"][0]["port"] == port, || endpoints.to_string())
    });
    assert_eq!(peer_urls(), json!([format!("https://{address}:2380")]));
    let again = plinth("init").ok();
    assert!(again.stdout.contains("nothing is to be done"), "{again}");
    // Controller manager and scheduler have found it too.
    kubectl(&format!("create deployment at-{port}-{} --image=example.com/x", address.replace('.', "-"))).ok();
    eventually(LONG, || {
        let sets = kubectl("get replicasets -o json").ok().json()["items"].as_array().map_or(0, Vec::len);
        let deployments = kubectl("get deployments -o json").ok().json()["items"].as_array().map_or(0, Vec::len);
        check(sets == deployments, || format!("{sets} ReplicaSets of {deployments} Deployments"))
    });
}

fn peer_urls() -> Value {
    let pki = "/etc/kubernetes/pki/etcd";
    let line = format!(
        "curl --silent --fail --noproxy '*' --cacert {pki}/ca.crt --cert {pki}/healthcheck-client.crt \
         --key {pki}/healthcheck-client.key --data '{{}}' https://127.0.0.1:2379/v3/cluster/member/list"
    );
    let members = shell(&line).ok().json();
    assert_eq!(members["members"].as_array().map(Vec::len), Some(1), "{members}");
    members["members"][0]["peerURLs"].clone()
}

fn an_earlier_generation_is_where_nobody_can_be() {
    let refused = plinth("rollback 1").exits(1);
    assert!(refused.stderr.contains(&format!("generation 1 is at {OLD}")), "{refused}");
}

/// Nothing of a move that fails stays: kubeconfigs and certificates are those from before.
fn a_bad_move_comes_back() {
    let before = std::fs::read_to_string("/etc/kubernetes/scheduler.conf").unwrap();
    let path = format!("{}/bad.yaml", std::env::var("PLINTH_SANDBOX_DIR").unwrap());
    let text = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nlocalAPIEndpoint: {bindPort: 7443}\n---\n\
        apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n\
        scheduler:\n  extraArgs: [{name: no-such-flag, value: \"1\"}]\n";
    std::fs::write(&path, text).unwrap();
    let failed = plinth(&format!("init --config {path} -o json")).exits(1);
    note(&format!("a bad move is undone after {:.2} s", failed.took.as_secs_f64()));
    let json = failed.json();
    assert_eq!(json["error"], "put-back", "{failed}");
    assert!(json["back"].as_array().unwrap().iter().all(|one| one["unhealthy"].is_null()), "{failed}");
    assert_eq!(std::fs::read_to_string("/etc/kubernetes/scheduler.conf").unwrap(), before);
    healthy(SOON);
    kubectl("get configmap before").ok();
    let again = plinth("init").ok();
    assert!(again.stdout.contains("nothing is to be done"), "{again}");
}
