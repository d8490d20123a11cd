//! What the coordinator reads of a model: its header, its tokenizer and its template; never its weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use brigade_proto::control::CacheDtype;
use brigade_shard::cost::Cost;
use brigade_shard::family::SpecError;
use brigade_shard::model_file::{FileError, Header};
use brigade_shard::plan::{HopCost, PlanInput, plan};
use brigade_shard::spec::ModelSpec;
use brigade_shard::template::{TemplateError, TemplateSource};
use brigade_shard::tensors::{TensorError, TensorTable};
use brigade_shard::tokenizer::{Tokenizer, TokenizerError};

use super::handle::ModelInfo;
use super::settings::ClusterSettings;
use crate::deployment::Planner;
use crate::template::{ChatRenderer, RenderError};

/// A model that can be planned and served.
pub(super) struct Model {
    pub(super) info: ModelInfo,
    cost: Cost,
}

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve {}: {problem}", .path.display())]
pub struct ModelError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: ModelProblem,
}

/// What is wrong with a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelProblem {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The model cannot be run.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Its tensors are not those of the model.
    #[error(transparent)]
    Tensors(#[from] TensorError),
    /// Its tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Its chat template cannot be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Its chat template cannot be compiled.
    #[error(transparent)]
    Renderer(#[from] RenderError),
}

impl Model {
    /// Reads everything but the weights. `program` is this program, which renders the chat template. Blocks.
    pub(super) fn open(path: &Path, id: String, program: PathBuf) -> Result<Model, ModelError> {
        Model::read(path, id, program).map_err(|problem| ModelError { path: path.to_owned(), problem })
    }

    /// Compiles the chat template, where there is one.
    pub(super) async fn check_template(&self, path: &Path) -> Result<(), ModelError> {
        let Some(template) = &self.info.template else {
            return Ok(());
        };
        let checked = template.check().await;
        checked.map_err(|problem| ModelError { path: path.to_owned(), problem: problem.into() })
    }

    fn read(path: &Path, id: String, program: PathBuf) -> Result<Model, ModelProblem> {
        let header = Header::open(path)?;
        let spec = ModelSpec::from_header(&header)?;
        let table = TensorTable::new(&header, &spec)?;
        let tokenizer = Tokenizer::from_header(&header)?;
        let template = match TemplateSource::from_header(&header, &tokenizer) {
            Ok(source) => Some(ChatRenderer::new(program, source)?),
            // Completions are served all the same; chats are refused with a message of their own.
            Err(TemplateError::Missing) => None,
            Err(error) => return Err(error.into()),
        };
        let unknown = header.unknown_keys();
        if !unknown.is_empty() {
            tracing::warn!(
                "{}: keys that are not known, and are ignored: {}",
                path.display(),
                unknown.join(", ")
            );
        }
        let cost = Cost::new(&spec, &table);
        let info = ModelInfo {
            id,
            name: spec.name.clone(),
            fingerprint: *header.fingerprint(),
            layers: spec.layers.len(),
            vocab: spec.vocab,
            weights: table.iter().map(|(_, tensor)| tensor.bytes).sum(),
            context_length: cost.context_length(),
            tokenizer: Arc::new(tokenizer),
            template,
            created: SystemTime::now(),
        };
        Ok(Model { info, cost })
    }

    /// Plans this model with a cluster's settings.
    pub(super) fn planner(&self, settings: &ClusterSettings) -> Planner {
        let cost = self.cost.clone();
        let (context, parallel, step_rows) = (settings.context, settings.parallel, settings.prefill_chunk);
        let cache_value_bytes = match settings.cache_dtype {
            CacheDtype::F16 => 2,
            CacheDtype::F32 => 4,
        };
        let wire_value_bytes = settings.wire.size() as u32;
        let split = settings.split.clone();
        Box::new(move |devices, min_stages| {
            // With fewer workers, after one was lost, any plan is better than none.
            let split = if devices.len() < split.len() { Vec::new() } else { split.clone() };
            let input = PlanInput {
                devices: devices.to_vec(),
                context,
                parallel,
                min_stages,
                split,
                step_rows,
                cache_value_bytes,
                wire_value_bytes,
                hop: HopCost::default(),
            };
            plan(&cost, &input).map_err(|error| error.to_string())
        })
    }
}
