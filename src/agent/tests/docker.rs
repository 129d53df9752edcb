//! The agent on a real Docker Engine: how long things take and what it costs to be idle.
//!
//! Needs an engine at `DOCKER_HOST` with an image `busybox:1` that has `sleep` and `httpd` on its path:
//! `cargo test --lib agent::tests::docker -- --ignored --nocapture`.

use std::fs;
use std::thread;
use std::time::Instant;

use super::*;
use crate::runtime::docker::Docker;

/// Process ids whose command line contains `marker`.
fn processes(marker: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
            command.starts_with("sleep") && command.contains(marker)
        })
        .collect()
}

/// Milliseconds until a process with `marker` runs that is not `old`.
fn until_new(marker: &str, old: &[i32]) -> (u128, i32) {
    let since = Instant::now();
    loop {
        if let Some(pid) = processes(marker).into_iter().find(|pid| !old.contains(pid)) {
            return (since.elapsed().as_millis(), pid);
        }
        assert!(since.elapsed() < Duration::from_secs(30), "no process `{marker}`");
        thread::sleep(Duration::from_millis(1));
    }
}

fn cpu_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn median(mut values: Vec<u128>) -> u128 {
    values.sort_unstable();
    values[values.len() / 2]
}

fn manifest(name: &str, marker: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  hostNetwork: true\n  \
         terminationGracePeriodSeconds: 0\n  containers: [{{name: c, image: 'busybox:1', command: [sleep, '{marker}']}}]\n"
    )
}

fn measure(manifests: &Path, docker: &str) {
    let put = |name: &str, text: &str| {
        let hidden = manifests.join(format!(".{name}"));
        fs::write(&hidden, text).unwrap();
        fs::rename(hidden, manifests.join(name)).unwrap();
    };
    let mut starts = Vec::new();
    let mut floors = Vec::new();
    let mut crashes = Vec::new();
    let mut edits = Vec::new();
    for round in 0..5 {
        let marker = format!("98765{round}");
        put("pod", &manifest("pod", &marker));
        let (time, pid) = until_new(&marker, &[]);
        starts.push(time);
        thread::sleep(Duration::from_millis(500));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        crashes.push(until_new(&marker, &[pid]).0);
        thread::sleep(Duration::from_millis(500));
        let edited = format!("88765{round}");
        put("pod", &manifest("pod", &edited));
        edits.push(until_new(&edited, &[]).0);
        fs::remove_file(manifests.join("pod")).unwrap();
        thread::sleep(Duration::from_secs(4));

        let started = Instant::now();
        let marker = format!("68765{round}");
        let run = ["-H", docker, "run", "-d", "--rm", "--net", "host", "busybox:1", "sleep", &marker];
        let mut child = std::process::Command::new("docker").args(run).spawn().unwrap();
        let (_, pid) = until_new(&marker, &[]);
        floors.push(started.elapsed().as_millis());
        child.wait().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        thread::sleep(Duration::from_millis(500));
    }
    println!("docker run → process:    {:>5} ms  {floors:?}", median(floors.clone()));
    println!("manifest → process:      {:>5} ms  {starts:?}", median(starts.clone()));
    println!("SIGKILL → new process:   {:>5} ms  {crashes:?}", median(crashes.clone()));
    println!("edit → new process:      {:>5} ms  {edits:?} (2 s of it grace)", median(edits.clone()));

    for index in 0..4 {
        let port = 18450 + index;
        let text = manifest(&format!("web{index}"), "x")
            .replace("[sleep, 'x']", &format!("[httpd, -f, -p, '{port}', -h, /bin]"));
        let probe = format!("httpGet: {{host: 127.0.0.1, port: {port}, path: /sh}}");
        let probes = format!(
            "command: [httpd, -f, -p, '{port}', -h, /bin], readinessProbe: {{{probe}, periodSeconds: 1}}, livenessProbe: {{{probe}}}"
        );
        put(&format!("web{index}"), &text.replace(&format!("command: [httpd, -f, -p, '{port}', -h, /bin]"), &probes));
    }
    thread::sleep(Duration::from_secs(5));
    let before = cpu_ticks();
    thread::sleep(Duration::from_secs(20));
    let used = cpu_ticks() - before;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    println!(
        "idle with four pods:     {:.2} % of a core; {}; {}",
        f64::from(u32::try_from(used).unwrap()) / 20.0,
        line("VmRSS"),
        line("RssAnon")
    );
    for index in 0..4 {
        fs::remove_file(manifests.join(format!("web{index}"))).unwrap();
    }
    thread::sleep(Duration::from_secs(5));
}

#[test]
#[ignore = "needs a Docker Engine with an image busybox:1, and a quiet machine"]
fn figures() {
    let root = tempfile::tempdir().unwrap();
    let layout = Layout::new(root.path());
    fs::create_dir_all(layout.manifests()).unwrap();
    let host = std::env::var("DOCKER_HOST").unwrap();
    let docker = Docker::connect(Some(&host)).unwrap();
    let shutdown = CancellationToken::new();
    let done = shutdown.clone();
    let manifests = layout.manifests();
    let measuring = thread::spawn(move || {
        thread::sleep(Duration::from_secs(1));
        measure(&manifests, &host);
        done.cancel();
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = Options::new(layout, "node", "pause:1");
        run(options, docker, Clock::system(), shutdown).await.unwrap();
    });
    measuring.join().unwrap();
}
