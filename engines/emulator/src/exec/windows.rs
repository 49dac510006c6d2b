//! The generic address space: where the windows of the state spaces lie in it.

/// First device address.
pub const GLOBAL_BASE: u64 = 0x10_0000_0000;
/// Shared memory of the block.
pub const SHARED_BASE: u64 = 0x1_0000_0000;
/// The thread's own memory.
pub const LOCAL_BASE: u64 = 0x2_0000_0000;
/// Length of the shared and of the local window.
pub const WINDOW: u64 = 1 << 24;
