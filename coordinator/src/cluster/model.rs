//! What the coordinator reads of a model: its header, its tokenizer and its template; never its weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use brigade_proto::control::CacheDtype;
use brigade_shard::cost::Cost;
use brigade_shard::family::SpecError;
use brigade_shard::model_file::{FileError, Fingerprint, Header};
use brigade_shard::plan::{Objective, PlanError, PlanInput, place_whole, plan, plan_beside};
use brigade_shard::spec::ModelSpec;
use brigade_shard::template::{TemplateError, TemplateSource};
use brigade_shard::tensors::{TensorError, TensorTable};
use brigade_shard::tokenizer::{Tokenizer, TokenizerError};

use super::forecast::Forecaster;
use super::handle::ModelInfo;
use super::settings::ClusterSettings;
use crate::deployment::Planner;
use crate::planning::LiveDevices;
use crate::template::{ChatRenderer, RenderError};

/// A model that can be planned and served.
pub(super) struct Model {
    pub(super) info: ModelInfo,
    pub(super) header: Header,
    cost: Cost,
}

/// A model that can draft for another one.
pub(super) struct DraftModel {
    pub(super) fingerprint: Fingerprint,
    pub(super) header: Header,
    /// Token ids that both models know are below this.
    pub(super) vocabulary: u32,
    cost: Cost,
}

/// Why a model cannot draft for another one.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// It cannot be run.
    #[error("the draft model cannot be used: {0}")]
    Model(#[from] ModelError),
    /// It does not speak the same tokens.
    #[error(
        "{} cannot draft for this model: token {id} is `{there}` there and `{here}` here; a draft model must have the \
         same tokenizer, as smaller models of the same family do",
        .path.display()
    )]
    Vocabulary {
        /// The draft model's file.
        path: PathBuf,
        /// The first token id that means different texts.
        id: u32,
        /// What it means in the model that is served.
        here: String,
        /// What it means in the draft model.
        there: String,
    },
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
        Ok(Model { info, header, cost })
    }

    /// Reads a model that drafts for this one.
    ///
    /// # Errors
    /// Where it cannot be served, or its token ids mean other texts than this one's.
    pub(super) fn open_draft(&self, path: &Path) -> Result<DraftModel, DraftError> {
        let read = || {
            let header = Header::open(path)?;
            let spec = ModelSpec::from_header(&header)?;
            let table = TensorTable::new(&header, &spec)?;
            let tokenizer = Tokenizer::from_header(&header)?;
            let vocabulary = spec.vocab.min(tokenizer.vocab_size()).min(self.info.vocab);
            let vocabulary = vocabulary.min(self.info.tokenizer.vocab_size());
            let draft = DraftModel {
                fingerprint: *header.fingerprint(),
                cost: Cost::new(&spec, &table),
                vocabulary: u32::try_from(vocabulary).unwrap_or(u32::MAX),
                header,
            };
            Ok((draft, tokenizer))
        };
        let problem = |problem| ModelError { path: path.to_owned(), problem };
        let (draft, tokenizer) = read().map_err(problem)?;
        match self.info.tokenizer.difference(&tokenizer) {
            None => Ok(draft),
            Some((id, here, there)) => Err(DraftError::Vocabulary {
                path: path.to_owned(),
                id,
                here: here.to_owned(),
                there: there.to_owned(),
            }),
        }
    }

    /// Foresees how fast this model is, and would be on other plans, with a cluster's settings.
    pub(super) fn forecaster(&self, settings: &ClusterSettings) -> Forecaster {
        Forecaster::new(self.cost.clone(), plan_input(settings))
    }

    /// Plans this model with a cluster's settings, so that there is room for `draft` beside it. Where there was once, and is
    /// no more, this one is served without.
    pub(super) fn planner(&self, settings: &ClusterSettings, draft: Option<&DraftModel>) -> Planner {
        let cost = self.cost.clone();
        let draft = draft.map(|draft| draft.cost.clone());
        let served_with_draft = std::cell::Cell::new(false);
        let input = plan_input(settings);
        Box::new(move |devices, min_stages, apart, split| {
            let mut input = PlanInput { apart: apart.to_vec(), ..input(devices, min_stages) };
            if !split.is_empty() {
                input.split = split.to_vec();
            }
            let found = match &draft {
                None => plan(&cost, &input),
                Some(draft) => match plan_beside(&cost, &input, draft) {
                    Err(PlanError::NoRoomForDraft { .. }) if served_with_draft.get() => plan(&cost, &input),
                    found => found.inspect(|_| served_with_draft.set(true)),
                },
            };
            found.map_err(|error| error.to_string())
        })
    }
}

impl DraftModel {
    /// Plans this model, on what others leave, for sequences of up to the context that was asked for.
    pub(super) fn planner(&self, settings: &ClusterSettings) -> Planner {
        let cost = self.cost.clone();
        let context = settings.context.unwrap_or(u32::MAX);
        let input = plan_input(settings);
        Box::new(move |devices, _, _, _| {
            let found = place_whole(&cost, &input(devices, 1), context);
            found.map_err(|error| format!("no room for the draft model: {error}"))
        })
    }
}

/// Makes the input of plans from a cluster's settings, for devices and a least number of stages.
fn plan_input(settings: &ClusterSettings) -> impl Fn(&LiveDevices, usize) -> PlanInput + Send + Sync + use<> {
    let (context, parallel, step_rows) = (settings.context, settings.parallel, settings.prefill_chunk);
    let cache_value_bytes = match settings.cache_dtype {
        CacheDtype::F16 => 2,
        CacheDtype::F32 => 4,
    };
    let wire_value_bytes = settings.wire.size() as u32;
    let split = settings.split.clone();
    move |live, min_stages| PlanInput {
        devices: live.devices.clone(),
        context,
        parallel,
        min_stages,
        // With fewer workers, after one was lost, any plan is better than none.
        split: if live.devices.len() < split.len() { Vec::new() } else { split.clone() },
        step_rows,
        cache_value_bytes,
        wire_value_bytes,
        links: live.links.clone(),
        hosts: live.hosts.clone(),
        objective: Objective::default(),
        apart: Vec::new(),
    }
}
