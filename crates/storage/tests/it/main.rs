//! Integration tests of the log.

mod append;
mod support;
