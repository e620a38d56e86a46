//! Long runs of operators, `a + b - c * ...`, as one function of many arguments. As calls inside calls they would cost
//! DataFusion time that grows with the cube of their number: every level asks for the types of all below it.

use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use arrow::array::new_empty_array;
use arrow::datatypes::DataType;

use super::super::name::call_name;
use super::types::{self, decimal_parts};
use super::{Arithmetic, Operation, operator};

pub(super) const NAME: &str = "__chain";
/// Operators from which on a run is a chain.
const LONG: usize = 64;

/// From the left: the first argument, then each further one with its operation.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Chain {
    operations: Vec<Operation>,
    /// Of the result, as planned.
    result: DataType,
    signature: Signature,
}

impl Chain {
    fn expr(operations: Vec<Operation>, result: DataType, args: Vec<Expr>) -> Expr {
        let signature = Signature::user_defined(Volatility::Immutable);
        ScalarUDF::new_from_impl(Chain { operations, result, signature }).call(args)
    }
}

/// The type of a chain, which is known without looking at its arguments.
pub(crate) fn chain_type(expr: &Expr) -> Option<&DataType> {
    match expr {
        Expr::ScalarFunction(call) => call.func.inner().downcast_ref::<Chain>().map(|chain| &chain.result),
        _ => None,
    }
}

/// `left operation right`, in the chain of `left` if that is one or becomes one. The operands are of the types given.
pub(crate) fn join(operation: Operation, left: Expr, right: Expr, types: &[DataType; 2]) -> Result<Expr> {
    let number = |ty: &DataType| decimal_parts(ty).is_some() || ty.is_floating();
    if !types.iter().all(number) || (chain_type(&left).is_none() && !is_long(&left)) {
        return Ok(operator(operation).call(vec![left, right]));
    }
    let result = types::result(operation, operation.symbol(), types)?;
    let (mut operations, mut args) = (Vec::new(), Vec::new());
    flatten(left, &mut operations, &mut args);
    operations.push(operation);
    args.push(right);
    Ok(Chain::expr(operations, result, args))
}

/// The operation of a call that the planner made of an operator.
fn planned(call: &ScalarFunction) -> Option<Operation> {
    let arithmetic = call.func.inner().downcast_ref::<Arithmetic>()?;
    (arithmetic.name.starts_with("__") && call.args.len() == 2).then_some(arithmetic.operation)
}

fn is_long(mut expr: &Expr) -> bool {
    for _ in 0..LONG {
        match expr {
            Expr::ScalarFunction(call) if planned(call).is_some() => match call.args.first() {
                Some(left) => expr = left,
                None => return false,
            },
            _ => return false,
        }
    }
    true
}

fn flatten(expr: Expr, operations: &mut Vec<Operation>, args: &mut Vec<Expr>) {
    let Expr::ScalarFunction(call) = expr else {
        args.push(expr);
        return;
    };
    if let Some(chain) = call.func.inner().downcast_ref::<Chain>() {
        operations.extend_from_slice(&chain.operations);
        args.extend(call.args);
    } else if let Some(operation) = planned(&call) {
        let mut sides = call.args.into_iter();
        if let (Some(left), Some(right)) = (sides.next(), sides.next()) {
            flatten(left, operations, args);
            operations.push(operation);
            args.push(right);
        }
    } else {
        args.push(Expr::ScalarFunction(call));
    }
}

impl ScalarUDFImpl for Chain {
    fn name(&self) -> &str {
        NAME
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let symbols: Vec<&str> = self.operations.iter().map(|operation| operation.symbol()).collect();
        call_name(&format!("{NAME} {}", symbols.concat()), args)
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(arg_types.to_vec())
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        let Some((first, rest)) = arg_types.split_first() else { return plan_err!("{NAME} needs arguments") };
        let mut result = first.clone();
        for (operation, next) in self.operations.iter().zip(rest) {
            result = types::result(*operation, operation.symbol(), &[result, next.clone()])?;
        }
        Ok(result)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        if args.number_rows == 0 {
            return Ok(ColumnarValue::Array(new_empty_array(args.return_field.data_type())));
        }
        let mut values = args.args.into_iter();
        let Some(mut result) = values.next() else { return plan_err!("{NAME} needs arguments") };
        for (operation, next) in self.operations.iter().zip(values) {
            result = step(*operation, &result, &next, args.number_rows)?;
        }
        Ok(result)
    }
}

fn step(operation: Operation, left: &ColumnarValue, right: &ColumnarValue, rows: usize) -> Result<ColumnarValue> {
    let given = [left.data_type(), right.data_type()];
    let to = types::result(operation, operation.symbol(), &given)?;
    let operands = types::operands(operation, operation.symbol(), &given)?;
    let mut sides = Vec::with_capacity(2);
    for (side, ty) in [left, right].into_iter().zip(&operands) {
        sides.push(side.cast_to(ty, None)?);
    }
    let constant = sides.iter().all(|side| matches!(side, ColumnarValue::Scalar(_)));
    let signature = Signature::user_defined(Volatility::Immutable);
    let arithmetic = Arithmetic { operation, name: operation.symbol(), lenient: false, signature };
    let result = arithmetic.compute(&sides, if constant { 1 } else { rows }, &to)?;
    Ok(if constant {
        ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)
    } else {
        ColumnarValue::Array(result)
    })
}
