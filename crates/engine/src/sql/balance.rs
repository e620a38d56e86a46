//! Long runs of one associative operator, `a OR b OR c ...`, as a tree with few levels instead of as many as operators:
//! planning looks at all that is below a level at each of them. `a || b ...` is the one call `concat(a, b, ...)`.

use sqlparser::ast::{BinaryOperator, Expr, Value};

use super::ast::call;

/// Operators from which on a run is balanced.
const LONG: usize = 16;

/// Balances the run that ends in `expr`. The operands stay in their order.
pub(super) fn balance(expr: &mut Expr) {
    let Expr::BinaryOp { op: op @ (BinaryOperator::And | BinaryOperator::Or | BinaryOperator::StringConcat), .. } =
        expr
    else {
        return;
    };
    let op = op.clone();
    let mut depth = 0;
    let mut at = &*expr;
    let long = if op == BinaryOperator::StringConcat { 1 } else { LONG };
    while let Expr::BinaryOp { left, op: own, .. } = at
        && *own == op
        && depth < long
    {
        at = left;
        depth += 1;
    }
    if depth < long {
        return;
    }
    let mut operands = Vec::new();
    let mut rest = std::mem::replace(expr, Expr::Value(Value::Null.into()));
    loop {
        match rest {
            Expr::BinaryOp { left, op: own, right } if own == op => {
                operands.push(*right);
                rest = *left;
            }
            first => {
                operands.push(first);
                break;
            }
        }
    }
    operands.reverse();
    if op == BinaryOperator::StringConcat {
        *expr = call("concat", operands);
        return;
    }
    if let Some(tree) = tree(operands, &op) {
        *expr = tree;
    }
}

fn tree(mut operands: Vec<Expr>, op: &BinaryOperator) -> Option<Expr> {
    if operands.len() < 2 {
        return operands.pop();
    }
    let right = operands.split_off(operands.len() / 2);
    let (left, right) = (tree(operands, op)?, tree(right, op)?);
    Some(Expr::BinaryOp { left: Box::new(left), op: op.clone(), right: Box::new(right) })
}
