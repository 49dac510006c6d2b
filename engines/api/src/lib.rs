//! Engine trait and batch schema.
