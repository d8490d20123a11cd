//! Devices, links and models that one can plan with before having any of them: data, each figure with its source.
//!
//! The data lies in `shard/catalogue`, one file for each kind. A model is its hyper-parameters alone: what tensors it has
//! follows from them by the code that reads files, and what a quantisation makes of these by [`Mix::tensor_type`].

mod csv;
mod devices;
mod links;
mod mix;
mod models;
mod names;
mod published;
#[cfg(test)]
mod sizes_tests;

pub use devices::{CatalogueDevice, Other, device, devices};
pub use links::{CatalogueLink, link, links};
pub use mix::Mix;
pub use models::{CatalogueModel, model, models};
pub use published::{PublishedRow, published};

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
    match nearest {
        [] => String::new(),
        [one] => format!(": did you mean `{one}`?"),
        [first, others @ ..] => {
            let others: Vec<String> = others.iter().map(|name| format!("`{name}`")).collect();
            format!(": did you mean `{first}`, or {}?", others.join(" or "))
        }
    }
}
