//! What a pull comes to: which files, from where, under which names.

use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use brigade_shard::model_file::{Format, Header};
use reqwest::Url;

use super::choice::{self, BESIDE, Chosen, Listed};
use super::digest::{Digest, Expected};
use super::error::StoreError;
use super::fetch::size_of;
use super::hub::Hub;
use super::names::{FileName, ModelName, Part};
use super::pull::PullOptions;
use super::record::{Checked, Form};
use super::source::{Repository, Source, public};
use super::watch::Watch;
use super::web::Web;

/// The index of safetensors in several files.
const INDEX: &str = "model.safetensors.index.json";

/// Most parts of a split model, as many as its reader takes.
const MOST_PARTS: u32 = 1000;

/// A pull.
#[derive(Debug)]
pub(super) struct Plan {
    /// What the model will be called.
    pub(super) name: ModelName,
    /// How it will lie in the store.
    pub(super) format: Form,
    /// Where it comes from, for the record.
    pub(super) source: String,
    /// The commit.
    pub(super) revision: Option<String>,
    /// Its files, in the order of its parts; at least one.
    pub(super) files: Vec<Planned>,
    /// How files are fetched.
    pub(super) way: Way,
}

/// How files are fetched.
#[derive(Debug)]
pub(super) enum Way {
    /// Over HTTP.
    Web(Box<Web>),
    /// From this machine's disks.
    Disk,
}

/// A file of a pull.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    /// Its name in the store.
    pub(super) name: FileName,
    /// Its size, as far as it is known.
    pub(super) bytes: Option<u64>,
    /// What it should hold.
    pub(super) expected: Expected,
    /// Who says so.
    pub(super) checked: Checked,
    /// Where it is.
    pub(super) origin: Origin,
}

/// Where a file is.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    Url(Url),
    Path(PathBuf),
}

impl Plan {
    /// What pulling `source` comes to: asks its server, or reads its headers.
    ///
    /// # Errors
    /// Where it cannot be had, or it is not clear what is meant.
    pub(super) async fn make(
        source: &Source,
        options: &PullOptions,
        watch: &dyn Watch,
    ) -> Result<Plan, StoreError> {
        let plan = match source {
            Source::Path(path) => of_path(path, options)?,
            Source::Url(url) => of_url(url, options).await?,
            Source::Hub(repository) => of_hub(repository, source, options, watch).await?,
        };
        match (options.sha256, plan.files.as_slice()) {
            (Some(_), [] | [_, _, ..]) => Err(StoreError::Setting(
                "--sha256 is of one file, but this model has several: leave it away".to_owned(),
            )),
            _ => Ok(plan),
        }
    }

    /// Whether `source`, of an earlier pull, is the same place, whatever revision or quantisation of it.
    pub(super) fn is_from(&self, source: &str) -> bool {
        place_of(&self.source) == place_of(source)
    }
}

/// The place that a source names, without what of it.
fn place_of(source: &str) -> String {
    match Source::from_str(source) {
        Ok(Source::Hub(repository)) => format!("hf:{}", repository.id().to_lowercase()),
        _ => source.to_owned(),
    }
}

fn name_for(options: &PullOptions, own: &str) -> Result<ModelName, StoreError> {
    Ok(ModelName::new(options.name.as_deref().unwrap_or(own))?)
}

/// The names of so many GGUF files.
fn gguf_names(name: &ModelName, count: usize) -> Result<Vec<FileName>, StoreError> {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    Ok((1..=count).map(|number| name.gguf_file(number, count)).collect::<Result<_, _>>()?)
}

fn expected(given: Option<Digest>, listed: &Expected) -> (Expected, Checked) {
    match (given, listed) {
        (Some(given), _) => (Expected::Sha256(given), Checked::User),
        (None, Expected::Unknown) => (Expected::Unknown, Checked::Size),
        (None, listed) => (*listed, Checked::Hub),
    }
}

fn of_path(path: &Path, options: &PullOptions) -> Result<Plan, StoreError> {
    let absolute = path.canonicalize().map_err(|error| {
        StoreError::Setting(format!(
            "failed to open {}: {error}; give the path of a GGUF file or of a directory of safetensors, https://HOST/FILE.gguf, or \
             hf:OWNER/REPOSITORY",
            path.display()
        ))
    })?;
    let header = Header::open(&absolute)?;
    let own = absolute.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = name_for(options, &own)?;
    let (format, from): (Form, Vec<PathBuf>) = match header.format() {
        Format::Gguf => (Form::Gguf, header.parts().to_vec()),
        Format::Safetensors => {
            let beside = BESIDE.iter().chain([&INDEX]).map(|file| absolute.join(file));
            let beside = beside.filter(|file| file.is_file());
            (Form::Safetensors, beside.chain(header.parts().iter().cloned()).collect())
        }
    };
    let names = match format {
        Form::Gguf => gguf_names(&name, from.len())?,
        Form::Safetensors => from.iter().map(|file| FileName::of(file)).collect::<Result<_, _>>()?,
    };
    let files = names.into_iter().zip(from).map(|(name, path)| {
        let bytes = std::fs::metadata(&path).ok().map(|file| file.len());
        let (expected, checked) = match options.sha256 {
            Some(given) => (Expected::Sha256(given), Checked::User),
            None => (Expected::Unknown, Checked::Original),
        };
        Planned { name, bytes, expected, checked, origin: Origin::Path(path) }
    });
    let (source, files) = (absolute.display().to_string(), files.collect());
    Ok(Plan { name, format, source, revision: None, files, way: Way::Disk })
}

async fn of_url(url: &Url, options: &PullOptions) -> Result<Plan, StoreError> {
    let last = url.path_segments().and_then(|mut path| path.next_back()).unwrap_or_default();
    let file = decoded(last);
    if !file.ends_with(".gguf") {
        return Err(StoreError::Setting(format!(
            "{} names no GGUF file: a URL of a model ends in .gguf; repositories of a hub are written hf:OWNER/REPOSITORY",
            public(url)
        )));
    }
    let part = Part::of(&file);
    match part {
        Some(part) if part.number != 1 => {
            return Err(StoreError::Setting(format!(
                "{file} is part {} of {}: give the URL of the first one, {}",
                part.number,
                part.count,
                part.name_of(1)
            )));
        }
        Some(part) if part.count > MOST_PARTS => {
            return Err(StoreError::Setting(format!(
                "{file} is of {} parts: at most {MOST_PARTS} are fetched",
                part.count
            )));
        }
        _ => {}
    }
    let name = name_for(options, &file)?;
    let web = Web::new(url, None, options.patience).map_err(|source| StoreError::Web {
        what: file.clone(),
        source,
        after: "",
    })?;
    let count = part.map_or(1, |part| part.count);
    let mut files = Vec::new();
    for (number, name) in (1..).zip(gguf_names(&name, count as usize)?) {
        let url = match part {
            Some(part) => sibling(url, &part.name_of(number)),
            None => url.clone(),
        };
        let bytes = size_of(&web, &url).await;
        let bytes = bytes.map_err(|source| StoreError::Web { what: name.to_string(), source, after: "" })?;
        let (expected, checked) = expected(options.sha256, &Expected::Unknown);
        files.push(Planned { name, bytes, expected, checked, origin: Origin::Url(url) });
    }
    let source = public(url).to_string();
    Ok(Plan { name, format: Form::Gguf, source, revision: None, files, way: Way::Web(Box::new(web)) })
}

/// The URL of a file beside another one, with the same query.
fn sibling(url: &Url, file: &str) -> Url {
    let mut url = url.clone();
    // A URL that has a last segment has segments.
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop().push(file);
    }
    url
}

/// A segment of a URL's path with its `%20` and the like put back; what is no UTF-8 then stays as it is.
fn decoded(segment: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = segment.as_bytes();
    while let [first, tail @ ..] = rest {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if digit(*high).is_some() && digit(*low).is_some() => {
                let value = digit(*high).unwrap_or(0) * 16 + digit(*low).unwrap_or(0);
                bytes.push(u8::try_from(value).unwrap_or(0));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| segment.to_owned())
}

async fn of_hub(
    repository: &Repository,
    source: &Source,
    options: &PullOptions,
    watch: &dyn Watch,
) -> Result<Plan, StoreError> {
    let token = options.hub.safe_token().unwrap_or_else(|reason| {
        watch.note(&reason);
        None
    });
    let hub = Hub::open(&options.hub, token, repository, options.patience).await?;
    let listed = hub.list().await?;
    let chosen = choice::choose(&listed, repository.quant.as_deref());
    let chosen = chosen.map_err(|problem| StoreError::Choice { repository: repository.id(), problem })?;
    let planned = |name, listed: &Listed| {
        let (expected, checked) = expected(options.sha256, &listed.expected);
        let origin = Origin::Url(hub.file_url(&listed.path)?);
        Ok::<_, StoreError>(Planned { name, bytes: Some(listed.bytes), expected, checked, origin })
    };
    let (name, format, files) = match chosen {
        Chosen::Gguf { stem, files } => {
            let name = name_for(options, &stem)?;
            let names = gguf_names(&name, files.len())?;
            let files = names.into_iter().zip(&files).map(|(name, file)| planned(name, file));
            (name, Form::Gguf, files.collect::<Result<_, _>>()?)
        }
        Chosen::Safetensors(files) => {
            let name = name_for(options, &repository.name)?;
            let file = |file: &Listed| planned(FileName::new(file.path.file_name())?, file);
            (name, Form::Safetensors, files.iter().map(file).collect::<Result<_, _>>()?)
        }
    };
    let revision = hub.is_commit.then(|| hub.revision.clone());
    Ok(Plan { name, format, source: source.to_string(), revision, files, way: Way::Web(Box::new(hub.web)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_urls_are_decoded_before_they_are_checked() {
        assert_eq!(decoded("a%20b.gguf"), "a b.gguf");
        assert_eq!(decoded("..%2F..%2Fx.gguf"), "../../x.gguf");
        assert!(ModelName::new(&decoded("..%2F..%2Fx.gguf")).is_err());
        assert_eq!(decoded("100%.gguf"), "100%.gguf");
        assert_eq!(decoded("%ff.gguf"), "%ff.gguf");
    }

    #[test]
    fn parts_are_beside_each_other() {
        let url = Url::parse("https://host/a/m-00001-of-00002.gguf?token=x").unwrap();
        let second = sibling(&url, "m-00002-of-00002.gguf");
        assert_eq!(second.as_str(), "https://host/a/m-00002-of-00002.gguf?token=x");
    }

    #[test]
    fn a_place_is_the_same_with_another_revision_or_quantisation() {
        assert_eq!(place_of("hf:Org/Repo"), place_of("hf:org/repo@v1:Q8_0"));
        assert_ne!(place_of("hf:org/repo"), place_of("hf:org/other"));
        assert_ne!(place_of("https://a/m.gguf"), place_of("https://b/m.gguf"));
        assert_eq!(place_of("/models/m.gguf"), "/models/m.gguf");
    }
}
