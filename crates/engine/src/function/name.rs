//! Names of expressions inside plans. DataFusion names a call after all that is in it and asks for names at every level of
//! an expression, which for one of a few hundred levels is megabytes of text. No user sees these names: columns have
//! Spark's (see `sql::naming`).

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
    let hashes = format!("...{:032x})", fnv1a(text.as_bytes()));
    text.truncate(text.floor_char_boundary(KEPT));
    Ok(text + &hashes)
}

/// FNV-1a of 128 bits. The same in every build: state on disk may know an expression by its name.
fn fnv1a(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}
