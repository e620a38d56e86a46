//! Joins by common columns. DataFusion takes such a column from one side, as if both had the same value: what would give
//! other rows than Spark's, which has the value of the side that is there, is refused.

use sqlparser::ast::{JoinConstraint, JoinOperator, Select, SelectItem, TableFactor};

use super::error::SqlError;
use super::token::unmark;

/// Fails for a join of the query whose common columns would be wrong.
pub(super) fn check(select: &Select) -> Result<(), SqlError> {
    let wildcard = select.projection.iter().any(|item| matches!(item, SelectItem::Wildcard(_)));
    for from in &select.from {
        let mut left = vec![qualifier(&from.relation)];
        for join in &from.joins {
            let right = qualifier(&join.relation);
            let (constraint, one_sided) = match &join.join_operator {
                JoinOperator::Right(c) | JoinOperator::RightOuter(c) | JoinOperator::FullOuter(c) => (c, true),
                JoinOperator::Join(c) | JoinOperator::Inner(c) | JoinOperator::Left(c) | JoinOperator::LeftOuter(c) => {
                    (c, false)
                }
                _ => continue,
            };
            if matches!(constraint, JoinConstraint::Using(_) | JoinConstraint::Natural) {
                let hint = "Write ON l.c = r.c, and coalesce(l.c, r.c) AS c among the columns.";
                if one_sided {
                    return Err(SqlError::unsupported("a RIGHT or FULL join with USING or NATURAL").hint(hint));
                }
                // Of all columns the common one is that of the first name.
                if wildcard && left.iter().any(|left| *left > right) {
                    let what =
                        format!("SELECT * over a join with USING or NATURAL of `{}` with `{right}`", left.join("`, `"));
                    return Err(SqlError::unsupported(what)
                        .hint("Name the columns, or give the left table a name that sorts before the right one's."));
                }
            }
            left.push(right);
        }
    }
    Ok(())
}

/// The name of a relation in the query.
fn qualifier(relation: &TableFactor) -> String {
    let name = match relation {
        TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } => {
            alias.name.value.clone()
        }
        TableFactor::Table { name, .. } => {
            name.0.last().and_then(|part| part.as_ident()).map(|ident| ident.value.clone()).unwrap_or_default()
        }
        _ => String::new(),
    };
    unmark(&name).map_or(name.clone(), |(_, name)| name.to_owned())
}
