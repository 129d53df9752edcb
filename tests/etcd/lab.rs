//! One etcd at a time in a container, on one data directory, as the control plane runs it: mutual TLS, host network.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use plinth::etcd::{Client, DataDir, PutBack, Series};
use plinth::health::{Identity, Trust};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};

use crate::command::{Ended, run};
use crate::host::{self, eventually};

pub(crate) const OLD: &str = "registry.k8s.io/etcd:3.6.8-0";
pub(crate) const NEW: &str = "registry.k8s.io/etcd:3.7.0-0";

/// For whatever etcd takes some seconds to agree on.
pub(crate) const AGREED: Duration = Duration::from_mins(1);

/// How an etcd ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// SIGTERM.
    Orderly,
    /// SIGKILL.
    Killed,
}

pub(crate) struct Lab {
    runtime: tokio::runtime::Runtime,
    pub(crate) client: Client,
    http: reqwest::Client,
    pub(crate) data: DataDir,
    directory: PathBuf,
}

impl Lab {
    /// Nothing runs yet. The data directory is on a real disk.
    pub(crate) fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let directory = PathBuf::from(std::env::var_os("PLINTH_SANDBOX_DIR").unwrap());
        fs::DirBuilder::new().mode(0o700).create(directory.join("data")).unwrap();
        let (trust, http) = certificates(&directory.join("pki"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = Client::new("https://127.0.0.1:2379".parse().unwrap(), &trust).unwrap();
        Self { runtime, client, http, data: DataDir::new(directory.join("data")), directory }
    }

    /// Waits for an answer.
    pub(crate) fn ask<T>(&self, question: impl Future<Output = T>) -> T {
        self.runtime.block_on(question)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Starts an etcd without waiting for it.
    pub(crate) fn launch(&self, image: &str) {
        let directory = self.directory.display();
        host::docker(&format!(
            "run --detach --name etcd --network host --volume {directory}/data:/var/lib/etcd \
             --volume {directory}:{directory} {image} etcd --name=m --data-dir=/var/lib/etcd \
             --listen-client-urls=https://127.0.0.1:2379 --advertise-client-urls=https://127.0.0.1:2379 \
             --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 \
             --initial-cluster=m=http://127.0.0.1:2380 --client-cert-auth=true \
             --cert-file={directory}/pki/server.crt --key-file={directory}/pki/server.key \
             --trusted-ca-file={directory}/pki/ca.crt --snapshot-count=10000 \
             --feature-gates=InitialCorruptCheck=true --listen-metrics-urls=http://127.0.0.1:2381"
        ));
    }

    /// Starts an etcd; returns when it leads, with the time that took.
    pub(crate) fn start(&self, image: &str) -> Duration {
        let begin = Instant::now();
        self.launch(image);
        eventually(AGREED, || {
            let status = self.ask(self.client.status()).map_err(|error| format!("{error:?}"))?;
            host::check(status.leader != 0, || "there is no leader".to_owned())
        });
        begin.elapsed()
    }

    /// Starts an etcd; returns when the cluster and the data are of its version.
    pub(crate) fn start_and_agree(&self, image: &str) -> Duration {
        let took = self.start(image);
        self.ask(self.client.wait_for_version(series(image), AGREED)).unwrap();
        took
    }

    /// Asks etcd as a client of the data does: `path` below `/v3/`.
    pub(crate) fn call(&self, path: &str, body: &Value) -> Value {
        let url = format!("https://127.0.0.1:2379/v3/{path}");
        let answer = self.ask(async { self.http.post(&url).json(body).send().await?.error_for_status()?.json().await });
        answer.unwrap_or_else(|error: reqwest::Error| panic!("{url}: {error:?}"))
    }

    /// Writes, and returns the revision that etcd acknowledges.
    pub(crate) fn put(&self, key: &str, value: &str) -> u64 {
        let answer =
            self.call("kv/put", &json!({ "key": BASE64_STANDARD.encode(key), "value": BASE64_STANDARD.encode(value) }));
        answer["header"]["revision"].as_str().unwrap().parse().unwrap()
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<String> {
        let answer = self.call("kv/range", &json!({ "key": BASE64_STANDARD.encode(key) }));
        let value = BASE64_STANDARD.decode(answer["kvs"][0]["value"].as_str()?).unwrap();
        Some(String::from_utf8(value).unwrap())
    }

    /// Why the copy may not be put back; `None` if it may.
    pub(crate) fn refusal(&self) -> Option<String> {
        match self.data.may_put_back().unwrap() {
            PutBack::Allowed => None,
            PutBack::Refused(why) => Some(why.to_string()),
        }
    }

    /// The log file that etcd writes to.
    pub(crate) fn log_file(&self) -> PathBuf {
        let files = fs::read_dir(self.data.member().join("wal")).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "wal")).max().unwrap()
    }
}

/// Ends etcd; returns when its container is gone, with the time that took.
pub(crate) fn stop(end: End) -> Duration {
    let begin = Instant::now();
    host::docker(match end {
        End::Orderly => "stop --time 30 etcd",
        End::Killed => "kill etcd",
    });
    host::docker("rm etcd");
    begin.elapsed()
}

/// Runs one of etcd's programs in its container.
pub(crate) fn exec(line: &str) -> Ended {
    run(Command::new("docker").args(["exec", "etcd"]).args(line.split_whitespace()), host::SOON)
}

/// `3.6` of an image's name.
pub(crate) fn series(image: &str) -> Series {
    image.rsplit(':').next().unwrap().parse().unwrap()
}

/// A CA and a server on loopback, in files; returns whom a client is and believes, and such a client.
fn certificates(directory: &Path) -> (Trust, reqwest::Client) {
    fs::create_dir(directory).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "etcd-ca");
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    fs::write(directory.join("ca.crt"), &ca).unwrap();
    let issue = |name: &str| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap().pem();
        fs::write(directory.join(format!("{name}.crt")), &certificate).unwrap();
        fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
        (certificate, key.serialize_pem())
    };
    issue("server");
    let (certificate, key) = issue("client");
    let http = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(ca.as_bytes()).unwrap()])
        .identity(reqwest::Identity::from_pem(format!("{certificate}{key}").as_bytes()).unwrap())
        .timeout(host::SOON)
        .build()
        .unwrap();
    (Trust::Authority { ca, identity: Some(Identity::new(&certificate, &key)) }, http)
}
