//! The weight table.

use std::collections::HashSet;

use super::VerifyError;
use crate::schema::Weight;

pub(super) fn check(weights: &[Weight], data_bytes: u64) -> Result<(), VerifyError> {
    let mut names = HashSet::new();
    for w in weights {
        let name = || w.name.clone();
        if !names.insert((&w.name, w.layout)) {
            return Err(VerifyError::WeightTwice { name: name(), layout: w.layout.name() });
        }
        let Some(want) = w.layout.bytes(w.dtype, &w.shape) else {
            let (layout, dtype, shape) = (w.layout.name(), w.dtype, w.shape.clone());
            return Err(VerifyError::WeightShape { name: name(), layout, dtype, shape });
        };
        if w.bytes != want {
            return Err(VerifyError::WeightBytes { name: name(), bytes: w.bytes, want });
        }
        if !w.offset.is_multiple_of(64) {
            return Err(VerifyError::WeightAlignment { name: name(), offset: w.offset });
        }
        let end = u128::from(w.offset) + u128::from(w.bytes);
        if end > u128::from(data_bytes) {
            return Err(VerifyError::WeightRange { name: name(), end, data_bytes });
        }
    }
    let mut order: Vec<&Weight> = weights.iter().collect();
    order.sort_by_key(|w| w.offset);
    for pair in order.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            let (first, second) = (pair[0].name.clone(), pair[1].name.clone());
            return Err(VerifyError::WeightOverlap { first, second });
        }
    }
    Ok(())
}
