//! Integration tests of the engine.

mod file_sink;
mod file_source;
mod show;
