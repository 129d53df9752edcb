//! Minor versions of etcd, which is what clusters agree on.

use std::fmt;
use std::str::FromStr;

/// A minor version of etcd, written `3.6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    major: u64,
    minor: u64,
}

/// The text is no version of etcd.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no version of etcd")]
pub struct NoSeries(String);

impl Series {
    /// Whether `version`, such as `3.6.8`, is one of this series.
    pub fn is_of(self, version: &str) -> bool {
        version.parse() == Ok(self)
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Series {
    type Err = NoSeries;

    /// From a version, `3.6.8`, or an image tag, `3.6.8-0`.
    fn from_str(text: &str) -> Result<Self, NoSeries> {
        match semver::Version::parse(text) {
            Ok(version) => Ok(Self { major: version.major, minor: version.minor }),
            Err(_) => Err(NoSeries(text.to_owned())),
        }
    }
}

/// What an etcd of another version means for the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The same series: either etcd starts on the other's data.
    Patch,
    /// The next series: it starts, and the earlier one does not any more once the new one has opened the data.
    Upgrade,
    /// The series before: it starts after the cluster was downgraded.
    Downgrade,
    /// More than one series apart, which etcd does not support.
    Unsupported,
}

impl Change {
    /// What going from one series to another means.
    pub fn between(from: Series, to: Series) -> Self {
        if from == to {
            Self::Patch
        } else if from.major == to.major && from.minor + 1 == to.minor {
            Self::Upgrade
        } else if from.major == to.major && to.minor + 1 == from.minor {
            Self::Downgrade
        } else {
            Self::Unsupported
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_tags_name_a_series() {
        for (text, expected) in [
            ("3.6.8", Some("3.6")),
            ("3.6.8-0", Some("3.6")),
            ("3.10.0", Some("3.10")),
            ("3.6", None),
            ("not_decided", None),
            ("", None),
        ] {
            assert_eq!(text.parse::<Series>().ok().map(|series| series.to_string()).as_deref(), expected, "{text}");
        }
        let series: Series = "3.6.8-0".parse().unwrap();
        assert!(series.is_of("3.6.0") && !series.is_of("3.7.0") && !series.is_of(""));
    }

    #[test]
    fn data_go_one_series_at_a_time() {
        for (from, to, expected) in [
            ("3.6.6-0", "3.6.8-0", Change::Patch),
            ("3.6.8-0", "3.7.0-0", Change::Upgrade),
            ("3.7.0-0", "3.6.8-0", Change::Downgrade),
            ("3.5.24-0", "3.7.0-0", Change::Unsupported),
            ("3.7.0-0", "4.0.0-0", Change::Unsupported),
        ] {
            assert_eq!(Change::between(from.parse().unwrap(), to.parse().unwrap()), expected, "{from} to {to}");
        }
    }
}
