//! Devices, links and models that one can plan with before having any of them: data, each figure with its source.

mod devices;
mod links;
mod models;

pub use devices::{CatalogueDevice, Other, device, devices};
pub use links::{CatalogueLink, link, links};
pub use models::{CatalogueModel, Mix, model, models};

/// A name that no catalogue has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} `{name}`{}", nearest_in_words(.nearest))]
pub struct UnknownName {
    /// What was looked for: `device`, `link`, `model` or `quantisation`.
    pub what: &'static str,
    /// The name given.
    pub name: String,
    /// Names that it may have meant, the likeliest first.
    pub nearest: Vec<String>,
}

fn nearest_in_words(nearest: &[String]) -> String {
    let _ = nearest;
    todo!("helper a")
}
