//! The interpreter's KV cache: plain rows per sequence and layer.

use lathe_numerics::DType;

use crate::facts::Cache;

/// K and V of every sequence, rounded to the cache's type.
#[derive(Clone, Debug, PartialEq)]
pub struct KvState {
    cache: Cache,
    /// By slot, then layer.
    slots: Vec<Vec<LayerKv>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct LayerKv {
    k: Vec<f32>,
    v: Vec<f32>,
}

impl KvState {
    /// An empty cache as declared by a graph; `None` for a graph without cache.
    pub fn new(cache: Option<&Cache>) -> Self {
        let none = Cache { name: "none".into(), dtype: DType::F32, layers: 0, kv_heads: 0, head_dim: 0 };
        Self { cache: cache.cloned().unwrap_or(none), slots: Vec::new() }
    }

    /// Elements of K, or of V, per position and layer.
    pub fn width(&self) -> usize {
        self.cache.kv_heads * self.cache.head_dim
    }

    /// Positions held in a slot by all layers; 0 for an unused slot.
    pub fn len(&self, slot: usize) -> usize {
        let shortest = self.slots.get(slot).and_then(|layers| layers.iter().map(|l| l.k.len()).min());
        shortest.unwrap_or(0).checked_div(self.width()).unwrap_or(0)
    }

    /// True if the slot holds no position.
    pub fn is_empty(&self, slot: usize) -> bool {
        self.len(slot) == 0
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, slot: usize, len: usize) {
        let elements = len * self.width();
        for layer in self.slots.get_mut(slot).into_iter().flatten() {
            layer.k.truncate(elements);
            layer.v.truncate(elements);
        }
    }

    /// K and V rows of a slot's layer, `[positions, kv_heads * head_dim]` each.
    pub fn rows(&self, slot: usize, layer: usize) -> Option<(&[f32], &[f32])> {
        self.slots.get(slot)?.get(layer).map(|l| (l.k.as_slice(), l.v.as_slice()))
    }

    /// Writes one position, which must be the next one of this slot and layer; `k` and `v` are rounded.
    pub(crate) fn push(
        &mut self,
        slot: usize,
        layer: usize,
        position: usize,
        k: &[f32],
        v: &[f32],
    ) -> Result<(), String> {
        let (width, layers, dtype) = (self.width(), self.cache.layers, self.cache.dtype);
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || vec![LayerKv::default(); layers]);
        }
        let kv =
            self.slots[slot].get_mut(layer).ok_or_else(|| format!("layer {layer} is outside the cache"))?;
        if kv.k.len() != position * width {
            let held = kv.k.len().checked_div(width).unwrap_or(0);
            return Err(format!(
                "slot {slot} holds {held} positions of layer {layer}, cannot append {position}"
            ));
        }
        kv.k.extend(k.iter().map(|&x| dtype.round(x)));
        kv.v.extend(v.iter().map(|&x| dtype.round(x)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_rounded_and_appended_in_order() {
        let cache = Cache { name: "kv".into(), dtype: DType::BF16, layers: 2, kv_heads: 1, head_dim: 2 };
        let mut kv = KvState::new(Some(&cache));
        kv.push(1, 0, 0, &[1.0, 257.0], &[3.0, 4.0]).unwrap();
        assert_eq!(kv.rows(1, 0), Some((&[1.0, 256.0][..], &[3.0, 4.0][..])));
        assert_eq!(kv.len(1), 0, "layer 1 holds nothing yet");
        kv.push(1, 1, 0, &[0.0; 2], &[0.0; 2]).unwrap();
        assert_eq!((kv.len(1), kv.is_empty(0), kv.is_empty(7)), (1, true, true));
        let gap = kv.push(1, 0, 2, &[0.0; 2], &[0.0; 2]).unwrap_err();
        assert_eq!(gap, "slot 1 holds 1 positions of layer 0, cannot append 2");
        kv.truncate(1, 0);
        assert!(kv.is_empty(1));
    }
}
