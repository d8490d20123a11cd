//! The model that a plan is for: a file's header, or a name of the catalogue.

use std::path::Path;

use anyhow::Context as _;
use brigade_shard::catalogue;
use brigade_shard::cost::Cost;
use brigade_shard::model_file::Header;
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensors::TensorTable;

use crate::cli::options::{model_file, model_id, stored_model, usual_store};

/// A model to plan for.
pub(super) struct Model {
    /// Its id, or its name as it was given.
    pub(super) name: String,
    /// Where its figures are from, for people.
    pub(super) source: String,
    /// What its parts cost.
    pub(super) cost: Cost,
}

impl Model {
    /// The file or directory at `named`, else the store's model of that name, else the catalogue's.
    ///
    /// # Errors
    /// Where it is a path of nothing, no model, or a name that no catalogue has; the nearest names are said then.
    pub(super) fn find(named: &Path) -> anyhow::Result<Model> {
        if named.exists() || is_path_for_sure(named) {
            return Model::of_file(&model_file(named)?);
        }
        if let Some(Ok(path)) = stored_model(named, usual_store().as_ref()) {
            return Model::of_file(&path);
        }
        let name = named.to_string_lossy();
        match catalogue::model(&name) {
            Ok((model, mix)) => Ok(Model {
                name: name.into_owned(),
                source: format!("the catalogue ({}: {})", model.name, model.source),
                cost: model.cost(mix),
            }),
            // What has more than one part can be the name of a repository, but rather is a path.
            Err(_) if named.components().count() > 1 => Model::of_file(&model_file(named)?),
            Err(unknown) => Err(unknown).context(format!(
                "failed to find the model {name}: it is no file, and `brigade plan --list models` does not list it"
            )),
        }
    }

    /// The model in a file or directory, of which headers are read.
    ///
    /// # Errors
    /// Where it is no model that can be run.
    pub(super) fn of_file(path: &Path) -> anyhow::Result<Model> {
        Ok(Model { name: model_id(path), source: "its file's header".to_owned(), cost: read_cost(path)? })
    }

    /// The draft model in a file or directory.
    ///
    /// # Errors
    /// As [`Model::of_file`], and where there is no such file.
    pub(super) fn of_draft(path: &Path) -> anyhow::Result<Model> {
        Ok(Model { name: model_id(path), ..Model::of_file(&model_file(path)?)? })
    }
}

/// Whether nobody would name a model of the catalogue like this.
fn is_path_for_sure(named: &Path) -> bool {
    let text = named.to_string_lossy();
    let ends = [".gguf", ".safetensors", "/"];
    named.is_absolute() || text.starts_with(['.', '~']) || ends.iter().any(|end| text.ends_with(end))
}

fn read_cost(model: &Path) -> anyhow::Result<Cost> {
    let failed = || format!("failed to read the model {}", model.display());
    let header = Header::open(model).with_context(failed)?;
    let spec = ModelSpec::from_header(&header).with_context(failed)?;
    let table = TensorTable::new(&header, &spec).with_context(failed)?;
    Ok(Cost::new(&spec, &table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_path_is_one() {
        for path in ["m.gguf", "./m", "~/models/m", "/models/m", "../m", "model.safetensors", "models/"] {
            assert!(is_path_for_sure(Path::new(path)), "{path}");
        }
        for name in ["Llama 3.1 405B:Q4_K_M", "meta-llama/Llama-3.1-405B-Instruct", "deepseek-r1"] {
            assert!(!is_path_for_sure(Path::new(name)), "{name}");
        }
    }
}
