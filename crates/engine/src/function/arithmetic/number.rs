//! Whole numbers and floating-point numbers: Arrow's checked kernels, and row by row where one of them failed.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowNativeTypeOp, ArrowPrimitiveType, AsArray, PrimitiveArray, PrimitiveBuilder};
use arrow::compute::kernels::numeric;
use arrow::datatypes::{DataType, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type};
use arrow::error::ArrowError;
use datafusion::common::{Result, exec_err};

use super::{Arithmetic, Fault, Kernel, Operand, Operation};

/// Both operands have the same type.
pub(super) fn binary(call: &Arithmetic, left: &Operand, right: &Operand, rows: usize) -> Result<ArrayRef> {
    match left.array.data_type() {
        DataType::Int8 => typed::<Int8Type>(call, left, right, rows),
        DataType::Int16 => typed::<Int16Type>(call, left, right, rows),
        DataType::Int32 => typed::<Int32Type>(call, left, right, rows),
        DataType::Int64 => typed::<Int64Type>(call, left, right, rows),
        DataType::Float32 => typed::<Float32Type>(call, left, right, rows),
        DataType::Float64 => typed::<Float64Type>(call, left, right, rows),
        other => exec_err!("{} does not compute on {other}", call.name),
    }
}

fn typed<T: ArrowPrimitiveType>(call: &Arithmetic, left: &Operand, right: &Operand, rows: usize) -> Result<ArrayRef>
where
    T::Native: ArrowNativeTypeOp,
{
    let fast: Option<Kernel> = match call.operation {
        Operation::Add => Some(numeric::add),
        Operation::Subtract => Some(numeric::sub),
        Operation::Multiply => Some(numeric::mul),
        Operation::Divide if !has_zero::<T>(right) => Some(numeric::div),
        _ => None,
    };
    if let Some(kernel) = fast
        && let Ok(result) = kernel(left, right)
    {
        return Ok(result);
    }
    let (l, r) = (left.array.as_primitive::<T>(), right.array.as_primitive::<T>());
    let mut builder = PrimitiveBuilder::<T>::with_capacity(rows);
    for row in 0..rows {
        if left.is_null(row) || right.is_null(row) {
            builder.append_null();
            continue;
        }
        let (a, b) = (l.value(left.row(row)), r.value(right.row(row)));
        match one(call.operation, a, b) {
            Ok(value) => builder.append_value(value),
            Err(_) if call.lenient => builder.append_null(),
            Err(fault) => return fail::<T>(call, fault, a, b),
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn has_zero<T: ArrowPrimitiveType>(operand: &Operand) -> bool
where
    T::Native: ArrowNativeTypeOp,
{
    operand.array.as_primitive::<T>().values().iter().any(|v| v.is_zero())
}

fn one<N: ArrowNativeTypeOp>(operation: Operation, a: N, b: N) -> Result<N, Fault> {
    let overflow = |_: ArrowError| Fault::Overflow;
    match operation {
        Operation::Add => a.add_checked(b).map_err(overflow),
        Operation::Subtract => a.sub_checked(b).map_err(overflow),
        Operation::Multiply => a.mul_checked(b).map_err(overflow),
        _ if b.is_zero() => Err(Fault::Zero),
        Operation::Divide | Operation::IntegralDivide => a.div_checked(b).map_err(overflow),
        Operation::PositiveRemainder => {
            let rest = a.mod_wrapping(b);
            if rest.is_lt(N::ZERO) { Ok(rest.add_wrapping(b).mod_wrapping(b)) } else { Ok(rest) }
        }
        // The least number has no remainder by -1 in Rust; in Java, and here, it is 0.
        _ => Ok(a.mod_wrapping(b)),
    }
}

fn fail<T: ArrowPrimitiveType>(call: &Arithmetic, fault: Fault, a: T::Native, b: T::Native) -> Result<ArrayRef> {
    let suffix = match T::DATA_TYPE {
        DataType::Int8 | DataType::Int16 => Some("S"),
        _ => None,
    };
    let shown = suffix.map(|suffix| (format!("{a:?}{suffix}"), format!("{b:?}{suffix}")));
    call.fail(fault, kind(&T::DATA_TYPE), shown)
}

fn kind(ty: &DataType) -> &'static str {
    match ty {
        DataType::Int8 => "byte",
        DataType::Int16 => "short",
        DataType::Int32 => "integer",
        _ => "long",
    }
}

/// Negation and absolute value.
pub(super) fn unary(call: &Arithmetic, operand: &Operand) -> Result<ArrayRef> {
    let array = &operand.array;
    match array.data_type() {
        DataType::Int8 => unary_typed::<Int8Type>(call, array),
        DataType::Int16 => unary_typed::<Int16Type>(call, array),
        DataType::Int32 => unary_typed::<Int32Type>(call, array),
        DataType::Int64 => unary_typed::<Int64Type>(call, array),
        DataType::Float32 => unary_typed::<Float32Type>(call, array),
        DataType::Float64 => unary_typed::<Float64Type>(call, array),
        DataType::Decimal128(_, _) => unary_typed::<Decimal128Type>(call, array),
        _ if call.operation == Operation::Negate => Ok(numeric::neg(array.as_ref())?),
        other => exec_err!("{} does not compute on {other}", call.name),
    }
}

fn unary_typed<T: ArrowPrimitiveType>(call: &Arithmetic, array: &ArrayRef) -> Result<ArrayRef>
where
    T::Native: ArrowNativeTypeOp,
{
    let absolute = call.operation == Operation::Absolute;
    let values = array.as_primitive::<T>();
    let result: Result<PrimitiveArray<T>, ArrowError> =
        values.try_unary(|v| if absolute && !v.is_lt(T::Native::ZERO) { Ok(v) } else { v.neg_checked() });
    match result {
        Ok(result) => Ok(Arc::new(result.with_data_type(array.data_type().clone()))),
        Err(_) => call.fail(Fault::Overflow, kind(&T::DATA_TYPE), None),
    }
}
