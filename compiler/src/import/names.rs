//! Under which of its names a checkpoint stores a tensor: exports differ in what stands before the model's own names.

use std::borrow::Cow;

use crate::checkpoint::TensorSource;

/// Prefixes of an architecture's names, and what checkpoints may say instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names(pub &'static [(&'static str, &'static str)]);

impl Names {
    /// The name under which `source` has the tensor; `name` itself where it has none of them.
    pub fn stored<'n>(&self, source: &dyn TensorSource, name: &'n str) -> Cow<'n, str> {
        let has = |name: &str| source.stored_type(name).is_some();
        if has(name) {
            return Cow::Borrowed(name);
        }
        let other = |(prefix, instead): &(&str, &str)| {
            name.strip_prefix(prefix).map(|rest| format!("{instead}{rest}")).filter(|n| has(n))
        };
        self.0.iter().find_map(other).map_or(Cow::Borrowed(name), Cow::Owned)
    }
}
