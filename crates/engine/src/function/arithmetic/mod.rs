//! Arithmetic with Spark's types and errors (ANSI on): `+ - * / div %`, `pmod`, negation, `abs`, and the `try_` forms,
//! which give null where the others fail.

mod chain;
mod decimal;
mod number;
mod types;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Datum, new_empty_array, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::name::call_name;
pub(crate) use chain::{chain_type, join};
pub(crate) use types::{operands, text_operand};

/// One of Arrow's kernels.
type Kernel = fn(&dyn Datum, &dyn Datum) -> Result<ArrayRef, ArrowError>;

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Add,
    Subtract,
    Multiply,
    Divide,
    /// `a div b`: the whole part of the quotient, always a BIGINT.
    IntegralDivide,
    /// `a % b`, with the sign of `a`.
    Remainder,
    /// `pmod(a, b)`, never negative for a positive `b`.
    PositiveRemainder,
    Negate,
    Absolute,
}

impl Operation {
    pub(crate) fn is_unary(self) -> bool {
        matches!(self, Operation::Negate | Operation::Absolute)
    }

    pub(crate) fn symbol(self) -> &'static str {
        match self {
            Operation::Add => "+",
            Operation::Subtract | Operation::Negate => "-",
            Operation::Multiply => "*",
            Operation::Divide => "/",
            Operation::IntegralDivide => "div",
            Operation::Remainder => "%",
            Operation::PositiveRemainder => "pmod",
            Operation::Absolute => "abs",
        }
    }

    /// The function that Spark recommends in the messages of failures.
    fn lenient_name(self) -> Option<&'static str> {
        match self {
            Operation::Add => Some("try_add"),
            Operation::Subtract => Some("try_subtract"),
            Operation::Multiply => Some("try_multiply"),
            Operation::Divide | Operation::IntegralDivide => Some("try_divide"),
            Operation::Remainder | Operation::PositiveRemainder => Some("try_mod"),
            Operation::Negate | Operation::Absolute => None,
        }
    }
}

/// Why one row has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Overflow,
    Zero,
}

/// An operation as a function of DataFusion.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Arithmetic {
    operation: Operation,
    name: &'static str,
    /// Null instead of an error.
    lenient: bool,
    signature: Signature,
}

const FUNCTIONS: [(Operation, &str, bool); 14] = [
    (Operation::Add, "__add", false),
    (Operation::Subtract, "__subtract", false),
    (Operation::Multiply, "__multiply", false),
    (Operation::Divide, "__divide", false),
    (Operation::IntegralDivide, "div", false),
    (Operation::Remainder, "mod", false),
    (Operation::PositiveRemainder, "pmod", false),
    (Operation::Negate, "negative", false),
    (Operation::Absolute, "abs", false),
    (Operation::Add, "try_add", true),
    (Operation::Subtract, "try_subtract", true),
    (Operation::Multiply, "try_multiply", true),
    (Operation::Divide, "try_divide", true),
    (Operation::Remainder, "try_mod", true),
];

/// All functions of this module.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    FUNCTIONS.into_iter().map(|(operation, name, lenient)| udf(operation, name, lenient)).collect()
}

/// The function behind an operator.
pub(crate) fn operator(operation: Operation) -> Arc<ScalarUDF> {
    let name = FUNCTIONS.iter().find(|(o, _, _)| *o == operation).map_or("__add", |(_, name, _)| name);
    udf(operation, name, false)
}

/// Whether a function of this name can fail on some rows.
pub(crate) fn is_fallible(name: &str) -> bool {
    name == chain::NAME || FUNCTIONS.iter().any(|(_, n, lenient)| *n == name && !lenient)
}

fn udf(operation: Operation, name: &'static str, lenient: bool) -> Arc<ScalarUDF> {
    let signature = Signature::user_defined(Volatility::Immutable);
    Arc::new(ScalarUDF::new_from_impl(Arithmetic { operation, name, lenient, signature }))
}

/// One side of an operation: an array, or one value that stands for all rows.
struct Operand {
    array: ArrayRef,
    scalar: bool,
}

impl Datum for Operand {
    fn get(&self) -> (&dyn Array, bool) {
        (self.array.as_ref(), self.scalar)
    }
}

impl Operand {
    fn new(value: &ColumnarValue, to: Option<&DataType>) -> Result<Self> {
        let (array, scalar) = match value {
            ColumnarValue::Array(array) => (Arc::clone(array), false),
            ColumnarValue::Scalar(value) => (value.to_array()?, true),
        };
        let array = match to {
            Some(to) if array.data_type() != to => cast(&array, to)?,
            _ => array,
        };
        Ok(Operand { array, scalar })
    }

    fn row(&self, row: usize) -> usize {
        if self.scalar { 0 } else { row }
    }

    fn is_null(&self, row: usize) -> bool {
        self.array.is_null(self.row(row))
    }
}

impl ScalarUDFImpl for Arithmetic {
    fn name(&self) -> &str {
        self.name
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        call_name(self.name, args)
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        types::result(self.operation, self.name, arg_types)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        types::operands(self.operation, self.name, arg_types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        if args.number_rows == 0 {
            return Ok(ColumnarValue::Array(new_empty_array(args.return_field.data_type())));
        }
        let constant = args.args.iter().all(|a| matches!(a, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        let result = self.compute(&args.args, rows, args.return_field.data_type())?;
        if constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?));
        }
        Ok(ColumnarValue::Array(result))
    }
}

impl Arithmetic {
    fn compute(&self, args: &[ColumnarValue], rows: usize, to: &DataType) -> Result<ArrayRef> {
        let decimal = args.iter().any(|a| matches!(a.data_type(), DataType::Decimal128(_, _)));
        let (left, right) = match args {
            [one] => (one, None),
            [left, right] => (left, Some(right)),
            _ => return exec_err!("{} has too many arguments", self.name),
        };
        if args.iter().any(|a| a.data_type() == DataType::Null) {
            return Ok(new_null_array(to, rows));
        }
        // A whole quotient is computed on its operands' type; everything else on the result's.
        let on = if self.operation == Operation::IntegralDivide { &DataType::Int64 } else { to };
        let on = (!decimal).then_some(on);
        let left = Operand::new(left, on)?;
        match right {
            Some(right) => {
                let right = Operand::new(right, on)?;
                if decimal {
                    return decimal::binary(self, &left, &right, rows, to);
                }
                number::binary(self, &left, &right, rows)
            }
            None => number::unary(self, &left),
        }
    }

    /// The error of a fault; `shown` are the operands, where the message has them.
    fn fail<T>(&self, fault: Fault, kind: &str, shown: Option<(String, String)>) -> Result<T> {
        let instead = self.operation.lenient_name().unwrap_or_default();
        match (fault, self.operation) {
            (Fault::Zero, Operation::Remainder | Operation::PositiveRemainder) => exec_err!(
                "[REMAINDER_BY_ZERO] Remainder by zero. Use `try_mod` to tolerate divisor being 0 and return NULL instead. SQLSTATE: 22012"
            ),
            (Fault::Zero, _) => exec_err!(
                "[DIVIDE_BY_ZERO] Division by zero. Use `try_divide` to tolerate divisor being 0 and return NULL instead. SQLSTATE: 22012"
            ),
            (Fault::Overflow, Operation::IntegralDivide) => exec_err!(
                "[ARITHMETIC_OVERFLOW] Overflow in integral divide. Use 'try_divide' to tolerate overflow and return NULL instead. SQLSTATE: 22003"
            ),
            (Fault::Overflow, Operation::Negate | Operation::Absolute) => {
                exec_err!("[ARITHMETIC_OVERFLOW] {kind} overflow. SQLSTATE: 22003")
            }
            (Fault::Overflow, operation) => match shown {
                Some((left, right)) => exec_err!(
                    "[BINARY_ARITHMETIC_OVERFLOW] {left} {} {right} caused overflow. Use `{instead}` to ignore overflow problem and return NULL. SQLSTATE: 22003",
                    operation.symbol()
                ),
                None => exec_err!(
                    "[ARITHMETIC_OVERFLOW] {kind} overflow. Use '{instead}' to tolerate overflow and return NULL instead. SQLSTATE: 22003"
                ),
            },
        }
    }
}
