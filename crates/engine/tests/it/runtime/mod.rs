//! The query loop against streams fed by hand.

mod aggregates;
mod checks;
mod modes;
mod progress;
mod recovery;
mod support;
mod triggers;
