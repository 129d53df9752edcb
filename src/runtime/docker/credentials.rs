//! What the engine is told to say to a registry: the credentials of Docker's configuration files.
//!
//! The engine has none itself; its client sends them along with each pull, and so do we. Files are read for every pull,
//! so that a `docker login` counts from then on. Rules are those of Docker's client (`cli/config`), and that a key may
//! go on with a path, as for the kubelet. Secrets are in no error and no `Debug`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use crate::fsx::{self, FsError};

/// How Docker's client calls its own registry in files and to helpers.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// User name by which a helper says that its secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// How a helper says that it has nothing for this registry.
const NOT_FOUND: &[u8] = b"credentials not found in native keychain";
/// How long a helper may take; some ask a cloud.
const HELPER_LIMIT: Duration = Duration::from_secs(30);
/// Docker's client pads or does not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Credentials that cannot be had. The pull is tried without.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialError {
    /// The file cannot be read.
    #[error(transparent)]
    Files(#[from] FsError),
    /// The file is not what Docker writes. Its text is not repeated.
    #[error("{} is not a Docker configuration (line {line}, column {column})", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
    /// An `auth` is not the base64 of `user:password`.
    #[error("{}: the credentials of {registry} cannot be decoded", path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
        /// Key of the entry.
        registry: String,
    },
    /// A credential helper failed. What it said is not repeated.
    #[error("the credential helper docker-credential-{name} {reason}")]
    Helper {
        /// Its name.
        name: String,
        /// "is not installed", …
        reason: String,
    },
}

/// What a registry wants to know.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    /// Name and password.
    Password { user: String, password: String },
    /// A token that stands for a login.
    IdentityToken(String),
    /// A token of the registry itself.
    RegistryToken(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    #[serde(rename = "auth")]
    encoded: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// Where the credentials of a registry are, by one file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    helper: Option<String>,
    secret: Option<Secret>,
}

/// The registry of an image, and its credentials from the first of `files` that has some.
pub(super) async fn find(files: &[PathBuf], reference: &str) -> Result<Option<(String, Secret)>, CredentialError> {
    let (registry, repository) = split(reference);
    for path in files {
        let Some(bytes) = fsx::read_optional(path)? else { continue };
        let found = lookup(path, &bytes, registry, &repository)?;
        let server = if registry == "docker.io" { DOCKER_HUB } else { registry };
        let stored = match &found.helper {
            Some(name) => ask(name, server).await?,
            None => None,
        };
        if let Some(secret) = stored.or(found.secret) {
            return Ok(Some((server.to_owned(), secret)));
        }
    }
    Ok(None)
}

/// The registry of an image reference, and registry and repository together.
fn split(reference: &str) -> (&str, String) {
    let name = reference.split('@').next().unwrap_or(reference);
    match name.split_once('/') {
        Some((registry, _)) if registry.contains(['.', ':']) || registry == "localhost" => {
            let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
            (registry, name.to_owned())
        }
        _ => ("docker.io", format!("docker.io/{name}")),
    }
}

/// A key of a file without scheme and API version.
fn place(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    if matches!(key, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { key }
}

fn lookup(path: &Path, bytes: &[u8], registry: &str, repository: &str) -> Result<Found, CredentialError> {
    let config: Config = serde_json::from_slice(bytes).map_err(|error| CredentialError::Syntax {
        path: path.to_path_buf(),
        line: error.line(),
        column: error.column(),
    })?;
    let own = config.cred_helpers.iter().find(|(key, _)| place(key) == registry).map(|(_, name)| name.clone());
    let helper = own.or(Some(config.creds_store)).filter(|name| !name.is_empty());
    let covers = |key: &str| {
        repository.strip_prefix(place(key)).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            || place(key) == registry
    };
    let entries = config.auths.iter().filter(|(key, _)| covers(key));
    let secret = match entries.max_by_key(|(key, _)| place(key).len()) {
        Some((key, auth)) => {
            secret(auth).map_err(|()| CredentialError::Encoding { path: path.to_path_buf(), registry: key.clone() })?
        }
        None => None,
    };
    Ok(Found { helper, secret })
}

/// What an entry has; one that a helper keeps the secret of is empty.
fn secret(auth: &Auth) -> Result<Option<Secret>, ()> {
    if !auth.identitytoken.is_empty() {
        return Ok(Some(Secret::IdentityToken(auth.identitytoken.clone())));
    }
    if !auth.registrytoken.is_empty() {
        return Ok(Some(Secret::RegistryToken(auth.registrytoken.clone())));
    }
    if !auth.encoded.is_empty() {
        let text = BASE64.decode(&auth.encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or(())?;
        let (user, password) = text.split_once(':').ok_or(())?;
        // Old clients end it with a NUL.
        let password = password.trim_end_matches('\0').to_owned();
        return Ok(Some(Secret::Password { user: user.to_owned(), password }));
    }
    let named = !auth.username.is_empty();
    Ok(named.then(|| Secret::Password { user: auth.username.clone(), password: auth.password.clone() }))
}

/// Asks a credential helper.
async fn ask(name: &str, server: &str) -> Result<Option<Secret>, CredentialError> {
    if name.contains('/') {
        return Err(CredentialError::Helper { name: name.to_owned(), reason: "is no name of a program".to_owned() });
    }
    run(Command::new(format!("docker-credential-{name}")), name, server).await
}

/// Its protocol: <https://github.com/docker/docker-credential-helpers>.
async fn run(mut program: Command, name: &str, server: &str) -> Result<Option<Secret>, CredentialError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let failed = |reason: String| CredentialError::Helper { name: name.to_owned(), reason };
    let asked = async {
        let mut helper = program
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = helper.stdin.take() {
            // One that does not listen says why by its exit code.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
        helper.wait_with_output().await
    };
    let output = match timeout(HELPER_LIMIT, asked).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(failed(format!("cannot be run: {}", error.kind()))),
        Err(_) => return Err(failed(format!("does not answer within {} s", HELPER_LIMIT.as_secs()))),
    };
    if !output.status.success() {
        let nothing = output.stdout.trim_ascii().starts_with(NOT_FOUND);
        return if nothing { Ok(None) } else { Err(failed(format!("failed: {}", output.status))) };
    }
    match serde_json::from_slice::<Answer>(&output.stdout) {
        Ok(answer) if answer.username == TOKEN_USER => Ok(Some(Secret::IdentityToken(answer.secret))),
        Ok(answer) => Ok(Some(Secret::Password { user: answer.username, password: answer.secret })),
        Err(_) => Err(failed("answered with something that is no JSON".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Secret {
        Secret::Password { user: user.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn the_registry_is_in_the_reference() {
        for (reference, registry, repository) in [
            ("busybox", "docker.io", "docker.io/busybox"),
            ("me/app:1", "docker.io", "docker.io/me/app:1"),
            ("index.docker.io/me/app", "docker.io", "index.docker.io/me/app"),
            ("localhost/app", "localhost", "localhost/app"),
            ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000", "127.0.0.1:5000/a/b:1"),
            ("registry.k8s.io/pause@sha256:00", "registry.k8s.io", "registry.k8s.io/pause"),
        ] {
            assert_eq!(split(reference), (registry, repository.to_owned()), "{reference}");
        }
    }

    const FILE: &str = r#"{
        "auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnM6ZWNyZXQ="},
            "https://127.0.0.1:5000/v2/": {"auth": "bG9jYWw6cHc"},
            "quay.io": {"auth": "cXVheTpwdw=="},
            "quay.io/team": {"username": "team", "password": "pw"},
            "token.example": {"auth": "eDo=", "identitytoken": "t"},
            "registry.example": {"registrytoken": "r"},
            "kept.example": {},
            "broken.example": {"auth": "!"},
            "odd.example": {"auth": "bm9jb2xvbg=="}
        },
        "credHelpers": {"ecr.example": "ecr-login", "https://gcr.example": "gcr"},
        "HttpHeaders": {"User-Agent": "x"}
    }"#;

    fn look(file: &str, reference: &str) -> Result<Found, CredentialError> {
        let (registry, repository) = split(reference);
        lookup(Path::new("/root/.docker/config.json"), file.as_bytes(), registry, &repository)
    }

    #[test]
    fn an_entry_is_found_by_registry_and_path() {
        for (reference, secret) in [
            ("busybox", Some(password("hub", "s:ecret"))),
            ("docker.io/me/app:1", Some(password("hub", "s:ecret"))),
            ("127.0.0.1:5000/app", Some(password("local", "pw"))),
            ("127.0.0.1:5001/app", None),
            ("quay.io/other/app", Some(password("quay", "pw"))),
            ("quay.io/team/app", Some(password("team", "pw"))),
            ("quay.io/teammate/app", Some(password("quay", "pw"))),
            ("token.example/a", Some(Secret::IdentityToken("t".to_owned()))),
            ("registry.example/a", Some(Secret::RegistryToken("r".to_owned()))),
            ("kept.example/a", None),
            ("registry.k8s.io/pause:3", None),
        ] {
            assert_eq!(look(FILE, reference).unwrap(), Found { helper: None, secret }, "{reference}");
        }
    }

    #[test]
    fn a_registry_has_its_own_helper_or_that_of_all() {
        let stored = FILE.replacen('{', r#"{"credsStore": "pass","#, 1);
        for (file, reference, helper) in [
            (FILE, "ecr.example/a", Some("ecr-login")),
            (FILE, "gcr.example/a", Some("gcr")),
            (FILE, "quay.io/a", None),
            (&stored, "gcr.example/a", Some("gcr")),
            (&stored, "quay.io/a", Some("pass")),
        ] {
            assert_eq!(look(file, reference).unwrap().helper.as_deref(), helper, "{reference}");
        }
    }

    #[test]
    fn nothing_secret_is_shown() {
        for (file, reference) in
            [(FILE, "broken.example/a"), (FILE, "odd.example/a"), (r#"{"auths": "s3cret"}"#, "a"), ("s3cret", "a")]
        {
            let error = look(file, reference).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("config.json") && !shown.contains("s3cret") && !shown.contains("bm9j"), "{shown}");
        }
        assert_eq!(format!("{:?}", password("me", "s3cret")), "Secret");
    }

    async fn ask_helper(script: &str) -> Result<Option<Secret>, CredentialError> {
        let mut program = Command::new("sh");
        program.args(["-c", script, "docker-credential-test"]);
        run(program, "test", "registry.example").await
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_the_registry() {
        let asked = r#"[ "$1" = get ] && read -r server; echo "{\"ServerURL\":\"x\",\"Username\":\"$server\",\"Secret\":\"pw\"}""#;
        assert_eq!(ask_helper(asked).await.unwrap(), Some(password("registry.example", "pw")));
        let token = r#"cat >/dev/null; echo '{"Username":"<token>","Secret":"t"}'"#;
        assert_eq!(ask_helper(token).await.unwrap(), Some(Secret::IdentityToken("t".to_owned())));
        let nothing = "cat >/dev/null; echo 'credentials not found in native keychain'; exit 1";
        assert_eq!(ask_helper(nothing).await.unwrap(), None);
        for (script, reason) in [("echo s3cret; exit 3", "exit status: 3"), ("echo s3cret", "no JSON")] {
            let error = ask_helper(script).await.unwrap_err().to_string();
            assert!(error.contains("docker-credential-test") && error.contains(reason), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
        let error = ask("plinth-test-that-is-not-installed", "r").await.unwrap_err().to_string();
        assert!(error.contains("cannot be run: entity not found"), "{error}");
        assert!(ask("../x", "r").await.is_err());
    }

    #[tokio::test]
    async fn the_first_file_that_has_credentials_counts() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let files = [directory.path().join("none"), file("empty", "{}"), file("full", FILE)];
        let (server, secret) = find(&files, "busybox").await.unwrap().unwrap();
        assert_eq!((server.as_str(), secret), (DOCKER_HUB, password("hub", "s:ecret")));
        assert_eq!(find(&files[..2], "busybox").await.unwrap(), None);
    }
}
