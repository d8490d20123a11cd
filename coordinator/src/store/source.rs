//! Where a model is to come from, as a user writes it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use reqwest::Url;

/// What stands before a repository's name.
const HUB: &str = "hf:";

/// The revision of a repository where none is named.
const MAIN: &str = "main";

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file, the first part of a split one, or a directory.
    Path(PathBuf),
    /// A GGUF file on a web server, or the first part of a split one.
    Url(Url),
    /// A repository of a hub.
    Hub(Repository),
}

/// A repository of a hub, and what of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// Who has it.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// The quantisation to take, such as `Q4_K_M`; what is most usual where it is `None`.
    pub quant: Option<String>,
}

/// A source that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{given}` is no source of a model: {problem}; give a path, https://HOST/FILE.gguf, or hf:OWNER/REPOSITORY[@REVISION][:QUANTISATION]"
)]
pub struct SourceError {
    given: String,
    problem: &'static str,
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Source, SourceError> {
        let wrong = |problem| SourceError { given: super::names::shown(text), problem };
        if let Some(repository) = text.strip_prefix(HUB) {
            return Repository::parse(repository).map(Source::Hub).map_err(wrong);
        }
        if !text.contains("://") {
            return match text {
                "" => Err(wrong("it is empty")),
                _ => Ok(Source::Path(PathBuf::from(text))),
            };
        }
        let url = Url::parse(text).map_err(|_| wrong("it is not a URL"))?;
        match url.scheme() {
            "http" | "https" if url.has_host() => Ok(Source::Url(url)),
            "http" | "https" => Err(wrong("its URL has no host")),
            _ => Err(wrong("only https and http are spoken")),
        }
    }
}

impl Repository {
    fn parse(text: &str) -> Result<Repository, &'static str> {
        let (place, quant) = match text.split_once(':') {
            Some((place, quant)) => (place, Some(quant)),
            None => (text, None),
        };
        let (place, revision) = place.split_once('@').unwrap_or((place, MAIN));
        let (owner, name) = place.split_once('/').ok_or("a repository is written OWNER/NAME")?;
        let is_word = |word: &str| {
            !word.is_empty()
                && word.len() <= 96
                && !word.starts_with('.')
                && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        if !is_word(owner) || !is_word(name) {
            return Err("an owner and a repository are letters, digits, `.`, `_` and `-`");
        }
        if !revision.split('/').all(is_word) {
            return Err("a revision is a branch, a tag or a commit");
        }
        let is_tag = |tag: &str| {
            !tag.is_empty() && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte))
        };
        if quant.is_some_and(|quant| !is_tag(quant)) {
            return Err("a quantisation is written as in file names, such as Q4_K_M");
        }
        Ok(Repository {
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision: revision.to_owned(),
            quant: quant.map(str::to_owned),
        })
    }

    /// Its owner and name, as hubs write them.
    pub fn id(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

/// As a user would write it, but without what may be secret: a URL's user, password and query.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Path(path) => write!(f, "{}", path.display()),
            Source::Url(url) => write!(f, "{}", public(url)),
            Source::Hub(repository) => {
                write!(f, "{HUB}{}", repository.id())?;
                if repository.revision != MAIN {
                    write!(f, "@{}", repository.revision)?;
                }
                repository.quant.iter().try_for_each(|quant| write!(f, ":{quant}"))
            }
        }
    }
}

/// A URL without what may be secret in it.
pub(super) fn public(url: &Url) -> Url {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // These fail for URLs without a host, which have neither.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_as_users_write_them() {
        assert_eq!("m.gguf".parse(), Ok(Source::Path("m.gguf".into())));
        assert_eq!("org/repo".parse(), Ok(Source::Path("org/repo".into())));
        assert!(matches!("https://host/m.gguf".parse(), Ok(Source::Url(_))));
        assert!(matches!("http://10.0.0.1:81/m.gguf".parse(), Ok(Source::Url(_))));
        let Ok(Source::Hub(repository)) = "hf:org/Some.Repo-GGUF@refs/pr/1:UD-Q4_K_XL".parse() else {
            panic!("a repository")
        };
        assert_eq!(repository.id(), "org/Some.Repo-GGUF");
        assert_eq!(repository.revision, "refs/pr/1");
        assert_eq!(repository.quant.as_deref(), Some("UD-Q4_K_XL"));
    }

    #[test]
    fn what_is_shown_can_be_given_again() {
        for text in ["hf:org/repo", "hf:org/repo:Q8_0", "hf:org/repo@v1.0", "hf:org/repo@v1:q4_0", "a/b.gguf"]
        {
            let source: Source = text.parse().unwrap();
            assert_eq!(source.to_string(), text);
        }
        let secret: Source = "https://me:word@host/m.gguf?token=x#y".parse().unwrap();
        assert_eq!(secret.to_string(), "https://host/m.gguf");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "hf:",
            "hf:repo",
            "hf:org/",
            "hf:/repo",
            "hf:../repo",
            "hf:org/repo/file",
            "hf:org/repo:",
            "hf:org/repo@",
            "hf:org/repo@a/../b",
            "hf:org/re po",
            "ftp://host/m.gguf",
            "file:///etc/passwd",
            "https://",
        ] {
            let error = text.parse::<Source>().unwrap_err().to_string();
            assert!(error.contains("hf:OWNER/REPOSITORY"), "{text}: {error}");
        }
    }
}
