//! URLs, which may name several hosts as those of libpq do.

use sqlx::ConnectOptions;
use sqlx::error::BoxDynError;
use sqlx::postgres::PgConnectOptions;
use sqlx_core::Url;

use crate::errors::ConnectError;

/// Returns how to connect to each host of a URL, in their order.
pub(super) fn hosts(url: &str) -> Result<Vec<PgConnectOptions>, ConnectError> {
    let not_understood = |what: BoxDynError| ConnectError::Url(sqlx::Error::Configuration(what));
    // sqlx takes any scheme for its own, and would connect to something else.
    let Some((scheme @ ("postgres" | "postgresql"), rest)) = url.split_once("://") else {
        return Err(not_understood("it is not one of PostgreSQL".into()));
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    if hosts.contains(',') && hosts.split(',').any(|host| host.is_empty() || host.starts_with(':')) {
        return Err(ConnectError::Setting(EMPTY_HOST));
    }
    let urls = hosts.split(',').map(|host| Url::parse(&format!("{scheme}://{user}{host}{path}")));
    let urls: Vec<Url> = urls.collect::<Result<_, _>>().map_err(|error| not_understood(error.into()))?;
    // What follows the hosts is the same in all.
    let (mut names, mut ports, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for (key, value) in urls[0].query_pairs() {
        let list = || value.split(',').map(str::to_owned).collect();
        match &*key {
            "host" => names = list(),
            "port" => ports = list(),
            // All of them lead to a server that takes writes.
            "target_session_attrs" if ["any", "read-write", "primary"].contains(&&*value) => {}
            "target_session_attrs" => return Err(ConnectError::Setting(ATTRIBUTES)),
            _ => others.push((key, value)),
        }
    }
    let count = if names.is_empty() { urls.len() } else { names.len() };
    if count > 1 && names.iter().any(String::is_empty) {
        return Err(ConnectError::Setting(EMPTY_HOST));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(ConnectError::Setting(PORTS));
    }
    if count > 1 && others.iter().any(|(key, _)| key == "hostaddr") {
        return Err(ConnectError::Setting(ADDRESSES));
    }
    let options = (0..count).map(|host| {
        let mut url = urls.get(host).unwrap_or(&urls[0]).clone();
        // sqlx does not take the brackets of an IPv6 address off.
        let bracketed = url.host_str().and_then(|host| host.strip_prefix('[')?.strip_suffix(']'));
        let name = names.get(host).cloned().or_else(|| bracketed.map(str::to_owned));
        let port = ports.get(host).or(ports.first());
        url.query_pairs_mut()
            .clear()
            .extend_pairs(name.map(|name| ("host", name)))
            .extend_pairs(port.map(|port| ("port", port)))
            .extend_pairs(&others);
        PgConnectOptions::from_url(&url).map_err(ConnectError::Url)
    });
    options.collect()
}

const EMPTY_HOST: &str =
    "the URL has an empty host among several; write each host between commas, such as a.example:5432,b.example:5433";
const PORTS: &str = "the URL has another number of ports than of hosts; write one port for all hosts, or one for each in the same \
    order, or put each behind its host, such as a.example:5432,b.example:5433";
const ADDRESSES: &str = "the URL has `hostaddr` beside several hosts; write the addresses in place of the hosts";
const ATTRIBUTES: &str = "`target_session_attrs` is not `read-write`, `primary` or `any`; write one of them, or leave it out: the \
    store writes, so it connects to a server that takes writes";

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(url: &str) -> Vec<String> {
        let address = |host: &PgConnectOptions| match host.get_socket() {
            Some(socket) => format!("{}:{}", socket.display(), host.get_port()),
            None => format!("{} {}", host.get_host(), host.get_port()),
        };
        hosts(url).unwrap().iter().map(address).collect()
    }

    #[test]
    fn each_host_has_its_port() {
        for (url, expected) in [
            ("postgres://a:1/d", vec!["a 1"]),
            ("postgresql://a:1,b:2/d", vec!["a 1", "b 2"]),
            ("postgres://u:p,w@a:1,b:2?sslmode=disable", vec!["a 1", "b 2"]),
            ("postgres://u@c:p@d@a:1,b:2", vec!["a 1", "b 2"]),
            ("postgres://[::1]:1,[fe80::2]:2,192.0.2.1:3/d", vec!["::1 1", "fe80::2 2", "192.0.2.1 3"]),
            ("postgres://[::1]:1/d", vec!["::1 1"]),
            ("postgres://a,b,c/d?port=7", vec!["a 7", "b 7", "c 7"]),
            ("postgres://a,b/d?port=7,8", vec!["a 7", "b 8"]),
            ("postgres:///d?host=a,::1&port=7,8", vec!["a 7", "::1 8"]),
            ("postgres://x:1/d?host=a%2Cb&port=7", vec!["a 7", "b 7"]),
            ("postgres://x:1,y:1/d?host=a&port=7", vec!["a 7"]),
            ("postgres://a/d?hostaddr=192.0.2.1&port=7", vec!["192.0.2.1 7"]),
            ("postgres:///d?host=/run/a,b&port=7", vec!["/run/a:7", "b 7"]),
            ("postgres://%2Frun%2Fa:1,b:2/d", vec!["/run/a:1", "b 2"]),
        ] {
            assert_eq!(addresses(url), expected, "{url}");
        }
    }

    #[test]
    fn all_else_is_the_same_for_each_host() {
        let url = "postgres://us%20er:p%2Cw@a,b/sh%20op?target_session_attrs=primary&application_name=x%26y";
        for host in hosts(url).unwrap() {
            assert_eq!((host.get_username(), host.get_database()), ("us er", Some("sh op")));
            assert_eq!(host.get_application_name(), Some("x&y"));
            assert!(format!("{host:?}").contains("\"p,w\""), "{host:?}");
        }
    }
}
