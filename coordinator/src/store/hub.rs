//! The API of a hub of models: which files a repository has, and where they are.

use std::time::Duration;

use reqwest::{Response, Url, header};
use serde::Deserialize;

use super::choice::Listed;
use super::digest::Expected;
use super::error::StoreError;
use super::names::{RepoPath, shown};
use super::source::{Repository, public};
use super::web::{Ask, Patience, Token, Web, WebError};

/// The hub where no other is named.
pub const ENDPOINT: &str = "https://huggingface.co";

/// Largest answer of the API that is read.
const MOST_ANSWER_BYTES: usize = 16 << 20;

/// Most pages of a list of files, and most files: repositories of models have some hundreds at most.
const MOST_PAGES: usize = 100;
const MOST_FILES: usize = 100_000;

/// How often an answer of the API is asked for.
const TRIES: u32 = 4;

/// Which hub, and who asks.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// Its URL.
    pub endpoint: Url,
    /// What it is told of the user.
    pub token: Option<Token>,
}

impl HubSettings {
    /// The hub at `endpoint`, or the usual one.
    ///
    /// # Errors
    /// Where that is no URL of a web server.
    pub fn new(endpoint: Option<&str>, token: Option<String>) -> Result<HubSettings, StoreError> {
        let text = endpoint.filter(|text| !text.is_empty()).unwrap_or(ENDPOINT);
        let url =
            Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let endpoint = url.ok_or_else(|| {
            StoreError::Setting(format!(
                "HF_ENDPOINT is `{}`, which is no URL of a hub: write it as {ENDPOINT}",
                shown(text)
            ))
        })?;
        Ok(HubSettings {
            endpoint,
            token: token.filter(|token| !token.trim().is_empty()).map(|t| Token(t.trim().to_owned())),
        })
    }

    /// The token, where it may be sent: not where anybody on the way could read it.
    pub(super) fn safe_token(&self) -> Result<Option<Token>, String> {
        let host = self.endpoint.host_str().unwrap_or_default();
        let is_here = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
        match &self.token {
            Some(_) if self.endpoint.scheme() != "https" && !is_here => {
                Err(format!("HF_TOKEN is not sent to {host}, which is asked without encryption"))
            }
            token => Ok(token.clone()),
        }
    }
}

/// A repository of a hub, at a certain commit as far as the hub says one.
#[derive(Debug)]
pub(super) struct Hub<'a> {
    pub(super) web: Web,
    pub(super) endpoint: Url,
    pub(super) repository: &'a Repository,
    /// The commit, or else the revision as it was given.
    pub(super) revision: String,
    /// Whether that is a commit.
    pub(super) is_commit: bool,
}

#[derive(Deserialize)]
struct Revision {
    sha: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    size: Option<u64>,
    oid: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

impl<'a> Hub<'a> {
    /// Finds the repository, and which commit its revision is.
    ///
    /// # Errors
    /// Where it cannot be had, with what to do.
    pub(super) async fn open(
        settings: &HubSettings,
        token: Option<Token>,
        repository: &'a Repository,
        patience: Patience,
    ) -> Result<Hub<'a>, StoreError> {
        let endpoint = settings.endpoint.clone();
        let what = || repository.id();
        let web = Web::new(&endpoint, token, patience).map_err(|source| StoreError::Web {
            what: what(),
            source,
            after: "",
        })?;
        let mut hub =
            Hub { web, endpoint, repository, revision: repository.revision.clone(), is_commit: false };
        let url =
            hub.url(&["api", "models", &repository.owner, &repository.name, "revision", &hub.revision])?;
        // A mirror may know files alone; what is wrong with the repository its list will tell.
        match hub.get(&url).await {
            Ok((_, body)) => {
                let sha = serde_json::from_slice::<Revision>(&body).ok().and_then(|revision| revision.sha);
                let is_commit =
                    |sha: &String| sha.len() >= 40 && sha.bytes().all(|byte| byte.is_ascii_hexdigit());
                if let Some(sha) = sha.filter(is_commit) {
                    hub.revision = sha;
                    hub.is_commit = true;
                }
            }
            Err(WebError::Refused { status: 404 | 405 | 501, .. }) => {}
            Err(error) => return Err(hub.failed(error)),
        }
        Ok(hub)
    }

    /// All files of the repository.
    ///
    /// # Errors
    /// Where they are not listed, or the list cannot be believed.
    pub(super) async fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let Repository { owner, name, .. } = self.repository;
        let mut url = self.url(&["api", "models", owner, name, "tree", &self.revision])?;
        url.set_query(Some("recursive=true"));
        let mut files = Vec::new();
        for _ in 0..MOST_PAGES {
            let (next, body) = self.get(&url).await.map_err(|error| self.failed(error))?;
            let entries: Vec<Entry> =
                serde_json::from_slice(&body).map_err(|error| self.malformed(error.to_string()))?;
            for entry in entries.into_iter().filter(|entry| entry.kind == "file") {
                let file = listed(entry)?;
                files
                    .push(file.ok_or_else(|| self.malformed("it lists a file without its size".to_owned()))?);
            }
            if files.len() > MOST_FILES {
                return Err(self.malformed(format!("it lists more than {MOST_FILES} files")));
            }
            let Some(next) = next else { return Ok(files) };
            let next = url.join(&next).ok().filter(|next| next.origin() == self.endpoint.origin());
            url = next.ok_or_else(|| self.malformed("its next page is on another server".to_owned()))?;
        }
        Err(self.malformed(format!("its list has more than {MOST_PAGES} pages")))
    }

    /// Where a file is.
    ///
    /// # Errors
    /// Where the endpoint cannot have paths.
    pub(super) fn file_url(&self, path: &RepoPath) -> Result<Url, StoreError> {
        let Repository { owner, name, .. } = self.repository;
        let mut segments = vec![owner.as_str(), name, "resolve", &self.revision];
        segments.extend(path.as_str().split('/'));
        self.url(&segments)
    }

    fn url(&self, segments: &[&str]) -> Result<Url, StoreError> {
        let mut url = self.endpoint.clone();
        url.set_query(None);
        url.set_fragment(None);
        // Each is escaped, so that the `/` in a revision stays within it.
        let whole = url.path_segments_mut().map(|mut path| {
            path.pop_if_empty().extend(segments);
        });
        whole.map_err(|()| StoreError::Setting(format!("{} cannot have paths", public(&self.endpoint))))?;
        Ok(url)
    }

    /// The answer to a GET, and where its next page is.
    async fn get(&self, url: &Url) -> Result<(Option<String>, Vec<u8>), WebError> {
        let mut tries = 1;
        loop {
            let answer = async {
                let response = self.web.ask(url, &Ask::default()).await?;
                let next = next_page(&response);
                Ok((next, self.web.body(response, MOST_ANSWER_BYTES).await?))
            };
            match answer.await {
                Err(error) if tries < TRIES => {
                    let Some(wait) = WebError::is_passing(&error) else { return Err(error) };
                    let backoff: Duration = self.web.patience().backoff * 2u32.pow(tries - 1);
                    tokio::time::sleep(backoff.max(wait)).await;
                    tries += 1;
                }
                ended => return ended,
            }
        }
    }

    /// What to say where the hub, or the server that it redirects to, did not give what was asked for.
    pub(super) fn failed(&self, error: WebError) -> StoreError {
        let WebError::Refused { status: status @ (401 | 403 | 404), .. } = error else {
            return StoreError::Web { what: self.repository.id(), source: error, after: "" };
        };
        let (endpoint, id) = (public(&self.endpoint), self.repository.id());
        let endpoint = endpoint.as_str().trim_end_matches('/');
        let remedy = match status {
            404 => format!(
                "there is no such repository, or it has no revision {}: check the spelling",
                self.repository.revision
            ),
            _ => format!(
                "it is private, wants its terms accepted at {endpoint}/{id}, or does not exist: check the spelling, accept the \
                 terms, and set HF_TOKEN to a token that may read it"
            ),
        };
        StoreError::Hub { repository: id, endpoint: endpoint.to_owned(), status, remedy }
    }

    fn malformed(&self, problem: String) -> StoreError {
        let source = WebError::Malformed { url: public(&self.endpoint).to_string(), problem };
        StoreError::Web { what: self.repository.id(), source, after: "; is it a hub of models?" }
    }
}

/// A file of a list, its path checked; `None` where its size is not said.
fn listed(entry: Entry) -> Result<Option<Listed>, StoreError> {
    let path = RepoPath::new(&entry.path)?;
    let (bytes, expected) = match &entry.lfs {
        Some(lfs) => {
            let oid = lfs.oid.strip_prefix("sha256:").unwrap_or(&lfs.oid);
            (Some(lfs.size), oid.parse().map_or(Expected::Unknown, Expected::Sha256))
        }
        None => {
            let oid = entry.oid.as_deref().and_then(|oid| oid.parse().ok());
            (entry.size, oid.map_or(Expected::Unknown, Expected::GitBlob))
        }
    };
    Ok(bytes.map(|bytes| Listed { path, bytes, expected }))
}

/// The URL of the next page, as the `Link` header names it.
fn next_page(response: &Response) -> Option<String> {
    let links = response.headers().get_all(header::LINK).into_iter().filter_map(|link| link.to_str().ok());
    links.flat_map(|links| links.split(',')).find_map(next_of)
}

fn next_of(link: &str) -> Option<String> {
    let (url, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let is_next =
        parameters.split(';').any(|parameter| matches!(parameter.trim(), "rel=\"next\"" | "rel=next"));
    is_next.then(|| url.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_the_one_called_next() {
        let link = r#"<https://hub/api?cursor=a%2C>; rel="next""#;
        assert_eq!(next_of(link).as_deref(), Some("https://hub/api?cursor=a%2C"));
        for other in [r#"<https://hub/api>; rel="prev""#, "https://hub/api; rel=next", "<x", ""] {
            assert_eq!(next_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_token_goes_over_encrypted_ways_alone() {
        let token = |endpoint: &str| {
            HubSettings::new(Some(endpoint), Some(" hf_x ".to_owned()))
                .unwrap()
                .safe_token()
                .map(|t| t.map(|t| t.0))
        };
        for endpoint in ["https://hub.example", "http://127.0.0.1:80", "http://localhost/x", "http://[::1]:1"]
        {
            assert_eq!(token(endpoint), Ok(Some("hf_x".to_owned())), "{endpoint}");
        }
        assert!(token("http://10.0.0.7").unwrap_err().contains("HF_TOKEN is not sent to 10.0.0.7"));
        assert!(HubSettings::new(None, Some(" ".to_owned())).unwrap().token.is_none());
        for endpoint in ["hub.example", "ftp://hub.example", "https://"] {
            let error = HubSettings::new(Some(endpoint), None).unwrap_err().to_string();
            assert!(error.contains("HF_ENDPOINT"), "{error}");
        }
    }

    #[test]
    fn a_list_says_what_files_should_hold() {
        let entry = |json: &str| listed(serde_json::from_str(json).unwrap());
        let sha = "ab".repeat(32);
        let file = entry(&format!(
            r#"{{"type":"file","path":"m.gguf","size":9,"oid":"{}","lfs":{{"oid":"{sha}","size":9,"pointerSize":1}}}}"#,
            "0".repeat(40)
        ));
        assert_eq!(file.unwrap().unwrap().expected, Expected::Sha256(sha.parse().unwrap()));
        let file = entry(
            r#"{"type":"file","path":"config.json","size":6,"oid":"ce013625030ba8dba906f756967f9e9ca394464a"}"#,
        );
        assert!(matches!(file.unwrap().unwrap().expected, Expected::GitBlob(_)));
        for path in ["../m.gguf", "/etc/passwd", "a\\\\b"] {
            assert!(entry(&format!(r#"{{"type":"file","path":"{path}","size":9}}"#)).is_err(), "{path}");
        }
    }
}
