//! Routes and what all of them share.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
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

/// Serves `server` on `listener` until `closed`, then finishes what is under way.
///
/// # Errors
/// The listener fails.
pub async fn listen(
    listener: TcpListener,
    server: Arc<Server>,
    closed: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    // Small chunks must leave at once: Nagle's algorithm would hold tokens back.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    axum::serve(listener, router(server)).with_graceful_shutdown(closed).await
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
