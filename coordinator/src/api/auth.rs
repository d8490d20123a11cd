//! Who may ask: API keys where there are any, and otherwise only what cannot be a foreign web page.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};

use super::ApiSettings;
use super::engine::Engine;
use super::error::ApiError;
use super::state::Api;
use crate::generation::ReuseScope;

/// Decides whether a request may be answered.
#[derive(Debug)]
pub(crate) struct Guard {
    /// Hashes of the keys, so that comparing takes the same time whatever a key's length.
    keys: Vec<[u8; 32]>,
    /// Names besides IP addresses and `localhost` that this server is called by.
    hosts: Vec<String>,
}

impl Guard {
    /// A guard as the settings say.
    pub(crate) fn new(settings: &ApiSettings) -> Guard {
        Guard {
            keys: settings.api_keys.iter().map(|key| Sha256::digest(key).into()).collect(),
            hosts: settings.hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
        }
    }

    /// Checks a request for `path`; says with whom it may share computed prompts.
    fn check(&self, path: &str, uri: &Uri, headers: &HeaderMap) -> Result<ReuseScope, ApiError> {
        if self.keys.is_empty() {
            return self.check_origin(uri, headers).map(|()| ReuseScope::default());
        }
        let guarded = ["/v1/", "/api/"].iter().any(|prefix| path.starts_with(prefix)) || path == "/metrics";
        if guarded { self.check_key(headers) } else { Ok(ReuseScope::default()) }
    }

    /// Each key has a scope of its own.
    fn check_key(&self, headers: &HeaderMap) -> Result<ReuseScope, ApiError> {
        let Some(given) = headers.get(header::AUTHORIZATION) else {
            let message = "this server wants an API key: send the header `Authorization: Bearer KEY`";
            return Err(ApiError::unauthorized(message));
        };
        let (scheme, key) = split_scheme(given.as_bytes());
        if !scheme.eq_ignore_ascii_case(b"bearer") {
            let message = "the Authorization header is not of the form `Bearer KEY`";
            return Err(ApiError::unauthorized(message));
        }
        let given: [u8; 32] = Sha256::digest(key).into();
        // All keys are compared to their ends, so that the time taken tells nothing about them.
        let place = (1..)
            .zip(&self.keys)
            .fold(0, |found: u64, (place, key)| found.max(place * u64::from(equal(key, &given))));
        match place {
            0 => Err(ApiError::unauthorized("the API key is not one of this server's")),
            place => Ok(ReuseScope(place)),
        }
    }

    /// Without keys, a page that a user's browser has open could reach a server on the same machine: directly, which
    /// its `Origin` shows, or under a name of its own that resolves to this machine, which `Host` shows.
    fn check_origin(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        let host = headers.get(header::HOST).map(|host| String::from_utf8_lossy(host.as_bytes()));
        let host = host.or_else(|| uri.authority().map(|authority| authority.as_str().into()));
        if let Some(host) = host.filter(|host| !self.is_ours(host)) {
            return Err(ApiError::forbidden(format!(
                "without an API key this server answers only to `localhost` and IP addresses, not to `{host}`; \
                 start it with an API key to use other names"
            )));
        }
        if let Some(origin) = headers.get(header::ORIGIN) {
            let origin = String::from_utf8_lossy(origin.as_bytes());
            let ours = origin.split_once("://").is_some_and(|(_, host)| self.is_ours(host));
            if !ours {
                return Err(ApiError::forbidden(format!(
                    "without an API key this server does not answer web pages of `{origin}`; \
                     start it with an API key to allow them"
                )));
            }
        }
        Ok(())
    }

    /// Whether `authority`, a host with or without a port, can only be meant for this server.
    fn is_ours(&self, authority: &str) -> bool {
        let host = match authority.strip_prefix('[') {
            Some(rest) => rest.split_once(']').map_or(rest, |(host, _)| host),
            None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
        };
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        host == "localhost"
            || host.ends_with(".localhost")
            || host.parse::<IpAddr>().is_ok()
            || self.hosts.contains(&host)
    }
}

/// Lets a request pass, or answers it.
pub(crate) async fn guard<E: Engine>(
    State(api): State<Api<E>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let scope = api.guard().check(request.uri().path(), request.uri(), request.headers())?;
    request.extensions_mut().insert(scope);
    Ok(next.run(request).await)
}

/// With whom a request that was let pass may share computed prompts.
pub(crate) fn scope(request: &Request) -> ReuseScope {
    request.extensions().get().copied().unwrap_or_default()
}

fn split_scheme(value: &[u8]) -> (&[u8], &[u8]) {
    match value.iter().position(|byte| *byte == b' ') {
        Some(at) => (&value[..at], value[at..].trim_ascii()),
        None => (value, &[]),
    }
}

fn equal(left: &[u8; 32], right: &[u8; 32]) -> bool {
    let difference = left.iter().zip(right).fold(0u8, |all, (left, right)| all | (left ^ right));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn check(settings: ApiSettings, path: &str, headers: &[(header::HeaderName, &'static str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
        Guard::new(&settings).check(path, &Uri::from_static("/"), &headers.collect()).is_ok()
    }

    #[test]
    fn keys_are_wanted_where_there_are_any() {
        let settings =
            || ApiSettings { api_keys: vec!["one".into(), "two".into()], ..ApiSettings::default() };
        let with = |value| check(settings(), "/v1/models", &[(header::AUTHORIZATION, value)]);
        assert!(with("Bearer two") && with("bearer  one "));
        assert!(!with("Bearer three") && !with("Bearer ") && !with("Basic two") && !with("two"));
        assert!(!check(settings(), "/v1/models", &[]) && !check(settings(), "/api/status", &[]));
        assert!(!check(settings(), "/metrics", &[]));
        assert!(check(settings(), "/health", &[]) && check(settings(), "/livez", &[]));
    }

    #[test]
    fn each_key_is_a_scope_of_its_own() {
        let settings = ApiSettings { api_keys: vec!["one".into(), "two".into()], ..ApiSettings::default() };
        let guard = Guard::new(&settings);
        let scope = |value| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
            guard.check("/v1/completions", &Uri::from_static("/"), &headers).unwrap()
        };
        assert_eq!(scope("Bearer one"), scope("bearer one"));
        assert_ne!(scope("Bearer one"), scope("Bearer two"));
    }

    #[test]
    fn without_keys_foreign_names_and_pages_are_refused() {
        let settings = || ApiSettings { hosts: vec!["Box.local".into()], ..ApiSettings::default() };
        for host in [
            "localhost",
            "localhost:7480",
            "127.0.0.1:7480",
            "[::1]:7480",
            "[::1]",
            "a.localhost",
            "box.local:1",
        ] {
            assert!(check(settings(), "/", &[(header::HOST, host)]), "{host}");
        }
        for host in
            ["evil.example", "evil.example:7480", "127.0.0.1.evil.example", "localhost.evil.example", ""]
        {
            assert!(!check(settings(), "/", &[(header::HOST, host)]), "{host}");
        }
        let origin =
            |origin| check(settings(), "/", &[(header::HOST, "localhost"), (header::ORIGIN, origin)]);
        assert!(origin("http://localhost:3000") && origin("http://127.0.0.1") && origin("https://box.local"));
        assert!(!origin("http://evil.example") && !origin("null") && !origin("file://"));
    }
}
