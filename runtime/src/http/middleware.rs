//! Request ids, logging, panics, keys, bodies.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;

use super::trace::Trace;
use super::{ApiError, Server};
use crate::engine_thread::panic_text;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longer ids, and those with other than visible ASCII, are replaced.
const MAX_ID_LEN: usize = 128;
/// Time for a client to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Routes that orchestrators call without a key.
const OPEN_ROUTES: [&str; 3] = ["/live", "/ready", "/health"];

/// A name that no other request has: 128 random bits.
pub fn random_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", crate::sampling::random_seed(), crate::sampling::random_seed())
}

/// Gives the request an id and a [`Trace`], and turns a panic of a handler into a 500.
pub async fn trace(mut request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|v| v.to_str().ok())
        .filter(|id| (1..=MAX_ID_LEN).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()))
        .map_or_else(|| random_id("req-"), str::to_owned);
    // A route's pattern, never the raw path: that could hold anything.
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let trace = Arc::new(Trace::new(id.clone(), request.method().to_string(), route));
    request.extensions_mut().insert(trace.clone());
    let outcome = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = outcome.unwrap_or_else(|panic| {
        tracing::error!(id, panic = panic_text(panic.as_ref()), "a request handler panicked");
        ApiError::internal("the server failed on this request").into_response()
    });
    trace.set_status(response.status().as_u16());
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Asks for a key where there are any.
pub async fn authorize(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    if server.keys.admits(shown) || OPEN_ROUTES.contains(&request.uri().path()) {
        next.run(request).await
    } else {
        ApiError::unauthorized().into_response()
    }
}

/// Reads a whole body.
///
/// # Errors
/// Too large, too slow, or cut off.
pub async fn read_body(server: &Server, body: Body) -> Result<Bytes, ApiError> {
    let limit = server.options.max_body;
    let read = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, limit)).await;
    match read {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(e)) if is_length_limit(&e) => Err(ApiError::too_large(limit)),
        Ok(Err(e)) => Err(ApiError::bad_request(format!("body: {e}"))),
        Err(_) => Err(ApiError { status: 408, ..ApiError::timeout(BODY_TIMEOUT.as_secs_f64()) }),
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = source {
        // The type that says so is not exported; its sentence is its contract.
        if e.to_string() == "length limit exceeded" {
            return true;
        }
        source = e.source();
    }
    false
}
