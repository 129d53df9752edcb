//! What names, labels, taints and their values may look like in the Kubernetes API, and names that several parts of
//! plinth use. Pure, without knowledge of fields.

/// Label and taint of a control plane's Node (kubeadm: `LabelNodeRoleControlPlane`).
pub const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// Taint of a Node that runs static pods only: it keeps pods away which the API server would bind to it.
pub const STATIC_PODS_ONLY_TAINT: &str = "plinth.dev/static-pods-only";

/// Annotation of a mirror pod: the `kubernetes.io/config.hash` of its static pod. The API server lets nobody change it.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// What a taint may do (core validation: `validateTaintEffect`).
pub const TAINT_EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// RFC 1123 label: lower case letters, digits and dashes, a letter or digit at both ends, at most 63 characters
/// (apimachinery: `IsDNS1123Label`).
pub fn is_dns_label(text: &str) -> bool {
    text.len() <= 63 && is_part(text)
}

/// RFC 1123 subdomain: labels without the limit of 63, joined by dots, at most 253 characters
/// (apimachinery: `IsDNS1123Subdomain`).
pub fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_part)
}

fn is_part(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Value of a label that is not empty, or the part of a qualified name after the slash (apimachinery:
/// `qualifiedNameRegexp`).
pub fn is_label_value(text: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && ends(text.bytes().next())
        && ends(text.bytes().last())
}

/// `name` or `prefix/name`, as keys of labels and taints are (apimachinery: `IsQualifiedName`).
pub fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_label_value(name),
        None => is_label_value(text),
    }
}

/// A taint as the API server takes it (core validation: `ValidateNodeTaints`).
pub fn is_taint(key: &str, value: &str, effect: &str) -> bool {
    is_qualified_name(key) && (value.is_empty() || is_label_value(value)) && TAINT_EFFECTS.contains(&effect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_objects() {
        for name in ["a", "master-1", "a.b-c.9", &"a".repeat(253)] {
            assert!(is_dns_subdomain(name), "{name}");
        }
        for name in ["", "A", "a_b", "-a", "a-", "a..b", ".a", "a.", "*.a", &"a".repeat(254)] {
            assert!(!is_dns_subdomain(name), "{name}");
        }
        assert!(is_dns_label("audit-log"));
        for name in ["", "a.b", "-a", &"a".repeat(64)] {
            assert!(!is_dns_label(name), "{name}");
        }
    }

    #[test]
    fn keys_and_values_of_labels() {
        for name in ["a", "App.Name_1", "example.com/a", &"a".repeat(63)] {
            assert!(is_qualified_name(name), "{name}");
        }
        for name in ["", "/a", "a/", "a/b/c", "-a", "A.com/x", "a b", &"a".repeat(64)] {
            assert!(!is_qualified_name(name), "{name}");
        }
        assert!(!is_label_value("example.com/a"));
    }
}
