//! Which files of a repository make the model that was asked for.

use std::collections::BTreeMap;

use brigade_shard::units::Bytes;

use super::digest::Expected;
use super::names::{Part, RepoPath};

/// What is taken of several quantisations where none was named: small, and nearly as good as the model itself.
const USUAL_QUANT: &str = "Q4_K_M";

/// Most quantisations that an error lists.
const MOST_LISTED: usize = 24;

/// The index of safetensors in several files.
const INDEX: &str = "model.safetensors.index.json";

/// Safetensors in one file.
const WEIGHTS: &str = "model.safetensors";

/// What of a model in safetensors is read beside its weights.
pub(super) const BESIDE: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Where in the repository.
    pub path: RepoPath,
    /// Its size.
    pub bytes: u64,
    /// What it should hold.
    pub expected: Expected,
}

/// The files of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// A GGUF file, or the parts of a split one in order.
    Gguf {
        /// Their name without its ending and the number of a part.
        stem: String,
        /// At least one.
        files: Vec<Listed>,
    },
    /// A model in safetensors: weights and what is read beside them, all at the top.
    Safetensors(Vec<Listed>),
}

/// Why no files could be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// No file has the quantisation.
    #[error("has no GGUF file of `{wanted}`; it has {choices}")]
    NoSuch {
        /// What was asked for.
        wanted: String,
        /// What there is, in words.
        choices: String,
    },
    /// It is not clear which of several is meant.
    #[error("has several models in GGUF{of}: give one of them behind a colon: {choices}")]
    Several {
        /// What was asked for, as a part of the sentence.
        of: String,
        /// What there is, in words.
        choices: String,
    },
    /// A split model is not whole.
    #[error(
        "lacks part {number} of {count} of {stem}: choose another quantisation, or wait until it is there"
    )]
    Incomplete {
        /// The missing part.
        number: u32,
        /// Of so many.
        count: u32,
        /// Of which model.
        stem: String,
    },
    /// Safetensors are not there in several quantisations.
    #[error("has no GGUF files, and its safetensors come as they are: leave `:{0}` away")]
    QuantOfSafetensors(String),
    /// There is no model.
    #[error(
        "holds neither GGUF files nor `config.json` with `model.safetensors`: is it the right repository? Models in other formats cannot be run"
    )]
    Nothing,
}

/// Models in GGUF, each under its path without the number of a part and `.gguf`, with the parts by their number.
type Models<'f> = BTreeMap<String, BTreeMap<u32, (&'f Listed, u32)>>;

/// Chooses the files of the model that `quant` names, or else of the most usual one.
///
/// A quantisation is looked for in the files' paths, whatever the case, as a word: not as a part of a longer one. A
/// file's whole name without `.gguf` will do, too.
///
/// # Errors
/// Where there is none, or it is not clear which; the choices are named with their sizes.
pub fn choose(files: &[Listed], quant: Option<&str>) -> Result<Chosen, ChoiceError> {
    let models = models(files);
    if models.is_empty() {
        return match quant {
            Some(quant) if safetensors(files).is_ok() => {
                Err(ChoiceError::QuantOfSafetensors(quant.to_owned()))
            }
            _ => safetensors(files),
        };
    }
    let all: Vec<&String> = models.keys().collect();
    let wanted = quant.unwrap_or(USUAL_QUANT);
    let matching: Vec<&String> = all.iter().copied().filter(|model| names(model, wanted)).collect();
    let called: Vec<&String> =
        matching.iter().copied().filter(|model| last(model).eq_ignore_ascii_case(wanted)).collect();
    match (called.as_slice(), matching.as_slice(), quant) {
        ([one], _, _) | (_, [one], _) => whole(&models, one),
        (_, [], Some(wanted)) => {
            Err(ChoiceError::NoSuch { wanted: wanted.to_owned(), choices: choices(&models, &all) })
        }
        (_, [], None) => match all.as_slice() {
            [only] => whole(&models, only),
            _ => Err(ChoiceError::Several { of: String::new(), choices: choices(&models, &all) }),
        },
        (_, several, _) => {
            Err(ChoiceError::Several { of: format!(" of `{wanted}`"), choices: choices(&models, several) })
        }
    }
}

fn models(files: &[Listed]) -> Models<'_> {
    let mut models = Models::new();
    for file in files {
        let name = file.path.file_name();
        let Some(stem) = name.strip_suffix(".gguf") else { continue };
        let lower = name.to_lowercase();
        // What sees pictures, and what quantisations were made with: no models of text.
        if lower.starts_with("mmproj") || lower.contains("imatrix") {
            continue;
        }
        let (stem, number, count) =
            Part::of(name).map_or((stem, 1, 1), |part| (part.stem, part.number, part.count));
        let key = match file.path.folder() {
            Some(folder) => format!("{folder}/{stem}"),
            None => stem.to_owned(),
        };
        models.entry(key).or_default().insert(number, (file, count));
    }
    models
}

/// Whether `tag` stands in `text` as a word, whatever the case.
fn names(text: &str, tag: &str) -> bool {
    let (text, tag) = (text.to_ascii_lowercase(), tag.to_ascii_lowercase());
    text.match_indices(&tag).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let behind = text[at + tag.len()..].chars().next();
        before.is_none_or(|c| !c.is_alphanumeric()) && behind.is_none_or(|c| "-./".contains(c))
    })
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn whole(models: &Models<'_>, model: &str) -> Result<Chosen, ChoiceError> {
    let stem = last(model).to_owned();
    let Some(parts) = models.get(model) else { return Err(ChoiceError::Nothing) };
    let count = parts.values().map(|(_, count)| *count).max().unwrap_or(1);
    let part = |number| {
        let part = parts.get(&number).filter(|(_, of)| *of == count).map(|(file, _)| (*file).clone());
        part.ok_or_else(|| ChoiceError::Incomplete { number, count, stem: stem.clone() })
    };
    let files = (1..=count).map(part).collect::<Result<_, _>>()?;
    Ok(Chosen::Gguf { stem, files })
}

fn choices(models: &Models<'_>, of: &[&String]) -> String {
    let told = of.iter().take(MOST_LISTED).map(|model| {
        let parts = models.get(*model).into_iter().flat_map(BTreeMap::values);
        let bytes: Bytes = parts.map(|(file, _)| Bytes(file.bytes)).sum();
        format!("{} ({bytes})", last(model))
    });
    let mut told: Vec<String> = told.collect();
    if of.len() > MOST_LISTED {
        told.push(format!("and {} more", of.len() - MOST_LISTED));
    }
    told.join(", ")
}

fn safetensors(files: &[Listed]) -> Result<Chosen, ChoiceError> {
    let at_top = |name: &str| files.iter().find(|file| file.path.as_str() == name);
    let is_part = |file: &&Listed| {
        let name = file.path.as_str();
        let stem = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
        stem.is_some_and(|stem| !stem.contains('/') && stem.contains("-of-"))
    };
    let mut parts: Vec<&Listed> = files.iter().filter(is_part).collect();
    let weights: Vec<&Listed> = match (at_top(INDEX), at_top(WEIGHTS)) {
        (Some(index), _) if !parts.is_empty() => {
            parts.sort_by(|a, b| a.path.cmp(&b.path));
            std::iter::once(index).chain(parts).collect()
        }
        (_, Some(weights)) => vec![weights],
        _ => return Err(ChoiceError::Nothing),
    };
    if at_top("config.json").is_none() {
        return Err(ChoiceError::Nothing);
    }
    let beside = BESIDE.iter().filter_map(|name| at_top(name));
    Ok(Chosen::Safetensors(beside.chain(weights).cloned().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<Listed> {
        let file = |name: &&str| Listed {
            path: RepoPath::new(name).unwrap(),
            bytes: 1 << 30,
            expected: Expected::Unknown,
        };
        names.iter().map(file).collect()
    }

    fn chosen(names: &[&str], quant: Option<&str>) -> Result<Vec<String>, String> {
        match choose(&files(names), quant) {
            Ok(Chosen::Gguf { files, .. } | Chosen::Safetensors(files)) => {
                Ok(files.iter().map(|file| file.path.to_string()).collect())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    const REPOSITORY: &[&str] = &[
        ".gitattributes",
        "README.md",
        "M-IQ4_XS.gguf",
        "M-Q4_K_M.gguf",
        "M-Q4_K_S.gguf",
        "M-Q8_0.gguf",
        "M-UD-Q4_K_XL.gguf",
        "BF16/M-BF16-00002-of-00002.gguf",
        "BF16/M-BF16-00001-of-00002.gguf",
        "mmproj-F16.gguf",
        "M.imatrix.gguf",
    ];

    #[test]
    fn a_quantisation_is_a_word_of_the_name() {
        for (quant, file) in [
            (None, "M-Q4_K_M.gguf"),
            (Some("q4_k_m"), "M-Q4_K_M.gguf"),
            (Some("Q8_0"), "M-Q8_0.gguf"),
            (Some("IQ4_XS"), "M-IQ4_XS.gguf"),
            (Some("UD-Q4_K_XL"), "M-UD-Q4_K_XL.gguf"),
            (Some("Q4_K_XL"), "M-UD-Q4_K_XL.gguf"),
            (Some("M-Q4_K_S"), "M-Q4_K_S.gguf"),
        ] {
            assert_eq!(chosen(REPOSITORY, quant), Ok(vec![file.to_owned()]), "{quant:?}");
        }
        for quant in ["Q4", "Q4_K", "Q5_K_M", "F16"] {
            let error = chosen(REPOSITORY, Some(quant)).unwrap_err();
            assert!(
                error.contains(quant) && error.contains("M-BF16 (2.0 GiB), M-IQ4_XS (1.0 GiB)"),
                "{error}"
            );
        }
    }

    #[test]
    fn parts_come_together_and_in_order() {
        let parts = ["BF16/M-BF16-00001-of-00002.gguf", "BF16/M-BF16-00002-of-00002.gguf"];
        assert_eq!(chosen(REPOSITORY, Some("bf16")), Ok(parts.map(str::to_owned).to_vec()));
        let error = chosen(&["M-Q4_K_M-00001-of-00002.gguf"], None).unwrap_err();
        assert!(error.contains("lacks part 2 of 2 of M-Q4_K_M"), "{error}");
    }

    #[test]
    fn what_is_not_clear_is_asked_for() {
        assert_eq!(chosen(&["only.gguf"], None), Ok(vec!["only.gguf".to_owned()]));
        let error = chosen(&["a-Q8_0.gguf", "a-Q4_0.gguf"], None).unwrap_err();
        assert!(error.contains("a-Q4_0 (1.0 GiB), a-Q8_0 (1.0 GiB)"), "{error}");
        let two = ["M-Q4_K_M.gguf", "M-UD-Q4_K_M.gguf"];
        let error = chosen(&two, None).unwrap_err();
        assert!(error.contains("several models in GGUF of `Q4_K_M`"), "{error}");
        assert_eq!(chosen(&two, Some("m-q4_k_m")), Ok(vec!["M-Q4_K_M.gguf".to_owned()]));
    }

    #[test]
    fn of_safetensors_only_what_is_read_is_taken() {
        let repository = [
            "README.md",
            "config.json",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "model.safetensors.index.json",
            "model-00002-of-00002.safetensors",
            "model-00001-of-00002.safetensors",
            "consolidated.safetensors",
            "original/model-00001-of-00001.safetensors",
            "pytorch_model.bin",
        ];
        let wanted = [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        assert_eq!(chosen(&repository, None), Ok(wanted.map(str::to_owned).to_vec()));
        assert!(chosen(&repository, Some("Q8_0")).unwrap_err().contains("leave `:Q8_0` away"));
        let single = ["config.json", "model.safetensors", "model.safetensors.index.json"];
        assert_eq!(chosen(&single, None), Ok(vec!["config.json".to_owned(), "model.safetensors".to_owned()]));
        for nothing in [&["README.md"][..], &["model.safetensors"], &["config.json", "pytorch_model.bin"]] {
            assert!(chosen(nothing, None).unwrap_err().contains("neither GGUF files"), "{nothing:?}");
        }
    }
}
