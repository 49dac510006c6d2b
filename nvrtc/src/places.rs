//! Where NVRTC and the cache are.

use std::env;
use std::path::PathBuf;

use crate::VERSION;

/// Names of the library in a folder, newest first.
pub(crate) const LIBRARIES: &[&str] = &["libnvrtc.so.13", "libnvrtc.so.12"];

/// Where everything fetched and derived is kept, as tools/test has it: `$LATHE_CACHE`, `$XDG_CACHE_HOME/lathe`,
/// `~/.cache/lathe`; `None` without a home directory.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("LATHE_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("lathe")))
        .or_else(|| Some(set("HOME")?.join(".cache").join("lathe")))
}

/// The folder that tools/cuda-kit fills: `lib/` and `bin/` (cuobjdump, nvdisasm).
pub fn kit() -> Option<PathBuf> {
    Some(cache_folder()?.join(format!("cuda-kit-{VERSION}")))
}

/// A place to look for NVRTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Folders of one installation.
    Folders { what: String, folders: Vec<PathBuf> },
    /// The dynamic linker's own search.
    System,
}

/// Places in the order of search. A home that is set is the only one: nothing else answers for it silently.
pub(crate) fn places() -> Vec<Place> {
    if let Some(home) = env::var_os("LATHE_CUDA_HOME").filter(|v| !v.is_empty()) {
        let home = PathBuf::from(home);
        let folders =
            ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "nvidia/cu13/lib", "."]
                .map(|folder| home.join(folder))
                .to_vec();
        return vec![Place::Folders { what: format!("LATHE_CUDA_HOME {}", home.display()), folders }];
    }
    let kit = kit().map(|kit| Place::Folders {
        what: format!("the kit {}", kit.display()),
        folders: vec![kit.join("lib")],
    });
    std::iter::once(Place::System).chain(kit).collect()
}
