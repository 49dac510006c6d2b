//! Errors in OpenAI's JSON shape.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::backend::Refused;

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// For people.
    pub message: String,
    /// OpenAI's `type`.
    pub kind: &'static str,
    /// The field at fault.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
}

/// Seconds after which a full queue is worth another try.
const RETRY_AFTER: &str = "1";

impl ApiError {
    fn new(status: u16, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        ApiError { status, message: message.into(), kind, param: None, code }
    }

    /// 400: the request as a whole.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", None, message)
    }

    /// 400: a field's type or value.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        ApiError {
            param: Some(param.to_owned()),
            ..Self::new(400, "invalid_request_error", Some("invalid_value"), message)
        }
    }

    /// 400: a field that is known but not done.
    pub fn unsupported(param: &str, message: impl Into<String>) -> Self {
        ApiError { code: Some("unsupported_parameter"), ..Self::invalid(param, message) }
    }

    /// 400: more tokens than a sequence may have.
    pub fn context_length(param: &str, message: impl Into<String>) -> Self {
        ApiError { code: Some("context_length_exceeded"), ..Self::invalid(param, message) }
    }

    /// 401: no key, or none that is known.
    pub fn unauthorized() -> Self {
        Self::new(
            401,
            "invalid_request_error",
            Some("invalid_api_key"),
            "api key missing or unknown; send it as \"Authorization: Bearer KEY\"",
        )
    }

    /// 404: no such model.
    pub fn unknown_model(asked: &str, served: &str) -> Self {
        ApiError {
            param: Some("model".to_owned()),
            ..Self::new(
                404,
                "invalid_request_error",
                Some("model_not_found"),
                format!("model {asked:?} does not exist here; this server has {served:?}"),
            )
        }
    }

    /// 404: no such route.
    pub fn unknown_route(method: &str, path: &str) -> Self {
        Self::new(404, "invalid_request_error", Some("unknown_url"), format!("unknown url: {method} {path}"))
    }

    /// 405: the route has other methods.
    pub fn wrong_method(method: &str, path: &str) -> Self {
        Self::new(
            405,
            "invalid_request_error",
            Some("method_not_supported"),
            format!("{path} does not take {method}"),
        )
    }

    /// 413: the body is larger than the limit, in bytes.
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            413,
            "invalid_request_error",
            Some("request_too_large"),
            format!("request body is larger than {limit} bytes"),
        )
    }

    /// 504: not through within the request timeout.
    pub fn timeout(seconds: f64) -> Self {
        Self::new(504, "timeout_error", Some("timeout"), format!("request timed out after {seconds} s"))
    }

    /// 500: a fault of the server.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "server_error", Some("internal_error"), message)
    }

    /// The JSON body.
    pub fn body(&self) -> serde_json::Value {
        json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let message = refused.to_string();
        match refused {
            Refused::QueueFull(_) => Self::new(429, "rate_limit_error", Some("queue_full"), message),
            Refused::TooMany { .. } => ApiError::bad_request(message),
            Refused::Never(_) => ApiError::context_length("prompt", message),
            Refused::Draining => Self::new(503, "server_error", Some("shutting_down"), message),
            Refused::Failed(_) => ApiError::internal(message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        if self.status == 429 {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        if self.status == 401 {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_is_openais() {
        let text = ApiError::invalid("top_p", "top_p: 2 is not at most 1").body().to_string();
        assert_eq!(
            text,
            r#"{"error":{"message":"top_p: 2 is not at most 1","type":"invalid_request_error","param":"top_p","code":"invalid_value"}}"#
        );
        assert_eq!(
            ApiError::bad_request("x").body().to_string(),
            r#"{"error":{"message":"x","type":"invalid_request_error","param":null,"code":null}}"#
        );
    }

    #[test]
    fn refusals_keep_their_kind() {
        for (refused, status, header) in [
            (Refused::QueueFull("queue: full".into()), 429, Some("retry-after")),
            (Refused::Never("prompt: too long".into()), 400, None),
            (Refused::TooMany { asked: 9, max_queue: 8 }, 400, None),
            (Refused::Draining, 503, None),
            (Refused::Failed("x".into()), 500, None),
        ] {
            let response = ApiError::from(refused).into_response();
            assert_eq!(response.status().as_u16(), status);
            if let Some(header) = header {
                assert!(response.headers().contains_key(header));
            }
        }
    }
}
