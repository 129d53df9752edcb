//! A configuration file as kubeadm takes it.

use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;

use crate::host::{docker, kubectl, plinth, shell};

const FILE: &str = r#"
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
nodeRegistration:
  name: master-1
localAPIEndpoint:
  advertiseAddress: 10.213.0.2
  bindPort: 7443
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
clusterName: tried
encryptionAlgorithm: RSA-2048
networking:
  serviceSubnet: 10.100.0.0/16
  dnsDomain: tried.example
apiServer:
  certSANs: [api.tried.example, 192.0.2.7]
  extraArgs:
  - name: audit-policy-file
    value: /etc/audit/policy.yaml
  - name: audit-log-path
    value: /var/log/audit/log
  extraVolumes:
  - name: policy
    hostPath: /srv/plinth-e2e/audit
    mountPath: /etc/audit
    readOnly: true
    pathType: Directory
  - name: audit
    hostPath: /srv/plinth-e2e/audit-log
    mountPath: /var/log/audit
    pathType: DirectoryOrCreate
controllerManager:
  extraArgs:
  - name: v
    value: "3"
scheduler:
  extraEnvs:
  - name: TRIED
    value: "yes"
"#;

pub(crate) fn a_kubeadm_file_shapes_the_cluster() {
    let directory = std::env::var("PLINTH_SANDBOX_DIR").unwrap();
    // /srv is the computer's own; host paths in there shall be the sandbox's.
    shell(&format!("mkdir -p {directory}/audit")).ok();
    let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n";
    std::fs::write(format!("{directory}/audit/policy.yaml"), policy).unwrap();
    let file = format!("{directory}/plinth.yaml");
    std::fs::write(&file, FILE.replace("/srv/plinth-e2e", &directory)).unwrap();

    plinth(&format!("init --config {file}")).ok();
    assert_eq!(kubectl("get --raw=/readyz").ok().stdout, "ok");
    assert_eq!(kubectl("get service kubernetes -o jsonpath={.spec.clusterIP}").ok().stdout, "10.100.0.1");

    for name in [
        "api.tried.example",
        "192.0.2.7",
        "10.213.0.2",
        "10.100.0.1",
        "master-1",
        "kubernetes.default.svc.tried.example",
    ] {
        let certificate = served_to(name);
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&certificate).unwrap();
        let key = certificate.public_key().parsed().unwrap();
        assert!(matches!(key, PublicKey::RSA(ref key) if key.key_size() == 2048), "{key:?}");
    }

    let log = std::fs::read_to_string(format!("{directory}/audit-log/log")).unwrap();
    assert!(log.contains("\"kind\":\"Event\""), "{log:.200}");
    let scheduler = container("kube-scheduler");
    assert!(scheduler["Config"]["Env"].as_array().unwrap().contains(&"TRIED=yes".into()), "{scheduler}");
    let controller_manager = container("kube-controller-manager");
    assert!(controller_manager["Args"].as_array().unwrap().contains(&"--v=3".into()), "{controller_manager}");

    let again = plinth(&format!("init --config {file}")).ok();
    assert!(again.stdout.contains("nothing is to be done"), "{again}");
}

/// What the engine knows of a component's container.
fn container(component: &str) -> serde_json::Value {
    let id = docker(&format!("ps --quiet --filter name=k8s_{component}_{component}-master-1_"));
    let mut found: serde_json::Value = serde_json::from_str(&docker(&format!("inspect {}", id.trim()))).unwrap();
    found[0].take()
}

/// Whether the API server at its usual port has a certificate for `name`.
pub(crate) fn served_by_default_port(name: &str) -> bool {
    handshake("10.213.0.2:6443", name).is_ok()
}

/// The API server's certificate, after a handshake with somebody who asks for `name` and trusts our authority only.
fn served_to(name: &str) -> CertificateDer<'static> {
    handshake("10.213.0.2:7443", name).unwrap().peer_certificates().unwrap()[0].clone().into_owned()
}

fn handshake(server: &str, name: &str) -> std::io::Result<ClientConnection> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file("/etc/kubernetes/pki/ca.crt").unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(server)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(connection)
}
