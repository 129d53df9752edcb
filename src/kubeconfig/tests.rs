use crate::config::{Endpoint, Host, Registration};
use crate::pki::{inspect, issue_authority};

use super::*;

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/certs-testdata/", $name))
    };
}

const ADMIN: &str = fixture!("kubeadm/admin.conf");

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

fn spec(name: &str) -> Spec {
    specifications(&Cluster::example()).into_iter().find(|spec| spec.name == name).unwrap()
}

fn authority(certificate: &str, key: Option<&str>) -> Authority {
    let specs = pki::specifications(&Cluster::example());
    Authority::load(&specs[0], certificate.as_bytes(), key.map(str::as_bytes), now()).unwrap()
}

fn kubeadm_authority() -> Authority {
    authority(fixture!("kubeadm/ca.crt"), None)
}

fn ec_authority() -> Authority {
    authority(fixture!("ec/ca.crt"), Some(fixture!("ec/ca.key")))
}

fn build_for(spec: &Spec) -> String {
    build(spec, &ec_authority(), &Cluster::example().certificates, now()).unwrap().expose().to_owned()
}

#[test]
fn every_row_is_kubeadms() {
    let mut cluster = Cluster::example();
    cluster.cluster_name = "blue".to_owned();
    cluster.control_plane_endpoint = Some(Endpoint { host: Host::Name("api.example.com".to_owned()), port: 443 });
    assert!(!specifications(&cluster).iter().any(|spec| spec.file == KUBELET_FILE));
    cluster.registration = Some(Registration { taints: Vec::new() });
    let rows: Vec<_> = specifications(&cluster)
        .into_iter()
        .map(|spec| (spec.file, spec.context(), spec.certificate.organization, spec.server))
        .collect();
    let (shared, local) = ("https://api.example.com:443".to_owned(), "https://192.0.2.10:6443".to_owned());
    assert_eq!(
        rows,
        [
            ("admin.conf", "kubernetes-admin@blue".into(), Some("kubeadm:cluster-admins"), shared.clone()),
            ("super-admin.conf", "kubernetes-super-admin@blue".into(), Some("system:masters"), shared),
            ("kubelet.conf", "system:node:master-0@blue".into(), Some("system:nodes"), local.clone()),
            ("controller-manager.conf", "system:kube-controller-manager@blue".into(), None, local.clone()),
            ("scheduler.conf", "system:kube-scheduler@blue".into(), None, local.clone()),
            ("plinth-agent.conf", "plinth:agent:master-0@blue".into(), Some("plinth:agents"), local),
        ]
    );
}

#[test]
fn a_node_is_known_by_its_kubeconfig() {
    let cluster = Cluster::example_registered(Some(Registration { taints: Vec::new() }));
    let spec = specifications(&cluster).into_iter().find(|spec| spec.file == KUBELET_FILE).unwrap();
    assert_eq!(node_of(&build_for(&spec)).as_deref(), Some("master-0"));
    for text in [ADMIN, "no kubeconfig"] {
        assert_eq!(node_of(text), None);
    }
}

#[test]
fn the_form_is_clientcmds() {
    let text = build_for(&spec("controller-manager"));
    let data = |field: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(field)).unwrap();
        line.split_once(": ").unwrap().1.to_owned()
    };
    let expected = format!(
        "\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: {}
    server: https://192.0.2.10:6443
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: system:kube-controller-manager
  name: system:kube-controller-manager@kubernetes
current-context: system:kube-controller-manager@kubernetes
kind: Config
users:
- name: system:kube-controller-manager
  user:
    client-certificate-data: {}
    client-key-data: {}
",
        STANDARD.encode(ec_authority().certificate_pem()),
        data("client-certificate-data"),
        data("client-key-data"),
    );
    assert_eq!(text, expected);
}

#[test]
fn what_is_built_passes_the_check_and_kubes_own_reader() {
    for spec in specifications(&Cluster::example()) {
        let text = build_for(&spec);
        let info = check(&text, &spec, &ec_authority(), now()).unwrap();
        assert_eq!(info.certificate.common_name.as_ref(), Some(&spec.certificate.common_name));
        assert_eq!(info.certificate.organizations, spec.certificate.organization.as_slice());
        assert_eq!(info.certificate.remaining(now()).as_hours(), 8760);
        assert_eq!(info.other_server, None);

        let read = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        assert_eq!(read.current_context, Some(spec.context()));
        assert_eq!(read.auth_infos[0].name, spec.certificate.common_name);
        assert!(read.auth_infos[0].auth_info.as_ref().unwrap().client_key_data.is_some());
    }
}

#[test]
fn kubeadms_own_is_accepted() {
    let info = check(ADMIN, &spec("admin"), &kubeadm_authority(), now()).unwrap();
    assert_eq!(info.certificate.subject, "O=kubeadm:cluster-admins, CN=kubernetes-admin");
    assert_eq!(info.other_server, None);
    let credentials = credentials("admin.conf", ADMIN).unwrap();
    assert_eq!(credentials.server, "https://192.0.2.10:6443");
    assert_eq!(credentials.ca_pem, fixture!("kubeadm/ca.crt"));
    assert_eq!(inspect("", credentials.certificate_pem.as_bytes()).unwrap(), info.certificate);
    assert!(credentials.key_pem.expose().starts_with("-----BEGIN RSA PRIVATE KEY-----\n"));
}

#[test]
fn another_server_is_a_warning_not_an_error() {
    let text = ADMIN.replace("https://192.0.2.10:6443", "https://balancer:443");
    let info = check(&text, &spec("admin"), &kubeadm_authority(), now()).unwrap();
    assert_eq!(info.other_server.as_deref(), Some("https://balancer:443"));
}

#[test]
fn a_bundle_is_trusted_as_a_whole_or_by_its_first() {
    let bundle = format!("{}{}", fixture!("kubeadm/ca.crt"), fixture!("broken/other-ca.crt"));
    check(ADMIN, &spec("admin"), &authority(&bundle, None), now()).unwrap();

    let with = |ca: &str| ADMIN.replace(&STANDARD.encode(fixture!("kubeadm/ca.crt")), &STANDARD.encode(ca));
    check(&with(&bundle), &spec("admin"), &authority(&bundle, None), now()).unwrap();
    // White space around the blocks is nobody's business.
    check(&with(&format!("\n{}\n", fixture!("kubeadm/ca.crt"))), &spec("admin"), &kubeadm_authority(), now()).unwrap();
    let error = check(&with(&bundle), &spec("admin"), &kubeadm_authority(), now()).unwrap_err();
    assert!(matches!(error, KubeconfigError::OtherAuthority { .. }), "trusts one more: {error}");
}

#[test]
fn each_broken_kubeconfig_is_refused_by_its_check() {
    type Expected = fn(&KubeconfigError) -> bool;
    let field = |name: &str| ADMIN.lines().find(|line| line.contains(name)).unwrap().to_owned() + "\n";
    let cases: [(String, Expected, &str); 10] = [
        (String::new(), |e| matches!(e, KubeconfigError::Syntax { .. }), "not a kubeconfig"),
        (
            ADMIN.replace("clusters:", "clusters: ["),
            |e| matches!(e, KubeconfigError::Syntax { .. }),
            "admin.conf: not a kubeconfig (line ",
        ),
        (
            ADMIN.replace("current-context: kubernetes-admin@kubernetes", "current-context: x"),
            |e| matches!(e, KubeconfigError::MissingEntry { .. }),
            "no context named `x`",
        ),
        (
            ADMIN.replace("    cluster: kubernetes", "    cluster: x"),
            |e| matches!(e, KubeconfigError::MissingEntry { .. }),
            "no cluster named `x`",
        ),
        (
            ADMIN.replace("    user: kubernetes-admin", "    user: x"),
            |e| matches!(e, KubeconfigError::MissingEntry { .. }),
            "no user named `x`",
        ),
        (
            ADMIN.replace(&field("client-key-data"), "    client-key: /etc/kubernetes/admin.key\n"),
            |e| matches!(e, KubeconfigError::NotEmbedded { .. }),
            "client-key-data is missing",
        ),
        (
            ADMIN.replace(&field("certificate-authority-data"), ""),
            |e| matches!(e, KubeconfigError::NotEmbedded { .. }),
            "certificate-authority-data is missing",
        ),
        (
            ADMIN.replace("client-certificate-data: ", "client-certificate-data: '%'"),
            |e| matches!(e, KubeconfigError::Syntax { .. }),
            "admin.conf",
        ),
        (
            ADMIN.replace("client-certificate-data: ", "client-certificate-data: '*'\n    other: "),
            |e| matches!(e, KubeconfigError::NotBase64 { .. }),
            "client-certificate-data is not base64",
        ),
        (
            ADMIN.replace(
                &field("client-key-data"),
                &format!("    client-key-data: {}\n", STANDARD.encode(fixture!("broken/other.key"))),
            ),
            |e| matches!(e, KubeconfigError::Pki(PkiError::KeyMismatch { .. })),
            "admin.conf",
        ),
    ];
    for (text, expected, said) in cases {
        let error = check(&text, &spec("admin"), &kubeadm_authority(), now()).unwrap_err();
        assert!(expected(&error) && error.to_string().contains(said), "{error:?}");
        assert!(!error.hints().is_empty(), "{error}");
    }
}

#[test]
fn authority_user_and_time_are_checked() {
    let error = check(ADMIN, &spec("admin"), &ec_authority(), now()).unwrap_err();
    assert_eq!(error.to_string(), "admin.conf: its certificate-authority-data is not ca.crt");

    let error = check(ADMIN, &spec("super-admin"), &kubeadm_authority(), now()).unwrap_err();
    assert!(matches!(error, KubeconfigError::Pki(PkiError::Subject { .. })), "{error}");

    let later = "2027-06-01T00:00:00Z".parse().unwrap();
    let error = check(ADMIN, &spec("admin"), &kubeadm_authority(), later).unwrap_err();
    assert!(matches!(error, KubeconfigError::Pki(PkiError::Expired { .. })), "{error}");
}

#[test]
fn a_certificate_of_an_older_authority_is_refused() {
    // The CA was made anew under the same name and put into the kubeconfig; its client certificate was not.
    let specs = pki::specifications(&Cluster::example());
    let policy = Cluster::example().certificates;
    let fresh = issue_authority(&specs[0], &policy, now()).unwrap();
    let text = ADMIN.replace(&STANDARD.encode(fixture!("kubeadm/ca.crt")), &STANDARD.encode(&fresh.certificate));
    let error = check(&text, &spec("admin"), &authority(&fresh.certificate, None), now()).unwrap_err();
    assert!(matches!(error, KubeconfigError::Pki(PkiError::NotSignedBy { .. })), "{error}");
}

#[test]
fn no_message_shows_a_part_of_the_key() {
    let key: String = ADMIN.split("client-key-data: ").nth(1).unwrap().trim().to_owned();
    for broken in [
        ADMIN.replace("client-key-data: ", "client-key-data: \""),
        ADMIN.replace("client-key-data: ", "client-key-data: ["),
        ADMIN.replace("client-key-data: ", "client-key-data: ]"),
        ADMIN.replace("client-key-data: ", "client-key-data: %"),
        format!("{ADMIN}{ADMIN}"),
    ] {
        let error = check(&broken, &spec("admin"), &kubeadm_authority(), now()).unwrap_err();
        let shown = format!("{error} {error:?} {:?}", error.hints());
        for start in (0..key.len() - 12).step_by(4) {
            assert!(!shown.contains(&key[start..start + 12]), "{shown}");
        }
    }
    let built = build(&spec("admin"), &ec_authority(), &Cluster::example().certificates, now()).unwrap();
    assert_eq!(format!("{built:?}"), "[secret]");
}
