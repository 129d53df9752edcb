//! Kubeconfig files: which there are, how they are written, how those that are already there are checked.
//!
//! Pure, like [`crate::pki`]: text in, text out. The form is clientcmd's (client-go 1.37) as kubeadm leaves it: one
//! cluster, one user, one context, CA, certificate and key embedded. All are 0600 in `/etc/kubernetes`.

mod wire;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use crate::config::{CertificatePolicy, Cluster};
use crate::error::Hint;
use crate::pki::{self, Authority, CertificateInfo, Files, PkiError, Secret, Usage};
use crate::yaml;

/// File name of the agent's kubeconfig, in `/etc/kubernetes`.
pub const AGENT_FILE: &str = "plinth-agent.conf";

/// File name of the node's kubeconfig, in `/etc/kubernetes`, as kubeadm names it.
pub const KUBELET_FILE: &str = "kubelet.conf";

/// What one kubeconfig must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// kubeadm's name of the phase that makes it, e.g. `controller-manager`.
    pub name: &'static str,
    /// File name in `/etc/kubernetes`, e.g. `controller-manager.conf`.
    pub file: &'static str,
    /// Its client certificate, signed by the authority `ca`. The common name is also the name of the user entry.
    pub certificate: pki::Spec,
    /// URL of the API server.
    pub server: String,
    /// Name of the cluster entry.
    pub cluster_name: String,
}

impl Spec {
    /// Name of the context: `<user>@<cluster>`.
    pub fn context(&self) -> String {
        format!("{}@{}", self.certificate.common_name, self.cluster_name)
    }
}

/// The kubeconfigs of `cluster`, in the order of kubeadm's phases (`kubelet.conf` only where the agent registers the
/// node), and that of the agent.
///
/// People's go to the shared endpoint where there is one; those of this host's components to this host's API server,
/// so that they never meet one of another version.
pub fn specifications(cluster: &Cluster) -> Vec<Spec> {
    // kubeadm binds this group to cluster-admin; unlike system:masters its members can be shut out again.
    const ADMINS: Option<&str> = Some("kubeadm:cluster-admins");
    const MASTERS: Option<&str> = Some("system:masters");
    const AGENTS: Option<&str> = Some("plinth:agents");
    // Whom the Node authorizer and NodeRestriction take for the node of that name, and nobody more (Node authorization:
    // `NodesGroup`, `system:node:<name>`).
    const NODES: Option<&str> = Some("system:nodes");
    let node = format!("system:node:{}", cluster.node_name);
    let agent = format!("plinth:agent:{}", cluster.node_name);
    let shared = cluster.api_url();
    let local = cluster.local_api_url();
    [
        ("admin", "admin.conf", "kubernetes-admin", ADMINS, &shared),
        ("super-admin", "super-admin.conf", "kubernetes-super-admin", MASTERS, &shared),
        ("kubelet", KUBELET_FILE, &node, NODES, &local),
        ("controller-manager", "controller-manager.conf", "system:kube-controller-manager", None, &local),
        ("scheduler", "scheduler.conf", "system:kube-scheduler", None, &local),
        ("plinth-agent", AGENT_FILE, &agent, AGENTS, &local),
    ]
    .into_iter()
    .filter(|(_, file, ..)| *file != KUBELET_FILE || cluster.registration.is_some())
    .map(|(name, file, user, organization, server)| Spec {
        name,
        file,
        certificate: pki::Spec {
            name,
            files: Files::Kubeconfig(file),
            authority: Some("ca"),
            common_name: user.to_owned(),
            organization,
            usages: &[Usage::ClientAuth],
            sans: Vec::new(),
            subject_is_identity: true,
        },
        server: server.clone(),
        cluster_name: cluster.cluster_name.clone(),
    })
    .collect()
}

/// A new kubeconfig with a new key and certificate, valid for `policy.leaf_validity` from `now`.
pub fn build(
    spec: &Spec,
    authority: &Authority,
    policy: &CertificatePolicy,
    now: Timestamp,
) -> Result<Secret, KubeconfigError> {
    let issued = pki::issue_leaf(&spec.certificate, authority, policy, now)?;
    let user = &spec.certificate.common_name;
    let config = wire::Config {
        api_version: "v1".to_owned(),
        kind: "Config".to_owned(),
        current_context: spec.context(),
        clusters: vec![wire::NamedCluster {
            name: spec.cluster_name.clone(),
            cluster: wire::Cluster {
                certificate_authority_data: Some(STANDARD.encode(authority.certificate_pem())),
                server: spec.server.clone(),
            },
        }],
        contexts: vec![wire::NamedContext {
            name: spec.context(),
            context: wire::Context { cluster: spec.cluster_name.clone(), user: user.clone() },
        }],
        users: vec![wire::NamedUser {
            name: user.clone(),
            user: wire::User {
                client_certificate_data: Some(STANDARD.encode(&issued.certificate)),
                client_key_data: Some(STANDARD.encode(issued.key.expose())),
            },
        }],
    };
    yaml::to_string(&config)
        .map(Secret::new)
        .map_err(|error| KubeconfigError::Unwritable { file: spec.file.to_owned(), reason: error.to_string() })
}

/// What [`check`] found in a usable kubeconfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeconfigInfo {
    /// Its client certificate.
    pub certificate: CertificateInfo,
    /// Its server, when it is not the one expected: worth a warning, as with kubeadm, and no more (people point their
    /// admin.conf at a load balancer).
    pub other_server: Option<String>,
}

/// Checks a kubeconfig that is on disk, in its current context: it trusts `authority` and nobody else, its certificate
/// is signed by `authority`, belongs to its key, names the right user and group, and is valid `now`.
///
/// As with [`pki::check_leaf`], [`PkiError::Expired`] and [`PkiError::NotYetValid`] mean that all else is right.
pub fn check(
    text: &str,
    spec: &Spec,
    authority: &Authority,
    now: Timestamp,
) -> Result<KubeconfigInfo, KubeconfigError> {
    let credentials = credentials(spec.file, text)?;
    let trusted = pki::certificates(spec.file, credentials.ca_pem.as_bytes())?;
    if !authority.is_trusted_by(&trusted) {
        return Err(KubeconfigError::OtherAuthority {
            file: spec.file.to_owned(),
            authority_file: authority.file().to_owned(),
        });
    }
    let certificate = pki::check_leaf(
        &spec.certificate,
        credentials.certificate_pem.as_bytes(),
        credentials.key_pem.expose().as_bytes(),
        authority,
        now,
    )?;
    let other_server = (credentials.server != spec.server).then_some(credentials.server);
    Ok(KubeconfigInfo { certificate, other_server })
}

/// What a client needs to talk to the API server.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// URL.
    pub server: String,
    /// Authorities to trust, PEM.
    pub ca_pem: String,
    /// Client certificate, PEM, leaf first.
    pub certificate_pem: String,
    /// Its key, PEM.
    pub key_pem: Secret,
}

/// The name of the node whose kubeconfig `text` is, by its certificate: `a` of `system:node:a`.
pub fn node_of(text: &str) -> Option<String> {
    let credentials = credentials(KUBELET_FILE, text).ok()?;
    let certificate = pki::inspect(KUBELET_FILE, credentials.certificate_pem.as_bytes()).ok()?;
    Some(certificate.common_name?.strip_prefix("system:node:")?.to_owned())
}

/// Reads the credentials of the current context of `text`; `file` is for the error. They must be embedded.
pub fn credentials(file: &str, text: &str) -> Result<Credentials, KubeconfigError> {
    // The parser's message shows the place, and the place may be a key: only the line is passed on.
    let config: wire::Config = yaml::from_str(text).map_err(|error| KubeconfigError::syntax(file, &error))?;
    let missing = |what: &'static str, name: &str| KubeconfigError::MissingEntry {
        file: file.to_owned(),
        what,
        name: name.to_owned(),
    };
    let context = &config
        .contexts
        .iter()
        .find(|entry| entry.name == config.current_context)
        .ok_or_else(|| missing("context", &config.current_context))?
        .context;
    let cluster = &config
        .clusters
        .iter()
        .find(|entry| entry.name == context.cluster)
        .ok_or_else(|| missing("cluster", &context.cluster))?
        .cluster;
    let user = &config
        .users
        .iter()
        .find(|entry| entry.name == context.user)
        .ok_or_else(|| missing("user", &context.user))?
        .user;
    Ok(Credentials {
        server: cluster.server.clone(),
        ca_pem: decode(file, "certificate-authority-data", cluster.certificate_authority_data.as_deref())?,
        certificate_pem: decode(file, "client-certificate-data", user.client_certificate_data.as_deref())?,
        key_pem: decode(file, "client-key-data", user.client_key_data.as_deref()).map(Secret::new)?,
    })
}

fn decode(file: &str, field: &'static str, data: Option<&str>) -> Result<String, KubeconfigError> {
    let data = data
        .filter(|data| !data.is_empty())
        .ok_or_else(|| KubeconfigError::NotEmbedded { file: file.to_owned(), field })?;
    // Go ignores line ends inside base64, so a folded scalar is a kubeconfig too.
    let compact: String = data.chars().filter(|character| !character.is_ascii_whitespace()).collect();
    STANDARD
        .decode(compact)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| KubeconfigError::NotBase64 { file: file.to_owned(), field })
}

/// The line in a message of the YAML parser (`… line 3 column 5 …`).
fn line_of(message: &str) -> Option<u32> {
    let (_, rest) = message.split_once("line ")?;
    let digits = rest.split(|character: char| !character.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// A kubeconfig that cannot be used, or could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// Not YAML, or not a kubeconfig.
    #[error("{file}: not a kubeconfig{}", line.map(|line| format!(" (line {line})")).unwrap_or_default())]
    Syntax {
        /// File.
        file: String,
        /// Where, if the parser says.
        line: Option<u32>,
    },
    /// A name refers to nothing.
    #[error("{file}: there is no {what} named `{name}`")]
    MissingEntry {
        /// File.
        file: String,
        /// `context`, `cluster` or `user`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The data is elsewhere (a path, a token, a plug-in) or absent.
    #[error("{file}: {field} is missing (certificates and key must be embedded)")]
    NotEmbedded {
        /// File.
        file: String,
        /// Field.
        field: &'static str,
    },
    /// The data is not base64 of PEM.
    #[error("{file}: {field} is not base64 of a PEM text")]
    NotBase64 {
        /// File.
        file: String,
        /// Field.
        field: &'static str,
    },
    /// It trusts another authority.
    #[error("{file}: its certificate-authority-data is not {authority_file}")]
    OtherAuthority {
        /// File.
        file: String,
        /// File of the authority it should trust.
        authority_file: String,
    },
    /// Its certificate or key is wrong, or could not be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// It could not be written.
    #[error("{file}: cannot be written as YAML: {reason}")]
    Unwritable {
        /// File.
        file: String,
        /// What the writer says.
        reason: String,
    },
}

impl KubeconfigError {
    /// What the parser says of `file`, as far as it cannot hold a part of it.
    pub(crate) fn syntax(file: &str, error: &dyn std::error::Error) -> Self {
        let mut line = line_of(&error.to_string());
        let mut cause = error.source();
        while let (None, Some(inner)) = (line, cause) {
            (line, cause) = (line_of(&inner.to_string()), inner.source());
        }
        Self::Syntax { file: file.to_owned(), line }
    }
}

impl Hint for KubeconfigError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Syntax { file, .. }
            | Self::MissingEntry { file, .. }
            | Self::NotEmbedded { file, .. }
            | Self::NotBase64 { file, .. } => vec![format!("repair {file}, or remove it to have it made anew")],
            Self::OtherAuthority { file, authority_file } => vec![format!(
                "it was made for another cluster, or {authority_file} was replaced: remove {file} to have it made anew"
            )],
            Self::Pki(error) => error.hints(),
            Self::Unwritable { .. } => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
