//! The only user of the YAML crate.
//!
//! Configuration is read strictly; manifests are read as the kubelet reads them (YAML 1.1 scalars, first document
//! only, unknown fields dropped). There is no untyped YAML value: untyped trees are [`serde_json::Value`].

use serde::Serialize;
use serde::de::DeserializeOwned;

/// YAML that cannot be read or written; the message names line and column and shows the place.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct YamlError(String);

/// Reads one document strictly: duplicate keys and trailing documents are errors.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    serde_yaml::from_str(text).map_err(|error| YamlError(error.to_string()))
}

/// Writes one document, block style, strings quoted wherever a YAML 1.1 reader could take them for something else.
pub fn to_string<T: Serialize>(value: &T) -> Result<String, YamlError> {
    serde_yaml::to_string_with_options(value, serde_yaml::ser_options! { prefer_block_scalars: false })
        .map_err(|error| YamlError(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_that_look_like_yaml_1_1_scalars_are_quoted() {
        for text in ["yes", "on", "n", "0755", "1:20", "2024-01-01", "null", "~", "1e3"] {
            let yaml = to_string(&serde_json::json!({ "a": text })).unwrap();
            assert!(yaml.contains('"') || yaml.contains('\''), "{yaml}");
            assert_eq!(from_str::<serde_json::Value>(&yaml).unwrap()["a"], text);
        }
    }

    #[test]
    fn a_duplicate_key_is_an_error_with_its_place() {
        let error = from_str::<serde_json::Value>("a: 1\nb: 2\na: 3\n").unwrap_err();
        assert!(error.to_string().contains("line 3"), "{error}");
    }
}
