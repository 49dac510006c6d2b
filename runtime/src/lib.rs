//! The server and command line that run an engine plan.
//!
//! One engine thread owns engine, scheduler and sequences; requests talk to it by messages through
//! [`backend::Backend`]. Text lives in the requests' own tasks.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod backend;
pub mod bench;
pub mod cli;
pub mod engine_thread;
pub mod generation;
pub mod http;
pub mod metrics;
pub mod model;
pub mod perplexity;
pub mod sampling;
mod sequence;
