//! A request's body, within bounds of size and time.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use bytes::Bytes;

use super::error::ApiError;

/// Longest body, in bytes: a prompt of a million tokens written as ids, several times over.
pub(crate) const MAX_BODY_BYTES: usize = 16 << 20;

/// How long a body may take to arrive; the longest one at 4 Mbit/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(32);

/// Reads all of a request's body.
///
/// # Errors
/// 413 where it is too long, 408 where it takes too long, 400 where the connection breaks.
pub(crate) async fn read(request: Request) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            Err(ApiError::body_too_large(MAX_BODY_BYTES))
        }
        Ok(Err(rejection)) => {
            let message = format!("the request's body could not be read: {}", rejection.body_text());
            Err(ApiError::bad_request("invalid_body", message))
        }
        Err(_) => Err(ApiError::slow_body(BODY_TIMEOUT.as_secs())),
    }
}
