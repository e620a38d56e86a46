//! The query loop against streams fed by hand.

mod aggregates;
mod checks;
mod modes;
mod recovery;
mod support;
