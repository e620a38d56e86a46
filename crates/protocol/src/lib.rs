//! (placeholder docs)
