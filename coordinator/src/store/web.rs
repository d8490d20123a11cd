//! Requests to servers of the internet that may not be trusted: where they lead is checked before it is followed.

use std::error::Error as _;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{self, HeaderMap};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};

use super::addresses::is_private;
use super::source::public;
use crate::client::chain;
use crate::outgoing;

/// Most redirects that are followed: a hub needs one or two.
const MOST_REDIRECTS: usize = 5;

/// How long to wait where a server says so, at most.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Variables that name proxies, as every client reads them.
const PROXY_VARIABLES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For an answer's beginning, and for the next bytes of it.
    pub silence: Duration,
    /// For [`Patience::least_bytes`] of an answer: less is a server that only pretends.
    pub trickle: Duration,
    /// What must have come in that time.
    pub least_bytes: u64,
    /// After a first failure; it doubles with each further one.
    pub backoff: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            trickle: Duration::from_secs(30),
            // Eight requests share a line: a modem's would do.
            least_bytes: 16 << 10,
            backoff: Duration::from_millis(500),
        }
    }
}

/// Why a request got no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// Nobody answers, or the answer broke off.
    #[error("{host}: {reason}")]
    Broken {
        /// Who was asked.
        host: String,
        /// What happened.
        reason: String,
    },
    /// The server says that it cannot answer now.
    #[error("{host} answered {status}")]
    Busy {
        /// Who was asked.
        host: String,
        /// The HTTP status.
        status: u16,
        /// How long it wants to be left alone.
        wait: Duration,
    },
    /// The server refuses.
    #[error("{url} answered {status}{}", hint(*status))]
    Refused {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// A redirect leads to an address that is not public.
    #[error(
        "{from} redirects to {to}, which is {address}: a private address, and not the one that was asked for, is not followed; if it is right, give its URL"
    )]
    Private {
        /// Who redirects.
        from: String,
        /// Where to.
        to: String,
        /// What that is.
        address: IpAddr,
    },
    /// A redirect leads to where nothing may be fetched from.
    #[error("{from} redirects to {to}: {problem}")]
    Redirect {
        /// Who redirects.
        from: String,
        /// Where to.
        to: String,
        /// Why it is not followed.
        problem: &'static str,
    },
    /// The answer makes no sense.
    #[error("what {url} answered cannot be used: {problem}")]
    Malformed {
        /// What was asked for.
        url: String,
        /// What is wrong.
        problem: String,
    },
}

impl WebError {
    /// Whether the same request may well succeed a little later, and how long to wait at least.
    pub fn is_passing(&self) -> Option<Duration> {
        match self {
            WebError::Broken { .. } => Some(Duration::ZERO),
            WebError::Busy { wait, .. } => Some(*wait),
            _ => None,
        }
    }
}

fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => ": it wants to know who asks, or refuses you; is the URL right?",
        404 | 410 => ": there is no such file; is the URL right?",
        _ => "",
    }
}

/// Scheme, host and port: what a user names when he names a server.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    fn of(url: &Url) -> Origin {
        Origin {
            scheme: url.scheme().to_owned(),
            host: url.host_str().unwrap_or_default().to_owned(),
            port: url.port_or_known_default(),
        }
    }

    fn is_same_server(&self, other: &Origin) -> bool {
        (&self.host, self.port) == (&other.host, other.port)
    }
}

/// Asks one server that the user named, and whomever it redirects to within the rules.
#[derive(Clone)]
pub struct Web {
    named: Origin,
    /// For the named server, at whatever address.
    open: Client,
    /// For all others, at public addresses alone.
    guarded: Client,
    token: Option<Token>,
    proxies: Vec<String>,
    without_tls: Option<String>,
    patience: Patience,
}

/// A secret that the named server alone is told.
#[derive(Clone)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web").field("named", &self.named).finish_non_exhaustive()
    }
}

/// A request.
#[derive(Clone, Debug, Default)]
pub(super) struct Ask<'a> {
    /// Only the answer's head.
    pub(super) head: bool,
    /// The bytes of the file from the first to behind the last.
    pub(super) range: Option<(u64, u64)>,
    /// What the server must still call the file for the range to be of use.
    pub(super) validator: Option<&'a str>,
}

impl Web {
    /// For requests to the server of `url`.
    ///
    /// # Errors
    /// Where no client can be made.
    pub fn new(url: &Url, token: Option<Token>, patience: Patience) -> Result<Web, WebError> {
        let named = Origin::of(url);
        let proxies = proxies();
        let failed =
            |error: reqwest::Error| WebError::Broken { host: named.host.clone(), reason: chain(&error) };
        let client = |guard: Option<Guard>| {
            let (builder, without_tls) = outgoing::internet();
            let builder = builder
                .connect_timeout(patience.connect)
                .redirect(redirect::Policy::none())
                .user_agent(concat!("brigade/", env!("CARGO_PKG_VERSION")));
            let builder = match guard {
                Some(guard) => builder.dns_resolver(Arc::new(guard)),
                None => builder,
            };
            builder.build().map(|client| (client, without_tls)).map_err(failed)
        };
        let (open, without_tls) = client(None)?;
        let (guarded, _) = client(Some(Guard { proxies: proxies.clone() }))?;
        Ok(Web { named, open, guarded, token, proxies, without_tls, patience })
    }

    /// How long to wait.
    pub(super) fn patience(&self) -> &Patience {
        &self.patience
    }

    /// The answer to a GET or HEAD of `url`, followed through redirects; it is a success.
    ///
    /// # Errors
    /// [`WebError`].
    pub(super) async fn ask(&self, url: &Url, ask: &Ask<'_>) -> Result<Response, WebError> {
        let mut url = url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let response = self.ask_once(&url, ask).await?;
            let status = response.status();
            let location = response.headers().get(header::LOCATION);
            if let (301 | 302 | 303 | 307 | 308, Some(location)) = (status.as_u16(), location) {
                let location = location.to_str().ok();
                let next = location.and_then(|location| url.join(location).ok());
                let next = next.ok_or_else(|| WebError::Malformed {
                    url: public(&url).to_string(),
                    problem: "it redirects to what is no URL".to_owned(),
                })?;
                url = self.follow(&url, next)?;
                continue;
            }
            return checked(&url, response);
        }
        Err(WebError::Redirect {
            from: self.named.host.clone(),
            to: public(&url).to_string(),
            problem: "that is one redirect too many",
        })
    }

    /// Where a redirect leads, if it may be followed.
    fn follow(&self, from: &Url, mut to: Url) -> Result<Url, WebError> {
        let refused = |to: &Url, problem| WebError::Redirect {
            from: host_of(from),
            to: public(to).to_string(),
            problem,
        };
        if !matches!(to.scheme(), "http" | "https") || !to.has_host() {
            return Err(refused(&to, "only https and http are spoken"));
        }
        if from.scheme() == "https" && to.scheme() == "http" {
            return Err(refused(&to, "what was asked for over https is not fetched without it"));
        }
        // Secrets of a redirect's own are sent to whom it names, but none of the user's.
        if self.is_named(&to) {
            return Ok(to);
        }
        let host = host_of(&to);
        match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) if is_private(address) => {
                Err(WebError::Private { from: host_of(from), to: public(&to).to_string(), address })
            }
            _ if self.proxies.contains(&host) => Err(refused(&to, "that is the proxy")),
            _ => {
                to.set_fragment(None);
                Ok(to)
            }
        }
    }

    fn is_named(&self, url: &Url) -> bool {
        self.named.is_same_server(&Origin::of(url))
    }

    async fn ask_once(&self, url: &Url, ask: &Ask<'_>) -> Result<Response, WebError> {
        let client = if self.is_named(url) { &self.open } else { &self.guarded };
        let method = if ask.head { Method::HEAD } else { Method::GET };
        let mut request = client.request(method, url.clone()).header(header::ACCEPT_ENCODING, "identity");
        if let Some((start, end)) = ask.range {
            request = request.header(header::RANGE, format!("bytes={start}-{}", end.saturating_sub(1)));
        }
        // A weak name does not promise equal bytes, so that servers do not compare it.
        if let Some(validator) = ask.validator.filter(|validator| !validator.starts_with("W/")) {
            request = request.header(header::IF_RANGE, validator);
        }
        if let Some(Token(token)) = self.token.as_ref().filter(|_| Origin::of(url) == self.named) {
            request = request.bearer_auth(token);
        }
        let answer =
            tokio::time::timeout(self.patience.connect + self.patience.silence, request.send()).await;
        match answer {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.failure(url, error.without_url())),
            Err(_) => Err(WebError::Broken { host: host_of(url), reason: "it does not answer".to_owned() }),
        }
    }

    fn failure(&self, url: &Url, error: reqwest::Error) -> WebError {
        let mut cause = error.source();
        while let Some(inner) = cause {
            if let Some(PrivateName { address }) = inner.downcast_ref() {
                let (from, to) = (self.named.host.clone(), public(url).to_string());
                return WebError::Private { from, to, address: *address };
            }
            cause = inner.source();
        }
        let error = chain(&error);
        let reason = match &self.without_tls {
            Some(problem) if url.scheme() == "https" => {
                format!(
                    "{error}; the system's certificates cannot be read: {problem}; install ca-certificates"
                )
            }
            _ => error,
        };
        WebError::Broken { host: host_of(url), reason }
    }

    /// The whole body of an answer, of at most `most` bytes.
    ///
    /// # Errors
    /// Where it is longer or breaks off.
    pub(super) async fn body(&self, mut response: Response, most: usize) -> Result<Vec<u8>, WebError> {
        let url = response.url().clone();
        let broken = |reason| WebError::Broken { host: host_of(&url), reason };
        let mut body = Vec::new();
        loop {
            let piece = tokio::time::timeout(self.patience.silence, response.chunk()).await;
            match piece {
                Err(_) => return Err(broken("it has gone silent".to_owned())),
                Ok(Err(error)) => return Err(broken(chain(&error.without_url()))),
                Ok(Ok(None)) => return Ok(body),
                Ok(Ok(Some(piece))) if body.len() + piece.len() <= most => body.extend_from_slice(&piece),
                Ok(Ok(Some(_))) => {
                    let problem = format!("it is longer than {most} bytes");
                    return Err(WebError::Malformed { url: public(&url).to_string(), problem });
                }
            }
        }
    }
}

/// The host of a URL, as it is written there.
pub(super) fn host_of(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

/// The answer, where it is one that can be read.
fn checked(url: &Url, response: Response) -> Result<Response, WebError> {
    let status = response.status();
    let encoding = response.headers().get(header::CONTENT_ENCODING);
    if status.is_success() && encoding.is_none_or(|encoding| encoding == "identity") {
        return Ok(response);
    }
    if status.is_success() {
        let problem = "it is compressed, although that was not asked for".to_owned();
        return Err(WebError::Malformed { url: public(url).to_string(), problem });
    }
    let is_busy = status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
    if is_busy {
        let wait = retry_after(response.headers());
        return Err(WebError::Busy { host: host_of(url), status: status.as_u16(), wait });
    }
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        return Ok(response);
    }
    Err(WebError::Refused { url: public(url).to_string(), status: status.as_u16() })
}

/// How long a server wants to be left alone, as far as we do it; dates are not read.
fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(0)).min(LONGEST_WAIT)
}

/// Resolves names to public addresses alone: what is checked is what is connected to.
struct Guard {
    /// Names that may be anything: behind a proxy it is the proxy that resolves the others.
    proxies: Vec<String>,
}

/// A name that stands for a private address alone.
#[derive(Debug, thiserror::Error)]
#[error("{address} is a private address")]
struct PrivateName {
    address: IpAddr,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let is_proxy = self.proxies.iter().any(|proxy| proxy == name.as_str());
        async move {
            let all: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let public: Vec<_> =
                all.iter().copied().filter(|address| is_proxy || !is_private(address.ip())).collect();
            match (public.is_empty(), all.first()) {
                (true, Some(first)) => Err(PrivateName { address: first.ip() }.into()),
                _ => Ok(Box::new(public.into_iter()) as Addrs),
            }
        }
        .boxed()
    }
}

/// The hosts of the proxies that the environment names.
fn proxies() -> Vec<String> {
    let named = PROXY_VARIABLES.iter().filter_map(|variable| std::env::var(variable).ok());
    named
        .filter_map(|proxy| {
            let url = if proxy.contains("://") { proxy } else { format!("http://{proxy}") };
            Url::parse(&url).ok().map(|url| host_of(&url))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web(url: &str) -> Web {
        Web::new(&Url::parse(url).unwrap(), None, Patience::default()).unwrap()
    }

    fn followed(from: &str, to: &str) -> Result<String, String> {
        let from = Url::parse(from).unwrap();
        let to = from.join(to).unwrap();
        web(from.as_str()).follow(&from, to).map(String::from).map_err(|error| error.to_string())
    }

    #[test]
    fn redirects_lead_to_public_addresses_or_back() {
        for (from, to) in [
            ("https://hub.example/a", "/b"),
            ("https://hub.example/a", "https://cdn.example/b?signature=x"),
            ("http://hub.example/a", "https://cdn.example/b"),
            ("http://10.0.0.7:8080/a", "/b"),
            ("http://10.0.0.7:8080/a", "http://10.0.0.7:8080/b"),
            ("http://[fd00::1]/a", "/b"),
            ("http://10.0.0.7/a", "http://1.1.1.1/b"),
        ] {
            assert!(followed(from, to).is_ok(), "{from} {to}: {:?}", followed(from, to));
        }
        for (from, to, words) in [
            ("https://hub.example/a", "http://hub.example/b", "without it"),
            ("https://hub.example/a", "ftp://hub.example/b", "only https and http"),
            ("https://hub.example/a", "file:///etc/passwd", "only https and http"),
            ("https://hub.example/a", "https://127.0.0.1/b", "127.0.0.1: a private address"),
            ("https://hub.example/a", "https://2130706433/b", "127.0.0.1: a private address"),
            ("https://hub.example/a", "https://0x7f.1/b", "127.0.0.1: a private address"),
            ("https://hub.example/a", "https://[::ffff:10.0.0.1]/b", "a private address"),
            ("https://hub.example/a", "https://169.254.169.254/latest", "a private address"),
            ("http://10.0.0.7:8080/a", "http://10.0.0.7:8081/b", "a private address"),
            ("http://10.0.0.7:8080/a", "http://10.0.0.8:8080/b", "a private address"),
        ] {
            let error = followed(from, to).unwrap_err();
            assert!(error.contains(words), "{from} {to}: {error}");
        }
    }

    #[tokio::test]
    async fn names_of_private_addresses_are_not_resolved() {
        let resolve = async |proxies: &[&str]| {
            let proxies = proxies.iter().map(|proxy| (*proxy).to_owned()).collect();
            let resolved = Guard { proxies }.resolve("localhost".parse().unwrap()).await;
            resolved.map(Iterator::count).map_err(|error| error.to_string())
        };
        let error = resolve(&[]).await.unwrap_err();
        assert!(error.contains("is a private address"), "{error}");
        assert!(resolve(&["localhost"]).await.unwrap() > 0);
    }

    #[test]
    fn what_a_server_wants_to_wait_has_an_end() {
        let wait = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers).as_secs()
        };
        assert_eq!([wait("7"), wait("99999"), wait("soon"), wait("-1")], [7, 60, 0, 0]);
        assert_eq!(retry_after(&HeaderMap::new()), Duration::ZERO);
    }
}
