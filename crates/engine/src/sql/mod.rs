//! Spark SQL text: from a script to statements, from statements to plans, queries and tables.
//!
//! Start at [`SqlSession`]. A statement's way: [`token`] (places), [`rewrite`] (what `sqlparser` does not know),
//! [`statement`] (the statement's head), [`ast`] (Spark's meaning), [`planner`] (DataFusion's hooks), [`resolve`]
//! (the plan, or an error with its place).

mod ast;
mod balance;
mod calls;
mod catalog;
mod connect;
mod ctas;
mod dialect;
mod duplicate;
pub mod error;
mod interval;
mod memory;
mod naming;
mod number;
mod objects;
mod plain;
mod planner;
mod qualifier;
mod resolve;
mod rewrite;
mod rows;
mod session;
mod settings;
mod statement;
mod streaming;
mod streaming_clauses;
mod token;
mod using;

pub use error::{Place, SqlError};
pub use objects::PLAIN_TEXT;
pub use resolve::function_names;
pub use rows::RowStream;
pub use session::{SessionConfig, SqlSession, StatementResult};
pub use statement::Statement;
pub use streaming::StreamingSelect;
