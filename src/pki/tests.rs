//! What others wrote is read, and refused for the right reason; what is made here is proven by TLS itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::*;
use crate::config::{CertificatePolicy, Cluster, KeyAlgorithm};
use crate::error::Hint as _;

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/certs-testdata/", $name)).as_slice()
    };
}

const LEAF_KEY: &[u8] = fixture!("ec/apiserver.key");

/// Within the fixtures' validity.
fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

fn spec(name: &str) -> Spec {
    specifications(&Cluster::example()).into_iter().find(|spec| spec.name == name).unwrap()
}

fn ec_authority() -> Authority {
    Authority::load(&spec("ca"), fixture!("ec/ca.crt"), Some(fixture!("ec/ca.key")), now()).unwrap()
}

fn policy(algorithm: KeyAlgorithm) -> CertificatePolicy {
    CertificatePolicy { algorithm, ..Cluster::example().certificates }
}

/// The variant's name, to say in a table which check must refuse.
fn variant(error: &PkiError) -> String {
    let debug = format!("{error:?}");
    debug.split([' ', '{', '(']).next().unwrap().to_owned()
}

#[test]
fn leaves_of_others_are_accepted() {
    let kubeadm =
        Authority::load(&spec("ca"), fixture!("kubeadm/ca.crt"), Some(fixture!("kubeadm/ca.key")), now()).unwrap();
    let ec = ec_authority();
    let api_server = spec("apiserver");
    for (what, certificate, key, authority, algorithm) in [
        ("kubeadm", fixture!("kubeadm/apiserver.crt"), fixture!("kubeadm/apiserver.key"), &kubeadm, "RSA-2048"),
        ("EC PARAMETERS", fixture!("ec/apiserver.crt"), LEAF_KEY, &ec, "ECDSA-P256"),
        ("PKCS#8", fixture!("ec/apiserver.crt"), fixture!("ec/apiserver-pkcs8.key"), &ec, "ECDSA-P256"),
        ("chain", fixture!("ec/apiserver-chain.crt"), LEAF_KEY, &ec, "ECDSA-P256"),
    ] {
        let info =
            check_leaf(&api_server, certificate, key, authority, now()).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(info.algorithm, algorithm, "{what}");
        assert_eq!(info.common_name.as_deref(), Some("kube-apiserver"), "{what}");
        assert_eq!(info.not_after.to_string(), "2027-01-01T00:00:00Z", "{what}");
        assert!(!info.is_authority, "{what}");
    }
    // SEC 1 without its optional public half.
    let info =
        check_leaf(&api_server, fixture!("ec/apiserver.crt"), fixture!("ec/apiserver-no-public.key"), &ec, now());
    assert!(info.is_ok(), "{info:?}");
}

#[test]
fn a_wildcard_name_covers_one_label_and_absent_usages_allow_all() {
    let check = |name: &str| {
        let spec = Spec { sans: vec![crate::config::San::Dns(name.to_owned())], ..spec("apiserver") };
        check_leaf(&spec, fixture!("ec/wildcard.crt"), LEAF_KEY, &ec_authority(), now())
    };
    assert!(check("master-0.example.com").is_ok());
    assert!(check("*.example.com").is_ok());
    for name in ["example.com", "a.b.example.com", "master-0.example.org", "*.b.example.com"] {
        assert_eq!(variant(&check(name).unwrap_err()), "MissingSans", "{name}");
    }
}

#[test]
fn each_broken_leaf_is_refused_by_its_check() {
    let ec = ec_authority();
    let good = fixture!("ec/apiserver.crt");
    for (certificate, key, expected, said) in [
        (fixture!("broken/garbage.pem"), LEAF_KEY, "NotPem", "apiserver.crt: no certificate"),
        (b"".as_slice(), LEAF_KEY, "NotPem", "apiserver.crt"),
        (fixture!("broken/cut.crt"), LEAF_KEY, "Damaged", "END line"),
        (fixture!("broken/not-x509.crt"), LEAF_KEY, "NotACertificate", "apiserver.crt"),
        (good, fixture!("broken/garbage.pem"), "NotPem", "apiserver.key: no private key"),
        (good, fixture!("broken/encrypted-sec1.key"), "KeyEncrypted", "apiserver.key"),
        (good, fixture!("broken/encrypted-pkcs8.key"), "KeyEncrypted", "apiserver.key"),
        (good, fixture!("broken/rsa-1024.key"), "KeyUnusable", "2048"),
        (
            good,
            fixture!("broken/other.key"),
            "KeyMismatch",
            "apiserver.key: the private key does not match the public key in apiserver.crt",
        ),
        (good, fixture!("kubeadm/apiserver.key"), "KeyMismatch", "apiserver.key"),
        (fixture!("broken/wrong-ca.crt"), LEAF_KEY, "NotSignedBy", "not signed by ca.crt"),
        (fixture!("broken/chain-through-leaf.crt"), LEAF_KEY, "NotAnAuthority", "CA:TRUE"),
        (fixture!("broken/missing-san.crt"), LEAF_KEY, "MissingSans", "not valid for 192.0.2.10 (it is valid for"),
        (fixture!("broken/client-only.crt"), LEAF_KEY, "MissingUsages", "serverAuth is missing (it has clientAuth"),
        (fixture!("broken/no-signature-usage.crt"), LEAF_KEY, "MissingUsages", "digitalSignature is missing"),
        (fixture!("broken/expired.crt"), LEAF_KEY, "Expired", "2025-01-01T00:00:00Z"),
        (fixture!("broken/not-yet-valid.crt"), LEAF_KEY, "NotYetValid", "2030-01-01T00:00:00Z"),
    ] {
        let error = check_leaf(&spec("apiserver"), certificate, key, &ec, now()).unwrap_err();
        assert_eq!(variant(&error), expected, "{error}");
        assert!(error.to_string().contains(said), "{error}");
        assert!(!error.hints().is_empty(), "{error}");
    }
}

#[test]
fn a_subject_matters_only_where_somebody_decides_by_it() {
    let check = |identity| {
        let spec = Spec { subject_is_identity: identity, usages: &[], sans: Vec::new(), ..spec("front-proxy-client") };
        check_leaf(&spec, fixture!("ec/apiserver.crt"), LEAF_KEY, &ec_authority(), now())
    };
    assert!(check(false).is_ok());
    let error = check(true).unwrap_err();
    assert_eq!(
        error.to_string(),
        "front-proxy-client.crt: its subject is `CN=kube-apiserver`, expected `CN=front-proxy-client`"
    );
}

#[test]
fn validity_is_judged_to_the_second_and_last() {
    let check = |at: &str, key| {
        check_leaf(&spec("apiserver"), fixture!("ec/apiserver.crt"), key, &ec_authority(), at.parse().unwrap())
    };
    assert!(check("2026-01-01T00:00:00Z", LEAF_KEY).is_ok());
    assert!(check("2027-01-01T00:00:00.9Z", LEAF_KEY).is_ok());
    assert_eq!(variant(&check("2025-12-31T23:59:59Z", LEAF_KEY).unwrap_err()), "NotYetValid");
    assert_eq!(variant(&check("2027-01-01T00:00:01Z", LEAF_KEY).unwrap_err()), "Expired");
    let error = check("2028-01-01T00:00:00Z", fixture!("broken/other.key")).unwrap_err();
    assert_eq!(variant(&error), "KeyMismatch", "a wrong key matters more than the date");
}

#[test]
fn each_broken_authority_is_refused_by_its_check() {
    let key = fixture!("ec/ca.key");
    for (certificate, key, expected) in [
        (fixture!("broken/garbage.pem"), Some(key), "NotPem"),
        (fixture!("ec/ca.crt"), Some(fixture!("broken/other-ca.key")), "KeyMismatch"),
        (fixture!("broken/other-ca.crt"), Some(key), "KeyMismatch"),
        (fixture!("broken/not-a-ca.crt"), Some(key), "NotAnAuthority"),
        (fixture!("broken/not-a-ca.crt"), None, "NotAnAuthority"),
        (fixture!("broken/ca-may-not-sign.crt"), Some(key), "NotAnAuthority"),
        (fixture!("broken/ca-two-organizations.crt"), Some(key), "AuthorityName"),
        (fixture!("broken/ca-expired.crt"), Some(key), "Expired"),
        (fixture!("broken/ca-expired.crt"), None, "Expired"),
    ] {
        let error = Authority::load(&spec("etcd-ca"), certificate, key, now()).unwrap_err();
        assert_eq!(variant(&error), expected, "{error}");
        assert!(error.to_string().contains("etcd/ca."), "{error}");
        assert!(!error.hints().is_empty() && !error.hints()[0].contains("remove"), "{:?}", error.hints());
    }
}

#[test]
fn without_its_key_an_authority_verifies_and_does_not_sign() {
    let authority = Authority::load(&spec("ca"), fixture!("ec/ca.crt"), None, now()).unwrap();
    assert!(!authority.can_sign());
    check_leaf(&spec("apiserver"), fixture!("ec/apiserver.crt"), LEAF_KEY, &authority, now()).unwrap();
    let error = issue_leaf(&spec("apiserver"), &authority, &policy(KeyAlgorithm::EcdsaP256), now()).unwrap_err();
    assert_eq!(variant(&error), "AuthorityKeyMissing");
    assert!(error.to_string().contains("ca.key"), "{error}");
    // A name that cannot be repeated is no obstacle to verifying.
    Authority::load(&spec("ca"), fixture!("broken/ca-two-organizations.crt"), None, now()).unwrap();
}

#[test]
fn the_first_certificate_of_a_file_is_the_authority() {
    let both = [fixture!("ec/ca.crt"), fixture!("broken/other-ca.crt")].concat();
    let authority = Authority::load(&spec("ca"), &both, Some(fixture!("ec/ca.key")), now()).unwrap();
    assert_eq!(authority.certificate_pem().matches("BEGIN CERTIFICATE").count(), 2);
    let swapped = [fixture!("broken/other-ca.crt"), fixture!("ec/ca.crt")].concat();
    let error = Authority::load(&spec("ca"), &swapped, Some(fixture!("ec/ca.key")), now()).unwrap_err();
    assert_eq!(variant(&error), "KeyMismatch");
}

#[test]
fn service_account_keys_belong_together() {
    let (key, public) = (fixture!("kubeadm/sa.key"), fixture!("kubeadm/sa.pub"));
    check_service_account(key, public).unwrap();
    assert_eq!(service_account_public_key(key).unwrap().as_bytes(), public, "the same text as openssl's");

    let other = service_account_public_key(LEAF_KEY).unwrap();
    assert_eq!(variant(&check_service_account(key, other.as_bytes()).unwrap_err()), "KeyMismatch");
    check_service_account(key, &[other.as_bytes(), public].concat()).unwrap();
    assert_eq!(variant(&check_service_account(key, b"").unwrap_err()), "NotPem");
    assert_eq!(variant(&check_service_account(b"", public).unwrap_err()), "NotPem");
}

#[test]
fn keys_are_written_as_kubeadm_writes_them() {
    let rsa = issue_service_account(KeyAlgorithm::Rsa2048).unwrap();
    assert!(rsa.private.expose().starts_with("-----BEGIN RSA PRIVATE KEY-----\n"));
    for algorithm in [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384] {
        let ec = issue_service_account(algorithm).unwrap();
        assert!(ec.private.expose().starts_with("-----BEGIN EC PRIVATE KEY-----\n"));
        assert!(ec.public.starts_with("-----BEGIN PUBLIC KEY-----\n"));
        check_service_account(ec.private.expose().as_bytes(), ec.public.as_bytes()).unwrap();
        // Alone, an EC key must name its curve (Go's and openssl's parsers need it): context tag 0, then the OID.
        let der = PrivateKeyDer::from_pem_slice(ec.private.expose().as_bytes()).unwrap();
        let oid: &[u8] = match algorithm {
            KeyAlgorithm::EcdsaP256 => &[0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
            _ => &[0xa0, 0x07, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
        };
        assert!(der.secret_der().windows(oid.len()).any(|window| window == oid));
    }
    check_service_account(rsa.private.expose().as_bytes(), rsa.public.as_bytes()).unwrap();
}

#[test]
fn secrets_are_not_in_debug() {
    let issued = issue_authority(&spec("ca"), &policy(KeyAlgorithm::EcdsaP256), now()).unwrap();
    let key = issued.key.expose().lines().nth(1).unwrap();
    let authority = load(&spec("ca"), &issued);
    for debug in [format!("{issued:?}"), format!("{authority:?}")] {
        assert!(!debug.contains(key) && !debug.contains("PRIVATE"), "{debug}");
    }
}

#[test]
fn functions_can_run_on_several_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Authority>();
    shared::<Issued>();
    shared::<PkiError>();
}

#[test]
fn serial_numbers_are_random_positive_and_63_bits() {
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let issued = issue_authority(&spec("ca"), &policy(KeyAlgorithm::EcdsaP256), now()).unwrap();
        let serial = inspect("ca.crt", issued.certificate.as_bytes()).unwrap().serial;
        assert!(serial.len() < 8 * 3, "{serial}");
        assert!(u8::from_str_radix(&serial[..2], 16).unwrap() < 0x80, "{serial}");
        assert!(seen.insert(serial), "a repeated serial number");
    }
}

#[test]
fn a_validity_past_the_year_9999_is_refused() {
    let policy = CertificatePolicy { ca_validity: Duration::from_secs(u64::MAX), ..policy(KeyAlgorithm::EcdsaP256) };
    assert_eq!(variant(&issue_authority(&spec("ca"), &policy, now()).unwrap_err()), "Validity");
}

/// Issues everything of the example cluster and checks it the way a second `init` does.
fn issue_all(algorithm: KeyAlgorithm) -> BTreeMap<&'static str, (Spec, Issued)> {
    let policy = policy(algorithm);
    let mut all: BTreeMap<&'static str, (Spec, Issued)> = BTreeMap::new();
    let mut authorities = BTreeMap::new();
    for spec in specifications(&Cluster::example()) {
        let issued = match spec.authority {
            None => {
                let issued = issue_authority(&spec, &policy, now()).unwrap();
                authorities.insert(spec.name, load(&spec, &issued));
                issued
            }
            Some(name) => {
                let issued = issue_leaf(&spec, &authorities[name], &policy, now()).unwrap();
                let (certificate, key) = (issued.certificate.as_bytes(), issued.key.expose().as_bytes());
                check_leaf(&spec, certificate, key, &authorities[name], now()).unwrap();
                for (other, authority) in &authorities {
                    assert_eq!(check_leaf(&spec, certificate, key, authority, now()).is_ok(), *other == name);
                }
                issued
            }
        };
        all.insert(spec.name, (spec, issued));
    }
    all
}

fn load(spec: &Spec, issued: &Issued) -> Authority {
    Authority::load(spec, issued.certificate.as_bytes(), Some(issued.key.expose().as_bytes()), now()).unwrap()
}

#[test]
fn what_is_issued_says_what_kubeadm_would_say() {
    let all = issue_all(KeyAlgorithm::EcdsaP256);
    for (spec, issued) in all.values() {
        let info = inspect(spec.name, issued.certificate.as_bytes()).unwrap();
        assert_eq!(info.common_name.as_ref(), Some(&spec.common_name));
        assert_eq!(info.organizations, spec.organization.as_slice());
        assert_eq!(info.sans, spec.sans, "exactly, nothing more");
        assert_eq!(info.is_authority, spec.is_authority());
        assert_eq!(info.not_before.to_string(), "2026-05-31T23:55:00Z");
        let hours = if spec.is_authority() { 87600 } else { 8760 };
        assert_eq!(info.remaining(now()).as_hours(), hours, "{}", spec.name);

        let der = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        let constraints = parsed.basic_constraints().unwrap().expect("leaves say CA:FALSE, too");
        assert!(constraints.critical);
        assert_eq!(constraints.value.ca, spec.is_authority());
        let usage = parsed.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && usage.value.key_encipherment());
        assert_eq!(usage.value.key_cert_sign(), spec.is_authority());
        assert!(!usage.value.crl_sign());
        let extended = parsed.extended_key_usage().unwrap().map(|extension| extension.value);
        assert_eq!(extended.is_some_and(|usage| usage.server_auth), spec.usages.contains(&Usage::ServerAuth));
        assert_eq!(extended.is_some_and(|usage| usage.client_auth), spec.usages.contains(&Usage::ClientAuth));
    }
}

#[test]
fn tls_accepts_what_is_issued() {
    for algorithm in [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384] {
        let all = issue_all(algorithm);
        let dial = |server: &str, client: &str, authority: &str, name: &str| {
            handshake(&all[server].1, &all[client].1, &all[authority].1.certificate, name)
        };
        for name in ["kubernetes.default.svc", "master-0", "10.96.0.1", "192.0.2.10"] {
            dial("apiserver", "apiserver-kubelet-client", "ca", name).unwrap();
        }
        for name in ["localhost", "127.0.0.1", "::1", "192.0.2.10"] {
            dial("etcd-server", "apiserver-etcd-client", "etcd-ca", name).unwrap();
            dial("etcd-server", "etcd-healthcheck-client", "etcd-ca", name).unwrap();
            dial("etcd-peer", "etcd-peer", "etcd-ca", name).unwrap();
        }
        // Each of these fails for one reason: name, usage of the server, usage of the client, authority.
        for (server, client, authority, name) in [
            ("apiserver", "apiserver-kubelet-client", "ca", "example.com"),
            ("apiserver-kubelet-client", "apiserver-kubelet-client", "ca", "master-0"),
            ("apiserver", "apiserver", "ca", "master-0"),
            ("apiserver", "apiserver-kubelet-client", "etcd-ca", "master-0"),
            ("etcd-server", "front-proxy-client", "etcd-ca", "localhost"),
        ] {
            dial(server, client, authority, name).unwrap_err();
        }
    }
}

#[test]
fn an_rsa_authority_of_kubeadms_signs_for_us() {
    let spec_ca = spec("ca");
    let authority = fixture!("kubeadm/ca.crt");
    let ca = Authority::load(&spec_ca, authority, Some(fixture!("kubeadm/ca.key")), now()).unwrap();
    let server = issue_leaf(&spec("apiserver"), &ca, &policy(KeyAlgorithm::Rsa2048), now()).unwrap();
    let client = issue_leaf(&spec("apiserver-kubelet-client"), &ca, &policy(KeyAlgorithm::EcdsaP256), now()).unwrap();
    assert_eq!(inspect("", server.certificate.as_bytes()).unwrap().algorithm, "RSA-2048");
    assert_eq!(inspect("", server.certificate.as_bytes()).unwrap().issuer, ca.info().subject);
    handshake(&server, &client, std::str::from_utf8(authority).unwrap(), "master-0").unwrap();

    let rsa = issue_authority(&spec_ca, &policy(KeyAlgorithm::Rsa2048), now()).unwrap();
    let ca = load(&spec_ca, &rsa);
    let server = issue_leaf(&spec("apiserver"), &ca, &policy(KeyAlgorithm::EcdsaP256), now()).unwrap();
    check_leaf(&spec("apiserver"), server.certificate.as_bytes(), server.key.expose().as_bytes(), &ca, now()).unwrap();
}

#[derive(Debug)]
struct FixedTime;

impl TimeProvider for FixedTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(now().as_second().try_into().unwrap())))
    }
}

/// A mutual TLS handshake in memory, at [`now`]: proves chain, names, key usages and keys on both sides.
fn handshake(server: &Issued, client: &Issued, authority: &str, name: &str) -> Result<(), rustls::Error> {
    let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
    let roots = Arc::new(roots);
    let pair = |issued: &Issued| {
        (
            vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(issued.key.expose().as_bytes()).unwrap(),
        )
    };

    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap();
    let (chain, key) = pair(server);
    let config = ServerConfig::builder_with_details(provider.clone(), Arc::new(FixedTime))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    let mut server = ServerConnection::new(Arc::new(config))?;

    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build().unwrap();
    let (chain, key) = pair(client);
    let config = ClientConfig::builder_with_details(provider, Arc::new(FixedTime))
        .with_safe_default_protocol_versions()?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(chain, key)?;
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap())?;

    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}
