//! `brigade.toml`: settings that stand for flags nobody gave.
//!
//! A key is a flag's long name (`min-workers` or `min_workers`; `model` for the MODEL of a command). Keys at the top hold
//! for every command that has such a flag; a table with a command's name (`[up]`, `[serve]`) holds for that command and
//! wins over the top. The values become the flags' default values before the command line is read, so that a flag wins
//! over the environment, the environment over the file, and the file over the built-in default.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Command;
use clap::builder::OsStr;
use toml::Value;

/// The file's name, in the working directory or in `~/.config/brigade`.
pub const FILE_NAME: &str = "brigade.toml";

/// Flags that a file cannot set.
const NOT_SETTINGS: [&str; 3] = ["help", "version", "config"];

/// Commands that take no settings.
const NOT_TABLES: [&str; 3] = ["help", "version", "completions"];

/// What is wrong with a settings file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to read {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{} is not valid TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        message: String,
    },
    /// No flag or command has this name.
    #[error("{}: unknown {what} `{key}`{nearest}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// `key`, `table` or `key in [table]`.
        what: String,
        /// The name that was not known.
        key: String,
        /// What it may be meant to be, as the end of the sentence.
        nearest: String,
    },
    /// The value cannot stand for a flag's.
    #[error("{}: `{key}` must be a string, a number, true or false, or a list of these", path.display())]
    BadValue {
        /// The file.
        path: PathBuf,
        /// Whose value it is.
        key: String,
    },
    /// More than one value for a flag that takes one.
    #[error("{}: `{key}` takes one value, not a list of {count}", path.display())]
    TooManyValues {
        /// The file.
        path: PathBuf,
        /// Whose value it is.
        key: String,
        /// How many there are.
        count: usize,
    },
}

/// The settings of one file: for each table, or `None` for the top, the values by flag name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Where they come from.
    pub path: PathBuf,
    top: BTreeMap<String, Vec<String>>,
    tables: BTreeMap<String, BTreeMap<String, Vec<String>>>,
}

/// The file to read: `explicit` where it is given, else the first that exists of `brigade.toml` in `working_directory`
/// and `brigade/brigade.toml` in `config_home`.
pub fn find(
    explicit: Option<&Path>,
    working_directory: &Path,
    config_home: Option<&Path>,
) -> Option<PathBuf> {
    if let Some(path) = explicit {
        return Some(path.to_owned());
    }
    let here = working_directory.join(FILE_NAME);
    let home = config_home.map(|home| home.join("brigade").join(FILE_NAME));
    [Some(here), home].into_iter().flatten().find(|path| path.is_file())
}

impl Settings {
    /// Reads `path` and checks every key against the flags of `command` and its subcommands.
    ///
    /// # Errors
    /// Where the file cannot be read, is not TOML, or has a key that stands for no flag.
    pub fn read(path: &Path, command: &Command) -> Result<Settings, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
        Settings::parse(&text, path, command)
    }

    /// As [`Settings::read`], from the file's text; `path` is for messages only.
    ///
    /// # Errors
    /// As [`Settings::read`].
    pub fn parse(text: &str, path: &Path, command: &Command) -> Result<Settings, ConfigError> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        let flags = flags_of(command);
        let commands: Vec<&Command> =
            command.get_subcommands().filter(|c| !NOT_TABLES.contains(&c.get_name())).collect();
        let mut settings = Settings { path: path.to_owned(), ..Settings::default() };
        for (key, value) in table {
            if let Value::Table(inner) = value {
                let Some(of) = commands.iter().find(|c| c.get_name() == key) else {
                    let names = commands.iter().map(|c| c.get_name());
                    return Err(unknown(path, "table", &key, names));
                };
                let flags = flags_of(of);
                let what = format!("key in [{key}]");
                let values = inner
                    .into_iter()
                    .map(|(key, value)| setting(path, &what, &key, value, &flags))
                    .collect::<Result<_, _>>()?;
                settings.tables.insert(key, values);
            } else {
                let (key, values) = setting(path, "key", &key, value, &flags)?;
                settings.top.insert(key, values);
            }
        }
        Ok(settings)
    }

    /// `command` with these settings as default values.
    pub fn apply(&self, command: Command) -> Command {
        let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
        let command = own_with_defaults(command, &self.top);
        names.iter().filter(|name| !NOT_TABLES.contains(&name.as_str())).fold(command, |command, name| {
            let mut values = self.top.clone();
            values.extend(self.tables.get(name).cloned().unwrap_or_default());
            command.mut_subcommand(name, |subcommand| with_defaults(subcommand, &values))
        })
    }
}

/// Sets the default values of `command`'s flags, and those of its subcommands.
fn with_defaults(command: Command, values: &BTreeMap<String, Vec<String>>) -> Command {
    let subcommands: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    let command = own_with_defaults(command, values);
    subcommands.iter().fold(command, |command, name| {
        command.mut_subcommand(name, |subcommand| with_defaults(subcommand, values))
    })
}

/// Sets the default values of `command`'s own flags; those that hold for its subcommands, too, are among these.
fn own_with_defaults(command: Command, values: &BTreeMap<String, Vec<String>>) -> Command {
    command.mut_args(|arg| {
        let Some(values) = name_of(&arg).and_then(|name| values.get(&name)) else {
            return arg;
        };
        // A list at the top may be meant for another command, whose flag of this name takes many.
        let count = if takes_many(&arg) { values.len() } else { 1 };
        let values = values.iter().take(count).map(|value| OsStr::from(value.clone()));
        arg.required(false).default_values(values)
    })
}

/// One flag that a file may set.
struct Flag {
    name: String,
    takes_many: bool,
}

/// The flags of `command` and of everything below it.
fn flags_of(command: &Command) -> Vec<Flag> {
    let own = command.get_arguments().filter_map(|arg| {
        let name = name_of(arg)?;
        Some(Flag { name, takes_many: matches!(arg.get_action(), clap::ArgAction::Append) })
    });
    let below = command
        .get_subcommands()
        .filter(|c| !NOT_TABLES.contains(&c.get_name()))
        .flat_map(|subcommand| flags_of(subcommand).into_iter());
    own.chain(below).collect()
}

fn takes_many(arg: &clap::Arg) -> bool {
    matches!(arg.get_action(), clap::ArgAction::Append)
}

/// The key that stands for `arg`: its long flag, or `model` for the model's place.
fn name_of(arg: &clap::Arg) -> Option<String> {
    let name = arg.get_long().or_else(|| (arg.get_id() == "model").then_some("model"))?;
    (!NOT_SETTINGS.contains(&name)).then(|| name.to_owned())
}

fn setting(
    path: &Path,
    what: &str,
    key: &str,
    value: Value,
    flags: &[Flag],
) -> Result<(String, Vec<String>), ConfigError> {
    let name = key.replace('_', "-");
    let mut known = flags.iter().filter(|flag| flag.name == name).peekable();
    if known.peek().is_none() {
        return Err(unknown(path, what, key, flags.iter().map(|flag| flag.name.as_str())));
    }
    let takes_list = known.any(|flag| flag.takes_many);
    let bad = || ConfigError::BadValue { path: path.to_owned(), key: key.to_owned() };
    let values = match value {
        Value::Array(values) => {
            values.iter().map(|value| scalar(value).ok_or_else(bad)).collect::<Result<Vec<_>, _>>()?
        }
        value => vec![scalar(&value).ok_or_else(bad)?],
    };
    if values.len() != 1 && !takes_list {
        return Err(ConfigError::TooManyValues {
            path: path.to_owned(),
            key: key.to_owned(),
            count: values.len(),
        });
    }
    Ok((name, values))
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(flag) => Some(flag.to_string()),
        Value::Array(_) | Value::Table(_) | Value::Datetime(_) => None,
    }
}

fn unknown<'a>(path: &Path, what: &str, key: &str, known: impl Iterator<Item = &'a str>) -> ConfigError {
    let nearest = match nearest(&key.replace('_', "-"), known) {
        Some(name) => format!("; did you mean `{name}`?"),
        None => "; `brigade help` lists what there is".to_owned(),
    };
    ConfigError::UnknownKey { path: path.to_owned(), what: what.to_owned(), key: key.to_owned(), nearest }
}

/// The name of `known` that takes the fewest edits to get from `name`, where that is at most half of its letters.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (edits(name, candidate), candidate))
        .min()
        .filter(|(edits, candidate)| *edits * 2 <= candidate.chars().count())
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance: insertions, deletions and replacements of letters.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_a_far_one_is_not() {
        let known = ["workers", "memory", "min-workers", "ctx"];
        assert_eq!(nearest("worker", known.into_iter()), Some("workers"));
        assert_eq!(nearest("memroy", known.into_iter()), Some("memory"));
        assert_eq!(nearest("minworkers", known.into_iter()), Some("min-workers"));
        assert_eq!(nearest("banana", known.into_iter()), None);
        assert_eq!(edits("kitten", "sitting"), 3);
    }
}
