//! Pinning the plan to certain workers.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::body;
use super::engine::Engine;
use super::error::ApiError;
use super::fields::{Fields, invalid, missing, wrong_type};
use super::state::Api;
use crate::cluster::{PinOrder, Renewal};

/// The longest time that a pin can be asked to hold without being renewed, in seconds: a day.
const LONGEST_TTL_S: i64 = 24 * 3600;
/// Longest name of whoever pins, in characters: a line shows it.
const LONGEST_NAME: usize = 64;

/// `PUT /api/pin`: `{"workers": [..], "split": [..], "ttl_s": 15, "renew": false, "by": "me"}`, of which the workers alone
/// are required.
pub(crate) async fn pin<E: Engine>(
    State(api): State<Api<E>>,
    request: Request,
) -> Result<Response, ApiError> {
    let order = order(Fields::of_body(&body::read(request).await?)?)?;
    let ttl_s = order.ttl.map(|ttl| ttl.as_secs());
    let pinned = api.engine().pin(order).await?;
    Ok(Json(json!({"workers": pinned.workers, "pinned": pinned.names, "ttl_s": ttl_s})).into_response())
}

/// `DELETE /api/pin`: the planner decides again. Where there is no pin, nothing changes.
pub(crate) async fn unpin<E: Engine>(State(api): State<Api<E>>) -> Result<Response, ApiError> {
    api.engine().unpin().await?;
    Ok(Json(json!({"pinned": []})).into_response())
}

fn order(mut fields: Fields) -> Result<PinOrder, ApiError> {
    let name = |value: &Value| value.as_str().map(str::to_owned);
    let workers: Option<Vec<String>> = list(&mut fields, "workers", "names or ids of workers", name)?;
    let workers = workers.ok_or_else(|| missing("workers"))?;
    if workers.is_empty() {
        return Err(invalid("workers", "must name at least one worker; DELETE /api/pin takes a pin back"));
    }
    let layers = |value: &Value| value.as_u64().filter(|layers| *layers > 0)?.try_into().ok();
    let split: Vec<usize> =
        list(&mut fields, "split", "numbers of layers, from 1", layers)?.unwrap_or_default();
    if !split.is_empty() && split.len() != workers.len() {
        let (stages, workers) = (split.len(), workers.len());
        return Err(invalid("split", format_args!("has {stages} stages for {workers} workers")));
    }
    let ttl = fields.whole("ttl_s", 1..=LONGEST_TTL_S)?.map(|seconds| Duration::from_secs(seconds as u64));
    let renewal = if fields.flag("renew")? { Renewal::Only } else { Renewal::New };
    let by = fields.text("by")?;
    if by.as_ref().is_some_and(|by| by.chars().count() > LONGEST_NAME) {
        return Err(invalid("by", format_args!("must have at most {LONGEST_NAME} characters")));
    }
    fields.finish()?;
    Ok(PinOrder { workers, split, ttl, renewal, by })
}

/// Takes an array whose items are all of one form.
fn list<T>(
    fields: &mut Fields,
    name: &str,
    wanted: &str,
    item: impl Fn(&Value) -> Option<T>,
) -> Result<Option<Vec<T>>, ApiError> {
    let Some(value) = fields.value(name) else { return Ok(None) };
    let path = fields.path(name);
    let Value::Array(items) = &value else {
        return Err(wrong_type(&path, "an array", &value));
    };
    let items = items.iter().map(|value| item(value).ok_or(value));
    let items: Result<Vec<T>, &Value> = items.collect();
    items.map(Some).map_err(|value| invalid(&path, format_args!("must hold {wanted}, not {value}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<PinOrder, String> {
        order(Fields::of_body(body.as_bytes()).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_pin_is_read_whole_or_refused_by_the_field() {
        let order =
            read(r#"{"workers": ["anna", "ben"], "split": [10, 20], "ttl_s": 15, "by": "me"}"#).unwrap();
        assert_eq!((order.workers, order.split), (vec!["anna".into(), "ben".into()], vec![10, 20]));
        assert_eq!((order.ttl, order.renewal), (Some(Duration::from_secs(15)), Renewal::New));
        assert_eq!(order.by.as_deref(), Some("me"));
        let renewal = read(r#"{"workers": ["anna"], "renew": true}"#).unwrap();
        assert_eq!((renewal.ttl, renewal.renewal), (None, Renewal::Only));
        for (body, says) in [
            ("{}", "`workers` is missing"),
            (r#"{"workers": []}"#, "at least one worker"),
            (r#"{"workers": "anna"}"#, "must be an array"),
            (r#"{"workers": [1]}"#, "must hold names or ids of workers, not 1"),
            (r#"{"workers": ["a"], "split": [0]}"#, "numbers of layers, from 1, not 0"),
            (r#"{"workers": ["a"], "split": [1, 2]}"#, "2 stages for 1 workers"),
            (r#"{"workers": ["a"], "ttl_s": 0}"#, "`ttl_s`"),
            (r#"{"workers": ["a"], "by": 3}"#, "must be a string"),
            (r#"{"workers": ["a"], "for": 3}"#, "`for` is not a parameter"),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.contains(says), "{body}: {error}");
        }
    }
}
