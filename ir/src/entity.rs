//! Typed `u32` ids and the dense, append-only tables they index.

use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

/// A typed index into a [`Table`].
pub trait Id: Copy + Eq {
    /// Id of the `index`-th entry.
    fn from_index(index: usize) -> Self;
    /// Position in the table.
    fn index(self) -> usize;
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(u32);

        impl Id for $name {
            fn from_index(index: usize) -> Self {
                Self(index as u32)
            }
            fn index(self) -> usize {
                self.0 as usize
            }
        }
    )*};
}

ids! {
    /// An operation of a graph.
    NodeId;
    /// A value: graph input, weight or output of a node.
    ValueId;
    /// A symbolic dimension.
    SymbolId;
    /// A weight declaration.
    WeightId;
}

/// Entries of type `V` indexed by `K`. Entries are never removed, so ids stay valid for the table's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table<K, V> {
    entries: Vec<V>,
    key: PhantomData<K>,
}

impl<K: Id, V> Table<K, V> {
    /// An empty table.
    pub fn new() -> Self {
        Self { entries: Vec::new(), key: PhantomData }
    }

    /// Appends an entry and returns its id.
    pub fn push(&mut self, entry: V) -> K {
        self.entries.push(entry);
        K::from_index(self.entries.len() - 1)
    }

    /// The entry, or `None` for an id of another table.
    pub fn get(&self, id: K) -> Option<&V> {
        self.entries.get(id.index())
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The id that the next [`Table::push`] will return.
    pub fn next_id(&self) -> K {
        K::from_index(self.entries.len())
    }

    /// All entries with their ids, in order of creation.
    pub fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        self.entries.iter().enumerate().map(|(i, v)| (K::from_index(i), v))
    }
}

impl<K: Id, V> Default for Table<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Id, V> Index<K> for Table<K, V> {
    type Output = V;
    fn index(&self, id: K) -> &V {
        &self.entries[id.index()]
    }
}

impl<K: Id, V> IndexMut<K> for Table<K, V> {
    fn index_mut(&mut self, id: K) -> &mut V {
        &mut self.entries[id.index()]
    }
}
