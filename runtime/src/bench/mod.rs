//! The load generator of `runtime bench`: what a server does to its users under a load that is stated and repeatable.
//!
//! `dataset` says what is asked, `load` when, `client` and `direct` ask, `watch` notes when tokens come, `driver` runs
//! one load, `summary` and `goal` make numbers of what was noted, `report` shows them. All but the askers and the driver
//! are pure.
//!
//! Latencies count from the moment at which a request was due, not from when it could be sent: in an open loop a server
//! that is late makes later requests late as well, and a client that waited with them would hide it.

pub mod client;
pub mod dataset;
pub mod direct;
pub mod driver;
mod event_stream;
pub mod goal;
pub mod load;
mod random;
pub mod report;
pub mod summary;
pub mod watch;

use watch::{Failure, Watch};

/// Who answers: a server, or an engine in this process.
#[derive(Clone)]
pub enum Target {
    /// Any OpenAI server.
    Http(client::Client),
    /// The engine without HTTP.
    Direct(direct::Direct),
}

impl Target {
    /// Asks and tells `watch` of everything that comes.
    ///
    /// # Errors
    /// The answer did not come, or not whole.
    pub async fn ask(&self, ask: dataset::Ask, watch: &mut Watch) -> Result<(), Failure> {
        match self {
            Target::Http(client) => client.ask(ask, watch).await,
            Target::Direct(engine) => engine.ask(ask, watch).await,
        }
    }
}
