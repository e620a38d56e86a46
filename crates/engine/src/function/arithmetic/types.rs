//! Spark's types of operands and results (`AnsiTypeCoercion`, `DecimalPrecision`).

use arrow::datatypes::DataType;
use datafusion::common::{Result, plan_err};

use super::super::ddl::type_name;
use super::Operation;

/// Precision and scale of a decimal, or of the decimal that holds every value of a whole type.
pub(crate) fn decimal_parts(ty: &DataType) -> Option<(u8, i8)> {
    match ty {
        DataType::Decimal128(p, s) => Some((*p, *s)),
        DataType::Int8 | DataType::UInt8 => Some((3, 0)),
        DataType::Int16 | DataType::UInt16 => Some((5, 0)),
        DataType::Int32 | DataType::UInt32 => Some((10, 0)),
        DataType::Int64 | DataType::UInt64 => Some((20, 0)),
        _ => None,
    }
}

fn is_decimal(ty: &DataType) -> bool {
    matches!(ty, DataType::Decimal128(_, _))
}

fn is_text(ty: &DataType) -> bool {
    matches!(ty, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_arithmetic(ty: &DataType) -> bool {
    decimal_parts(ty).is_some() || ty.is_floating() || is_text(ty) || *ty == DataType::Null
}

/// The type that a text operand is read as beside `other`.
pub(crate) fn text_operand(other: &DataType) -> DataType {
    if other.is_integer() { DataType::Int64 } else { DataType::Float64 }
}

/// The types to which the operands are cast.
pub(crate) fn operands(operation: Operation, name: &str, types: &[DataType]) -> Result<Vec<DataType>> {
    let expected = if operation.is_unary() { 1 } else { 2 };
    if types.len() != expected {
        return plan_err!(
            "[WRONG_NUM_ARGS.WITHOUT_SUGGESTION] The `{name}` requires {expected} parameters but the actual number is {}.",
            types.len()
        );
    }
    match types {
        [one] => unary_operand(operation, one),
        [left, right] => binary_operands(operation, left, right),
        _ => Ok(types.to_vec()),
    }
}

fn unary_operand(operation: Operation, ty: &DataType) -> Result<Vec<DataType>> {
    match ty {
        DataType::Null => Ok(vec![DataType::Float64]),
        ty if is_text(ty) => Ok(vec![DataType::Float64]),
        ty if is_arithmetic(ty) => Ok(vec![signed(ty)]),
        DataType::Interval(_) => Ok(vec![ty.clone()]),
        other => plan_err!(
            "[DATATYPE_MISMATCH.UNEXPECTED_INPUT_TYPE] Cannot resolve \"{}\" due to data type mismatch: the first parameter requires the (\"NUMERIC\" or \"INTERVAL\") type, however it has the type \"{}\". SQLSTATE: 42K09",
            operation.symbol(),
            type_name(other)
        ),
    }
}

/// Arrow's unsigned numbers, which only DataFusion's own functions give, as numbers that Spark has.
fn signed(ty: &DataType) -> DataType {
    match ty {
        DataType::UInt8 | DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        other => other.clone(),
    }
}

fn binary_operands(operation: Operation, left: &DataType, right: &DataType) -> Result<Vec<DataType>> {
    if !is_arithmetic(left) || !is_arithmetic(right) {
        return different(operation, left, right);
    }
    if is_text(left) && is_text(right) {
        return plan_err!(
            "[DATATYPE_MISMATCH.BINARY_OP_WRONG_TYPE] Cannot resolve the operation due to data type mismatch: the binary operator `{}` requires the input type (\"NUMERIC\" or \"INTERVAL\"), not \"STRING\". SQLSTATE: 42K09",
            operation.symbol()
        );
    }
    let known = |ty: &DataType, other: &DataType| match ty {
        DataType::Null if is_text(other) || *other == DataType::Null => DataType::Float64,
        DataType::Null => other.clone(),
        ty if is_text(ty) => text_operand(if *other == DataType::Null { &DataType::Float64 } else { other }),
        ty => signed(ty),
    };
    let (l, r) = (known(left, right), known(right, left));
    let (l, r) = (signed(&l), signed(&r));
    if operation == Operation::IntegralDivide {
        if l.is_floating() || r.is_floating() {
            return different(operation, left, right);
        }
        if !is_decimal(&l) && !is_decimal(&r) {
            return Ok(vec![DataType::Int64, DataType::Int64]);
        }
    }
    if l.is_floating() || r.is_floating() {
        let single = l == DataType::Float32 && r == DataType::Float32 && operation != Operation::Divide;
        let ty = if single { DataType::Float32 } else { DataType::Float64 };
        return Ok(vec![ty.clone(), ty]);
    }
    if is_decimal(&l) || is_decimal(&r) {
        let as_decimal =
            |ty: &DataType| decimal_parts(ty).map_or(DataType::Float64, |(p, s)| DataType::Decimal128(p, s));
        return Ok(vec![as_decimal(&l), as_decimal(&r)]);
    }
    if operation == Operation::Divide {
        return Ok(vec![DataType::Float64, DataType::Float64]);
    }
    let wider = if l.primitive_width() >= r.primitive_width() { l } else { r };
    Ok(vec![wider.clone(), wider])
}

fn different<T>(operation: Operation, left: &DataType, right: &DataType) -> Result<T> {
    plan_err!(
        "[DATATYPE_MISMATCH.BINARY_OP_DIFF_TYPES] Cannot resolve the operation due to data type mismatch: the left and right operands of the binary operator `{}` have incompatible types (\"{}\" and \"{}\"). SQLSTATE: 42K09",
        operation.symbol(),
        type_name(left),
        type_name(right)
    )
}

/// The type of the result.
pub(super) fn result(operation: Operation, name: &str, types: &[DataType]) -> Result<DataType> {
    let operands = operands(operation, name, types)?;
    if operation == Operation::IntegralDivide {
        return Ok(DataType::Int64);
    }
    match operands.as_slice() {
        [DataType::Decimal128(p1, s1), DataType::Decimal128(p2, s2)] => {
            Ok(decimal(operation, (i16::from(*p1), i16::from(*s1)), (i16::from(*p2), i16::from(*s2))))
        }
        [one, ..] => Ok(one.clone()),
        [] => plan_err!("{name} needs arguments"),
    }
}

/// The exact result type of an operation on decimals, cut to 38 digits as Spark does.
fn decimal(operation: Operation, (p1, s1): (i16, i16), (p2, s2): (i16, i16)) -> DataType {
    let (precision, scale) = match operation {
        Operation::Multiply => (p1 + p2 + 1, s1 + s2),
        Operation::Divide => {
            let scale = (s1 + p2 + 1).max(6);
            (p1 - s1 + s2 + scale, scale)
        }
        Operation::Remainder | Operation::PositiveRemainder => ((p1 - s1).min(p2 - s2) + s1.max(s2), s1.max(s2)),
        _ => ((p1 - s1).max(p2 - s2) + s1.max(s2) + 1, s1.max(s2)),
    };
    let (precision, scale) = if precision > 38 {
        let whole = precision - scale;
        (38, (38 - whole).max(scale.min(6)))
    } else {
        (precision, scale)
    };
    DataType::Decimal128(u8::try_from(precision).unwrap_or(38), i8::try_from(scale).unwrap_or(38))
}
