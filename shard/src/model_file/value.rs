//! Metadata values and their kinds.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The type of a metadata value, or of an array's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each variant is the GGUF metadata type of that name")]
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Str,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    /// The kind with this number in a file.
    pub(crate) fn from_number(number: u32) -> Option<Kind> {
        use Kind::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, Str, Array, U64, I64, F64].get(number as usize).copied()
    }

    /// Bytes of one value; `None` where they vary.
    pub(crate) fn size(self) -> Option<u64> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::Str | Kind::Array => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::U8 => "u8",
            Kind::I8 => "i8",
            Kind::U16 => "u16",
            Kind::I16 => "i16",
            Kind::U32 => "u32",
            Kind::I32 => "i32",
            Kind::F32 => "f32",
            Kind::Bool => "bool",
            Kind::Str => "string",
            Kind::Array => "array",
            Kind::U64 => "u64",
            Kind::I64 => "i64",
            Kind::F64 => "f64",
        })
    }
}

/// A metadata value as the file has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// A floating-point number; an f32 is widened.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// UTF-8 text.
    Str(String),
    /// An array, left in the file.
    Array {
        /// What its elements are.
        kind: Kind,
        /// How many there are.
        count: u64,
        /// Where the first one begins in the first part of the file, in bytes.
        at: u64,
        /// Bytes of all elements.
        bytes: u64,
    },
}

impl Value {
    /// The value of `kind` in `bytes`, which are as many as the kind has; `None` for kinds that are not plain numbers
    /// and for a bool that is neither 0 nor 1.
    pub(crate) fn of_number(kind: Kind, bytes: &[u8]) -> Option<Value> {
        fn fixed<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
            bytes.try_into().ok()
        }
        Some(match kind {
            Kind::U8 => Value::Unsigned(u8::from_le_bytes(fixed(bytes)?).into()),
            Kind::U16 => Value::Unsigned(u16::from_le_bytes(fixed(bytes)?).into()),
            Kind::U32 => Value::Unsigned(u32::from_le_bytes(fixed(bytes)?).into()),
            Kind::U64 => Value::Unsigned(u64::from_le_bytes(fixed(bytes)?)),
            Kind::I8 => Value::Signed(i8::from_le_bytes(fixed(bytes)?).into()),
            Kind::I16 => Value::Signed(i16::from_le_bytes(fixed(bytes)?).into()),
            Kind::I32 => Value::Signed(i32::from_le_bytes(fixed(bytes)?).into()),
            Kind::I64 => Value::Signed(i64::from_le_bytes(fixed(bytes)?)),
            Kind::F32 => Value::Float(f32::from_le_bytes(fixed(bytes)?).into()),
            Kind::F64 => Value::Float(f64::from_le_bytes(fixed(bytes)?)),
            Kind::Bool => match fixed::<1>(bytes)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                _ => return None,
            },
            Kind::Str | Kind::Array => return None,
        })
    }

    /// The value as a count; `None` where it is no integer or negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// What the value is, for messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Value::Unsigned(n) => format!("the integer {n}"),
            Value::Signed(n) => format!("the integer {n}"),
            Value::Float(x) => format!("the number {x}"),
            Value::Bool(b) => format!("the bool {b}"),
            Value::Str(text) => format!("the string `{}`", text.chars().take(40).collect::<String>()),
            Value::Array { kind, count, .. } => format!("an array of {count} {kind}"),
        }
    }
}
