//! Values of the kubelet's flags `--register-with-taints` and `--node-labels`. Pure.

use k8s_openapi::api::core::v1::Taint;

use super::object::OS_LABEL;
use crate::names::{TAINT_EFFECTS, is_label_value, is_qualified_name};

/// Why a value is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// Not of the form of a taint.
    #[error("expected KEY=VALUE:EFFECT or KEY:EFFECT, where EFFECT is one of {}", TAINT_EFFECTS.join(", "))]
    Taint,
    /// Not of the form of a label.
    #[error("expected KEY=VALUE")]
    Label,
    /// A character that may not be there, or too long.
    #[error("`{0}` is no key with a value")]
    Text(String),
    /// The one label that this node must not have.
    #[error("`{OS_LABEL}` is how DaemonSets find nodes that run their pods, and this node runs static pods only")]
    Os,
}

/// `key=value:effect`, `key=:effect` or `key:effect`.
pub fn taint(text: &str) -> Result<Taint, FlagError> {
    let parts = text.trim().rsplit_once(':').filter(|(_, effect)| TAINT_EFFECTS.contains(effect));
    let (pair, effect) = parts.ok_or(FlagError::Taint)?;
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    check(pair, key, value)?;
    let value = (!value.is_empty()).then(|| value.to_owned());
    Ok(Taint { key: key.to_owned(), value, effect: effect.to_owned(), time_added: None })
}

/// `key=value`. Which labels a node may give itself is the API server's to say.
pub fn label(text: &str) -> Result<(String, String), FlagError> {
    let pair = text.trim();
    let (key, value) = pair.split_once('=').ok_or(FlagError::Label)?;
    check(pair, key, value)?;
    if key == OS_LABEL {
        return Err(FlagError::Os);
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn check(pair: &str, key: &str, value: &str) -> Result<(), FlagError> {
    let is_right = is_qualified_name(key) && (value.is_empty() || is_label_value(value));
    if is_right { Ok(()) } else { Err(FlagError::Text(pair.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_have_the_kubelets_format() {
        let read = |text: &str| {
            let taint = taint(text).map_err(|error| error.to_string())?;
            Ok::<_, String>((taint.key, taint.value.unwrap_or_default(), taint.effect))
        };
        for (text, key, value, effect) in [
            ("a=b:NoSchedule", "a", "b", "NoSchedule"),
            (" a=:PreferNoSchedule", "a", "", "PreferNoSchedule"),
            ("x.io/a:NoExecute", "x.io/a", "", "NoExecute"),
        ] {
            assert_eq!(read(text), Ok((key.to_owned(), value.to_owned(), effect.to_owned())), "{text}");
        }
        for text in ["", "a", "a=b", "a=b:Never", "=b:NoSchedule", "a/b/c:NoSchedule", "a=b c:NoSchedule"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn labels_are_pairs_and_never_that_of_the_operating_system() {
        assert_eq!(label("x.io/a=b"), Ok(("x.io/a".to_owned(), "b".to_owned())));
        assert_eq!(label("a="), Ok(("a".to_owned(), String::new())));
        assert_eq!(label("a"), Err(FlagError::Label));
        assert_eq!(label("a=b/c"), Err(FlagError::Text("a=b/c".to_owned())));
        assert_eq!(label("kubernetes.io/os=linux"), Err(FlagError::Os));
    }
}
