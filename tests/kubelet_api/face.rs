//! A node that is registered, and how to ask it.

use std::fs;
use std::process::Command;

use plinth::kubeconfig;

use crate::command::{Ended, run};
use crate::host::{LONG, SOON, check, eventually, kubectl, plinth, shell};

pub(crate) const NODE: &str = "plinth-sandbox";
const ADMIN: &str = "/etc/kubernetes/pki/apiserver-kubelet-client";

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Who<'a> {
    Nobody,
    /// The API server, with its client certificate.
    ApiServer,
    /// Whose certificate and key have this path, without `.crt` and `.key`.
    Pair(&'a str),
    /// Whose kubeconfig is called so.
    Kubeconfig(&'a str),
    Token(&'a str),
}

/// Makes a control plane whose host is a node.
pub(crate) fn init() {
    plinth("init --register-node").ok();
    eventually(LONG, || {
        let answer = ask(Who::ApiServer, "/healthz");
        check(answer == (200, "ok".to_owned()), || format!("{answer:?}"))
    });
}

/// Asks the node; code and body.
pub(crate) fn ask(who: Who<'_>, path: &str) -> (u16, String) {
    ask_with(who, path, &[])
}

/// The same, with further arguments of curl.
pub(crate) fn ask_with(who: Who<'_>, path: &str, further: &[&str]) -> (u16, String) {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--noproxy", "*", "--max-time", "10", "--write-out", "\n%{http_code}"]);
    // The name in the certificate is the node's, and the file says who has signed it.
    curl.args(["--cacert", "/var/lib/kubelet/pki/kubelet.crt", "--resolve", &format!("{NODE}:10250:127.0.0.1")]);
    match who {
        Who::Nobody => {}
        Who::ApiServer => _ = curl.args(pair(ADMIN)),
        Who::Pair(base) => _ = curl.args(pair(base)),
        Who::Kubeconfig(name) => {
            let path = format!("/etc/kubernetes/{name}");
            let found = kubeconfig::credentials(name, &fs::read_to_string(path).unwrap()).unwrap();
            fs::write("/var/tmp/client.crt", &found.certificate_pem).unwrap();
            fs::write("/var/tmp/client.key", found.key_pem.expose()).unwrap();
            curl.args(pair("/var/tmp/client"));
        }
        Who::Token(token) => _ = curl.args(["--header", &format!("Authorization: Bearer {token}")]),
    }
    let output = run(curl.args(further).arg(format!("https://{NODE}:10250{path}")), SOON).stdout;
    let (body, code) = output.rsplit_once('\n').unwrap();
    (code.parse().unwrap(), body.to_owned())
}

fn pair(base: &str) -> [String; 4] {
    ["--cert".to_owned(), format!("{base}.crt"), "--key".to_owned(), format!("{base}.key")]
}

/// Runs a line of shell whose `kubectl` is the administrator's.
pub(crate) fn as_admin(line: &str) -> Ended {
    shell(&format!("export KUBECONFIG=/etc/kubernetes/admin.conf; {line}"))
}

/// Makes a static pod, and waits until its mirror runs.
pub(crate) fn run_pod(name: &str, containers: &str) {
    let manifest = format!(
        "{{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {{\"name\": \"{name}\"}}, \"spec\": \
         {{\"hostNetwork\": true, \"terminationGracePeriodSeconds\": 0, \"containers\": [{containers}]}}}}"
    );
    fs::write(format!("/etc/kubernetes/manifests/{name}.yaml"), manifest).unwrap();
    eventually(LONG, || {
        let phase = kubectl(&format!("get pod {name}-{NODE} -o jsonpath={{.status.phase}}"));
        check(phase.stdout == "Running", || phase.to_string())
    });
}

/// A container of the test image that runs a line of shell.
pub(crate) fn container(name: &str, line: &str) -> String {
    let command = serde_json::json!(["sh", "-c", line]);
    format!("{{\"name\": \"{name}\", \"image\": \"plinth-test/busybox:1\", \"command\": {command}}}")
}
