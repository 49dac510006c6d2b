//! Tests across crates: filetests, parity, clients, tidy.
