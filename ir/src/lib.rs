//! Graph IR: ops, types, symbolic dims, text form, verifier, reference interpreter, patches.
