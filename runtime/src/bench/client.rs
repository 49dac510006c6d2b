//! Asks an OpenAI server over HTTP/1.1, streaming.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_util::client::legacy::{Client as Http, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::{Map, Value, json};

use super::dataset::{Ask, Prompt};
use super::event_stream::{self, Events, message, shorten};
use super::watch::{Failure, Watch};

/// Largest error body or model list that is read.
const MAX_BODY: usize = 1 << 20;
/// Time to a connection; a server on this planet answers sooner.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Fields of every request beside prompt and length.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// Name of the model.
    pub model: String,
    /// Sends text prompts to the chat API.
    pub chat: bool,
    /// More fields, which go before those that are made here.
    pub fields: Map<String, Value>,
}

/// A server and what is asked of it.
#[derive(Clone)]
pub struct Client {
    http: Http<HttpConnector, Full<Bytes>>,
    /// Scheme, host and port, without a path.
    base: String,
    key: Option<HeaderValue>,
    wishes: Wishes,
}

/// An address that nothing can be asked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No URL.
    #[error("{0:?} is no address of the form http://HOST:PORT")]
    Form(String),
    /// TLS.
    #[error("{0:?}: https is not spoken")]
    Tls(String),
    /// The key cannot stand in a header.
    #[error("the API key holds a character that no header can")]
    Key,
}

impl Client {
    /// A client of the server at `url`, with or without `/v1` behind it.
    ///
    /// # Errors
    /// No address, one that needs TLS, or a key that is none.
    pub fn new(url: &str, key: Option<&str>, wishes: Wishes) -> Result<Self, AddressError> {
        let form = || AddressError::Form(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| form())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(AddressError::Tls(url.to_owned())),
            _ => return Err(form()),
        }
        let base = url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).to_owned();
        let key = match key {
            Some(key) => {
                let mut value =
                    HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| AddressError::Key)?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let http = Http::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Client { http, base, key, wishes })
    }

    /// Where it asks.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Name of the model.
    pub fn model(&self) -> &str {
        &self.wishes.model
    }

    /// Asks for another model from now on.
    pub fn set_model(&mut self, name: String) {
        self.wishes.model = name;
    }

    /// The first model that the server lists.
    ///
    /// # Errors
    /// It cannot be reached, or lists none.
    pub async fn first_model(&self) -> Result<String, Failure> {
        let response = self.send(Method::GET, "/v1/models", Bytes::new()).await?;
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(|e| Failure::Cut(format!("GET /v1/models: {e}")))?.to_bytes();
        let list: Value = serde_json::from_slice(&body)
            .map_err(|e| Failure::Malformed(format!("GET /v1/models gives no JSON: {e}")))?;
        match list["data"][0]["id"].as_str() {
            Some(name) => Ok(name.to_owned()),
            None => Err(Failure::Malformed("GET /v1/models lists no model".to_owned())),
        }
    }

    /// Asks and tells `watch` of everything that comes.
    ///
    /// # Errors
    /// The answer did not come, or not whole.
    pub async fn ask(&self, ask: Ask, watch: &mut Watch) -> Result<(), Failure> {
        let (path, body) = self.body(ask);
        let response = self.send(Method::POST, path, Bytes::from(body)).await?;
        let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("none");
        if !kind.starts_with("text/event-stream") {
            return Err(Failure::Malformed(format!("content type {kind}: the server does not stream")));
        }
        let mut body = response.into_body();
        let mut events = Events::default();
        while let Some(frame) = body.frame().await {
            let frame = match frame {
                Ok(frame) => frame,
                // Everything that matters may have come before the connection went.
                Err(_) if watch.is_finished() => break,
                Err(e) => return Err(Failure::Cut(causes(&e))),
            };
            if let Some(bytes) = frame.data_ref() {
                events.push(bytes, |data| event_stream::read(data, watch))?;
            }
        }
        if watch.is_finished() {
            Ok(())
        } else {
            Err(Failure::Cut("it ended without a finish_reason".to_owned()))
        }
    }

    fn body(&self, ask: Ask) -> (&'static str, String) {
        let mut map = self.wishes.fields.clone();
        let mut set = |name: &str, value: Value| map.insert(name.to_owned(), value);
        set("model", self.wishes.model.as_str().into());
        set("max_tokens", ask.max_tokens.into());
        set("stream", true.into());
        set("stream_options", json!({"include_usage": true}));
        let path = match ask.prompt {
            Prompt::Messages(messages) => {
                set("messages", messages.into());
                "/v1/chat/completions"
            }
            Prompt::Text(text) if self.wishes.chat => {
                set("messages", json!([{"role": "user", "content": text}]));
                "/v1/chat/completions"
            }
            Prompt::Text(text) => {
                set("prompt", text.into());
                "/v1/completions"
            }
            Prompt::Ids(ids) => {
                set("prompt", ids.into());
                "/v1/completions"
            }
        };
        (path, Value::Object(map).to_string())
    }

    /// Sends and judges the status.
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "text/event-stream, application/json");
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key);
        }
        let request = request.body(Full::new(body)).map_err(|e| Failure::Refused(e.to_string()))?;
        let response = self.http.request(request).await.map_err(|e| {
            if e.is_connect() { Failure::Connect(causes(&e)) } else { Failure::Cut(causes(&e)) }
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let hint = response.body().size_hint().upper();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body = body.map(|b| b.to_bytes()).unwrap_or_default();
        let message = match serde_json::from_slice::<Value>(&body) {
            Ok(json) => message(json.get("error").unwrap_or(&json)),
            Err(_) if hint == Some(0) || body.is_empty() => {
                status.canonical_reason().unwrap_or("no message").to_owned()
            }
            Err(_) => shorten(&String::from_utf8_lossy(&body)),
        };
        Err(Failure::Status { status: status.as_u16(), message })
    }
}

/// An error with what is behind it, as the outermost often says nothing.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(url: &str, chat: bool) -> Result<Client, AddressError> {
        let fields = json!({"temperature": 0}).as_object().cloned().unwrap_or_default();
        Client::new(url, Some("key"), Wishes { model: "m".to_owned(), chat, fields })
    }

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
            assert_eq!(client(url, false).unwrap().base(), "http://h:1", "{url}");
        }
        assert_eq!(client("http://h/proxy/v1", false).unwrap().base(), "http://h/proxy");
        assert!(matches!(client("https://h", false), Err(AddressError::Tls(_))));
        for url in ["", "h:1", "ftp://h", "http//h", "http://"] {
            assert!(matches!(client(url, false), Err(AddressError::Form(_))), "{url}");
        }
    }

    #[test]
    fn each_prompt_goes_to_its_api() {
        let messages = vec![json!({"role": "user", "content": "t"})];
        for (prompt, chat, path, field) in [
            (Prompt::Text("t".into()), false, "/v1/completions", ("prompt", json!("t"))),
            (Prompt::Text("t".into()), true, "/v1/chat/completions", ("messages", json!(messages))),
            (Prompt::Ids(vec![1, 2]), false, "/v1/completions", ("prompt", json!([1, 2]))),
            (
                Prompt::Messages(messages.clone()),
                false,
                "/v1/chat/completions",
                ("messages", json!(messages)),
            ),
        ] {
            let (at, body) = client("http://h", chat).unwrap().body(Ask { prompt, max_tokens: 5 });
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!((at, &body[field.0]), (path, &field.1));
            assert_eq!(
                (&body["max_tokens"], &body["model"], &body["temperature"]),
                (&json!(5), &json!("m"), &json!(0))
            );
            assert_eq!(
                (&body["stream"], &body["stream_options"]["include_usage"]),
                (&json!(true), &json!(true))
            );
        }
    }
}
