//! Floating-point keys as `GROUP BY` compares them: 0.0 and -0.0 are one key, and so are all NaNs (Spark's
//! `NormalizeFloatingNumbers`). Encoded keys are compared by their bytes, which are state's identity too.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, DictionaryArray, FixedSizeListArray, GenericListArray, MapArray,
    OffsetSizeTrait, StructArray, downcast_integer_array,
};
use arrow::datatypes::{DataType, Float16Type, Float32Type, Float64Type};
use arrow::error::ArrowError;

/// The bits of the one NaN; those of Java's `Double.NaN`.
const NAN_64: u64 = 0x7ff8_0000_0000_0000;
const NAN_32: u32 = 0x7fc0_0000;
const NAN_16: u16 = 0x7e00;

type Half = <Float16Type as ArrowPrimitiveType>::Native;

/// The columns with one zero and one NaN, also inside structs, lists and maps.
pub fn normalise(columns: &[ArrayRef]) -> Result<Cow<'_, [ArrayRef]>, ArrowError> {
    if !columns.iter().any(|column| holds_floats(column.data_type())) {
        return Ok(Cow::Borrowed(columns));
    }
    columns.iter().map(normalised).collect::<Result<Vec<_>, _>>().map(Cow::Owned)
}

fn holds_floats(data_type: &DataType) -> bool {
    match data_type {
        DataType::Float16 | DataType::Float32 | DataType::Float64 => true,
        DataType::Struct(fields) => fields.iter().any(|field| holds_floats(field.data_type())),
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => holds_floats(field.data_type()),
        DataType::Dictionary(_, values) => holds_floats(values),
        _ => false,
    }
}

fn normalised(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    if !holds_floats(column.data_type()) {
        return Ok(Arc::clone(column));
    }
    Ok(match column.data_type() {
        DataType::Float64 => Arc::new(column.as_primitive::<Float64Type>().unary::<_, Float64Type>(|value| {
            // Adding 0.0 turns -0.0 into 0.0 and leaves all else.
            if value.is_nan() { f64::from_bits(NAN_64) } else { value + 0.0 }
        })),
        DataType::Float32 => Arc::new(
            column
                .as_primitive::<Float32Type>()
                .unary::<_, Float32Type>(|value| if value.is_nan() { f32::from_bits(NAN_32) } else { value + 0.0 }),
        ),
        DataType::Float16 => Arc::new(column.as_primitive::<Float16Type>().unary::<_, Float16Type>(|value| {
            match value.to_bits() & 0x7fff {
                0 => Half::from_bits(0),
                bits if bits > 0x7c00 => Half::from_bits(NAN_16),
                _ => value,
            }
        })),
        DataType::Struct(fields) => {
            let columns = column.as_struct().columns().iter().map(normalised).collect::<Result<Vec<_>, _>>()?;
            Arc::new(StructArray::try_new_with_length(fields.clone(), columns, column.nulls().cloned(), column.len())?)
        }
        DataType::List(_) => list(column.as_list::<i32>())?,
        DataType::LargeList(_) => list(column.as_list::<i64>())?,
        DataType::FixedSizeList(field, size) => {
            let values = normalised(column.as_fixed_size_list().values())?;
            Arc::new(FixedSizeListArray::try_new(Arc::clone(field), *size, values, column.nulls().cloned())?)
        }
        DataType::Map(field, sorted) => {
            let map = column.as_map();
            let entries: ArrayRef = Arc::new(map.entries().clone());
            let entries = normalised(&entries)?.as_struct().clone();
            let (offsets, nulls) = (map.offsets().clone(), map.nulls().cloned());
            Arc::new(MapArray::try_new(Arc::clone(field), offsets, entries, nulls, *sorted)?)
        }
        DataType::Dictionary(..) => {
            let column = column.as_any_dictionary();
            let (keys, values) = (column.keys(), normalised(column.values())?);
            downcast_integer_array! {
                keys => Arc::new(DictionaryArray::try_new(keys.clone(), values)?),
                other => return Err(ArrowError::ComputeError(format!("a dictionary with keys of the type {other}"))),
            }
        }
        _ => Arc::clone(column),
    })
}

fn list<O: OffsetSizeTrait>(list: &GenericListArray<O>) -> Result<ArrayRef, ArrowError> {
    let (field, offsets, values, nulls) = list.clone().into_parts();
    Ok(Arc::new(GenericListArray::try_new(field, offsets, normalised(&values)?, nulls)?))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float16Array, Float32Array, Float64Array, Int64Array, ListArray, StringArray};
    use arrow::datatypes::{Field, Int32Type};
    use arrow::row::{RowConverter, SortField};

    use super::*;

    /// How many different keys there are.
    fn distinct(column: ArrayRef) -> usize {
        let converter = RowConverter::new(vec![SortField::new(column.data_type().clone())]).unwrap();
        let rows = converter.convert_columns(&normalise(&[column]).unwrap()).unwrap();
        rows.iter().map(|row| row.data().to_vec()).collect::<std::collections::BTreeSet<_>>().len()
    }

    fn doubles() -> Float64Array {
        let nan = f64::from_bits(0xfff8_0000_0000_0001);
        Float64Array::from(vec![
            Some(0.0),
            Some(-0.0),
            Some(f64::NAN),
            Some(nan),
            None,
            Some(-1.5),
            Some(f64::MIN_POSITIVE),
        ])
    }

    #[test]
    fn zeros_are_one_and_nans_are_one_at_any_depth() {
        assert_eq!(distinct(Arc::new(doubles())), 5);
        let floats = Float32Array::from(vec![0.0, -0.0, f32::NAN, f32::from_bits(0xffc0_0001), 1.0]);
        assert_eq!(distinct(Arc::new(floats)), 3);
        let halves = [0x0000, 0x8000, 0x7e00, 0xfe01, 0x3c00].map(Half::from_bits);
        assert_eq!(distinct(Arc::new(Float16Array::from(halves.to_vec()))), 3);
        let field = Field::new("d", DataType::Float64, true);
        let nested = StructArray::new(vec![field].into(), vec![Arc::new(doubles())], None);
        assert_eq!(distinct(Arc::new(nested)), 5);
        let lists = ListArray::from_iter_primitive::<Float64Type, _, _>([
            Some(vec![Some(0.0), None]),
            Some(vec![Some(-0.0), None]),
            None,
        ]);
        assert_eq!(distinct(Arc::new(lists.clone())), 2);
        assert_eq!(distinct(Arc::new(lists.slice(1, 2))), 2);
        let keys = arrow::array::PrimitiveArray::<Int32Type>::from(vec![0, 1, 0]);
        let dictionary = DictionaryArray::new(keys, Arc::new(Float64Array::from(vec![0.0, -0.0])));
        assert_eq!(distinct(Arc::new(dictionary)), 1);
    }

    #[test]
    fn what_has_no_floats_is_not_copied() {
        let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![1])), Arc::new(StringArray::from(vec!["a"]))];
        assert!(matches!(normalise(&columns).unwrap(), Cow::Borrowed(_)));
    }
}
