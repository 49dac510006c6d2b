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
    /// The id, if the model was named by one; without the revision.
    pub hub_id: Option<String>,
}

/// Resolves what stands after `--model`: a directory, `org/name`, or `org/name@revision`, where a revision is a branch, a tag
/// or a whole commit hash. A directory of that name comes first.
///
/// # Errors
/// A path that does not exist, is a file or holds no config.json; an id or a revision that is not in the cache.
pub fn locate(model: &str, cache: &HubCache) -> Result<Located> {
    let path = Path::new(model);
    if path.is_dir() {
        if path.join("config.json").is_file() {
            return Ok(Located { dir: path.to_path_buf(), hub_id: None });
        }
        return Err(CompileError::input(path.display().to_string(), "holds no config.json")
            .remedy("pass the directory of a checkpoint in Hugging Face form"));
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
    let (id, asked) = match model.split_once('@') {
        Some((id, revision)) => (id, Some(revision)),
        None => (model, None),
    };
    if !is_hub_id(id) || !asked.is_none_or(is_revision) {
        return Err(CompileError::input(model, "no such directory"));
    }
    let download = match asked {
        Some(revision) => format!("download it with: hf download {id} --revision {revision}"),
        None => format!("download it with: hf download {id}"),
    };
    let Some(cache) = &cache.0 else {
        return Err(CompileError::input(
            model,
            "no such directory, and no Hugging Face cache is known (HF_HOME, HOME)",
        )
        .remedy(download));
    };
    let repo = cache.join(format!("models--{}", id.replace('/', "--")));
    let revision = asked.unwrap_or("main");
    let (refs, snapshots) = (repo.join("refs"), repo.join("snapshots"));
    let reference = refs.join(revision);
    let Ok(commit) = std::fs::read_to_string(&reference) else {
        let snapshot = snapshots.join(revision);
        if asked.is_some() && is_commit(revision) && snapshot.is_dir() {
            return whole(snapshot, id, &download);
        }
        let held = held(&refs, &snapshots);
        let why = match held.is_empty() {
            true => format!("no such directory, and not in the Hugging Face cache {}", cache.display()),
            false => format!("the Hugging Face cache {} has no revision {revision} of it", cache.display()),
        };
        let remedy = match held.is_empty() {
            true => download,
            false => format!("{download}; there are: {}", held.join(", ")),
        };
        return Err(CompileError::input(model, why).remedy(remedy));
    };
    let commit = commit.trim();
    let dir = snapshots.join(commit);
    if !is_commit(commit) || !dir.is_dir() {
        let why = format!("{} names revision {commit:?}, whose snapshot is missing", reference.display());
        return Err(CompileError::input(model, why).remedy(download));
    }
    whole(dir, id, &download)
}

/// The revisions of a repository that lie in the cache, `org/name@` left out: names with their commits, then the commits
/// that have no name.
fn held(refs: &Path, snapshots: &Path) -> Vec<String> {
    let entries = |dir: &Path| -> Vec<PathBuf> {
        let mut all: Vec<_> =
            std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
        all.sort();
        all
    };
    let (mut folders, mut named) = (vec![refs.to_path_buf()], Vec::new());
    while let Some(folder) = folders.pop() {
        for path in entries(&folder) {
            if path.is_dir() {
                folders.push(path);
            } else if let (Ok(name), Ok(commit)) = (path.strip_prefix(refs), std::fs::read_to_string(&path)) {
                named.push((name.display().to_string(), commit.trim().to_owned()));
            }
        }
    }
    named.retain(|(_, commit)| is_commit(commit) && snapshots.join(commit).is_dir());
    named.sort();
    let commits = entries(snapshots).into_iter().filter_map(|p| Some(p.file_name()?.to_str()?.to_owned()));
    let unnamed = commits.filter(|c| named.iter().all(|(_, commit)| commit != c));
    let unnamed: Vec<String> = unnamed.collect();
    named.into_iter().map(|(name, commit)| format!("{name} ({commit})")).chain(unnamed).collect()
}

/// A snapshot that holds a checkpoint.
fn whole(dir: PathBuf, id: &str, download: &str) -> Result<Located> {
    if dir.join("config.json").is_file() {
        return Ok(Located { dir, hub_id: Some(id.to_owned()) });
    }
    Err(CompileError::input(id, "holds no config.json").remedy(download.replacen(
        "download it",
        "complete it",
        1,
    )))
}

/// A commit's hash as the cache names snapshots.
fn is_commit(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric())
}

/// A branch, a tag, `refs/pr/1` or a commit: never a way out of the cache.
fn is_revision(text: &str) -> bool {
    text.split('/').all(is_name)
}

/// `org/name` in the alphabet of the hub.
fn is_hub_id(text: &str) -> bool {
    matches!(text.split_once('/'), Some((org, name)) if is_name(org) && is_name(name))
}

fn is_name(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('.')
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
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
    fn a_revision_is_a_name_or_a_commit() {
        let home = tempfile::tempdir().unwrap();
        let repo = home.path().join("models--org--tiny");
        let cache = HubCache(Some(home.path().to_path_buf()));
        let (one, two, pull) = ("1".repeat(40), "2".repeat(40), "3".repeat(40));
        for commit in [&one, &two, &pull] {
            let snapshot = repo.join("snapshots").join(commit);
            std::fs::create_dir_all(&snapshot).unwrap();
            std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        }
        std::fs::create_dir_all(repo.join("refs/refs/pr")).unwrap();
        // The branch main was never asked for.
        for (name, commit) in [("v1.0", &one), ("refs/pr/7", &pull), ("gone", &"4".repeat(40))] {
            std::fs::write(repo.join("refs").join(name), commit).unwrap();
        }
        for (revision, commit) in [("v1.0", &one), ("refs/pr/7", &pull), (&*two, &two), (&*one, &one)] {
            let found = locate(&format!("org/tiny@{revision}"), &cache).unwrap();
            let dir = repo.join("snapshots").join(commit);
            assert_eq!(found, Located { dir, hub_id: Some("org/tiny".into()) }, "{revision}");
        }
        let there = format!("there are: refs/pr/7 ({pull}), v1.0 ({one}), {two}");
        for (model, why, advice) in [
            ("org/tiny", "has no revision main of it", &*format!("hf download org/tiny; {there}")),
            (
                "org/tiny@v2",
                "has no revision v2 of it",
                &format!("hf download org/tiny --revision v2; {there}"),
            ),
            ("org/tiny@gone", "whose snapshot is missing", "hf download org/tiny --revision gone"),
            ("org/other@v1.0", "not in the Hugging Face cache", "hf download org/other --revision v1.0"),
        ] {
            let Err(CompileError::Input { what, why: seen, remedy }) = locate(model, &cache) else {
                panic!("{model}")
            };
            assert_eq!((&*what, seen.contains(why)), (model, true), "{seen}");
            assert_eq!(remedy.as_deref(), Some(&*format!("download it with: {advice}")), "{model}");
        }
        for model in ["org/tiny@", "org/tiny@../v1.0", "org/tiny@/etc", "org/tiny@v1.0@v1.0"] {
            assert_eq!(locate(model, &cache).unwrap_err().to_string(), format!("{model}: no such directory"));
        }
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
