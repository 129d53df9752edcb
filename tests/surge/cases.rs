//! What happens to the manifest, and what clients see.

use std::fs;
use std::time::{Duration, Instant};

use crate::client::Load;
use crate::host::{LONG, check, eventually, plinth, running};
use crate::sandbox::note;

const MANIFEST: &str = "/etc/kubernetes/manifests/kube-apiserver.yaml";

pub(crate) fn a_good_change_fails_no_request() {
    plinth("init").ok();
    let load = Load::start();
    let old = running()["kube-apiserver"].clone();
    let text = fs::read_to_string(MANIFEST).unwrap();
    let begin = Instant::now();
    fs::write(
        MANIFEST,
        text.replace("    - \"--allow-privileged=true\"", "    - \"--allow-privileged=true\"\n    - \"--v=1\""),
    )
    .unwrap();
    eventually(LONG, || {
        let new = running().remove("kube-apiserver").filter(|new| new.id != old.id);
        check(new.is_some(), || "the old one runs".to_owned())
    });
    note(&format!("replaced after {:.2} s", begin.elapsed().as_secs_f64()));
    std::thread::sleep(Duration::from_secs(3));
    let report = load.stop();
    note(&report.to_string());
    report.flawless();
}
