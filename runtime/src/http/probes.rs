//! Liveness, readiness, metrics, the model list.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::{ApiError, Server};
use crate::backend::Health;

/// `/live`, `/health`: 503 once the engine has failed.
pub async fn live(State(server): State<Arc<Server>>) -> Response {
    let status = match server.backend.health() {
        Health::Failed(_) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    (status, Json(state(&server.backend.health()))).into_response()
}

/// `/ready`: 503 when no new work is taken.
pub async fn ready(State(server): State<Arc<Server>>) -> Response {
    let health = server.backend.health();
    let status = if health == Health::Serving { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(state(&health))).into_response()
}

fn state(health: &Health) -> Value {
    match health {
        Health::Serving => json!({"status": "ok"}),
        Health::Draining => json!({"status": "draining"}),
        Health::Failed(reason) => json!({"status": "failed", "reason": reason}),
    }
}

/// `/metrics`: Prometheus text.
pub async fn metrics(State(server): State<Arc<Server>>) -> Response {
    let text = server.metrics.render(&server.model.name);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// `/v1/models`.
pub async fn models(State(server): State<Arc<Server>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [card(&server)]}))
}

/// `/v1/models/{id}`.
pub async fn model(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if id == server.model.name {
        Ok(Json(card(&server)))
    } else {
        Err(ApiError::unknown_model(&id, &server.model.name))
    }
}

fn card(server: &Server) -> Value {
    json!({
        "id": server.model.name,
        "object": "model",
        "created": server.model.created,
        "owned_by": "lathe",
        "max_model_len": server.model.max_seq_len,
    })
}
