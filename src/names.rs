//! What names, labels and their values may look like in the Kubernetes API. Pure, without knowledge of fields.

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
