//! `explode`, `posexplode` and `inline`: each row's value becomes a list of structs, which the plan unnests.

use std::hash::Hash;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int32Array, ListArray, StructArray, UInt64Array};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

/// The list of rows that `kind` (`explode`, `posexplode`, `inline`) generates; with `outer`, an empty or null value
/// generates one row of nulls.
pub(crate) fn generator(kind: &str, outer: bool) -> ScalarUDF {
    let kind = match kind {
        "posexplode" => Kind::PosExplode,
        "inline" => Kind::Inline,
        _ => Kind::Explode,
    };
    ScalarUDF::new_from_impl(Generate { kind, outer, signature: Signature::any(1, Volatility::Immutable) })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Explode,
    PosExplode,
    Inline,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Generate {
    kind: Kind,
    outer: bool,
    signature: Signature,
}

impl Generate {
    fn fields(&self, ty: &DataType) -> Result<Fields> {
        let mut fields = match (self.kind, ty) {
            (Kind::Inline, DataType::List(item)) => match item.data_type() {
                DataType::Struct(fields) => fields.iter().map(|f| f.as_ref().clone().with_nullable(true)).collect(),
                other => return plan_err!("inline needs an array of structs, not of {other}"),
            },
            (Kind::Explode | Kind::PosExplode, DataType::List(item)) => {
                vec![Field::new("col", item.data_type().clone(), true)]
            }
            (Kind::Explode | Kind::PosExplode, DataType::Map(entries, _)) => match entries.data_type() {
                DataType::Struct(kv) => kv
                    .iter()
                    .zip(["key", "value"])
                    .map(|(f, name)| Field::new(name, f.data_type().clone(), true))
                    .collect(),
                other => return plan_err!("a map of {other}"),
            },
            (kind, other) => {
                return plan_err!(
                    "[DATATYPE_MISMATCH.UNEXPECTED_INPUT_TYPE] {kind:?} needs an ARRAY or a MAP, not {}",
                    super::ddl::type_name(other)
                );
            }
        };
        if self.kind == Kind::PosExplode {
            fields.insert(0, Field::new("pos", DataType::Int32, true));
        }
        Ok(fields.into())
    }
}

impl ScalarUDFImpl for Generate {
    fn name(&self) -> &str {
        "__generate"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        let Some(ty) = arg_types.first() else { return plan_err!("a generator needs an argument") };
        let item = DataType::Struct(self.fields(ty)?);
        Ok(DataType::List(Arc::new(Field::new_list_field(item, true))))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(value) = args.args.first() else { return plan_err!("a generator needs an argument") };
        let array = value.to_array(args.number_rows)?;
        let (offsets, nulls) = match array.data_type() {
            DataType::Map(_, _) => (array.as_map().value_offsets(), array.nulls()),
            _ => (array.as_list::<i32>().value_offsets(), array.nulls()),
        };
        let picked = pick(offsets, nulls, self.outer);
        let rows = self.rows(&array, &picked)?;
        let item = Arc::new(Field::new_list_field(rows.data_type().clone(), true));
        let list = ListArray::try_new(item, OffsetBuffer::from_lengths(picked.lengths), Arc::new(rows), None)?;
        Ok(ColumnarValue::Array(Arc::new(list)))
    }
}

/// For each generated row, the element it takes (none for an outer row) and its position in its list.
struct Picked {
    elements: Vec<Option<u64>>,
    positions: Vec<Option<i32>>,
    lengths: Vec<usize>,
}

fn pick(offsets: &[i32], nulls: Option<&NullBuffer>, outer: bool) -> Picked {
    let mut picked = Picked { elements: Vec::new(), positions: Vec::new(), lengths: Vec::new() };
    for (row, pair) in offsets.windows(2).enumerate() {
        let &[start, end] = pair else { continue };
        let end = if nulls.is_some_and(|n| n.is_null(row)) { start } else { end };
        if start == end && outer {
            picked.elements.push(None);
            picked.positions.push(None);
            picked.lengths.push(1);
            continue;
        }
        for at in start..end {
            picked.elements.push(u64::try_from(at).ok());
            picked.positions.push(Some(at - start));
        }
        picked.lengths.push(usize::try_from(end - start).unwrap_or(0));
    }
    picked
}

impl Generate {
    fn rows(&self, array: &ArrayRef, picked: &Picked) -> Result<StructArray> {
        let elements = UInt64Array::from(picked.elements.clone());
        let mut columns: Vec<ArrayRef> = Vec::new();
        if self.kind == Kind::PosExplode {
            columns.push(Arc::new(Int32Array::from(picked.positions.clone())));
        }
        match (array.data_type(), self.kind) {
            (DataType::Map(_, _), _) => {
                columns.push(take(array.as_map().keys(), &elements, None)?);
                columns.push(take(array.as_map().values(), &elements, None)?);
            }
            (_, Kind::Inline) => {
                let taken = take(array.as_list::<i32>().values(), &elements, None)?;
                for field in taken.as_struct().fields() {
                    columns.push(super::field::struct_field(&taken, field.name())?);
                }
            }
            _ => columns.push(take(array.as_list::<i32>().values(), &elements, None)?),
        }
        let rows = StructArray::try_new(self.fields(array.data_type())?, columns, None)?;
        Ok(rows)
    }
}
