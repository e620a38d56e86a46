//! The broker (placeholder until the server lands).

pub mod group;
