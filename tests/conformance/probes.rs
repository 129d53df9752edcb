//! Checks 31–34: probes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::node::{IGNORE, Manifest, eventually, node, pass};
use crate::web::Web;

/// Whether `/pods` has a pod ready.
fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn until_ready(pod: &str, ready: bool) {
    node().until_shown(pod, |shown| (is_ready(shown) == ready).then_some(()));
}

fn http(kind: &str, scheme: &str, port: u16, more: &str) -> String {
    // Only what the server answers counts, not how long this busy computer takes.
    let asks = format!("httpGet: {{host: 127.0.0.1, port: {port}, scheme: {scheme}}}, timeoutSeconds: 30");
    format!("{kind}: {{{asks}, periodSeconds: 1{more}}}")
}

pub(crate) fn check_31_liveness_restarts_and_readiness_does_not() {
    let healthy = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&healthy);
    let web = Web::http(move |_| if asked.load(Ordering::SeqCst) { "200 OK" } else { "500 Broken" }.to_owned());
    let pod = Manifest::named("c31").container(&http("livenessProbe", "HTTP", web.port, ""));
    node().put("c31.yaml", &pod.spec("terminationGracePeriodSeconds: 60").text());
    let ready = "readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1, timeoutSeconds: 30, failureThreshold: 1}";
    node().put("c31-ready.yaml", &Manifest::named("c31-ready").container(ready).text());

    let unready = node().until_runs("c31-ready", "c", |_| true);
    until_ready("c31-ready", false);
    node().within(&unready, "touch /tmp/ready");
    until_ready("c31-ready", true);
    node().within(&unready, "rm /tmp/ready");
    until_ready("c31-ready", false);
    node().within(&unready, "touch /tmp/ready");
    until_ready("c31-ready", true);
    let lives = node().lives("c31-ready");
    assert!(lives.len() == 1 && lives[0].runs(), "{lives:#?}");

    let old = node().until_runs("c31", "c", |_| true);
    eventually(|| if web.answered() > 3 { Ok(()) } else { Err("too few probes".to_owned()) });
    assert!(node().lives("c31").len() == 1);
    healthy.store(false, Ordering::SeqCst);
    let before = web.answered();
    let new = node().until_runs("c31", "c", |life| life.id != old.id);
    healthy.store(true, Ordering::SeqCst);
    assert!(web.answered() - before >= 2, "{} failures", web.answered() - before);
    let old = node().until_ended("c31", "c", 0);
    assert!(new.attempt == 1 && old.died.unwrap().1 == 0 && old.signals.len() == 1, "{old:#?}");
}

pub(crate) fn check_32_a_probe_may_have_its_own_grace() {
    let own = "livenessProbe: {exec: {command: ['false']}, periodSeconds: 1, failureThreshold: 1,
        terminationGracePeriodSeconds: 1}"
        .replace('\n', " ");
    let pod = Manifest::named("c32").script(IGNORE).container(&own).spec("terminationGracePeriodSeconds: 600");
    node().put("c32.yaml", &pod.text());
    let old = node().until_ended("c32", "c", 0);
    let grace = old.signalled(9) - old.signalled(15);
    // Less than two seconds nobody gets; the pod's own grace is ten minutes.
    assert!((1.9..60.0).contains(&grace), "SIGKILL after {grace:.2} s");
}

pub(crate) fn check_33_a_start_up_probe_holds_back_the_others() {
    let count = |file: &str, more: &str| format!("exec: {{command: [sh, -c, 'echo x >>/tmp/{file}{more}']}}");
    let start = format!(
        "startupProbe: {{{}, periodSeconds: 1, failureThreshold: 99, timeoutSeconds: 30}}",
        count("start", "; test -e /tmp/go")
    );
    let live = format!("livenessProbe: {{{}, periodSeconds: 1, timeoutSeconds: 30}}", count("live", ""));
    node().put("c33.yaml", &Manifest::named("c33").container(&start).container(&live).text());
    let never = "startupProbe: {exec: {command: ['false']}, periodSeconds: 1, failureThreshold: 3}";
    node().put("c33-never.yaml", &Manifest::named("c33-never").container(never).container(&live).text());

    let c = node().until_runs("c33", "c", |_| true);
    let lines = |file: &str| node().within(&c, &format!("cat /tmp/{file} 2>/dev/null | wc -l")).parse::<u32>().unwrap();
    eventually(|| {
        pass(std::time::Duration::from_millis(200));
        let asked = lines("start");
        if asked >= 3 { Ok(()) } else { Err(format!("asked {asked} times")) }
    });
    assert_eq!(lines("live"), 0);
    let started = |pod: &Value| pod["status"]["containerStatuses"][0]["started"].as_bool();
    assert_eq!(node().pod("c33").as_ref().and_then(started), Some(false));
    node().within(&c, "touch /tmp/go");
    node().until_shown("c33", |pod| (started(pod) == Some(true)).then_some(()));
    eventually(|| if lines("live") > 0 { Ok(()) } else { Err("no liveness probe".to_owned()) });

    let old = node().until_ended("c33-never", "c", 0);
    assert!(old.signalled(15) - old.start() >= 1.9, "{old:#?}");
    node().until_runs("c33-never", "c", |life| life.attempt > 0);
}

pub(crate) fn check_34_https_is_not_verified_and_redirects_are_followed_on_one_host() {
    let secure = Web::https(|_| "200 OK".to_owned());
    let away = Web::http(|_| "302 Found\r\nLocation: http://elsewhere.example/".to_owned());
    let missing = Web::http(|_| "404 Not Found".to_owned());
    let round = Web::http(|number| format!("302 Found\r\nLocation: /{number}"));
    let once = ", failureThreshold: 1";
    let good = |name: &str, scheme: &str, port: u16| {
        let probes = [http("readinessProbe", scheme, port, ""), http("livenessProbe", scheme, port, once)];
        node().put(&format!("{name}.yaml"), &Manifest::named(name).container(&probes.join(", ")).text());
    };
    good("c34-secure", "HTTPS", secure.port);
    good("c34-away", "HTTP", away.port);
    for (name, port) in [("c34-missing", missing.port), ("c34-round", round.port)] {
        let text = Manifest::named(name).container(&http("livenessProbe", "HTTP", port, once)).text();
        node().put(&format!("{name}.yaml"), &text);
    }
    for (name, web) in [("c34-secure", &secure), ("c34-away", &away)] {
        until_ready(name, true);
        eventually(|| if web.answered() > 4 { Ok(()) } else { Err(format!("{name}: too few probes")) });
        assert_eq!(node().lives(name).len(), 1, "{name}");
    }
    for name in ["c34-missing", "c34-round"] {
        node().until_runs(name, "c", |life| life.attempt > 0);
    }
    assert!(round.answered() >= 9, "{} requests", round.answered());
}
