//! Which addresses Go programs reach through the proxy that our environment names.
//!
//! kubeadm's manifests hand the `*_proxy` variables on, so this decides what the control plane itself will do.
//! Rules: `golang.org/x/net/http/httpproxy`.

use std::net::IpAddr;

use ipnet::IpNet;

/// The proxy for `https` requests to `address`, if one is used.
pub(super) fn https_proxy(variables: &[(String, String)], address: IpAddr) -> Option<&str> {
    // The upper-case form wins.
    let get = |upper: &str, lower: &str| {
        [upper, lower].iter().find_map(|wanted| {
            variables.iter().find(|(name, value)| name == wanted && !value.is_empty()).map(|(_, value)| value.as_str())
        })
    };
    let proxy = get("HTTPS_PROXY", "https_proxy")?;
    let exceptions = get("NO_PROXY", "no_proxy").unwrap_or_default();
    (!address.is_loopback() && !exceptions.split(',').any(|exception| covers(exception.trim(), address)))
        .then_some(proxy)
}

/// Whether one element of `no_proxy` covers `address`, on any port.
fn covers(exception: &str, address: IpAddr) -> bool {
    exception == "*"
        || exception.parse::<IpNet>().is_ok_and(|network| network.contains(&address))
        || exception.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|other| other == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_read_as_go_reads_them() {
        for (exceptions, address, proxied) in [
            ("", "192.0.2.10", true),
            ("", "127.0.0.1", false),
            ("*", "192.0.2.10", false),
            ("192.0.2.10", "192.0.2.10", false),
            ("192.0.2.11", "192.0.2.10", true),
            ("example.com, 192.0.2.0/24", "192.0.2.10", false),
            ("192.0.2.0/24", "198.51.100.1", true),
            ("192.0.2.*", "192.0.2.10", true),
            ("[2001:db8::1]", "2001:db8::1", false),
        ] {
            let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            let variables = [set("https_proxy", "http://proxy:3128"), set("NO_PROXY", exceptions)];
            let found = https_proxy(&variables, address.parse().unwrap());
            assert_eq!(found, proxied.then_some("http://proxy:3128"), "{exceptions} {address}");
        }
        assert_eq!(https_proxy(&[("HTTP_PROXY".into(), "x".into())], "192.0.2.10".parse().unwrap()), None);
    }
}
