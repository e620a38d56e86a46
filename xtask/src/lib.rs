//! Code generation and the checks that keep the house tidy.

pub mod protocol;
pub mod schema;
pub mod tables;
