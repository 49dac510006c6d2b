//! `runtime generate`: one prompt, streamed to standard output.

use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches};
use lathe_api::TokenLogprob;
use lathe_diagnostics::{Diagnostic, Exit};
use serde_json::{Map, Value, json};

use super::console::print;
use super::faults::{self, Outcome};
use super::load::EngineSettings;
use super::session::{Session, executor};
use super::{knobs, path, resolve};
use crate::backend::Backend;
use crate::generation::{Generation, Job};
use crate::http::{ApiError, Fields};
use crate::model::Model;
use crate::sampling::{Sampling, completion_logprobs};

/// Arguments that say how to draw, named as the API's fields.
const NUMBERS: [(&str, &str); 9] = [
    ("temperature", "0 draws the likeliest token; the model's default unless set"),
    ("top-k", "Draw among the K likeliest"),
    ("top-p", "Draw among the likeliest that sum to P"),
    ("min-p", "Draw among those with at least P of the likeliest's probability"),
    ("repetition-penalty", "Above 1 makes tokens of prompt and answer less likely"),
    ("presence-penalty", "Subtracted from tokens that the answer holds"),
    ("frequency-penalty", "Subtracted as often as the answer holds the token"),
    ("seed", "Key of the random numbers; another each time unless set"),
    ("logprobs", "Report logprobs with so many alternatives (with --json)"),
];

/// Sampling arguments of `generate` and `chat`.
pub fn args() -> Vec<Arg> {
    let mut args: Vec<Arg> = NUMBERS
        .iter()
        .map(|(name, help)| {
            Arg::new(*name).long(*name).value_name("X").allow_negative_numbers(true).help(*help)
        })
        .collect();
    args.push(
        Arg::new("max-tokens")
            .long("max-tokens")
            .value_name("N")
            .help("Longest answer; the rest of the context unless set"),
    );
    args.push(
        Arg::new("stop")
            .long("stop")
            .value_name("TEXT")
            .action(ArgAction::Append)
            .help("Ends the answer; may be repeated"),
    );
    args.push(
        Arg::new("ignore-eos")
            .long("ignore-eos")
            .action(ArgAction::SetTrue)
            .help("Go on past the model's end tokens"),
    );
    args
}

/// What the sampling arguments ask for.
pub struct Drawing {
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Longest answer.
    pub max_tokens: Option<u32>,
    /// Alternatives to report.
    pub logprobs: Option<u8>,
}

impl Drawing {
    /// Reads the arguments through the same checks that requests go through.
    ///
    /// # Errors
    /// A value that does not parse or is out of range.
    pub fn new(matches: &ArgMatches, model: &Model) -> Outcome<Self> {
        let mut map = Map::new();
        for name in NUMBERS.iter().map(|(name, _)| *name).chain(["max-tokens"]) {
            if let Some(text) = matches.get_one::<String>(name) {
                let value: Value =
                    serde_json::from_str(text).ok().filter(Value::is_number).ok_or_else(|| {
                        Diagnostic::new(Exit::Usage, format!("--{name}: {text:?} is not a number"))
                    })?;
                map.insert(name.replace('-', "_"), value);
            }
        }
        if let Some(stops) = matches.get_many::<String>("stop") {
            map.insert("stop".into(), stops.cloned().collect());
        }
        map.insert("ignore_eos".into(), matches.get_flag("ignore-eos").into());
        let mut fields = Fields::of(map);
        let mut read = || {
            Ok(Drawing {
                sampling: Sampling::from_fields(&mut fields, &model.defaults)?,
                max_tokens: fields.integer_in("max_tokens", 1, u32::MAX.into())?.map(|n| n as u32),
                logprobs: completion_logprobs(&mut fields)?,
            })
        };
        read().map_err(faults::request)
    }

    /// A job for one prompt.
    ///
    /// # Errors
    /// The prompt is empty or does not fit the context.
    pub fn job(&self, prompt: Vec<u32>, model: &Model) -> Result<Job, ApiError> {
        let room = crate::http::room("prompt", prompt.len(), self.max_tokens, None, model.max_seq_len)?;
        Ok(Job {
            prompts: vec![prompt.into()],
            max_tokens: vec![room],
            sampling: self.sampling.clone(),
            top_logprobs: self.logprobs,
            score_prompt: false,
        })
    }
}

/// Reads `1,2,3`.
///
/// # Errors
/// Something that is no id, or an id outside of the vocabulary.
pub fn token_ids(text: &str, vocab_size: u32) -> Outcome<Vec<u32>> {
    text.split(',')
        .map(|part| match part.trim().parse::<u32>() {
            Ok(id) if id < vocab_size => Ok(id),
            Ok(id) => Err(format!("{id} is not below the vocabulary's {vocab_size}")),
            Err(_) => Err(format!("{part:?} is not a token id")),
        })
        .collect::<Result<_, _>>()
        .map_err(|why| Diagnostic::new(Exit::Usage, format!("--token-ids: {why}")))
}

/// Continues one prompt.
pub fn run(matches: &ArgMatches) -> Outcome<Exit> {
    let settings = resolve(matches, &[knobs::ENGINE], None)?;
    let session = Session::open(&path(matches, "plan"), &EngineSettings::new(&settings)?)?;
    let model = session.model.clone();
    let prompt = match (matches.get_one::<String>("prompt"), matches.get_one::<String>("token-ids")) {
        (Some(text), _) => model
            .text
            .encode(text, true)
            .map_err(|e| Diagnostic::new(Exit::Usage, format!("--prompt: {e}")))?,
        (None, Some(ids)) => token_ids(ids, model.defaults.vocab_size)?,
        (None, None) => {
            return Err(
                Diagnostic::new(Exit::Usage, "prompt: missing").remedy("give --prompt or --token-ids")
            );
        }
    };
    let job = Drawing::new(matches, &model)?.job(prompt, &model).map_err(faults::request)?;
    let json = matches.get_flag("json");
    let exit = executor()?.block_on(async {
        tokio::select! {
            done = stream(&session, &model, &job, json) => done.map(|()| Exit::Ok),
            _ = tokio::signal::ctrl_c() => Ok(Exit::Interrupted),
        }
    })?;
    session.close()?;
    Ok(exit)
}

async fn stream(session: &Session, model: &Arc<Model>, job: &Job, as_json: bool) -> Outcome<()> {
    let mut generation = Generation::start(&session.handle, model, job).await.map_err(faults::generation)?;
    let n_choices = job.n_choices();
    let mut texts = vec![String::new(); n_choices];
    let mut drawn = vec![Vec::new(); n_choices];
    let mut ends = vec![None; n_choices];
    while let Some(piece) = generation.next().await.map_err(faults::generation)? {
        if !as_json {
            print(&piece.text)?;
        }
        texts[piece.choice].push_str(&piece.text);
        drawn[piece.choice].extend(piece.tokens);
        ends[piece.choice] = piece.end.map(|e| e.name());
    }
    if !as_json {
        return print("\n");
    }
    let entry = |t: &TokenLogprob| json!({"id": t.id, "text": model.text.spelling(t.id), "logprob": t.logprob, "rank": t.rank});
    let (text, tokens) = (&texts[0], &drawn[0]);
    let logprobs: Option<Vec<Value>> = job.top_logprobs.map(|_| {
        let scores = tokens.iter().filter_map(|t| t.score.as_ref());
        scores
            .map(|s| json!({"token": entry(&s.token), "top": s.top.iter().map(entry).collect::<Vec<_>>()}))
            .collect()
    });
    let prompt = &job.prompts[0];
    let result = json!({
        "prompt_ids": prompt[..],
        "ids": tokens.iter().map(|t| t.id).collect::<Vec<_>>(),
        "text": text,
        "logprobs": logprobs,
        "finish_reason": ends[0],
        "seed": job.sampling.params.seed,
        "path": session.handle.name(),
        "usage": {
            "prompt_tokens": prompt.len(),
            "completion_tokens": tokens.len(),
            "total_tokens": prompt.len() + tokens.len(),
        },
    });
    print(&format!("{result}\n"))
}
