//! Imported graphs under the reference interpreter against what torch and transformers say: the meaning of a model,
//! before any pass or kernel.

use std::collections::HashMap;
use std::fs;
use std::sync::Mutex;

use lathe_compiler::checkpoint::{Checkpoint, HubCache, TensorSource, Tokenizer};
use lathe_compiler::import::import;
use lathe_compiler::options::Options;
use lathe_ir::{Batch, BatchSequence, Interpreter, KvState, Tensor, WeightSource};
use lathe_numerics::DType;
use lathe_tests::golden::Golden;
use lathe_tests::{fixture, root};

/// Checkpoint tensors as the interpreter takes them.
struct Weights<'a>(&'a dyn TensorSource, Mutex<HashMap<String, Tensor>>);

impl WeightSource for Weights<'_> {
    fn tensor(&self, name: &str) -> Result<Tensor, String> {
        let mut kept = self.1.lock().unwrap();
        if let Some(tensor) = kept.get(name) {
            return Ok(tensor.clone());
        }
        let info = self.0.info(name).ok_or("absent")?;
        let mut bytes = vec![0; info.len() * info.dtype.size()];
        self.0.read_rows(name, 0..info.rows(), &mut bytes).map_err(|e| e.to_string())?;
        let word = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
        let data = match info.dtype {
            DType::BF16 => bytes.chunks(2).map(|b| f32::from_bits(u32::from(word(b)) << 16)).collect(),
            DType::F16 => bytes.chunks(2).map(|b| half::f16::from_bits(word(b)).to_f32()).collect(),
            _ => bytes.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        };
        let tensor = Tensor::float(info.dtype, info.shape, data);
        kept.insert(name.into(), tensor.clone());
        Ok(tensor)
    }
}

#[test]
fn imported_graphs_match_torch() {
    let mut goldens: Vec<_> =
        fs::read_dir(root().join("tools/goldens/logits")).unwrap().map(|e| e.unwrap().path()).collect();
    goldens.sort();
    let mut wrong = Vec::new();
    let mut held = 0;
    for path in goldens {
        let case = path.file_stem().unwrap().to_string_lossy().into_owned();
        let dir = match case.strip_prefix("parity-") {
            Some(name) => fixture(&format!("parity/{name}")),
            // The demo model's prompts are long and the interpreter is slow; the engine is held to them.
            None if case.starts_with("demo") => continue,
            None => fixture(&case),
        };
        let checkpoint = Checkpoint::open(dir.to_str().unwrap(), &HubCache(None), &Tokenizer::None).unwrap();
        let golden = Golden::read(&path).unwrap();
        let options = Options { max_seq_len: Some(golden.max_seq_len), ..Options::default() };
        let imported = import(&checkpoint, &options).unwrap();
        let weights = Weights(checkpoint.tensors.as_ref(), Mutex::default());
        let interpreter = Interpreter::new(&imported.graph, &weights).unwrap();
        let n = golden.ids.len();
        let mut kv = KvState::new(imported.graph.cache());
        // A few positions at a time: the whole prompt's logits of the large vocabulary need not stand in one tensor.
        let mut logits = Vec::new();
        for start in (0..n).step_by(16) {
            let tokens: Vec<i32> = golden.ids[start..n.min(start + 16)].iter().map(|&id| id as i32).collect();
            let rows = (0..tokens.len()).collect();
            let batch = Batch::new(vec![BatchSequence { slot: 0, start, tokens, rows }]);
            let outputs = interpreter.run(&batch, &mut kv).unwrap();
            logits.extend_from_slice(outputs.tensors[0].1.floats().unwrap());
        }
        match golden.check(&logits, imported.card.vocab_size as usize, case.ends_with("-f32")) {
            Ok(d) => println!("{case}: {d:?}"),
            Err(e) => wrong.push(format!("{case}: {e}")),
        }
        held += 1;
    }
    assert!(held >= 38, "only {held} goldens were there");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
