//! A directory with a model: its configuration, its tensors, and what is beside them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};

use super::families::{FAMILIES, Family, refuse_quantised};
use super::names::{self, Named};
use super::part::Part;
use super::translation::{Translation, missing, wrong};
use super::{json, limits};
use crate::model_file::{Contents, FileError, Fingerprint, Header, Problem, Source, TensorInfo, Value};
use crate::units::Bytes;

/// The configuration, which makes a directory one of a model.
pub(crate) const CONFIG: &str = "config.json";
/// The tensors, where they are in one file.
const WEIGHTS: &str = "model.safetensors";
/// Which file each tensor is in, where there are several.
const INDEX: &str = "model.safetensors.index.json";
/// What else belongs to a model, with the limits on their sizes. Of several chat templates the first one counts.
const BESIDE: [(&str, u64); 5] = [
    ("chat_template.jinja", limits::MAX_CONFIG_BYTES),
    ("tokenizer.json", limits::MAX_LIST_BYTES),
    ("tokenizer_config.json", limits::MAX_LIST_BYTES),
    ("generation_config.json", limits::MAX_CONFIG_BYTES),
    ("chat_template.json", limits::MAX_CONFIG_BYTES),
];

/// What a header knows of safetensors only.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    /// The directory.
    pub(crate) folder: PathBuf,
    family: &'static Family,
    spellings: BTreeMap<String, String>,
}

impl Checkpoint {
    /// How the files call the tensor that a GGUF file calls `name`.
    pub(crate) fn tensor_name(&self, name: &str) -> String {
        names::name_in_file(self.family, name)
    }

    /// Where the configuration states the hyper-parameter `key`; `None` where it does not.
    pub(crate) fn spelling(&self, key: &str) -> Option<&str> {
        self.spellings.get(key).map(String::as_str)
    }
}

/// Whether a directory looks as if it held a model in safetensors.
pub fn is_model(folder: &Path) -> bool {
    folder.join(CONFIG).is_file() && (folder.join(WEIGHTS).is_file() || folder.join(INDEX).is_file())
}

/// Reads the header of the model in `folder`.
///
/// # Errors
/// See [`Header::open`].
pub(crate) fn open(folder: &Path) -> Result<Header, FileError> {
    let mut hash = Sha256::new();
    let config_file = folder.join(CONFIG);
    let in_config = |problem| FileError::new(&config_file, problem);
    let Some(text) = read(&config_file, limits::MAX_CONFIG_BYTES)? else {
        return Err(FileError::new(folder, without_config(folder)));
    };
    add_to(&mut hash, CONFIG, &text);
    let config = json::object(&text).map_err(|problem| in_config(Problem::Json { problem }))?;
    let family = family(&config).map_err(in_config)?;
    let settings = settings(&config, family).map_err(in_config)?;
    let mut translation = Translation::new(&settings, family.architecture);
    refuse_quantised(&mut translation, family).map_err(in_config)?;
    (family.translate)(&mut translation).map_err(in_config)?;
    let tied = translation.optional_flag("tie_word_embeddings").map_err(in_config)?;
    translation.finish().map_err(in_config)?;

    let (parts, tensors, file_bytes) = read_tensors(folder, &mut hash)?;
    let family = names::as_spelt(family, &tensors);
    let mut metadata = translation.metadata;
    let experts = metadata.get(&format!("{}.expert_count", family.architecture)).and_then(Value::as_u64);
    let in_folder = |problem| FileError::new(folder, problem);
    let mut named = names::named(family, tensors, experts.unwrap_or(0)).map_err(in_folder)?;
    check_ends(&mut named, family, &settings, tied.unwrap_or(family.tied)).map_err(in_folder)?;
    for tensor in translation.stated {
        named.add(Some(tensor.name.clone()), tensor);
    }

    for (name, limit) in BESIDE {
        if let Some(text) = read(&folder.join(name), limit)? {
            add_to(&mut hash, name, &text);
            if let Some(template) =
                template(name, &text).map_err(|p| FileError::new(&folder.join(name), p))?
            {
                metadata.entry("tokenizer.chat_template".to_owned()).or_insert(Value::Str(template));
            }
        }
    }
    let name = folder.file_name().map_or_else(|| family.class.into(), |name| name.to_string_lossy());
    metadata.insert("general.name".to_owned(), Value::Str(name.into_owned()));
    let (folder, spellings) = (folder.to_owned(), translation.spellings);
    let contents = Contents {
        source: Source::Safetensors(Checkpoint { folder, family, spellings }),
        parts,
        file_bytes,
        metadata,
        tensors: named.tensors,
        fingerprint: Fingerprint::new(hash.finalize().into()),
    };
    Ok(Header::with_names(contents, named.by_name))
}

/// The bytes of a file of at most `limit`; `None` where there is none.
fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let error = |problem| FileError::new(path, problem);
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(problem) if problem.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(problem) => return Err(error(Problem::Io(problem))),
    };
    if !metadata.is_file() {
        return Err(error(Problem::NotAFile));
    }
    if metadata.len() > limit {
        let what = "the file's size".to_owned();
        return Err(error(Problem::Limit { what, found: metadata.len(), limit }));
    }
    fs::read(path).map(Some).map_err(|problem| error(Problem::Io(problem)))
}

fn add_to(hash: &mut Sha256, name: &str, text: &[u8]) {
    hash.update(name);
    hash.update([0]);
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text);
}

/// What to say of a directory without a configuration.
fn without_config(folder: &Path) -> Problem {
    let files = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let first = files.filter(|path| path.extension().is_some_and(|end| end == "gguf")).min();
    match first {
        Some(first) => Problem::HoldsGguf { first },
        None => Problem::NoConfig,
    }
}

fn family(config: &Map<String, Json>) -> Result<&'static Family, Problem> {
    let key = "architectures";
    let value = config.get(key).ok_or_else(|| missing(key))?;
    let class = match value.as_array().map(Vec::as_slice) {
        Some([class]) => class.as_str(),
        _ => None,
    };
    let class = class.ok_or_else(|| wrong(key, value, "an array of one name"))?;
    FAMILIES.iter().find(|family| family.class == class).ok_or_else(|| {
        let mut known: Vec<&'static str> = FAMILIES.iter().map(|family| family.class).collect();
        known.dedup();
        Problem::UnknownClass { found: class.chars().take(80).collect(), known }
    })
}

/// The settings of a family, which may be a part of those of the whole model; the others must be known, too.
fn settings<'c>(
    config: &'c Map<String, Json>,
    family: &Family,
) -> Result<Cow<'c, Map<String, Json>>, Problem> {
    let Some(nested) = &family.nested else {
        return Ok(Cow::Borrowed(config));
    };
    let mut whole = Translation::new(config, family.architecture);
    refuse_quantised(&mut whole, family)?;
    let value = whole.get(nested.settings).ok_or_else(|| missing(nested.settings))?;
    let settings = value.as_object().ok_or_else(|| wrong(nested.settings, value, "an object"))?;
    whole.ignore(nested.other_settings);
    let tied = "tie_word_embeddings";
    match (whole.get(tied), settings.get(tied)) {
        (Some(outside), Some(inside)) if outside != inside => {
            return Err(wrong(tied, outside, &format!("{inside}, as in `{}`", nested.settings)));
        }
        _ => whole.finish()?,
    }
    let mut settings = settings.clone();
    (nested.fill_in)(&mut settings);
    Ok(Cow::Owned(settings))
}

/// The files, their tensors, and the size of all files together.
type Tensors = (Vec<PathBuf>, Vec<TensorInfo>, Bytes);

fn read_tensors(folder: &Path, hash: &mut Sha256) -> Result<Tensors, FileError> {
    let (weights, index) = (folder.join(WEIGHTS), folder.join(INDEX));
    let listed = match (weights.exists(), read(&index, limits::MAX_LIST_BYTES)?) {
        (true, Some(_)) => return Err(FileError::new(folder, Problem::TwoWeights)),
        (false, None) => return Err(FileError::new(folder, Problem::NoWeights)),
        (true, None) => None,
        (false, Some(text)) => {
            add_to(hash, INDEX, &text);
            Some(weight_map(&text).map_err(|problem| FileError::new(&index, problem))?)
        }
    };
    let files = match &listed {
        None => BTreeSet::from([WEIGHTS]),
        Some(listed) => listed.iter().map(|(_, file)| file.as_str()).collect(),
    };
    let (mut parts, mut tensors, mut bytes) = (Vec::new(), Vec::new(), Bytes::ZERO);
    let mut places = BTreeSet::new();
    for file in files {
        let path = folder.join(file);
        if !path.exists() {
            return Err(FileError::new(&index, Problem::MissingFile { file: file.to_owned() }));
        }
        let part = Part::read(&path, parts.len())?;
        hash.update(part.digest);
        bytes += Bytes(part.len);
        places.extend(part.tensors.iter().map(|tensor| (file, tensor.name.clone())));
        tensors.extend(part.tensors);
        parts.push(path);
        if tensors.len() as u64 > limits::MAX_TENSORS {
            let (what, found) = ("the number of tensors of all files".to_owned(), tensors.len() as u64);
            let problem = Problem::Limit { what, found, limit: limits::MAX_TENSORS };
            return Err(FileError::new(folder, problem));
        }
    }
    let mut names = BTreeSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        let name = twice.name.clone();
        return Err(FileError::new(folder, Problem::DuplicateTensor { name }));
    }
    let absent = listed.iter().flatten().find(|(name, file)| !places.contains(&(file, name.clone())));
    match absent {
        Some((name, file)) => {
            let problem = Problem::NotInFile { name: name.clone(), file: file.clone() };
            Err(FileError::new(&index, problem))
        }
        None => Ok((parts, tensors, bytes)),
    }
}

/// The tensors that an index lists, with their files.
fn weight_map(text: &[u8]) -> Result<Vec<(String, String)>, Problem> {
    let index = json::object(text).map_err(|problem| Problem::Json { problem })?;
    let key = "weight_map";
    let value = index.get(key).ok_or_else(|| missing(key))?;
    let map = value.as_object().ok_or_else(|| wrong(key, value, "an object"))?;
    let mut listed = Vec::new();
    let mut files = BTreeSet::new();
    for (name, value) in map {
        let file = value.as_str().filter(|file| is_base_name(file));
        let file =
            file.ok_or_else(|| wrong(&format!("{key}.{name}"), value, "the name of a file beside it"))?;
        files.insert(file);
        listed.push((name.clone(), file.to_owned()));
    }
    let found = files.len();
    if found == 0 || found > limits::MAX_PARTS {
        let what = "the number of files with tensors".to_owned();
        let limit = limits::MAX_PARTS as u64;
        return Err(Problem::Limit { what, found: found as u64, limit });
    }
    Ok(listed)
}

fn is_base_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

/// Sees to it that the output matrix is there where the head is not tied, and only there, and that the embedding has a
/// row for every token id.
fn check_ends(
    named: &mut Named,
    family: &Family,
    config: &Map<String, Json>,
    tied: bool,
) -> Result<(), Problem> {
    let output = "output.weight";
    if tied {
        // Some files keep a copy of the embedding under this name.
        if let Some(index) = named.by_name.remove(output) {
            named.tensors.remove(index);
            named.by_name.values_mut().filter(|other| **other > index).for_each(|other| *other -= 1);
        }
    } else if named.get(output).is_none() {
        return Err(Problem::MissingTensor { name: names::name_in_file(family, output) });
    }
    let rows = named.get("token_embd.weight").and_then(|embedding| embedding.dims.get(1).copied());
    match (rows, config.get("vocab_size")) {
        (Some(rows), Some(stated)) if stated.as_u64() != Some(rows) => {
            Err(wrong("vocab_size", stated, &format!("{rows}, the rows of the embedding")))
        }
        _ => Ok(()),
    }
}

/// The chat template in the file `name`; `None` where it holds none.
fn template(name: &str, text: &[u8]) -> Result<Option<String>, Problem> {
    if name == "chat_template.jinja" {
        let template = String::from_utf8(text.to_vec());
        return template.map(Some).map_err(|_| Problem::Json { problem: "is not UTF-8".to_owned() });
    }
    if !["tokenizer_config.json", "chat_template.json"].contains(&name) {
        return Ok(None);
    }
    let object = json::object(text).map_err(|problem| Problem::Json { problem })?;
    Ok(match object.get("chat_template") {
        Some(Json::String(template)) => Some(template.clone()),
        // Several, by name.
        Some(Json::Array(templates)) => {
            let default = templates.iter().find(|template| template["name"] == "default");
            default.and_then(|template| template["template"].as_str()).map(str::to_owned)
        }
        _ => None,
    })
}
