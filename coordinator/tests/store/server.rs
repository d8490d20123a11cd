//! A web server that is a hub, the place that it redirects to, and a mirror; it counts what it serves, and fails in every
//! way that it is told.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

/// The commit that every revision of every repository is.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Longest time that anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes written at once.
const PIECE: usize = 16 << 10;

/// A file that is served.
#[derive(Clone)]
pub struct Served {
    pub bytes: Arc<Vec<u8>>,
    pub etag: Option<String>,
}

/// How the server fails.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// After so many bytes of files it gives none any more.
    pub dies_after: Option<u64>,
    /// Each answer is cut after so many bytes.
    pub cuts_at: Option<u64>,
    /// Which byte of a file is flipped on its way, and how often.
    pub flips: Option<(String, usize, u32)>,
    /// It gives whole files alone.
    pub no_ranges: bool,
    /// It answers no HEAD.
    pub no_head: bool,
    /// The next files are refused with these statuses and values of `Retry-After`.
    pub statuses: VecDeque<(u16, Option<&'static str>)>,
    /// Answers stop after so many bytes, with the connection open.
    pub stalls_at: Option<u64>,
    /// A pause between two pieces of this size.
    pub trickles: Option<(usize, Duration)>,
    /// Where files are redirected to instead of to this server's own.
    pub redirect: Option<String>,
    /// Each redirect serves for so many requests.
    pub tickets: Option<u32>,
    /// Every size in a list is so much more.
    pub lists_more: u64,
    /// What a list names beside the files.
    pub lists_also: Vec<String>,
    /// Files in a page of a list.
    pub page: Option<usize>,
    /// The next page is on this server.
    pub next_page_at: Option<String>,
    /// It knows no commits.
    pub no_commits: bool,
    /// Its API and its redirects want this token.
    pub token: Option<String>,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<String, Served>,
    faults: Faults,
    served: u64,
    asked: Vec<String>,
    /// How often each redirect has served.
    tickets: Vec<u32>,
}

/// The server.
#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    inner: Arc<Mutex<Inner>>,
}

/// A request's head.
struct Request {
    method: String,
    path: String,
    query: String,
    range: Option<(u64, u64)>,
    if_range: Option<String>,
    authorization: Option<String>,
}

impl Server {
    pub async fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server { address: listener.local_addr().unwrap(), inner: Arc::default() };
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = accepting.clone();
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        server
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Puts a file into a repository: `org/repo/path`.
    pub fn put(&self, path: &str, bytes: Vec<u8>) {
        let etag = Some(format!("\"{}\"", hex(&Sha256::digest(&bytes))));
        self.put_as(path, Served { bytes: Arc::new(bytes), etag });
    }

    pub fn put_as(&self, path: &str, served: Served) {
        self.inner().files.insert(path.to_owned(), served);
    }

    pub fn fail(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.inner().faults);
    }

    /// It works again, and has served nothing.
    pub fn heal(&self) {
        let mut inner = self.inner();
        inner.faults = Faults::default();
        inner.served = 0;
        inner.asked.clear();
    }

    /// Waits until so many bytes of files went out.
    pub async fn serving(&self, bytes: u64) {
        let began = std::time::Instant::now();
        while self.served() < bytes {
            assert!(began.elapsed() < PATIENCE, "only {} bytes went out", self.served());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until nothing goes out any more.
    pub async fn settle(&self) {
        loop {
            let before = self.served();
            tokio::time::sleep(Duration::from_millis(60)).await;
            if self.served() == before {
                return;
            }
        }
    }

    /// Bytes of files that went out.
    pub fn served(&self) -> u64 {
        self.inner().served
    }

    /// What was asked for: method, path, and whether with a token.
    pub fn asked(&self) -> Vec<String> {
        self.inner().asked.clone()
    }

    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) {
        let mut stream = BufReader::new(stream);
        while let Some(request) = read_request(&mut stream).await {
            if !self.answer(&request, stream.get_mut()).await {
                break;
            }
        }
        let _ = stream.get_mut().shutdown().await;
    }

    /// Answers; whether the connection may go on.
    async fn answer(&self, request: &Request, out: &mut (impl AsyncWrite + Unpin)) -> bool {
        let token = if request.authorization.is_some() { " with a token" } else { "" };
        self.inner().asked.push(format!("{} {}{token}", request.method, request.path));
        let parts: Vec<&str> = request.path.split('/').skip(1).collect();
        let wanted = self.inner().faults.token.clone();
        let is_known = wanted.is_none_or(|token| request.authorization == Some(format!("Bearer {token}")));
        match parts.as_slice() {
            ["api", ..] | [_, _, "resolve", ..] if !is_known => respond(out, 401, &[], b"who are you?").await,
            ["api", "models", org, repo, "revision", _] => {
                let exists =
                    self.inner().files.keys().any(|path| path.starts_with(&format!("{org}/{repo}/")));
                if !exists || self.inner().faults.no_commits {
                    return respond(out, 404, &[], b"{}").await;
                }
                respond(out, 200, &[], format!("{{\"sha\":\"{COMMIT}\"}}").as_bytes()).await
            }
            ["api", "models", org, repo, "tree", _] => self.list(org, repo, &request.query, out).await,
            [org, repo, "resolve", _, path @ ..] => {
                let base = self.inner().faults.redirect.clone().unwrap_or_default();
                let mut location = format!("{base}/files/{org}/{repo}/{}", path.join("/"));
                if self.inner().faults.tickets.is_some() {
                    let mut inner = self.inner();
                    location.push_str(&format!("?ticket={}", inner.tickets.len()));
                    inner.tickets.push(0);
                }
                respond(out, 302, &[("Location", location)], b"").await
            }
            ["loop", ..] => respond(out, 302, &[("Location", format!("{}x", request.path))], b"").await,
            ["files", ..] if self.is_dead() => false,
            ["files", ..] if !self.take_ticket(&request.query) => respond(out, 403, &[], b"expired").await,
            ["files", path @ ..] => self.file(&path.join("/"), request, out).await,
            _ => respond(out, 404, &[], b"nothing").await,
        }
    }

    /// Whether a redirect still serves.
    fn take_ticket(&self, query: &str) -> bool {
        let mut inner = self.inner();
        let Some(most) = inner.faults.tickets else { return true };
        let ticket = query.strip_prefix("ticket=").and_then(|ticket| ticket.parse::<usize>().ok());
        let used = ticket.and_then(|ticket| inner.tickets.get_mut(ticket));
        used.is_some_and(|used| {
            *used += 1;
            *used <= most
        })
    }

    fn is_dead(&self) -> bool {
        let inner = self.inner();
        inner.faults.dies_after.is_some_and(|after| inner.served >= after)
    }

    async fn list(&self, org: &str, repo: &str, query: &str, out: &mut (impl AsyncWrite + Unpin)) -> bool {
        let (entries, headers) = {
            let inner = self.inner();
            let prefix = format!("{org}/{repo}/");
            let mut entries = vec!["{\"type\":\"directory\",\"path\":\"folder\",\"size\":0}".to_owned()];
            for (path, served) in &inner.files {
                let Some(path) = path.strip_prefix(&prefix) else { continue };
                let size = served.bytes.len() as u64 + inner.faults.lists_more;
                // Hubs know large files by their SHA-256, and small ones as git does.
                let hash = if path.ends_with(".json") || path.ends_with(".md") {
                    format!("\"oid\":\"{}\"", git_blob(&served.bytes))
                } else {
                    let sha = hex(&Sha256::digest(served.bytes.as_slice()));
                    format!(
                        "\"oid\":\"{COMMIT}\",\"lfs\":{{\"oid\":\"{sha}\",\"size\":{size},\"pointerSize\":134}}"
                    )
                };
                entries.push(format!("{{\"type\":\"file\",\"path\":\"{path}\",\"size\":{size},{hash}}}"));
            }
            for also in &inner.faults.lists_also {
                entries.push(format!(
                    "{{\"type\":\"file\",\"path\":\"{also}\",\"size\":10,\"oid\":\"{COMMIT}\"}}"
                ));
            }
            if entries.len() == 1 {
                (None, Vec::new())
            } else {
                let cursor = query.split("cursor=").nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
                let page = inner.faults.page.unwrap_or(usize::MAX);
                let end = entries.len().min(usize::saturating_add(cursor, page));
                let mut headers = Vec::new();
                if end < entries.len() {
                    let at = inner.faults.next_page_at.clone().unwrap_or_else(|| self.url());
                    let next =
                        format!("{at}/api/models/{org}/{repo}/tree/{COMMIT}?recursive=true&cursor={end}");
                    headers.push(("Link", format!("<{next}>; rel=\"next\"")));
                }
                (Some(entries[cursor..end].join(",")), headers)
            }
        };
        match entries {
            Some(entries) => respond(out, 200, &headers, format!("[{entries}]").as_bytes()).await,
            None => respond(out, 404, &[], b"{}").await,
        }
    }

    async fn file(&self, path: &str, request: &Request, out: &mut (impl AsyncWrite + Unpin)) -> bool {
        let (served, faults, refusal) = {
            let mut inner = self.inner();
            let refusal = if request.method == "GET" { inner.faults.statuses.pop_front() } else { None };
            (inner.files.get(path).cloned(), inner.faults.clone(), refusal)
        };
        if let Some((status, wait)) = refusal {
            let headers: Vec<_> = wait.map(|wait| ("Retry-After", wait.to_owned())).into_iter().collect();
            return respond(out, status, &headers, b"not now").await;
        }
        let Some(served) = served else { return respond(out, 404, &[], b"nothing").await };
        let size = served.bytes.len() as u64;
        let is_same = request.if_range.is_none() || request.if_range == served.etag;
        let range = request.range.filter(|_| !faults.no_ranges && is_same);
        let mut headers = Vec::new();
        headers.extend(served.etag.clone().map(|etag| ("ETag", etag)));
        let (status, start, end) = match range {
            Some((start, _)) if start >= size => {
                return respond(out, 416, &[("Content-Range", format!("bytes */{size}"))], b"").await;
            }
            Some((start, end)) => (206, start, end.min(size)),
            None => (200, 0, size),
        };
        if status == 206 {
            headers.push(("Content-Range", format!("bytes {start}-{}/{size}", end - 1)));
        }
        if request.method == "HEAD" {
            if faults.no_head {
                return respond(out, 405, &[], b"").await;
            }
            return write_head(out, 200, &headers, size).await;
        }
        if !write_head(out, status, &headers, end - start).await {
            return false;
        }
        let mut body = served.bytes[start as usize..end as usize].to_vec();
        self.flip(path, start, &mut body);
        self.body(&body, &faults, out).await
    }

    /// Flips a byte on its way, as often as it is to be.
    fn flip(&self, path: &str, start: u64, body: &mut [u8]) {
        let mut inner = self.inner();
        let Some((of, at, times)) = &mut inner.faults.flips else { return };
        let Some(at) = at.checked_sub(start as usize).filter(|at| *at < body.len()) else { return };
        if of == path && *times > 0 {
            *times -= 1;
            body[at] ^= 1;
        }
    }

    async fn body(&self, body: &[u8], faults: &Faults, out: &mut (impl AsyncWrite + Unpin)) -> bool {
        let mut sent = 0;
        let piece = faults.trickles.map_or(PIECE, |(piece, _)| piece);
        while sent < body.len() {
            let mut next = piece.min(body.len() - sent);
            if let Some(cut) = faults.cuts_at {
                next = next.min((cut as usize).saturating_sub(sent));
            }
            if let Some(stall) = faults.stalls_at.filter(|stall| sent + next > *stall as usize) {
                next = (stall as usize).saturating_sub(sent);
                self.send(&body[sent..sent + next], out).await;
                std::future::pending::<()>().await;
            }
            let allowed = {
                let inner = self.inner();
                inner
                    .faults
                    .dies_after
                    .map_or(next, |after| next.min(after.saturating_sub(inner.served) as usize))
            };
            if !self.send(&body[sent..sent + allowed], out).await || allowed < next || next == 0 {
                return false;
            }
            sent += next;
            if let Some((_, pause)) = faults.trickles {
                tokio::time::sleep(pause).await;
            }
        }
        true
    }

    async fn send(&self, bytes: &[u8], out: &mut (impl AsyncWrite + Unpin)) -> bool {
        self.inner().served += bytes.len() as u64;
        out.write_all(bytes).await.is_ok() && out.flush().await.is_ok()
    }
}

async fn read_request(stream: &mut (impl AsyncBufRead + Unpin)) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    // As a proxy is asked.
    let target = target.strip_prefix("http://").map_or(target.clone(), |rest| {
        rest.find('/').map_or_else(|| "/".to_owned(), |at| rest[at..].to_owned())
    });
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut request = Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        range: None,
        if_range: None,
        authorization: None,
    };
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
                request.range = Some((first.parse().ok()?, last.parse::<u64>().ok()? + 1));
            }
            "if-range" => request.if_range = Some(value.to_owned()),
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    Some(request)
}

async fn write_head(
    out: &mut (impl AsyncWrite + Unpin),
    status: u16,
    headers: &[(&str, String)],
    length: u64,
) -> bool {
    let mut head = format!("HTTP/1.1 {status} Status\r\nContent-Length: {length}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    out.write_all(head.as_bytes()).await.is_ok() && out.flush().await.is_ok()
}

async fn respond(
    out: &mut (impl AsyncWrite + Unpin),
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
) -> bool {
    write_head(out, status, headers, body.len() as u64).await
        && out.write_all(body).await.is_ok()
        && out.flush().await.is_ok()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn git_blob(bytes: &[u8]) -> String {
    let whole = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
    hex(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &whole).as_ref())
}
