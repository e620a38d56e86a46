//! The query loop against streams fed by hand.

mod aggregates;
mod checks;
mod modes;
mod progress;
mod recovery;
pub mod support;
mod triggers;
