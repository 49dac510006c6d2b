//! `runtime logits`: the engine's logits of every position, as safetensors.

use std::io::{BufWriter, Write};

use clap::ArgMatches;
use lathe_diagnostics::Exit;

use super::direct::each_logits;
use super::faults::{self, Outcome};
use super::generate::token_ids;
use super::load::{self, EngineSettings};
use super::{knobs, path, resolve};

/// Writes tensor `logits`, f32 `[tokens, vocab]`.
pub fn run(matches: &ArgMatches) -> Outcome<Exit> {
    let settings = resolve(matches, &[knobs::ENGINE], None)?;
    let plan = load::plan(&path(matches, "plan"))?;
    let text = matches.get_one::<String>("token-ids").map(String::as_str).unwrap_or_default();
    let ids = token_ids(text, plan.card().vocab_size)?;
    let mut engine = load::engine(&plan, &EngineSettings::new(&settings)?)?;
    let vocab = engine.info().vocab_size as usize;
    let output = path(matches, "output");
    let fault = || faults::io(format!("{}: cannot write", output.display()));
    let file = std::fs::File::create(&output).map_err(fault())?;
    let mut file = BufWriter::new(file);
    file.write_all(&header(ids.len(), vocab)).map_err(fault())?;
    // Rows are written as they come: the whole tensor may be larger than memory.
    let mut written = Ok(());
    each_logits(engine.as_mut(), &ids, |_, row| {
        if written.is_ok() {
            written = row.iter().try_for_each(|x| file.write_all(&x.to_le_bytes()));
        }
    })
    .map_err(faults::engine)?;
    written.and_then(|()| file.flush()).map_err(fault())?;
    tracing::info!(path = engine.info().path, tokens = ids.len(), vocab, "logits written");
    Ok(Exit::Ok)
}

/// Length and JSON header of a safetensors file with this one tensor, padded to 8 bytes.
fn header(tokens: usize, vocab: usize) -> Vec<u8> {
    let bytes = tokens as u64 * vocab as u64 * 4;
    let mut json =
        format!(r#"{{"logits":{{"dtype":"F32","shape":[{tokens},{vocab}],"data_offsets":[0,{bytes}]}}}}"#);
    while json.len() % 8 != 0 {
        json.push(' ');
    }
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(json.as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_by_the_format_s_own_crate() {
        let values = [1.0f32, -2.5, 3.0, f32::MIN_POSITIVE, 0.0, 6.0];
        let mut file = header(2, 3);
        file.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        let logits = tensors.tensor("logits").unwrap();
        assert_eq!((logits.shape(), logits.dtype()), (&[2, 3][..], safetensors::Dtype::F32));
        let back: Vec<f32> =
            logits.data().as_chunks().0.iter().map(|b: &[u8; 4]| f32::from_le_bytes(*b)).collect();
        assert_eq!(back, values);
    }
}
