//! What a name, an image reference or a path may look like. Pure, without knowledge of fields.

use crate::names::is_dns_subdomain;

/// `*.` before a subdomain (apimachinery: `IsWildcardDNS1123Subdomain`).
pub(super) fn is_wildcard_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.strip_prefix("*.").is_some_and(is_dns_subdomain)
}

/// What may stand before `/name:tag` in an image reference (distribution: `ReferenceRegexp`): a registry, with or
/// without a path, or a path alone.
pub(super) fn is_image_repository(text: &str) -> bool {
    let mut parts = text.split('/');
    let first = parts.next().unwrap_or_default();
    (is_registry(first) || is_path_component(first)) && parts.all(is_path_component)
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let domain = |label: &str| {
        !label.is_empty()
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    port.is_none_or(|port| !port.is_empty() && port.chars().all(|c| c.is_ascii_digit()))
        && address.map_or_else(
            || host.split('.').all(domain),
            |address| !address.is_empty() && address.chars().all(|c| c.is_ascii_hexdigit() || c == ':'),
        )
}

/// Lower case letters and digits, separated by `.`, `_`, `__` or dashes.
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = text.split(alphanumeric).filter(|separator| !separator.is_empty());
    text.starts_with(alphanumeric)
        && text.ends_with(alphanumeric)
        && separators.into_iter().all(|s| matches!(s, "." | "_" | "__") || s.chars().all(|c| c == '-'))
}

/// Tag of an image (distribution: `TagRegexp`).
pub(super) fn is_image_tag(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.starts_with(word) && text.len() <= 128 && text.chars().all(|c| word(c) || c == '.' || c == '-')
}

/// Absolute, and without `..`, which the kubelet refuses in a volume.
pub(super) fn is_plain_absolute_path(text: &str) -> bool {
    text.starts_with('/') && !text.split('/').any(|part| part == "..") && !text.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards() {
        assert!(is_wildcard_subdomain("*.example.com"));
        for name in ["*", "*.", "a.*.b", "*.A"] {
            assert!(!is_wildcard_subdomain(name), "{name}");
        }
    }

    #[test]
    fn image_repositories_and_tags() {
        for text in [
            "registry.k8s.io",
            "localhost:5000/k8s",
            "[fd00::1]:5000/a/b",
            "Mirror.Example.com/x",
            "a__b/c--d",
            "10.0.0.1",
        ] {
            assert!(is_image_repository(text), "{text}");
        }
        for text in
            ["", "registry.k8s.io/", "https://registry.k8s.io", "a/B", "a b", "a/_b", "a:port/b", "a//b", "a/b___c"]
        {
            assert!(!is_image_repository(text), "{text}");
        }
        assert!(is_image_tag("3.7.0-0"));
        for text in ["", ".a", "-a", "a/b", "a:b", &"a".repeat(129)] {
            assert!(!is_image_tag(text), "{text}");
        }
    }

    #[test]
    fn paths() {
        assert!(is_plain_absolute_path("/etc/kubernetes/pki"));
        for text in ["", "pki", "./pki", "/etc/../pki", "~/pki"] {
            assert!(!is_plain_absolute_path(text), "{text}");
        }
    }
}
