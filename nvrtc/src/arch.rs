//! What may be compiled for.

use crate::NvrtcError;

/// Architectures with kernels, as NVRTC spells them.
const REAL: &[&str] = &["sm_80", "sm_86", "sm_89", "sm_90", "sm_120a"];

/// Architectures that measurements compile for; no plan holds code for them.
const PROBED: &[&str] = &["sm_90a"];

/// Targets that give PTX alone, for devices that come later.
const VIRTUAL: &[&str] = &["compute_80", "compute_86", "compute_89", "compute_90"];

/// Architectures that machine code is made for, oldest first. `compute_80` and its like, which give PTX alone, are
/// accepted besides, as is `sm_90a` for measurements.
pub const fn supported() -> &'static [&'static str] {
    REAL
}

/// A checked target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    name: &'a str,
}

impl<'a> Target<'a> {
    pub(crate) fn new(name: &'a str) -> Result<Self, NvrtcError> {
        if [REAL, PROBED, VIRTUAL].iter().any(|names| names.contains(&name)) {
            return Ok(Target { name });
        }
        let why = match name {
            "sm_100" | "sm_100a" | "sm_100f" | "sm_103" | "sm_103a" | "sm_103f" => {
                "its matrix units need kernels of their own (tcgen05), which do not exist yet".to_owned()
            }
            "sm_120" | "sm_120f" => "kernels are made for sm_120a".to_owned(),
            _ => "there are no kernels for it".to_owned(),
        };
        Err(NvrtcError::Arch { arch: name.to_owned(), why, supported: REAL.join(", ") })
    }

    /// As asked for.
    pub(crate) fn name(&self) -> &'a str {
        self.name
    }

    /// True if machine code is made.
    pub(crate) fn is_real(&self) -> bool {
        REAL.contains(&self.name) || PROBED.contains(&self.name)
    }

    /// The target of the PTX, e.g. `compute_120a` of `sm_120a`.
    pub(crate) fn virtual_name(&self) -> String {
        format!("compute_{}", self.name.trim_start_matches("compute_").trim_start_matches("sm_"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_real_or_virtual() {
        for name in supported() {
            assert!(Target::new(name).unwrap().is_real());
        }
        let probed = Target::new("sm_90a").unwrap();
        assert!(probed.is_real() && !supported().contains(&probed.name()));
        assert_eq!(Target::new("sm_120a").unwrap().virtual_name(), "compute_120a");
        let ptx = Target::new("compute_80").unwrap();
        assert!(!ptx.is_real());
        assert_eq!(ptx.virtual_name(), "compute_80");
    }

    #[test]
    fn others_are_refused_by_name_with_the_list() {
        for name in ["sm_100a", "sm_75", "sm_103a", "", "80", "sm_80 "] {
            let error = Target::new(name).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("architecture {name}")) && error.contains("sm_120a"),
                "{error}"
            );
        }
    }
}
