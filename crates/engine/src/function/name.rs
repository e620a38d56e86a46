//! Names of expressions inside plans. DataFusion names a call after all that is in it and asks for names at every level of
//! an expression, which for one of a few hundred levels is megabytes of text. No user sees these names: columns have
//! Spark's (see `sql::naming`).

use std::hash::{DefaultHasher, Hasher};

use datafusion::common::Result;
use datafusion::logical_expr::Expr;

/// Names of more bytes than this are cut.
const LONGEST: usize = 400;
const KEPT: usize = 120;

/// `name(arguments)`; of a long one the beginning and a hash of the whole.
pub(crate) fn call_name(name: &str, args: &[Expr]) -> Result<String> {
    let mut text = format!("{name}(");
    for (i, arg) in args.iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        text.push_str(&arg.schema_name().to_string());
    }
    text.push(')');
    if text.len() <= LONGEST {
        return Ok(text);
    }
    // Two hashes, of the text and of the text with something before it: one of 64 bits is too easily that of another.
    let hash = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        hasher.write_u8(seed);
        hasher.write(text.as_bytes());
        hasher.finish()
    };
    let hashes = format!("...{:016x}{:016x})", hash(0), hash(1));
    text.truncate(text.floor_char_boundary(KEPT));
    Ok(text + &hashes)
}
