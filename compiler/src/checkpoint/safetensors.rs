//! Tensors of safetensors files, single or sharded. Headers are read and checked at once, bytes when asked for.
//!
//! Bytes come by positioned reads and not from a map: a file that shrinks meanwhile is an error and not a signal, and
//! the page cache serves both alike.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lathe_numerics::DType;
use safetensors::Dtype as Stored;
use safetensors::tensor::Metadata;
use serde_json::Value;

use super::source::{TensorInfo, TensorSource};
use super::{parse_object, read_optional};
use crate::error::{CompileError, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The format's own bound on its header.
const HEADER_LIMIT: u64 = 100_000_000;

/// All tensors of a checkpoint directory.
#[derive(Debug)]
pub struct SafetensorsSource {
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
}

#[derive(Debug)]
struct Tensor {
    shard: usize,
    /// Byte offset in the file.
    offset: u64,
    stored: Stored,
    shape: Vec<usize>,
}

impl SafetensorsSource {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// No such files; a shard that is missing, truncated or no safetensors file; a tensor in two shards, or in the
    /// index and not in its shard.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut source = SafetensorsSource { shards: Vec::new(), tensors: BTreeMap::new() };
        if dir.join(SINGLE).exists() {
            source.add_shard(dir, SINGLE)?;
            return Ok(source);
        }
        let Some(bytes) = read_optional(&dir.join(INDEX))? else { return Err(no_weights(dir)) };
        let index = parse_object(INDEX, &bytes)?;
        let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
            return Err(CompileError::input(INDEX, "has no object weight_map"));
        };
        let mut files = BTreeSet::new();
        for (tensor, file) in map {
            match file.as_str() {
                // A shard lies beside its index: a path in the index could name any file of the machine.
                Some(name) if !name.is_empty() && !name.contains(['/', '\\']) && name != ".." => {
                    files.insert(name);
                }
                _ => {
                    return Err(CompileError::input(
                        INDEX,
                        format!("{tensor} lies in {file}, which is no file name"),
                    ));
                }
            }
        }
        let missing: Vec<&str> = files.iter().copied().filter(|f| !dir.join(f).exists()).collect();
        if let Some(first) = missing.first() {
            let why = format!("is missing: {} of {} shards are not there", missing.len(), files.len());
            return Err(CompileError::input(*first, why).remedy("complete the download of the checkpoint"));
        }
        for file in files {
            source.add_shard(dir, file)?;
        }
        for (tensor, file) in map {
            let file = file.as_str().unwrap_or_default();
            match source.tensors.get(tensor) {
                Some(t) if source.shards[t.shard].path.ends_with(file) => {}
                Some(t) => {
                    let seen = file_name(&source.shards[t.shard].path);
                    let why = format!("{tensor} lies in {seen} and not in {file}");
                    return Err(CompileError::input(INDEX, why));
                }
                None => return Err(CompileError::input(INDEX, format!("{tensor} is not in {file}"))),
            }
        }
        Ok(source)
    }

    fn add_shard(&mut self, dir: &Path, name: &str) -> Result<()> {
        let path = dir.join(name);
        let io = |e| CompileError::io(&path, e);
        let file = File::open(&path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let truncated = |want: u64| {
            CompileError::input(name, format!("is truncated: {length} bytes, and its header asks for {want}"))
                .remedy("download the file again")
        };
        let mut first = [0; 8];
        if length < 8 {
            return Err(truncated(8));
        }
        file.read_exact_at(&mut first, 0).map_err(io)?;
        let header_len = u64::from_le_bytes(first);
        if header_len > HEADER_LIMIT {
            return Err(CompileError::input(
                name,
                "is no safetensors file: its first 8 bytes are no header size",
            ));
        }
        let data = 8 + header_len;
        if data > length {
            return Err(truncated(data));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact_at(&mut header, 8).map_err(io)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|e| CompileError::input(name, format!("has a header that is not valid: {e}")))?;
        let want = data + metadata.data_len() as u64;
        if want > length {
            return Err(truncated(want));
        }
        let shard = self.shards.len();
        for (tensor, info) in metadata.tensors() {
            if let Some(earlier) = self.tensors.get(&tensor) {
                let other = file_name(&self.shards[earlier.shard].path);
                return Err(CompileError::input(tensor, format!("stands in {other} and in {name}")));
            }
            let offset = data + info.data_offsets.0 as u64;
            self.tensors
                .insert(tensor, Tensor { shard, offset, stored: info.dtype, shape: info.shape.clone() });
        }
        self.shards.push(Shard { path, file });
        Ok(())
    }
}

impl TensorSource for SafetensorsSource {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        let tensor = self.tensors.get(name)?;
        Some(TensorInfo { dtype: dtype_of(tensor.stored)?, shape: tensor.shape.clone() })
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn stored_type(&self, name: &str) -> Option<String> {
        self.tensors.get(name).map(|t| format!("{:?}", t.stored))
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let (Some(info), Some(tensor)) = (self.info(name), self.tensors.get(name)) else {
            return Err(CompileError::Bug(format!("tensor {name} is read and was never imported")));
        };
        info.check_rows(name, &rows, out.len())?;
        let shard = &self.shards[tensor.shard];
        shard
            .file
            .read_exact_at(out, tensor.offset + (rows.start * info.row_bytes()) as u64)
            .map_err(|e| CompileError::io(&shard.path, e))
    }
}

/// The types that Lathe reads; others may stand in a checkpoint as long as nothing needs them.
fn dtype_of(stored: Stored) -> Option<DType> {
    match stored {
        Stored::F32 => Some(DType::F32),
        Stored::F16 => Some(DType::F16),
        Stored::BF16 => Some(DType::BF16),
        _ => None,
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

/// Says what is there instead of safetensors.
fn no_weights(dir: &Path) -> CompileError {
    let what = dir.display().to_string();
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    let find =
        |end: &str| names.iter().find(|n| n.ends_with(end) || n.ends_with(&format!("{end}.index.json")));
    if let Some(bin) = find(".bin").or_else(|| find(".pth")).or_else(|| find(".pt")) {
        return CompileError::input(what, format!("holds {bin} and no safetensors: pickled weights are not read"))
            .remedy(
                "convert it once with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)",
            );
    }
    if let Some(other) = find(".safetensors") {
        return CompileError::input(what, format!("holds {other}, but neither {SINGLE} nor {INDEX}"))
            .remedy("use the checkpoint in Hugging Face form");
    }
    if let Some(gguf) = find(".gguf") {
        return CompileError::input(what, format!("holds {gguf}: GGUF is not read"))
            .remedy("use the original checkpoint that it was converted from");
    }
    CompileError::input(what, format!("holds neither {SINGLE} nor {INDEX}"))
        .remedy("complete the download of the checkpoint")
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{TensorView, serialize};

    fn file(tensors: &[(&str, Stored, &[usize])]) -> Vec<u8> {
        let data: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, d, s)| (0..s.iter().product::<usize>() * d.bitsize() / 8).map(|i| i as u8).collect())
            .collect();
        let views = tensors
            .iter()
            .zip(&data)
            .map(|((n, d, s), bytes)| (n.to_string(), TensorView::new(*d, s.to_vec(), bytes).unwrap()));
        serialize(views.collect::<Vec<_>>(), None).unwrap()
    }

    fn dir(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        dir
    }

    fn index(map: &[(&str, &str)]) -> Vec<u8> {
        let map: serde_json::Map<_, _> = map.iter().map(|(t, f)| (t.to_string(), Value::from(*f))).collect();
        serde_json::json!({"metadata": {}, "weight_map": map}).to_string().into_bytes()
    }

    #[test]
    fn rows_come_as_stored_from_one_file_or_many() {
        let a = file(&[("a", Stored::BF16, &[4, 3]), ("ids", Stored::I64, &[2])]);
        let b = file(&[("b", Stored::F32, &[5])]);
        let sharded = dir(&[
            (INDEX, index(&[("a", "1.safetensors"), ("b", "2.safetensors")])),
            ("1.safetensors", a.clone()),
            ("2.safetensors", b),
        ]);
        for d in [dir(&[(SINGLE, a)]), sharded] {
            let source = SafetensorsSource::open(d.path()).unwrap();
            assert_eq!(source.info("a"), Some(TensorInfo { dtype: DType::BF16, shape: vec![4, 3] }));
            assert_eq!(source.info("ids"), None);
            assert_eq!(source.stored_type("ids").as_deref(), Some("I64"));
            let mut rows = [0; 12];
            source.read_rows("a", 1..3, &mut rows).unwrap();
            assert_eq!(rows, [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]);
            for (range, bytes) in [(3..5, 12), (0..1, 5)] {
                assert!(source.read_rows("a", range, &mut vec![0; bytes]).is_err());
            }
            if source.names().contains(&"b") {
                let mut one = [0; 4];
                source.read_rows("b", 4..5, &mut one).unwrap();
                assert_eq!(one, [16, 17, 18, 19]);
            }
        }
    }

    #[test]
    fn every_way_of_being_wrong_is_named() {
        let good = || file(&[("a", Stored::F32, &[8])]);
        let cut = |n: usize| good()[..n].to_vec();
        let whole = good().len();
        type Row<'a> = (Vec<(&'a str, Vec<u8>)>, String, &'a str);
        let rows: Vec<Row<'_>> = vec![
            (vec![], format!("holds neither {SINGLE} nor {INDEX}"), "complete the download"),
            (
                vec![("pytorch_model.bin", vec![1])],
                "holds pytorch_model.bin and no safetensors: pickled weights are not read".into(),
                "save_pretrained",
            ),
            (
                vec![("pytorch_model.bin.index.json", vec![1])],
                "holds pytorch_model.bin.index.json and no safetensors".into(),
                "save_pretrained",
            ),
            (
                vec![("consolidated.safetensors", good())],
                "holds consolidated.safetensors, but".into(),
                "Hugging Face form",
            ),
            (vec![("q.gguf", vec![1])], "GGUF is not read".into(), "original checkpoint"),
            (
                vec![(SINGLE, cut(whole - 1))],
                format!("{SINGLE}: is truncated: {} bytes, and its header asks for {whole}", whole - 1),
                "again",
            ),
            (vec![(SINGLE, cut(20))], format!("{SINGLE}: is truncated: 20 bytes"), "again"),
            (
                vec![(SINGLE, cut(3))],
                format!("{SINGLE}: is truncated: 3 bytes, and its header asks for 8"),
                "again",
            ),
            (vec![(SINGLE, b"version https://git-lfs".to_vec())], "is no safetensors file".into(), ""),
            (
                vec![(SINGLE, [&[2u8, 0, 0, 0, 0, 0, 0, 0][..], b"[]"].concat())],
                "has a header that is not valid".into(),
                "",
            ),
            (vec![(INDEX, b"{}".to_vec())], format!("{INDEX}: has no object weight_map"), ""),
            (
                vec![(INDEX, index(&[("a", "../a.safetensors")]))],
                "a lies in \"../a.safetensors\", which is no file name".into(),
                "",
            ),
            (
                vec![
                    (INDEX, index(&[("a", "1.safetensors"), ("b", "2.safetensors")])),
                    ("1.safetensors", good()),
                ],
                "2.safetensors: is missing: 1 of 2 shards are not there".into(),
                "complete the download",
            ),
            (
                vec![
                    (INDEX, index(&[("a", "1.safetensors"), ("b", "2.safetensors")])),
                    ("1.safetensors", good()),
                    ("2.safetensors", good()),
                ],
                "a: stands in 1.safetensors and in 2.safetensors".into(),
                "",
            ),
            (
                vec![
                    (INDEX, index(&[("a", "1.safetensors"), ("b", "1.safetensors")])),
                    ("1.safetensors", good()),
                ],
                format!("{INDEX}: b is not in 1.safetensors"),
                "",
            ),
            (
                vec![
                    (INDEX, index(&[("a", "2.safetensors"), ("b", "1.safetensors")])),
                    ("1.safetensors", good()),
                    ("2.safetensors", file(&[("b", Stored::F32, &[1])])),
                ],
                format!("{INDEX}: a lies in 1.safetensors and not in 2.safetensors"),
                "",
            ),
        ];
        for (files, why, advice) in rows {
            let error = SafetensorsSource::open(dir(&files).path()).unwrap_err();
            assert!(error.to_string().contains(&why), "{error} lacks {why}");
            let CompileError::Input { remedy, .. } = error else { panic!("{error}") };
            assert!(remedy.as_deref().unwrap_or("").contains(advice), "{why}: {remedy:?} lacks {advice}");
        }
    }
}
