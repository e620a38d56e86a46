//! Growing columns of decoded JSON: plain vectors that can be cut back when a record turns out malformed.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, BooleanBufferBuilder, Date32Array, Decimal128Array, Float32Array, Float64Array, Int8Array,
    Int16Array, Int32Array, Int64Array, ListArray, MapArray, StringArray, StructArray, TimestampMicrosecondArray,
    new_null_array,
};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, FieldRef, Fields, TimeUnit};
use datafusion::common::{Result, exec_err, plan_err};

use super::scan::Bad;

/// Which values are there.
#[derive(Default)]
pub(super) struct Validity {
    bits: Option<BooleanBufferBuilder>,
    len: usize,
}

impl Validity {
    #[inline]
    pub(super) fn push(&mut self, valid: bool) {
        self.len += 1;
        if let Some(bits) = &mut self.bits {
            bits.append(valid);
        } else if !valid {
            let mut bits = BooleanBufferBuilder::new(self.len.max(1024));
            bits.append_n(self.len - 1, true);
            bits.append(false);
            self.bits = Some(bits);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.len = len;
        if let Some(bits) = &mut self.bits {
            bits.truncate(len);
        }
    }

    fn finish(&mut self) -> Option<NullBuffer> {
        self.len = 0;
        self.bits.take().map(|mut bits| NullBuffer::new(bits.finish()))
    }
}

/// Whole numbers of 8 to 64 bits.
pub(super) struct Ints {
    pub ty: DataType,
    pub least: i64,
    pub most: i64,
    pub values: Vec<i64>,
    pub validity: Validity,
}

/// Texts, one after the other.
pub(super) struct Texts {
    pub bytes: Vec<u8>,
    pub ends: Vec<i32>,
    pub validity: Validity,
}

impl Texts {
    pub(super) fn end(&mut self, valid: bool) {
        self.ends.push(i32::try_from(self.bytes.len()).unwrap_or(i32::MAX));
        self.validity.push(valid);
    }
}

/// A struct's columns; `guess` is the field that is expected next.
pub(super) struct Structs {
    pub fields: Fields,
    pub columns: Vec<Column>,
    /// For each column: `"name"` with its quotes.
    pub quoted: Vec<Vec<u8>>,
    pub validity: Validity,
}

pub(super) struct Lists {
    pub item: FieldRef,
    pub values: Box<Column>,
    pub ends: Vec<i32>,
    pub validity: Validity,
}

impl Lists {
    /// Ends a list with the values that were added last; fails when there are too many.
    pub(super) fn end(&mut self) -> std::result::Result<(), Bad> {
        self.ends.push(i32::try_from(self.values.len()).map_err(|_| Bad::Syntax)?);
        self.validity.push(true);
        Ok(())
    }
}

pub(super) struct Maps {
    pub entries: FieldRef,
    pub keys: Texts,
    pub values: Box<Column>,
    pub ends: Vec<i32>,
    pub validity: Validity,
}

/// A column being decoded.
pub(super) enum Column {
    Bool(Vec<bool>, Validity),
    Int(Ints),
    Float {
        single: bool,
        values: Vec<f64>,
        validity: Validity,
    },
    Decimal {
        precision: u8,
        scale: i8,
        values: Vec<i128>,
        validity: Validity,
    },
    Text(Texts),
    Date(Vec<i32>, Validity),
    Timestamp {
        zoned: bool,
        values: Vec<i64>,
        validity: Validity,
    },
    Struct(Structs),
    List(Lists),
    Map(Maps),
    /// `VOID`: always null.
    Null(usize),
}

fn texts() -> Texts {
    Texts { bytes: Vec::new(), ends: Vec::new(), validity: Validity::default() }
}

fn ints(ty: &DataType, least: i64, most: i64) -> Column {
    Column::Int(Ints { ty: ty.clone(), least, most, values: Vec::new(), validity: Validity::default() })
}

impl Column {
    /// An empty column of a type; fails for types that JSON does not decode to.
    pub(super) fn new(ty: &DataType) -> Result<Column> {
        let validity = Validity::default();
        Ok(match ty {
            DataType::Boolean => Column::Bool(Vec::new(), validity),
            DataType::Int8 => ints(ty, i64::from(i8::MIN), i64::from(i8::MAX)),
            DataType::Int16 => ints(ty, i64::from(i16::MIN), i64::from(i16::MAX)),
            DataType::Int32 => ints(ty, i64::from(i32::MIN), i64::from(i32::MAX)),
            DataType::Int64 => ints(ty, i64::MIN, i64::MAX),
            DataType::Float32 => Column::Float { single: true, values: Vec::new(), validity },
            DataType::Float64 => Column::Float { single: false, values: Vec::new(), validity },
            DataType::Decimal128(p, s) => Column::Decimal { precision: *p, scale: *s, values: Vec::new(), validity },
            DataType::Utf8 => Column::Text(texts()),
            DataType::Date32 => Column::Date(Vec::new(), validity),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                Column::Timestamp { zoned: zone.is_some(), values: Vec::new(), validity }
            }
            DataType::Struct(fields) => Column::Struct(Structs::new(fields)?),
            DataType::List(item) => Column::List(Lists {
                item: Arc::clone(item),
                values: Box::new(Column::new(item.data_type())?),
                ends: Vec::new(),
                validity,
            }),
            DataType::Map(entries, _) => {
                let DataType::Struct(kv) = entries.data_type() else { return plan_err!("a map of {entries}") };
                let [key, value] = kv.as_ref() else { return plan_err!("a map of {entries}") };
                if key.data_type() != &DataType::Utf8 {
                    return plan_err!(
                        "[INVALID_JSON_MAP_KEY_TYPE] Input schema can only contain STRING as a key type for a MAP."
                    );
                }
                Column::Map(Maps {
                    entries: Arc::clone(entries),
                    keys: texts(),
                    values: Box::new(Column::new(value.data_type())?),
                    ends: Vec::new(),
                    validity,
                })
            }
            DataType::Null => Column::Null(0),
            other => return plan_err!("[UNSUPPORTED_FEATURE] from_json to {}", super::super::ddl::type_name(other)),
        })
    }

    /// Makes room for as many records, at the top and in structs; lists and maps grow as they need.
    pub(super) fn reserve(&mut self, rows: usize) {
        match self {
            Column::Bool(values, _) => values.reserve(rows),
            Column::Int(ints) => ints.values.reserve(rows),
            Column::Float { values, .. } => values.reserve(rows),
            Column::Decimal { values, .. } => values.reserve(rows),
            Column::Text(texts) => texts.ends.reserve(rows),
            Column::Date(values, _) => values.reserve(rows),
            Column::Timestamp { values, .. } => values.reserve(rows),
            Column::Struct(structs) => structs.columns.iter_mut().for_each(|column| column.reserve(rows)),
            Column::List(_) | Column::Map(_) | Column::Null(_) => {}
        }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        match self {
            Column::Bool(_, v) | Column::Date(_, v) => v.len(),
            Column::Int(ints) => ints.validity.len(),
            Column::Float { validity, .. } | Column::Decimal { validity, .. } | Column::Timestamp { validity, .. } => {
                validity.len()
            }
            Column::Text(texts) => texts.validity.len(),
            Column::Struct(structs) => structs.validity.len(),
            Column::List(lists) => lists.validity.len(),
            Column::Map(maps) => maps.validity.len(),
            Column::Null(len) => *len,
        }
    }

    pub(super) fn push_null(&mut self) {
        match self {
            Column::Bool(values, v) => {
                values.push(false);
                v.push(false);
            }
            Column::Int(ints) => {
                ints.values.push(0);
                ints.validity.push(false);
            }
            Column::Float { values, validity, .. } => {
                values.push(0.0);
                validity.push(false);
            }
            Column::Decimal { values, validity, .. } => {
                values.push(0);
                validity.push(false);
            }
            Column::Text(texts) => texts.end(false),
            Column::Date(values, v) => {
                values.push(0);
                v.push(false);
            }
            Column::Timestamp { values, validity, .. } => {
                values.push(0);
                validity.push(false);
            }
            Column::Struct(structs) => {
                structs.columns.iter_mut().for_each(Column::push_null);
                structs.validity.push(false);
            }
            Column::List(lists) => {
                lists.ends.push(i32::try_from(lists.values.len()).unwrap_or(i32::MAX));
                lists.validity.push(false);
            }
            Column::Map(maps) => {
                maps.ends.push(i32::try_from(maps.values.len()).unwrap_or(i32::MAX));
                maps.validity.push(false);
            }
            Column::Null(len) => *len += 1,
        }
    }

    /// Cuts the column back to `len` values.
    pub(super) fn truncate(&mut self, len: usize) {
        let last = |ends: &[i32]| ends.last().map_or(0, |e| usize::try_from(*e).unwrap_or(0));
        match self {
            Column::Bool(values, v) => {
                values.truncate(len);
                v.truncate(len);
            }
            Column::Int(ints) => {
                ints.values.truncate(len);
                ints.validity.truncate(len);
            }
            Column::Float { values, validity, .. } => {
                values.truncate(len);
                validity.truncate(len);
            }
            Column::Decimal { values, validity, .. } => {
                values.truncate(len);
                validity.truncate(len);
            }
            Column::Text(texts) => {
                texts.ends.truncate(len);
                texts.bytes.truncate(last(&texts.ends));
                texts.validity.truncate(len);
            }
            Column::Date(values, v) => {
                values.truncate(len);
                v.truncate(len);
            }
            Column::Timestamp { values, validity, .. } => {
                values.truncate(len);
                validity.truncate(len);
            }
            Column::Struct(structs) => {
                structs.columns.iter_mut().for_each(|c| c.truncate(len));
                structs.validity.truncate(len);
            }
            Column::List(lists) => {
                lists.ends.truncate(len);
                lists.values.truncate(last(&lists.ends));
                lists.validity.truncate(len);
            }
            Column::Map(maps) => {
                maps.ends.truncate(len);
                let entries = last(&maps.ends);
                maps.values.truncate(entries);
                maps.keys.ends.truncate(entries);
                maps.keys.bytes.truncate(last(&maps.keys.ends));
                maps.keys.validity.truncate(entries);
                maps.validity.truncate(len);
            }
            Column::Null(n) => *n = len,
        }
    }

    /// The Arrow array of everything decoded.
    pub(super) fn finish(self) -> Result<ArrayRef> {
        Ok(match self {
            Column::Bool(values, mut v) => Arc::new(BooleanArray::new(BooleanBuffer::from(values), v.finish())),
            Column::Int(ints) => finish_ints(ints),
            Column::Float { single: false, values, mut validity } => {
                Arc::new(Float64Array::new(values.into(), validity.finish()))
            }
            Column::Float { values, mut validity, .. } => {
                let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
                Arc::new(Float32Array::new(values.into(), validity.finish()))
            }
            Column::Decimal { precision, scale, values, mut validity } => Arc::new(
                Decimal128Array::new(values.into(), validity.finish()).with_precision_and_scale(precision, scale)?,
            ),
            Column::Text(texts) => Arc::new(finish_texts(texts)?),
            Column::Date(values, mut v) => Arc::new(Date32Array::new(values.into(), v.finish())),
            Column::Timestamp { zoned, values, mut validity } => {
                let array = TimestampMicrosecondArray::new(values.into(), validity.finish());
                Arc::new(if zoned { array.with_timezone("UTC") } else { array })
            }
            Column::Struct(mut structs) => {
                let length = structs.validity.len();
                let columns = structs.columns.into_iter().map(Column::finish).collect::<Result<Vec<_>>>()?;
                let nulls = structs.validity.finish();
                Arc::new(StructArray::try_new_with_length(structs.fields, columns, nulls, length)?)
            }
            Column::List(mut lists) => {
                let values = lists.values.finish()?;
                Arc::new(ListArray::try_new(lists.item, offsets(&lists.ends), values, lists.validity.finish())?)
            }
            Column::Map(mut maps) => {
                let DataType::Struct(kv) = maps.entries.data_type() else { return exec_err!("a map has entries") };
                let keys: ArrayRef = Arc::new(finish_texts(maps.keys)?);
                let entries = StructArray::try_new(kv.clone(), vec![keys, maps.values.finish()?], None)?;
                let nulls = maps.validity.finish();
                Arc::new(MapArray::try_new(Arc::clone(&maps.entries), offsets(&maps.ends), entries, nulls, false)?)
            }
            Column::Null(len) => new_null_array(&DataType::Null, len),
        })
    }
}

impl Structs {
    pub(super) fn new(fields: &Fields) -> Result<Structs> {
        let quoted = fields.iter().map(|f| format!("\"{}\"", f.name()).into_bytes()).collect();
        let nullable: Vec<_> = fields.iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
        let columns = fields.iter().map(|f| Column::new(f.data_type())).collect::<Result<Vec<_>>>()?;
        Ok(Structs { fields: nullable.into(), columns, quoted, validity: Validity::default() })
    }
}

fn offsets(ends: &[i32]) -> OffsetBuffer<i32> {
    let all: Vec<i32> = std::iter::once(0).chain(ends.iter().copied()).collect();
    OffsetBuffer::new(ScalarBuffer::from(all))
}

fn finish_texts(mut texts: Texts) -> Result<StringArray> {
    let nulls = texts.validity.finish();
    Ok(StringArray::try_new(offsets(&texts.ends), Buffer::from_vec(texts.bytes), nulls)?)
}

fn finish_ints(mut ints: Ints) -> ArrayRef {
    let nulls = ints.validity.finish();
    // Every value was checked against the type's range when it was decoded.
    match ints.ty {
        DataType::Int8 => Arc::new(Int8Array::new(ints.values.iter().map(|v| *v as i8).collect(), nulls)),
        DataType::Int16 => Arc::new(Int16Array::new(ints.values.iter().map(|v| *v as i16).collect(), nulls)),
        DataType::Int32 => Arc::new(Int32Array::new(ints.values.iter().map(|v| *v as i32).collect(), nulls)),
        _ => Arc::new(Int64Array::new(ints.values.into(), nulls)),
    }
}
