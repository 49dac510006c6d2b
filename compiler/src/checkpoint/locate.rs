//! Finds a model: a directory, or a hub id in the local Hugging Face cache. Nothing is downloaded.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{CompileError, Result};

/// Where `huggingface_hub` keeps what it downloaded; `None` if no home directory is known.
#[derive(Clone, Debug, Default)]
pub struct HubCache(pub Option<PathBuf>);

impl HubCache {
    /// The cache by the rules of huggingface_hub: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME/hub`,
    /// `XDG_CACHE_HOME/huggingface/hub`, `~/.cache/huggingface/hub`.
    pub fn from_env(var: impl Fn(&str) -> Option<OsString>) -> Self {
        let var = |name| var(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        HubCache(
            var("HF_HUB_CACHE")
                .or_else(|| var("HUGGINGFACE_HUB_CACHE"))
                .or_else(|| var("HF_HOME").map(|p| p.join("hub")))
                .or_else(|| var("XDG_CACHE_HOME").map(|p| p.join("huggingface/hub")))
                .or_else(|| var("HOME").map(|p| p.join(".cache/huggingface/hub"))),
        )
    }
}

/// A checkpoint's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Directory with config.json.
    pub dir: PathBuf,
    /// The id, if the model was named by one.
    pub hub_id: Option<String>,
}

/// Resolves what stands after `--model`.
///
/// # Errors
/// A path that does not exist, is a file or holds no config.json; an id that is not in the cache.
pub fn locate(model: &str, cache: &HubCache) -> Result<Located> {
    let path = Path::new(model);
    if path.is_dir() {
        return whole(path.to_path_buf(), None);
    }
    if path.is_file() {
        return Err(CompileError::input(
            model,
            "is a file, and a checkpoint is a directory with config.json and safetensors",
        )
        .remedy(match path.extension().and_then(|e| e.to_str()) {
            Some("gguf") => {
                "GGUF is not read: use the original checkpoint that it was converted from".to_owned()
            }
            _ => format!("pass its directory: --model {}", path.parent().unwrap_or(path).display()),
        }));
    }
    if !is_hub_id(model) {
        return Err(CompileError::input(model, "no such directory"));
    }
    let download = format!("download it with: hf download {model}");
    let Some(cache) = &cache.0 else {
        return Err(CompileError::input(
            model,
            "no such directory, and no Hugging Face cache is known (HF_HOME, HOME)",
        )
        .remedy(download));
    };
    let repo = cache.join(format!("models--{}", model.replace('/', "--")));
    let reference = repo.join("refs/main");
    let revision = match std::fs::read_to_string(&reference) {
        Ok(text) => text.trim().to_owned(),
        Err(_) => {
            return Err(CompileError::input(
                model,
                format!("no such directory, and not in the Hugging Face cache {}", cache.display()),
            )
            .remedy(download));
        }
    };
    let dir = repo.join("snapshots").join(&revision);
    if !revision.chars().all(|c| c.is_ascii_alphanumeric()) || !dir.is_dir() {
        return Err(CompileError::input(
            model,
            format!("{} names revision {revision:?}, whose snapshot is missing", reference.display()),
        )
        .remedy(download));
    }
    whole(dir, Some(model.to_owned()))
}

fn whole(dir: PathBuf, hub_id: Option<String>) -> Result<Located> {
    if dir.join("config.json").is_file() {
        return Ok(Located { dir, hub_id });
    }
    let what = hub_id.clone().unwrap_or_else(|| dir.display().to_string());
    let error = CompileError::input(what, "holds no config.json");
    Err(match hub_id {
        Some(id) => error.remedy(format!("complete the download with: hf download {id}")),
        None => error.remedy("pass the directory of a checkpoint in Hugging Face form"),
    })
}

/// `org/name` in the alphabet of the hub.
fn is_hub_id(text: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && !p.starts_with('.')
            && p.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    matches!(text.split_once('/'), Some((org, name)) if part(org) && part(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(vars: &[(&str, &str)]) -> HubCache {
        HubCache::from_env(|name| vars.iter().find(|(k, _)| *k == name).map(|(_, v)| OsString::from(v)))
    }

    #[test]
    fn cache_follows_the_environment_in_order() {
        let all = [("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b"), ("XDG_CACHE_HOME", "/c"), ("HOME", "/d")];
        for (skip, want) in
            [(0, "/a"), (1, "/b/hub"), (2, "/c/huggingface/hub"), (3, "/d/.cache/huggingface/hub")]
        {
            assert_eq!(env(&all[skip..]).0, Some(PathBuf::from(want)));
        }
        assert_eq!(env(&[("HF_HOME", ""), ("HOME", "/d")]).0, Some("/d/.cache/huggingface/hub".into()));
        assert_eq!(env(&[]).0, None);
    }

    #[test]
    fn an_id_resolves_through_refs_main() {
        let home = tempfile::tempdir().unwrap();
        let repo = home.path().join("models--org--tiny");
        let snapshot = repo.join("snapshots/abc123");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(repo.join("refs")).unwrap();
        std::fs::write(repo.join("refs/main"), "abc123\n").unwrap();
        let cache = HubCache(Some(home.path().to_path_buf()));

        let missing = locate("org/tiny", &cache).unwrap_err();
        assert_eq!(missing.to_string(), "org/tiny: holds no config.json");

        std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        let found = locate("org/tiny", &cache).unwrap();
        assert_eq!(found, Located { dir: snapshot, hub_id: Some("org/tiny".into()) });

        std::fs::write(repo.join("refs/main"), "fff").unwrap();
        let gone = locate("org/tiny", &cache).unwrap_err().to_string();
        assert!(gone.contains("revision \"fff\", whose snapshot is missing"), "{gone}");
    }

    #[test]
    fn what_is_nowhere_says_how_to_get_it() {
        let home = tempfile::tempdir().unwrap();
        let cache = HubCache(Some(home.path().to_path_buf()));
        let check = |model: &str, why: &str, advice: Option<&str>| match locate(model, &cache).unwrap_err() {
            CompileError::Input { what, why: seen, remedy } => {
                assert_eq!(what, model);
                assert!(seen.contains(why), "{seen}");
                match advice {
                    Some(a) => assert!(remedy.as_deref().unwrap_or("").contains(a), "{remedy:?}"),
                    None => assert_eq!(remedy, None),
                }
            }
            other => panic!("{other}"),
        };
        check("org/absent", "not in the Hugging Face cache", Some("hf download org/absent"));
        check("/no/such/dir", "no such directory", None);
        check("./rel/dir", "no such directory", None);
        let file = home.path().join("model.gguf");
        std::fs::write(&file, "GGUF").unwrap();
        check(file.to_str().unwrap(), "is a file", Some("GGUF is not read"));
        let empty = home.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        check(empty.to_str().unwrap(), "holds no config.json", Some("Hugging Face form"));
    }
}
