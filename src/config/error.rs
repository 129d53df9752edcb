//! What can be wrong with a configuration, and where.

use std::fmt;

use crate::error::Hint;
use crate::release::VersionError;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A line of the configuration file.
    File {
        /// Name of the file as the user gave it.
        name: String,
        /// Line, counted from 1; `None` for the file as a whole.
        line: Option<u64>,
    },
    /// A flag, with its dashes.
    Flag(&'static str),
    /// Neither: a default, or something found on this host.
    Host,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Where the value comes from.
    pub place: Place,
    /// Path of the field in kubeadm's format (`networking.serviceSubnet`); empty when no field is meant.
    pub field: String,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not YAML, or a value of the wrong type.
    #[error("{0}")]
    Syntax(String),
    /// The file holds neither kind.
    #[error("neither an InitConfiguration nor a ClusterConfiguration")]
    Empty,
    /// A document without `apiVersion` or `kind`.
    #[error("`{0}` is missing")]
    Untyped(&'static str),
    /// A version of kubeadm's format that is not read.
    #[error("`{0}` is not read; expected `{expected}`", expected = super::wire::API_VERSION)]
    OldVersion(String),
    /// A kind that means nothing to `init`.
    #[error("unknown kind `{kind}` of `{api_version}`; expected InitConfiguration or ClusterConfiguration")]
    UnknownKind {
        /// As the document names it.
        kind: String,
        /// As the document names it.
        api_version: String,
    },
    /// Not what a program of this name reads.
    #[error("`{kind}` of `{api_version}`; expected {expected}")]
    OtherKind {
        /// As the document names it.
        kind: String,
        /// As the document names it.
        api_version: String,
        /// Kind and version that are read.
        expected: &'static str,
    },
    /// Another document, where one is all that counts.
    #[error("a second document; there is to be one")]
    SecondDocument,
    /// A kind that stands in the file already.
    #[error("a second {kind}; the first one begins at line {first}")]
    DuplicateKind {
        /// The kind.
        kind: String,
        /// Line of the first document of the kind.
        first: u64,
    },
    /// A field that kubeadm does not know either.
    #[error("unknown field{}", closest.as_ref().map_or_else(String::new, |name| format!("; did you mean `{name}`?")))]
    UnknownField {
        /// Known field with a similar name.
        closest: Option<String>,
        /// Known fields at this place.
        known: Vec<String>,
    },
    /// kubeadm's older form of `extraArgs`.
    #[error("a mapping; expected a list of `name` and `value`")]
    ArgsAsMapping,
    /// A field that would change the meaning and that plinth cannot honour.
    #[error("not supported by this plinth: {0}")]
    Unsupported(&'static str),
    /// A flag that may not stand beside `--config`.
    #[error("cannot be used together with --config")]
    FlagBesideFile,
    /// The Kubernetes version.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// A value that is not what it must be.
    #[error("`{value}` {problem}; expected {expected}")]
    Invalid {
        /// The value.
        value: String,
        /// What is wrong with it.
        problem: String,
        /// What it must be.
        expected: String,
    },
    /// A value that a cluster keeps for as long as it lives.
    #[error("`{wanted}` cannot take the place of `{running}` while the cluster lives: {reason}")]
    Immutable {
        /// What the control plane runs with.
        running: String,
        /// What is asked for.
        wanted: String,
        /// What depends on it.
        reason: &'static str,
    },
    /// A value that has no default here and was not given.
    #[error("{problem}; expected {expected}")]
    Missing {
        /// Why there is none.
        problem: String,
        /// What it must be.
        expected: String,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File { name, line: Some(line) } => write!(f, "{name}:{line}: ")?,
            Place::File { name, line: None } => write!(f, "{name}: ")?,
            Place::Flag(flag) if self.field.is_empty() => write!(f, "{flag}: ")?,
            Place::Flag(flag) => write!(f, "{flag} ({}): ", self.field)?,
            Place::Host => {}
        }
        if !self.field.is_empty() && !matches!(self.place, Place::Flag(_)) {
            write!(f, "{}: ", self.field)?;
        }
        self.problem.fmt(f)
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    fn hint(&self) -> Option<String> {
        match &self.problem {
            Problem::Empty => Some(format!(
                "begin a document with `apiVersion: {}` and `kind: ClusterConfiguration`",
                super::wire::API_VERSION
            )),
            Problem::OldVersion(_) => {
                Some("`kubeadm config migrate --old-config OLD --new-config NEW` writes the present format".into())
            }
            Problem::UnknownField { closest: None, known } if !known.is_empty() => {
                Some(format!("fields known beside `{}`: {}", self.field, known.join(", ")))
            }
            Problem::ArgsAsMapping => Some(format!("write `{}: [{{name: v, value: \"2\"}}]`", self.field)),
            Problem::FlagBesideFile => {
                let Place::Flag(flag) = self.place else { return None };
                Some(format!("instead of {flag} set `{}` in the file", self.field))
            }
            Problem::Immutable { .. } => Some(
                "leave such values as they are; another one needs a new cluster: `plinth reset`, then `plinth init`"
                    .into(),
            ),
            Problem::Missing { .. } if self.field == "localAPIEndpoint.advertiseAddress" => {
                Some("name one with --apiserver-advertise-address, or in the file".into())
            }
            _ => None,
        }
    }
}

/// Everything that is wrong with a configuration; at least one error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// `Err` unless `errors` is empty.
    pub(crate) fn check(errors: Vec<ConfigError>) -> Result<(), Self> {
        if errors.is_empty() { Ok(()) } else { Err(Self(errors)) }
    }

    /// The errors: first those of the file's form, then those of flags and values.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}

/// One line per error.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { "\n" })?;
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl Hint for ConfigErrors {
    fn hints(&self) -> Vec<String> {
        let mut hints: Vec<_> = self.iter().filter_map(ConfigError::hint).collect();
        let mut seen = std::collections::HashSet::new();
        hints.retain(|hint| seen.insert(hint.clone()));
        hints
    }
}
