//! In-flight batching: queue, scheduler, block pool; pure, no clock, no I/O.
