//! One `plinth init` after the other on a host with something wrong.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::command::{Ended, run};
use crate::host::{self, LONG, Tree, check, eventually, plinth, plinth_command};
use crate::sandbox::note;

/// Writes a file for `--config`: components are waited for `seconds`, and the documents follow.
pub(crate) fn config(seconds: u32, init: &str, cluster: &str) -> String {
    let path = PathBuf::from(std::env::var("PLINTH_SANDBOX_DIR").unwrap()).join("config.yaml");
    let text = format!(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\n\
         timeouts: {{controlPlaneComponentHealthCheck: {seconds}s}}\n{init}\n---\n\
         apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n{cluster}\n"
    );
    std::fs::write(&path, text).unwrap();
    format!("--config {}", path.display())
}

/// The preflight check `name` refuses with all of `words`, and nothing is touched.
#[track_caller]
pub(crate) fn preflight_refuses(arguments: &str, name: &str, words: &[&str]) {
    let before = Tree::of_host();
    let ended = plinth(&format!("init -o json {arguments}")).exits(3);
    tell("preflight", &ended);
    assert!(ended.took < Duration::from_secs(30), "{ended}");
    let result = ended.json();
    let findings = result["findings"].as_array().unwrap();
    let errors: Vec<_> = findings.iter().filter(|finding| finding["level"] == "error").collect();
    assert_eq!(errors.len(), 1, "{ended}");
    assert_eq!(errors[0]["name"], name);
    let message = errors[0]["message"].as_str().unwrap();
    assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
    assert_ne!(errors[0]["hint"], "");
    assert_eq!(before.difference(&Tree::of_host()), Vec::<String>::new());
}

/// `init` gives up within `limit`, and the autopsy finds `code` with a cause that has all of `words`.
#[track_caller]
pub(crate) fn autopsy(arguments: &str, limit: u64, code: &str, words: &[&str]) -> Value {
    let ended = run(&mut plinth_command(&format!("init -o json {arguments}")), LONG).exits(1);
    tell("autopsy", &ended);
    let autopsy = ended.json()["autopsy"].clone();
    let cause = autopsy["cause"].as_str().unwrap_or_default();
    note(&format!("  {code}: {cause}"));
    assert_eq!(autopsy["code"], code, "{ended}");
    assert!(words.iter().all(|word| cause.contains(word)), "{words:?}: {cause}");
    assert!(ended.took < Duration::from_secs(limit), "{ended}");
    for line in [cause, autopsy["fix"].as_str().unwrap()] {
        assert!(!line.is_empty() && !line.contains('\n') && ended.stderr.contains(line), "{line}: {ended}");
    }
    autopsy
}

/// `status` does not call this well, and one of its lines has all of `words`: not in the first instant of a new
/// attempt, but again and again until the cause is mended.
#[track_caller]
pub(crate) fn status_tells(words: &[&str]) {
    eventually(LONG, || {
        let status = host::status();
        assert_eq!(status["well"], false);
        let problems: Vec<_> = status["problems"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
        assert!(problems.iter().all(|line| !line.contains('\n')), "{problems:#?}");
        let told = problems.iter().any(|line| words.iter().all(|word| line.contains(word)));
        check(told, || format!("{words:?}: {problems:#?}"))
    });
}

/// With the cause out of the way `init` finishes, and has nothing to do when it is run once more.
#[track_caller]
pub(crate) fn mended(arguments: &str) {
    let ended = plinth(&format!("init {arguments}")).ok();
    tell("mended", &ended);
    let again = plinth(&format!("init -o json {arguments}")).ok();
    assert_eq!(again.json()["changed"], false, "{again}");
    let status = plinth("status").ok();
    assert!(status.stdout.contains("all is well"), "{status}");
}

/// Everything that plinth made is gone.
#[track_caller]
pub(crate) fn reset_to(empty: &Tree) {
    plinth("reset --force").ok();
    assert_eq!(empty.difference(&Tree::of_host()), Vec::<String>::new());
    assert_eq!(host::control_plane_processes(), Vec::<String>::new());
    assert_eq!(host::container_ids().len(), 0);
}

fn tell(what: &str, ended: &Ended) {
    note(&format!("{what}: {} after {:.1} s", ended.status, ended.took.as_secs_f64()));
}
