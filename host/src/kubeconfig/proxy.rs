//! Which proxy leads to the API server, by the rules of Go, which kubectl has; pure.
//!
//! A cluster's `proxy-url` is always used. Without one, `HTTPS_PROXY` (or `HTTP_PROXY` for a server without TLS) is
//! used for servers that are not on this machine and not named by `NO_PROXY`.

use core::net::IpAddr;

use http::Uri;

/// What the environment says of proxies; empty is absent.
#[derive(Clone, Default)]
pub struct Proxies {
    /// `HTTP_PROXY`.
    pub http: Option<String>,
    /// `HTTPS_PROXY`.
    pub https: Option<String>,
    /// `NO_PROXY`.
    pub none: Option<String>,
}

/// There are passwords in URLs of proxies.
impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxies").field("none", &self.none).finish_non_exhaustive()
    }
}

impl Proxies {
    /// The proxy for `server`, if any.
    pub fn for_server(&self, server: &Uri) -> Result<Option<Uri>, String> {
        let secure = server.scheme_str() == Some("https");
        let (name, proxy) =
            if secure { ("HTTPS_PROXY", &self.https) } else { ("HTTP_PROXY", &self.http) };
        let Some(proxy) = proxy.as_deref().map(str::trim).filter(|proxy| !proxy.is_empty()) else {
            return Ok(None);
        };
        let host = server.host().unwrap_or_default();
        let port = server.port_u16().unwrap_or(if secure { 443 } else { 80 });
        if !uses_proxy(host, port, self.none.as_deref().unwrap_or_default()) {
            return Ok(None);
        }
        let full = if proxy.contains("://") { proxy.to_owned() } else { format!("http://{proxy}") };
        // Both leave the look-up of names to the proxy here.
        let full =
            full.strip_prefix("socks5h://").map_or(full.clone(), |rest| format!("socks5://{rest}"));
        parse(&full).map(Some).map_err(|why| format!("{name} {why}"))
    }
}

/// The URL of a proxy. The error does not quote it: there may be a password in it.
pub(super) fn parse(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|_| "is no URL of a proxy".to_owned())?;
    if uri.host().is_none_or(str::is_empty) {
        return Err("names no host".to_owned());
    }
    let has_user = uri.authority().is_some_and(|whole| whole.as_str().contains('@'));
    match uri.scheme_str() {
        Some("socks5") if has_user => {
            Err("has a user for SOCKS, which is not built: use a proxy without, or one of HTTP"
                .to_owned())
        }
        Some("http" | "https" | "socks5") => Ok(uri),
        Some(other) => Err(format!("has the scheme {other}, which must be http, https or socks5")),
        None => Err("must begin with http://, https:// or socks5://".to_owned()),
    }
}

fn uses_proxy(host: &str, port: u16, none: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        return false;
    }
    !none.split(',').any(|entry| matches(entry.trim(), &host, address, port))
}

/// Whether an entry of `NO_PROXY` is about the server.
fn matches(entry: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    let entry = entry.to_ascii_lowercase();
    if entry == "*" {
        return true;
    }
    if let Some((network, bits)) = network(&entry) {
        return address.is_some_and(|address| contains(network, bits, address));
    }
    let (name, entry_port) = split_port(&entry);
    if name.is_empty() || entry_port.is_some_and(|entry_port| entry_port.parse() != Ok(port)) {
        return false;
    }
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    if let Ok(entry_address) = bare.parse::<IpAddr>() {
        return address == Some(entry_address.to_canonical());
    }
    if address.is_some() {
        return false;
    }
    match name.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(name) {
        suffix if suffix.starts_with('.') => host.ends_with(suffix),
        name => {
            host.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        }
    }
}

/// `host:port` and `[v6]:port`; a bare address of version 6 has no port.
fn split_port(entry: &str) -> (&str, Option<&str>) {
    match entry.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (entry, None),
    }
}

fn network(entry: &str) -> Option<(IpAddr, u32)> {
    let (address, bits) = entry.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits = bits.parse().ok()?;
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
}

fn contains(network: IpAddr, bits: u32, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            network.to_bits() & mask == address.to_bits() & mask
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            network.to_bits() & mask == address.to_bits() & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxied(server: &str, none: &str) -> bool {
        let proxies = Proxies {
            https: Some("http://proxy:3128".into()),
            http: Some("http://plain:3128".into()),
            none: Some(none.into()),
        };
        proxies.for_server(&server.parse().unwrap()).unwrap().is_some()
    }

    #[test]
    fn no_proxy_is_read_as_go_reads_it() {
        for (none, server, expected) in [
            ("", "https://a.example.org", true),
            ("*", "https://a.example.org", false),
            (" x , * ", "https://10.0.0.1", false),
            // A name is for itself and all below it, a leading dot for those below only.
            ("example.org", "https://example.org", false),
            ("example.org", "https://a.example.org:6443", false),
            ("example.org", "https://notexample.org", true),
            (".example.org", "https://example.org", true),
            (".example.org", "https://a.example.org", false),
            ("*.example.org", "https://a.b.example.org", false),
            ("*.example.org", "https://example.org", true),
            ("EXAMPLE.org", "https://A.Example.ORG", false),
            // A port narrows.
            ("example.org:6443", "https://example.org:6443", false),
            ("example.org:6443", "https://example.org", true),
            ("example.org:443", "https://example.org", false),
            ("example.org:80", "http://example.org", false),
            // Addresses and networks.
            ("10.1.2.3", "https://10.1.2.3:6443", false),
            ("10.1.2.3:6443", "https://10.1.2.3:6443", false),
            ("10.1.2.3:6443", "https://10.1.2.3", true),
            ("10.0.0.0/8", "https://10.200.1.1", false),
            ("10.0.0.0/8", "https://11.0.0.1", true),
            ("0.0.0.0/0", "https://11.0.0.1", false),
            ("0.0.0.0/0", "https://a.example.org", true),
            ("fd00::/8", "https://[fd12::1]:6443", false),
            ("fd12::1", "https://[fd12::1]:6443", false),
            ("[fd12::1]:6443", "https://[fd12::1]:6443", false),
            ("[fd12::1]:443", "https://[fd12::1]:6443", true),
            ("::/0", "https://10.0.0.1", true),
            // What is malformed is as if it were not there.
            (",,", "https://a.example.org", true),
            (",example.org,", "https://example.org", false),
            (":6443", "https://a.example.org:6443", true),
            ("10.0.0.0/99", "https://10.0.0.1", true),
            ("example.org:x", "https://example.org", true),
            // This machine is never behind a proxy.
            ("", "https://localhost:6443", false),
            ("", "https://127.8.0.1:6443", false),
            ("", "https://[::1]:6443", false),
        ] {
            assert_eq!(proxied(server, none), expected, "NO_PROXY={none:?} {server}");
        }
    }

    #[test]
    fn the_environments_proxy_is_that_of_the_servers_scheme() {
        let proxies = |https: &str, http: &str| Proxies {
            https: Some(https.into()),
            http: Some(http.into()),
            none: None,
        };
        let of = |proxies: Proxies, server: &str| {
            let proxy = proxies.for_server(&server.parse().unwrap());
            proxy.map(|proxy| proxy.map(|uri| uri.to_string()))
        };
        let both = || proxies("https://one:1", "http://two:2");
        assert_eq!(of(both(), "https://x"), Ok(Some("https://one:1/".into())));
        assert_eq!(of(both(), "http://x"), Ok(Some("http://two:2/".into())));
        assert_eq!(of(proxies("", " "), "https://x"), Ok(None));
        assert_eq!(
            of(proxies("proxy:3128", ""), "https://x"),
            Ok(Some("http://proxy:3128/".into()))
        );
        assert_eq!(of(proxies("socks5h://s:1", ""), "https://x"), Ok(Some("socks5://s:1/".into())));
        for (bad, says) in [
            ("ftp://u:secret@p:1", "scheme ftp"),
            ("http://", "is no URL"),
            ("socks5://u:secret@p:1", "SOCKS"),
        ] {
            let error = of(proxies(bad, ""), "https://x").unwrap_err();
            assert!(error.contains(says) && error.contains("HTTPS_PROXY"), "{bad}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(!format!("{:?}", proxies("http://u:secret@p", "")).contains("secret"));
    }
}
