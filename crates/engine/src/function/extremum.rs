//! `max_by(value, order)` and `min_by(value, order)`: the value of the row with the greatest or least order.

use std::hash::Hash;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::compute::{SortOptions, cast};
use arrow::datatypes::{DataType, Field, FieldRef};
use arrow::row::{RowConverter, SortField};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility};

/// Both functions.
pub(crate) fn functions() -> Vec<Arc<AggregateUDF>> {
    [(true, "max_by"), (false, "min_by")]
        .into_iter()
        .map(|(greatest, name)| {
            let signature = Signature::any(2, Volatility::Immutable);
            Arc::new(AggregateUDF::new_from_impl(ExtremumBy { greatest, name, signature }))
        })
        .collect()
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ExtremumBy {
    greatest: bool,
    name: &'static str,
    signature: Signature,
}

impl AggregateUDFImpl for ExtremumBy {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match arg_types {
            [value, _] => Ok(value.clone()),
            _ => plan_err!("[WRONG_NUM_ARGS.WITHOUT_SUGGESTION] The `{}` requires 2 parameters.", self.name),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let [value, order] = args.input_fields else { return plan_err!("{} has two arguments", self.name) };
        let field = |part: &str, of: &FieldRef| {
            Arc::new(Field::new(format!("{}[{part}]", args.name), of.data_type().clone(), true))
        };
        Ok(vec![field("value", value), field("order", order)])
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let [value, order] = args.expr_fields else { return plan_err!("{} has two arguments", self.name) };
        Ok(Box::new(Best {
            greatest: self.greatest,
            value: ScalarValue::try_new_null(value.data_type())?,
            order: ScalarValue::try_new_null(order.data_type())?,
        }))
    }
}

#[derive(Debug)]
struct Best {
    greatest: bool,
    value: ScalarValue,
    order: ScalarValue,
}

impl Best {
    /// The row of the batch with the extreme order; the last one of equals, as Spark takes it.
    fn extreme_row(&self, order: &ArrayRef) -> Result<Option<usize>> {
        let options = SortOptions { descending: false, nulls_first: true };
        let field = SortField::new_with_options(order.data_type().clone(), options);
        let rows = RowConverter::new(vec![field])?.convert_columns(&[Arc::clone(order)])?;
        let mut best: Option<usize> = None;
        for row in 0..order.len() {
            if order.is_null(row) {
                continue;
            }
            let better = best.is_none_or(|b| {
                let (new, old) = (rows.row(row), rows.row(b));
                if self.greatest { new >= old } else { new <= old }
            });
            if better {
                best = Some(row);
            }
        }
        Ok(best)
    }
}

impl Accumulator for Best {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let [value, order] = values else { return exec_err!("max_by and min_by have two arguments") };
        let Some(row) = self.extreme_row(order)? else { return Ok(()) };
        let candidate = ScalarValue::try_from_array(order, row)?;
        let better = self.order.is_null()
            || match candidate.partial_cmp(&self.order) {
                Some(ordering) => {
                    if self.greatest {
                        ordering.is_ge()
                    } else {
                        ordering.is_le()
                    }
                }
                None => {
                    // Structs and the like are compared as rows.
                    let both = arrow::compute::concat(&[
                        self.order.to_array()?.as_ref(),
                        cast(&candidate.to_array()?, &self.order.data_type())?.as_ref(),
                    ])?;
                    self.extreme_row(&both)? == Some(1)
                }
            };
        if better {
            self.order = candidate;
            self.value = ScalarValue::try_from_array(value, row)?;
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.value.clone(), self.order.clone()])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(self.value.clone())
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.value.size() + self.order.size()
    }
}
