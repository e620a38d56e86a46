//! A scalar function as a table entry: name, type rule, body. Most of Spark's functions here are one of these.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{ArrayRef, new_empty_array};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::name::call_name;
use super::output::rows_of;

/// From the types of the arguments to those that they are cast to.
pub(crate) type Coerce = fn(&[DataType]) -> Result<Vec<DataType>>;

/// What a function is, beside its code.
pub(crate) struct Function {
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// The least and the greatest number of arguments.
    pub arity: (usize, usize),
    /// The types to which arguments are cast, when not taken as they come.
    pub coerce: Option<Coerce>,
    /// The result's type (its field's name does not matter).
    pub returns: fn(&Arguments<'_>) -> Result<DataType>,
    pub run: fn(&Call) -> Result<ArrayRef>,
}

/// The types of the arguments, and the values of those that are constants.
pub(crate) struct Arguments<'a> {
    pub fields: &'a [FieldRef],
    pub scalars: &'a [Option<&'a ScalarValue>],
    pub name: &'static str,
}

impl Arguments<'_> {
    pub(crate) fn ty(&self, index: usize) -> Result<&DataType> {
        match self.fields.get(index) {
            Some(field) => Ok(field.data_type()),
            None => plan_err!("{} needs argument {}", self.name, index + 1),
        }
    }

    /// A constant whole number.
    pub(crate) fn integer(&self, index: usize) -> Result<i64> {
        match self.scalars.get(index).copied().flatten().and_then(scalar_integer) {
            Some(number) => Ok(number),
            None => plan_err!(
                "[DATATYPE_MISMATCH.NON_FOLDABLE_INPUT] argument {} of `{}` must be a constant INT",
                index + 1,
                self.name
            ),
        }
    }

    /// A constant text argument.
    pub(crate) fn text(&self, index: usize) -> Result<String> {
        match self.scalars.get(index).copied().flatten().and_then(scalar_text) {
            Some(text) => Ok(text),
            None => plan_err!(
                "[DATATYPE_MISMATCH.NON_FOLDABLE_INPUT] argument {} of `{}` must be a constant string",
                index + 1,
                self.name
            ),
        }
    }
}

fn scalar_integer(value: &ScalarValue) -> Option<i64> {
    match value.cast_to(&DataType::Int64) {
        Ok(ScalarValue::Int64(number)) => number,
        _ => None,
    }
}

/// One call on a batch.
pub(crate) struct Call {
    /// The function's name.
    pub name: &'static str,
    /// All arguments as arrays of `rows` values.
    pub args: Vec<ArrayRef>,
    /// The arguments that are constants.
    pub scalars: Vec<Option<ScalarValue>>,
    pub return_type: DataType,
}

impl Call {
    pub(crate) fn arg(&self, index: usize) -> Result<&ArrayRef> {
        match self.args.get(index) {
            Some(array) => Ok(array),
            None => plan_err!("argument {} is missing", index + 1),
        }
    }

    pub(crate) fn integer(&self, index: usize) -> Option<i64> {
        self.scalars.get(index)?.as_ref().and_then(scalar_integer)
    }

    pub(crate) fn text(&self, index: usize) -> Option<String> {
        self.scalars.get(index)?.as_ref().and_then(scalar_text)
    }
}

fn scalar_text(value: &ScalarValue) -> Option<String> {
    match value {
        ScalarValue::Utf8(Some(s)) | ScalarValue::LargeUtf8(Some(s)) | ScalarValue::Utf8View(Some(s)) => {
            Some(s.clone())
        }
        _ => None,
    }
}

impl Function {
    /// The function as DataFusion knows it.
    pub(crate) fn udf(self) -> Arc<ScalarUDF> {
        let signature = match self.coerce {
            Some(_) => Signature::user_defined(Volatility::Immutable),
            None if self.arity == (0, 0) => Signature::nullary(Volatility::Immutable),
            None => Signature::variadic_any(Volatility::Immutable),
        };
        let aliases = self.aliases.iter().map(|a| (*a).to_owned()).collect();
        Arc::new(ScalarUDF::new_from_impl(Udf { function: self, signature, aliases }))
    }
}

struct Udf {
    function: Function,
    signature: Signature,
    aliases: Vec<String>,
}

impl std::fmt::Debug for Udf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.function.name)
    }
}

impl PartialEq for Udf {
    fn eq(&self, other: &Self) -> bool {
        self.function.name == other.function.name
    }
}

impl Eq for Udf {}

impl Hash for Udf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.name.hash(state);
    }
}

impl ScalarUDFImpl for Udf {
    fn name(&self) -> &str {
        self.function.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        call_name(self.function.name, args)
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        plan_err!("{} types its result from its fields", self.function.name)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let name = self.function.name;
        let (least, most) = self.function.arity;
        let given = args.arg_fields.len();
        if given < least || given > most {
            let expected = match most {
                usize::MAX => format!("{least} or more"),
                most if most == least => least.to_string(),
                most => format!("{least} to {most}"),
            };
            return plan_err!(
                "[WRONG_NUM_ARGS.WITHOUT_SUGGESTION] The `{name}` requires {expected} parameters but the actual number is {given}."
            );
        }
        let arguments = Arguments { fields: args.arg_fields, scalars: args.scalar_arguments, name };
        Ok(Arc::new(Field::new(name, (self.function.returns)(&arguments)?, true)))
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match self.function.coerce {
            Some(coerce) => coerce(arg_types),
            None => Ok(arg_types.to_vec()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        // What no row asks for must not fail: `CASE WHEN false THEN CAST('x' AS INT) END`.
        if args.number_rows == 0 {
            return Ok(ColumnarValue::Array(new_empty_array(args.return_field.data_type())));
        }
        let constant = args.args.iter().all(|a| matches!(a, ColumnarValue::Scalar(_))) && !args.args.is_empty();
        let rows = if constant { 1 } else { args.number_rows };
        let scalars = args
            .args
            .iter()
            .map(|a| match a {
                ColumnarValue::Scalar(s) => Some(s.clone()),
                ColumnarValue::Array(_) => None,
            })
            .collect();
        let arrays = args.args.iter().map(|a| rows_of(self.function.name, a, rows)).collect::<Result<Vec<_>>>()?;
        let call = Call {
            name: self.function.name,
            args: arrays,
            scalars,
            return_type: args.return_field.data_type().clone(),
        };
        let result = (self.function.run)(&call)?;
        if constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?));
        }
        Ok(ColumnarValue::Array(result))
    }
}
