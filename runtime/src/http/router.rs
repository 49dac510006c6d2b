//! Routes and what all of them share.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use super::{ApiError, Keys, chat, completions, middleware, probes, tokens};
use crate::backend::Backend;
use crate::metrics::Metrics;
use crate::model::Model;

/// Limits of the HTTP side.
#[derive(Clone, Debug)]
pub struct Options {
    /// Largest request body, in bytes.
    pub max_body: usize,
    /// Longest time from a request's arrival to its last byte; `None` is no limit.
    pub request_timeout: Option<Duration>,
    /// Origin that browsers may call from; `*` is any, `None` sends no CORS headers.
    pub cors_origin: Option<HeaderValue>,
    /// Longest time without a request's whole head, from the start of a connection or the end of the request before.
    pub header_timeout: Duration,
    /// Connections at once.
    pub max_connections: NonZeroU32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_body: 16 << 20,
            request_timeout: None,
            cors_origin: None,
            header_timeout: Duration::from_secs(30),
            // Leaves some of the 1,024 files that a process may usually open.
            max_connections: NonZeroU32::new(1000).unwrap_or(NonZeroU32::MIN),
        }
    }
}

/// What handlers share.
pub struct Server {
    /// Runs sequences.
    pub backend: Box<dyn Backend>,
    /// The one model.
    pub model: Arc<Model>,
    /// Counters, also fed by the engine thread.
    pub metrics: Arc<Metrics>,
    /// Who may ask.
    pub keys: Keys,
    /// Limits.
    pub options: Options,
}

/// All routes over `server`.
pub fn router(server: Arc<Server>) -> Router {
    let cors = server.options.cors_origin.clone();
    let router = Router::new()
        .route("/live", get(probes::live))
        .route("/health", get(probes::live))
        .route("/ready", get(probes::ready))
        .route("/metrics", get(probes::metrics))
        .route("/v1/models", get(probes::models))
        .route("/v1/models/{id}", get(probes::model))
        .route("/v1/completions", post(completions::handle))
        .route("/v1/chat/completions", post(chat::handle))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .method_not_allowed_fallback(async |request: Request| {
            ApiError::wrong_method(request.method().as_str(), request.uri().path())
        })
        .fallback(async |request: Request| {
            ApiError::unknown_route(request.method().as_str(), request.uri().path())
        })
        .layer(from_fn_with_state(server.clone(), middleware::authorize))
        .with_state(server);
    let router = match cors {
        // Outside of the key check: a preflight carries no key.
        Some(origin) => router.layer(
            CorsLayer::new()
                .allow_origin(if origin == "*" { AllowOrigin::any() } else { AllowOrigin::exact(origin) })
                .allow_methods(AllowMethods::any())
                .allow_headers(AllowHeaders::mirror_request()),
        ),
        None => router,
    };
    router.layer(axum::middleware::from_fn(middleware::trace))
}
