//! How values look as text, as Spark writes them: tables ([`show`]), cells ([`cell`]), JSON and CSV rows.

pub mod cell;
pub mod csv;
pub mod json;
pub mod lines;
pub mod show;
