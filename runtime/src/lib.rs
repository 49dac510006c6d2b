//! The server and command line that run an engine plan.
