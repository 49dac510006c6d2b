//! POST /tokenize and /detokenize, in vLLM's shapes.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use serde_json::{Value, json};

use super::chat::Conversation;
use super::completions::{blocking, check_model};
use super::middleware::read_body;
use super::{ApiError, Fields, Server};
use crate::model::Model;

/// POST /tokenize: `prompt`, or `messages` through the chat template.
pub async fn tokenize(State(server): State<Arc<Server>>, body: Body) -> Result<Json<Value>, ApiError> {
    let body = read_body(&server, body).await?;
    let model = server.model.clone();
    blocking(move || encode(&model, &body)).await.map(Json)
}

fn encode(model: &Model, body: &[u8]) -> Result<Value, ApiError> {
    let mut fields = Fields::parse(body)?;
    check_model(&mut fields, model)?;
    let strings = fields.boolean("return_token_strs")?.unwrap_or(false);
    let add_special = fields.boolean("add_special_tokens")?;
    let ids = match fields.string("prompt")? {
        Some(text) => model
            .text
            .encode(&text, add_special.unwrap_or(true))
            .map_err(|e| ApiError::invalid("prompt", e.to_string()))?,
        None => {
            if add_special == Some(true) {
                let why = "add_special_tokens: the chat template adds its own";
                return Err(ApiError::unsupported("add_special_tokens", why));
            }
            Conversation::take(&mut fields)?.encode(model)?
        }
    };
    fields.finish()?;
    let strings = strings.then(|| ids.iter().map(|&id| model.text.spelling(id)).collect::<Vec<_>>());
    Ok(json!({
        "count": ids.len(), "max_model_len": model.max_seq_len, "tokens": ids, "token_strs": strings,
    }))
}

/// POST /detokenize: `tokens`.
pub async fn detokenize(State(server): State<Arc<Server>>, body: Body) -> Result<Json<Value>, ApiError> {
    let body = read_body(&server, body).await?;
    let model = &server.model;
    let mut fields = Fields::parse(&body)?;
    check_model(&mut fields, model)?;
    let tokens = fields.ids("tokens", model.defaults.vocab_size)?;
    fields.finish()?;
    let tokens = tokens.ok_or_else(|| ApiError::invalid("tokens", "tokens: is required"))?;
    if model.text.0.is_none() {
        return Err(ApiError::bad_request("the plan holds no tokenizer"));
    }
    Ok(Json(json!({"prompt": model.text.decode(&tokens, false)})))
}
