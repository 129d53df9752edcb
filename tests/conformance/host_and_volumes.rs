//! Checks 35–37, and what a pod may use of the host.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::host::{docker, shell};
use crate::node::{IMAGE, Manifest, OTHER_IMAGE, eventually, node, one};

pub(crate) fn check_35_networks_are_the_hosts_or_shared_in_the_pod() {
    node().put("c35-host.yaml", &Manifest::named("c35-host").text());
    let serve = "nc -ll -p 8080 -e echo from here";
    let pod = Manifest::named("c35").own_network().and(&one("server", IMAGE, serve, ""));
    node().put("c35.yaml", &pod.text());

    let c = node().until_runs("c35-host", "c", |_| true);
    assert_eq!(node().within(&c, "hostname"), "Node-1");
    for namespace in ["net", "uts"] {
        let link = format!("readlink /proc/self/ns/{namespace}");
        assert_eq!(node().within(&c, &link), shell(&link).ok().stdout.trim_end(), "{namespace}");
    }

    let c = node().until_runs("c35", "c", |_| true);
    let server = node().until_runs("c35", "server", |_| true);
    assert_eq!(node().within(&c, "hostname"), "c35-node-1");
    let link = "readlink /proc/self/ns/net";
    assert_eq!(node().within(&c, link), node().within(&server, link));
    assert_ne!(node().within(&c, link), shell(link).ok().stdout.trim_end());
    eventually(|| match node().within(&c, "nc -w 5 127.0.0.1 8080 </dev/null || true").as_str() {
        "from here" => Ok(()),
        other => Err(format!("the other container says `{other}`")),
    });
}

pub(crate) fn check_36_host_paths_are_made_or_waited_for() {
    let pod = |name: &str, kind: &str| {
        Manifest::named(name)
            .container("volumeMounts: [{name: v, mountPath: /v}]")
            .spec(&format!("volumes: [{{name: v, hostPath: {{path: /opt/work/{name}, type: {kind}}}}}]"))
    };
    node().put("c36-dir.yaml", &pod("c36-dir", "DirectoryOrCreate").text());
    node().put("c36-file.yaml", &pod("c36-file", "File").text());
    node().until_runs("c36-dir", "c", |_| true);
    let meta = fs::metadata("/opt/work/c36-dir").unwrap();
    assert_eq!((meta.is_dir(), meta.permissions().mode() & 0o7777), (true, 0o755));

    node().until_shown("c36-file", |shown| {
        let waiting = &shown["status"]["containerStatuses"][0]["state"]["waiting"];
        let told = waiting["message"].as_str().is_some_and(|message| message.contains("/opt/work/c36-file"));
        (waiting["reason"] == "ContainerCreating" && told).then_some(())
    });
    assert!(node().lives("c36-file").is_empty());
    fs::write("/opt/work/c36-file", "here").unwrap();
    let c = node().until_runs("c36-file", "c", |_| true);
    assert_eq!(node().within(&c, "cat /v"), "here");
}

pub(crate) fn check_37_an_empty_dir_in_memory_lives_as_long_as_its_pod() {
    let pod = Manifest::named("c37")
        .container("volumeMounts: [{name: v, mountPath: /v}]")
        .spec("volumes: [{name: v, emptyDir: {medium: Memory, sizeLimit: 8Mi}}]");
    node().put("c37.yaml", &pod.text());
    let old = node().until_runs("c37", "c", |_| true);
    let mount = node().within(&old, "grep ' /v ' /proc/mounts");
    assert!(mount.starts_with("tmpfs ") && mount.contains("size=8192k"), "{mount}");
    assert_eq!(node().within(&old, "stat -c %a /v; echo kept >/v/file"), "1777");
    docker(&format!("kill {}", old.id));
    let new = node().until_runs("c37", "c", |life| life.id != old.id);
    assert_eq!(node().within(&new, "cat /v/file"), "kept");
    node().take("c37.yaml");
    node().until_gone("c37");
    eventually(|| {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let directory = format!("/var/lib/plinth/pods/{}", new.uid);
        let left = mounts.contains(&new.uid) || Path::new(&directory).exists();
        if left { Err(format!("{directory} is still there")) } else { Ok(()) }
    });
}

pub(crate) fn extra_resources_become_the_engines() {
    let limits = "resources: {requests: {memory: 32Mi}, limits: {memory: 64Mi, cpu: 500m}}";
    node().put("x-limits.yaml", &Manifest::named("x-limits").container(limits).text());
    node().put("x-effort.yaml", &Manifest::named("x-effort").image(OTHER_IMAGE).text());
    let host = &node().inspect(&node().until_runs("x-limits", "c", |_| true))["HostConfig"];
    assert_eq!((&host["Memory"], &host["MemorySwap"]), (&67_108_864.into(), &67_108_864.into()), "{host}");
    assert_eq!((&host["CpuQuota"], &host["CpuPeriod"]), (&50_000.into(), &100_000.into()), "{host}");
    assert_eq!(host["CpuShares"], 512, "{host}");
    let memory = fs::read_to_string("/proc/meminfo").unwrap();
    let total: i64 = memory.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(host["OomScoreAdj"], (1000 - 1000 * 32 * 1024 / total).clamp(2, 999), "{host}");
    let host = &node().inspect(&node().until_runs("x-effort", "c", |_| true))["HostConfig"];
    assert_eq!((&host["OomScoreAdj"], &host["CpuShares"], &host["Memory"]), (&1000.into(), &2.into(), &0.into()));
}
