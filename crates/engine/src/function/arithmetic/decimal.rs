//! Decimals: Arrow's kernels where the exact result fits 38 digits, else 256 bits and Spark's rounding (half up).

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, Decimal128Builder, Int64Builder};
use arrow::compute::kernels::numeric;
use arrow::datatypes::{DataType, Decimal128Type, i256};
use datafusion::common::{Result, exec_err};

use super::{Arithmetic, Fault, Kernel, Operand, Operation};

/// A decimal operand: its values and its scale.
struct Decimals<'a> {
    operand: &'a Operand,
    values: &'a Decimal128Array,
    scale: i16,
}

impl<'a> Decimals<'a> {
    fn new(operand: &'a Operand) -> Result<Self> {
        let DataType::Decimal128(_, scale) = operand.array.data_type() else {
            return exec_err!("{} is no decimal", operand.array.data_type());
        };
        Ok(Decimals { operand, values: operand.array.as_primitive::<Decimal128Type>(), scale: i16::from(*scale) })
    }

    fn get(&self, row: usize) -> Option<i256> {
        let at = self.operand.row(row);
        self.values.is_valid(at).then(|| i256::from_i128(self.values.value(at)))
    }
}

pub(super) fn binary(
    call: &Arithmetic,
    left: &Operand,
    right: &Operand,
    rows: usize,
    to: &DataType,
) -> Result<ArrayRef> {
    let kernel: Option<Kernel> = match call.operation {
        Operation::Add => Some(numeric::add),
        Operation::Subtract => Some(numeric::sub),
        Operation::Multiply => Some(numeric::mul),
        _ => None,
    };
    // Of fewer digits than the most there can be, the type holds every result.
    if let (Some(kernel), DataType::Decimal128(..=37, _)) = (kernel, to)
        && let Ok(result) = kernel(left, right)
        && result.data_type() == to
    {
        return Ok(result);
    }
    let (l, r) = (Decimals::new(left)?, Decimals::new(right)?);
    match to {
        DataType::Decimal128(precision, scale) => {
            let mut builder = Decimal128Builder::with_capacity(rows).with_data_type(to.clone());
            let bound = pow10(i16::from(*precision)).unwrap_or(i256::MAX);
            for row in 0..rows {
                let (Some(a), Some(b)) = (l.get(row), r.get(row)) else {
                    builder.append_null();
                    continue;
                };
                let value = one(call.operation, (a, l.scale), (b, r.scale), i16::from(*scale));
                match value.map(|v| v.filter(|v| v.wrapping_abs() < bound).and_then(i256::to_i128)) {
                    Ok(Some(value)) => builder.append_value(value),
                    _ if call.lenient => builder.append_null(),
                    Ok(None) => return out_of_range(call, *precision, *scale),
                    Err(fault) => return call.fail(fault, "decimal", None),
                }
            }
            Ok(Arc::new(builder.finish()))
        }
        _ => whole_quotients(call, &l, &r, rows),
    }
}

fn whole_quotients(call: &Arithmetic, l: &Decimals<'_>, r: &Decimals<'_>, rows: usize) -> Result<ArrayRef> {
    let mut builder = Int64Builder::with_capacity(rows);
    for row in 0..rows {
        let (Some(a), Some(b)) = (l.get(row), r.get(row)) else {
            builder.append_null();
            continue;
        };
        match one(Operation::IntegralDivide, (a, l.scale), (b, r.scale), 0) {
            Ok(quotient) => match quotient.and_then(i256::to_i128).and_then(|q| i64::try_from(q).ok()) {
                Some(quotient) => builder.append_value(quotient),
                None if call.lenient => builder.append_null(),
                None => return call.fail(Fault::Overflow, "long", None),
            },
            Err(_) if call.lenient => builder.append_null(),
            Err(fault) => return call.fail(fault, "long", None),
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn out_of_range<T>(call: &Arithmetic, precision: u8, scale: i8) -> Result<T> {
    let symbol = call.operation.symbol();
    exec_err!(
        "[NUMERIC_VALUE_OUT_OF_RANGE.WITH_SUGGESTION] The result of `{symbol}` cannot be represented as Decimal({precision}, {scale}). Cast the operands to DOUBLE, or use the try_ form to get NULL instead. SQLSTATE: 22003"
    )
}

fn pow10(exponent: i16) -> Option<i256> {
    i256::from_i128(10).checked_pow(u32::try_from(exponent).ok()?)
}

/// `value` of scale `from` at scale `to`, rounded half up; none when it does not fit 256 bits.
fn rescale(value: i256, from: i16, to: i16) -> Option<i256> {
    if to >= from {
        return value.checked_mul(pow10(to - from)?);
    }
    let Some(divisor) = pow10(from - to) else { return Some(i256::ZERO) };
    divide_half_up(value, divisor)
}

fn divide_half_up(a: i256, b: i256) -> Option<i256> {
    let (quotient, rest) = (a.checked_div(b)?, a.checked_rem(b)?);
    let twice = rest.wrapping_abs().checked_mul(i256::from_i128(2));
    let up = twice.is_none_or(|twice| twice >= b.wrapping_abs());
    let away = if (a < i256::ZERO) == (b < i256::ZERO) { i256::ONE } else { i256::MINUS_ONE };
    if up { quotient.checked_add(away) } else { Some(quotient) }
}

/// The result at scale `to`; none when it does not fit 256 bits.
fn one(operation: Operation, (a, s1): (i256, i16), (b, s2): (i256, i16), to: i16) -> Result<Option<i256>, Fault> {
    let common = s1.max(s2);
    let aligned = || Some((rescale(a, s1, common)?, rescale(b, s2, common)?));
    let divides = !matches!(operation, Operation::Add | Operation::Subtract | Operation::Multiply);
    if divides && b == i256::ZERO {
        return Err(Fault::Zero);
    }
    Ok(match operation {
        Operation::Add => aligned().and_then(|(a, b)| a.checked_add(b)).and_then(|v| rescale(v, common, to)),
        Operation::Subtract => aligned().and_then(|(a, b)| a.checked_sub(b)).and_then(|v| rescale(v, common, to)),
        Operation::Multiply => a.checked_mul(b).and_then(|v| rescale(v, s1 + s2, to)),
        Operation::Divide => {
            let shift = to + s2 - s1;
            if shift >= 0 {
                pow10(shift).and_then(|f| a.checked_mul(f)).and_then(|a| divide_half_up(a, b))
            } else {
                pow10(-shift).and_then(|f| b.checked_mul(f)).and_then(|b| divide_half_up(a, b))
            }
        }
        Operation::IntegralDivide => aligned().and_then(|(a, b)| a.checked_div(b)),
        Operation::PositiveRemainder => aligned().and_then(|(a, b)| {
            let rest = a.checked_rem(b)?;
            let rest = if rest < i256::ZERO { rest.checked_add(b)?.checked_rem(b)? } else { rest };
            rescale(rest, common, to)
        }),
        _ => aligned().and_then(|(a, b)| a.checked_rem(b)).and_then(|v| rescale(v, common, to)),
    })
}
