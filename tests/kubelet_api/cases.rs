//! What is asked.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use serde_json::Value;

use crate::face::{NODE, Who, as_admin, ask, ask_with, container, init, run_pod};
use crate::host::{LONG, SOON, check, eventually, kubectl, plinth, running, status};

const MANIFEST: &str = "/etc/kubernetes/manifests/kube-apiserver.yaml";

pub(crate) fn the_api_server_says_who_may_ask() {
    init();
    let unauthorized = (401, "Unauthorized".to_owned());
    for path in ["/healthz", "/pods", "/metrics", "/no-such-path"] {
        assert_eq!(ask(Who::Nobody, path), unauthorized, "{path}");
        assert_eq!(ask(Who::Pair("/etc/kubernetes/pki/etcd/healthcheck-client"), path), unauthorized, "{path}");
        assert_eq!(ask(Who::Token("nonsense"), path), unauthorized, "{path}");
    }
    let (code, pods) = ask(Who::ApiServer, "/pods");
    let pods: Value = serde_json::from_str(&pods).unwrap();
    assert_eq!((code, pods["items"].as_array().unwrap().len()), (200, 4), "{pods}");
    let (code, metrics) = ask(Who::ApiServer, "/metrics");
    assert!(code == 200 && metrics.contains("plinth_agent_pods 4"), "{metrics}");
    let forbidden = |user: &str, subresource: &str| {
        (403, format!("Forbidden (user={user}, verb=get, resource=nodes, subresource(s)=[{subresource}])\n"))
    };
    let manager = Who::Kubeconfig("controller-manager.conf");
    assert_eq!(ask(manager, "/pods"), forbidden("system:kube-controller-manager", "pods proxy"));

    // As Prometheus does.
    as_admin(
        "kubectl create serviceaccount stranger; kubectl create serviceaccount scraper; kubectl create clusterrole \
         scraper --verb=get --resource=nodes/metrics,nodes/proxy; kubectl create clusterrolebinding scraper \
         --clusterrole=scraper --serviceaccount=default:scraper",
    )
    .ok();
    let token = |account: &str| as_admin(&format!("kubectl create token {account}")).ok().stdout.trim().to_owned();
    let user = "system:serviceaccount:default:stranger";
    assert_eq!(ask(Who::Token(&token("stranger")), "/metrics"), forbidden(user, "metrics"));
    let scraper = token("scraper");
    eventually(LONG, || {
        let (code, text) = ask(Who::Token(&scraper), "/metrics");
        check(code == 200, || text)
    });
    let exec = format!("/exec/kube-system/etcd-{NODE}/etcd?command=id&output=1");
    let (code, text) = ask(Who::Token(&scraper), &exec);
    assert_eq!((code, text.contains("verb=create")), (403, true), "who may look may not act: {text}");

    // What was allowed is so for a while, and nothing else.
    let manifest = fs::read_to_string(MANIFEST).unwrap();
    fs::remove_file(MANIFEST).unwrap();
    eventually(LONG, || check(!running().contains_key("kube-apiserver"), || "it still runs".to_owned()));
    assert_eq!(ask(Who::ApiServer, "/pods").0, 200);
    let unknown = "Authorization error (user=system:node:plinth-sandbox, verb=get, resource=nodes, subresource=pods)";
    assert_eq!(ask(Who::Kubeconfig("kubelet.conf"), "/pods"), (500, unknown.to_owned()));
    fs::write(MANIFEST, manifest).unwrap();
    eventually(LONG, || {
        let answer = ask(Who::Kubeconfig("kubelet.conf"), "/pods");
        check(answer == forbidden("system:node:plinth-sandbox", "pods proxy"), || format!("{answer:?}"))
    });
}

pub(crate) fn the_logs_of_a_mirror_are_those_of_its_containers() {
    init();
    let talk = container("talk", "echo one; echo two; sleep 0.1; echo three >&2; sleep 3600");
    run_pod("web", &format!("{talk}, {}", container("crash", "echo run; sleep 0.2; exit 3")));
    let logs = |flags: &str| kubectl(&format!("logs web-{NODE} {flags}"));
    let all = "one\ntwo\nthree\n";
    eventually(SOON, || {
        let found = logs("-c talk");
        check(found.stdout == all, || found.to_string())
    });
    for (flags, expected) in [
        ("-c talk --tail=1", "three\n"),
        ("-c talk --limit-bytes=5", "one\nt"),
        ("-c talk --since=1h", all),
        ("-c talk --since-time=2999-01-01T00:00:00Z", ""),
    ] {
        assert_eq!(logs(flags).ok().stdout, expected, "{flags}");
    }
    let stamped = logs("-c talk --tail=1 --timestamps").ok().stdout;
    let (time, line) = stamped.split_once(' ').unwrap();
    assert!(time.parse::<jiff::Timestamp>().is_ok() && line == "three\n", "{stamped}");
    let none = logs("-c talk --previous");
    let words = format!("previous terminated container \"talk\" in pod \"web-{NODE}\" not found");
    assert!(!none.status.success() && none.stderr.contains(&words), "{none}");
    eventually(SOON, || {
        let before = logs("-c crash --previous");
        check(before.status.success() && before.stdout == "run\n", || before.to_string())
    });
    assert_eq!(logs("-c talk").stdout, plinth(&format!("logs web-{NODE} -c talk")).ok().stdout);
    // It ends with the container.
    run_pod("short", &container("c", "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.5; done; sleep 1"));
    let followed = kubectl(&format!("logs short-{NODE} --follow")).ok();
    assert_eq!(followed.stdout, "1\n2\n3\n4\n5\n6\n7\n8\n", "{followed}");
}

pub(crate) fn commands_run_in_the_containers_of_a_mirror() {
    init();
    run_pod("web", &container("c", "echo ready; sleep 3600"));
    let exec = |rest: &str| as_admin(&format!("timeout 15 kubectl exec web-{NODE} {rest}"));
    let ended = exec("-- sh -c 'echo out; echo err >&2; exit 7'");
    assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(7), "out\n"), "{ended}");
    assert!(ended.stderr.starts_with("err\n") && ended.stderr.contains("exit code 7"), "{ended}");
    assert_eq!(exec("-- echo $'a\\tb' 'c d'").ok().stdout, "a\tb c d\n");
    // The end of stdin reaches the command, and what comes back is what was sent.
    let round = as_admin(&format!(
        "head -c 3000000 /dev/urandom >/var/tmp/sent; timeout 15 kubectl exec -i web-{NODE} -- cat </var/tmp/sent >/var/tmp/back; \
         cmp /var/tmp/sent /var/tmp/back"
    ));
    round.ok();
    let counted =
        as_admin(&format!("timeout 15 kubectl exec -i web-{NODE} -- sh -c 'wc -c; echo end' </var/tmp/sent")).ok();
    assert_eq!(counted.stdout.split_whitespace().collect::<Vec<_>>(), ["3000000", "end"]);
    // A terminal of the client's size.
    let sized = "until stty size | grep -q '^33 77$'; do sleep 0.1; done; stty size; tty";
    let terminal = as_admin(&format!(
        "timeout 15 script --quiet --return --command \"stty rows 33 cols 77; kubectl exec -it web-{NODE} -- sh -c \
         \\\"{sized}\\\"\" /dev/null </dev/null"
    ))
    .ok();
    assert!(terminal.stdout.contains("33 77\r\n/dev/pts/"), "{terminal}");
    let missing = exec("-c none -- true");
    assert!(!missing.status.success(), "{missing}");

    let path = format!("/exec/default/web-{NODE}/c?command=true&output=1");
    let spdy = ["--request", "POST", "--header", "Connection: Upgrade", "--header", "Upgrade: SPDY/3.1"];
    let (code, text) = ask_with(Who::ApiServer, &path, &spdy);
    assert!(code == 501 && text.contains("WebSocket"), "{code}: {text}");
    let (code, text) = ask_with(Who::ApiServer, "/exec/default/none/c?command=true&output=1", &spdy);
    assert_eq!((code, text.as_str()), (404, "pod does not exist"));
    let forward = as_admin(&format!("timeout 15 kubectl port-forward web-{NODE} 8080:80"));
    assert!(!forward.status.success(), "{forward}");
}

pub(crate) fn a_port_that_is_taken_is_had_later_and_reset_leaves_nothing() {
    let holder = TcpListener::bind("0.0.0.0:10250").unwrap();
    plinth("init --register-node").ok();
    let warnings = || status()["agent"]["warnings"].to_string();
    eventually(SOON, || check(warnings().contains("cannot listen on 0.0.0.0:10250"), warnings));
    drop(holder);
    eventually(LONG, || check(!warnings().contains("10250"), warnings));
    eventually(LONG, || {
        let answer = ask(Who::ApiServer, "/healthz");
        check(answer.0 == 200, || format!("{answer:?}"))
    });
    assert!(Path::new("/var/lib/kubelet/pki/kubelet.key").exists());
    plinth("reset --force").ok();
    assert!(!Path::new("/var/lib/kubelet").exists());
}
