//! The engine plan: format, codec, reader, verifier, inspector.
