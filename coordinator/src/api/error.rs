//! Errors as clients see them: a status code and OpenAI's error object.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::cluster::{DrainError, PinError, Stopping};
use crate::generation::GenerationError;

/// Seconds after which a client may try again while the cluster is not serving: about what a small shard takes to load.
const NOT_READY_RETRY_S: u32 = 5;

/// Seconds after which a client may try again whose generation was interrupted.
const INTERRUPTED_RETRY_S: u32 = 1;

/// A request that got no answer, or an answer that broke off.
///
/// As a response it is `{"error": {"message", "type", "param", "code"}}` with the status code below; in a stream that has
/// begun, the same object is sent as an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry_after_s: Option<u32>,
}

impl ApiError {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: &'static str,
        message: impl Into<String>,
    ) -> ApiError {
        ApiError { status, kind, code: Some(code), param: None, message: message.into(), retry_after_s: None }
    }

    /// 400: the request is wrong as a whole.
    pub fn bad_request(code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", code, message)
    }

    /// 400: a parameter is wrong; the message must name it.
    pub fn bad_param(param: &str, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::bad_request(code, message).with_param(param)
    }

    /// 400: a parameter that OpenAI's API has and this server has not.
    pub fn unsupported(param: &str) -> ApiError {
        let message = format!("`{param}` is not supported by this server; leave it out");
        ApiError::bad_param(param, "unsupported_parameter", message)
    }

    /// 401: no API key, or a wrong one.
    pub fn unauthorized(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, "invalid_request_error", "invalid_api_key", message)
    }

    /// 403: the request came by a way that could be a foreign web page's.
    pub fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, "invalid_request_error", "forbidden", message)
    }

    /// 404: the model is not the one that is served.
    pub fn unknown_model(wanted: &str, served: &str) -> ApiError {
        let message = format!("the model `{wanted}` does not exist here; this server has `{served}`");
        let error = ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", "model_not_found", message);
        error.with_param("model")
    }

    /// 404: no such path.
    pub fn unknown_route(method: &str, path: &str) -> ApiError {
        let message = format!("there is nothing at {method} {path}; GET / lists what there is");
        ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", "unknown_url", message)
    }

    /// 404: no such comparison is kept.
    pub fn unknown_comparison(id: u64) -> ApiError {
        let message = format!("there is no comparison {id}; GET /api/comparisons lists the newest");
        ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", "unknown_comparison", message)
    }

    /// 405: the path exists for other methods.
    pub fn wrong_method(method: &str, path: &str) -> ApiError {
        let message = format!("{path} does not answer {method}; GET / lists what there is");
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", "method_not_allowed", message)
    }

    /// 408: the client took too long to send its request.
    pub fn slow_body(seconds: u64) -> ApiError {
        let message = format!("the request's body did not arrive within {seconds} s; send it faster");
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", "request_timeout", message)
    }

    /// 409: a later request with the same key goes on with the answer.
    pub fn taken_over() -> ApiError {
        let message = "another request with the same `Idempotency-Key` goes on with this answer";
        ApiError::new(StatusCode::CONFLICT, "invalid_request_error", "taken_over", message)
    }

    /// 409: the request that has the answer does not give it up.
    pub fn key_in_use() -> ApiError {
        let message = "another request with the same `Idempotency-Key` is being answered; try again";
        ApiError::new(StatusCode::CONFLICT, "invalid_request_error", "key_in_use", message).with_retry(1)
    }

    /// 409: the answer under a key is another model's.
    pub fn key_of_another_model() -> ApiError {
        let message = "the answer under this `Idempotency-Key` was begun by another model than the one that is served now; \
                       use a new key";
        ApiError::new(StatusCode::CONFLICT, "invalid_request_error", "key_of_another_model", message)
    }

    /// 422: a key was used for another request.
    pub fn key_of_another_request() -> ApiError {
        let message = "this `Idempotency-Key` was used for another request: use a new key for each, and repeat a request \
                       with the same body";
        let (kind, code) = ("invalid_request_error", "key_of_another_request");
        ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, kind, code, message)
    }

    /// 413: the body is longer than the server reads.
    pub fn body_too_large(limit_bytes: usize) -> ApiError {
        let message =
            format!("the request's body is longer than {limit_bytes} bytes; send fewer prompts at a time");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", "request_too_large", message)
    }

    /// 500: something that no client can help.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "internal_error", message)
    }

    /// 503: the server is being stopped.
    pub fn stopping() -> ApiError {
        let message = "the server is shutting down; ask again once it is back";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "shutting_down", message)
            .with_retry(NOT_READY_RETRY_S)
    }

    /// 503: so many watch already.
    pub fn watched_enough(most: usize) -> ApiError {
        let message = format!("{most} clients watch already; close a dashboard, or ask /api/status instead");
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "too_many_watchers", message)
            .with_retry(NOT_READY_RETRY_S)
    }

    fn with_param(mut self, param: &str) -> ApiError {
        self.param = Some(param.to_owned());
        self
    }

    fn with_retry(mut self, seconds: u32) -> ApiError {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The status code of the response.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The error object, `{"error": {"message", "type", "param", "code"}}`.
    pub fn to_json(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl From<DrainError> for ApiError {
    fn from(error: DrainError) -> ApiError {
        let message = error.to_string();
        let refused = |status, code| ApiError::new(status, "invalid_request_error", code, message);
        match error {
            DrainError::Unknown { .. } => refused(StatusCode::NOT_FOUND, "worker_not_found"),
            DrainError::Ambiguous { .. } => refused(StatusCode::CONFLICT, "ambiguous_worker"),
            DrainError::NoRoom { .. } => refused(StatusCode::CONFLICT, "no_room"),
            DrainError::Stopping => ApiError::stopping(),
        }
    }
}

impl From<Stopping> for ApiError {
    fn from(_: Stopping) -> ApiError {
        ApiError::stopping()
    }
}

impl From<PinError> for ApiError {
    fn from(error: PinError) -> ApiError {
        let message = error.to_string();
        let refused = |status, code| ApiError::new(status, "invalid_request_error", code, message);
        match error {
            PinError::Worker(error) => ApiError::from(error).with_param("workers"),
            PinError::Twice { .. } => {
                refused(StatusCode::BAD_REQUEST, "worker_named_twice").with_param("workers")
            }
            PinError::NoPlan { .. } => refused(StatusCode::CONFLICT, "no_room"),
            PinError::NotPinned { .. } => refused(StatusCode::CONFLICT, "not_pinned"),
            PinError::Stopping => ApiError::stopping(),
        }
    }
}

impl From<GenerationError> for ApiError {
    fn from(error: GenerationError) -> ApiError {
        let message = error.to_string();
        match error {
            GenerationError::NotReady { .. } => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "not_ready", message)
                    .with_retry(NOT_READY_RETRY_S)
            }
            GenerationError::ContextExceeded { .. } => {
                ApiError::bad_request("context_length_exceeded", message)
            }
            GenerationError::Overloaded { likely_wait, .. } => {
                // In whole seconds, and not at once.
                let seconds = likely_wait.as_secs_f64().ceil().max(1.0) as u32;
                ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "overloaded", message)
                    .with_retry(seconds)
            }
            GenerationError::Interrupted { .. } => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "interrupted", message)
                    .with_retry(INTERRUPTED_RETRY_S)
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.to_json())).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
