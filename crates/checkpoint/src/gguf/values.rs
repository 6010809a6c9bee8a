//! GGUF key-values.

use scrimp_model::{MetaArray, MetaValue};

use super::cursor::Cursor;
use super::{GgufError, MAX_ARRAY_ITEMS};

const ARRAY: u32 = 9;

/// Reads a value of type `number`. `budget` is what is left of the items all arrays may hold.
pub(super) fn value(
    cursor: &mut Cursor,
    number: u32,
    key: &str,
    budget: &mut usize,
) -> Result<MetaValue, GgufError> {
    Ok(match number {
        0 => MetaValue::Unsigned(u8::from_le_bytes(cursor.array(key)?).into()),
        1 => MetaValue::Signed(i8::from_le_bytes(cursor.array(key)?).into()),
        2 => MetaValue::Unsigned(u16::from_le_bytes(cursor.array(key)?).into()),
        3 => MetaValue::Signed(i16::from_le_bytes(cursor.array(key)?).into()),
        4 => MetaValue::Unsigned(cursor.u32(key)?.into()),
        5 => MetaValue::Signed(i32::from_le_bytes(cursor.array(key)?).into()),
        6 => MetaValue::Float(f32::from_le_bytes(cursor.array(key)?).into()),
        7 => MetaValue::Bool(boolean(cursor.array(key)?, key)?),
        8 => MetaValue::Text(cursor.text(usize::MAX, key)?.to_owned()),
        ARRAY => MetaValue::Array(array(cursor, key, budget)?),
        10 => MetaValue::Unsigned(cursor.u64(key)?),
        11 => MetaValue::Signed(i64::from_le_bytes(cursor.array(key)?)),
        12 => MetaValue::Float(f64::from_le_bytes(cursor.array(key)?)),
        _ => return Err(unknown(key, number)),
    })
}

fn unknown(key: &str, number: u32) -> GgufError {
    GgufError::ValueType {
        key: key.to_owned(),
        number,
    }
}

fn boolean([byte]: [u8; 1], key: &str) -> Result<bool, GgufError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(GgufError::Bool {
            key: key.to_owned(),
            byte,
        }),
    }
}

fn array(cursor: &mut Cursor, key: &str, budget: &mut usize) -> Result<MetaArray, GgufError> {
    let number = cursor.u32(key)?;
    let least = match number {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8, // a string is at least its length
        ARRAY => {
            return Err(GgufError::NestedArray {
                key: key.to_owned(),
            });
        }
        _ => return Err(unknown(key, number)),
    };
    let count = cursor.count(least, &format!("the items of {key:?}"))?;
    *budget = budget.checked_sub(count).ok_or_else(|| GgufError::Count {
        what: format!("the items of {key:?} and the arrays before it"),
        claimed: (MAX_ARRAY_ITEMS - *budget + count) as u64,
        most: MAX_ARRAY_ITEMS,
    })?;
    if number == 8 {
        let text = |_| cursor.text(usize::MAX, key).map(str::to_owned);
        return Ok(MetaArray::Text(
            (0..count).map(text).collect::<Result<_, _>>()?,
        ));
    }
    // `count` cannot overflow: it was checked against what is left of the file.
    let bytes = cursor.bytes(count * least, key)?;
    Ok(match number {
        0 => MetaArray::Unsigned(each(bytes, |[v]| v.into())),
        1 => MetaArray::Signed(each(bytes, |v| i8::from_le_bytes(v).into())),
        2 => MetaArray::Unsigned(each(bytes, |v| u16::from_le_bytes(v).into())),
        3 => MetaArray::Signed(each(bytes, |v| i16::from_le_bytes(v).into())),
        4 => MetaArray::Unsigned(each(bytes, |v| u32::from_le_bytes(v).into())),
        5 => MetaArray::Signed(each(bytes, |v| i32::from_le_bytes(v).into())),
        6 => MetaArray::Float(each(bytes, |v| f32::from_le_bytes(v).into())),
        7 => {
            let flags = bytes.iter().map(|&byte| boolean([byte], key));
            MetaArray::Bool(flags.collect::<Result<_, _>>()?)
        }
        10 => MetaArray::Unsigned(each(bytes, u64::from_le_bytes)),
        11 => MetaArray::Signed(each(bytes, i64::from_le_bytes)),
        _ => MetaArray::Float(each(bytes, f64::from_le_bytes)),
    })
}

fn each<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|v| value(*v)).collect()
}
