//! Metadata and tensor table of a GGUF file, every field checked.

use std::{
    collections::{BTreeMap, HashSet},
    io::Read,
};

use super::{
    cursor::Cursor,
    metadata::{Metadata, Value},
};
use crate::{error::FormatError, weights::Encoding};

const MAGIC: [u8; 4] = *b"GGUF";
const MAX_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 16;
const MAX_ARRAY: u64 = 1 << 22;
const MAX_ALIGNMENT: u64 = 1 << 20;
const DEFAULT_ALIGNMENT: u64 = 32;

/// A header of which everything has been checked.
#[derive(Debug)]
pub struct Header {
    pub metadata: Metadata,
    pub tensors: Vec<TensorInfo>,
}

/// A tensor whose bytes lie inside the file and nowhere else.
#[derive(Debug)]
pub struct TensorInfo {
    pub name: String,
    /// Slowest dimension first (the file has them the other way round).
    pub shape: Vec<usize>,
    pub encoding: Encoding,
    /// Offset of its first byte in the file.
    pub start: u64,
    /// Offset after its last byte.
    end: u64,
}

/// Parses the header of a file of `file_bytes` bytes.
pub fn parse(source: impl Read, file_bytes: u64) -> Result<Header, FormatError> {
    let mut cursor = Cursor::new(source, file_bytes);
    if cursor.array("the magic number").ok() != Some(MAGIC) {
        return Err(FormatError::NotAModel);
    }
    let version = cursor.u32("the version")?;
    if !(2..=3).contains(&version) {
        return Err(FormatError::Version { found: version });
    }
    // The least sizes of an entry: empty name, one dimension; empty key, one byte.
    let num_tensors = count(&mut cursor, "number of tensors", MAX_TENSORS, 8 + 4 + 8 + 4 + 8)?;
    let num_keys = count(&mut cursor, "number of metadata keys", MAX_KEYS, 8 + 4 + 1)?;
    let metadata = metadata(&mut cursor, num_keys)?;
    let alignment = alignment(&metadata)?;
    let mut tensors = Vec::new();
    for _ in 0..num_tensors {
        tensors.push(tensor(&mut cursor, alignment)?);
    }
    let data_start = cursor.offset().next_multiple_of(alignment);
    place(&mut tensors, data_start, file_bytes)?;
    Ok(Header { metadata, tensors })
}

fn count<R: Read>(
    cursor: &mut Cursor<R>,
    what: &'static str,
    limit: u64,
    item_bytes: u64,
) -> Result<u64, FormatError> {
    let found = cursor.u64(what)?;
    if found > limit {
        return Err(FormatError::Limit { what, found, limit });
    }
    cursor.expect_room(what, found, item_bytes)?;
    Ok(found)
}

fn metadata<R: Read>(cursor: &mut Cursor<R>, num_keys: u64) -> Result<Metadata, FormatError> {
    let mut values = BTreeMap::new();
    for _ in 0..num_keys {
        let key = cursor.name("a metadata key")?;
        if values.contains_key(&key) {
            return Err(FormatError::DuplicateKey { key });
        }
        let code = cursor.u32("a metadata type")?;
        let value = match code {
            9 => array(cursor, &key)?,
            _ => value(cursor, &key, code)?,
        };
        values.insert(key, value);
    }
    Ok(Metadata::new(values))
}

/// A value that is no array.
fn value<R: Read>(cursor: &mut Cursor<R>, key: &str, code: u32) -> Result<Value, FormatError> {
    const WHAT: &str = "a metadata value";
    Ok(match code {
        0 => Value::Int(cursor.array(WHAT).map(u8::from_le_bytes)?.into()),
        1 => Value::Int(cursor.array(WHAT).map(i8::from_le_bytes)?.into()),
        2 => Value::Int(cursor.array(WHAT).map(u16::from_le_bytes)?.into()),
        3 => Value::Int(cursor.array(WHAT).map(i16::from_le_bytes)?.into()),
        4 => Value::Int(cursor.u32(WHAT)?.into()),
        5 => Value::Int(cursor.array(WHAT).map(i32::from_le_bytes)?.into()),
        6 => Value::Float(cursor.array(WHAT).map(f32::from_le_bytes)?.into()),
        7 => match cursor.array(WHAT)? {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            [found] => {
                let found = found.to_string();
                return Err(FormatError::Value {
                    key: key.to_owned(),
                    found,
                    expected: "a boolean (0 or 1)",
                });
            }
        },
        8 => Value::Text(cursor.string("a metadata string")?),
        10 => Value::Int(cursor.u64(WHAT)?.into()),
        11 => Value::Int(cursor.array(WHAT).map(i64::from_le_bytes)?.into()),
        12 => Value::Float(cursor.array(WHAT).map(f64::from_le_bytes)?),
        _ => return Err(FormatError::ValueType { key: key.to_owned(), code }),
    })
}

fn array<R: Read>(cursor: &mut Cursor<R>, key: &str) -> Result<Value, FormatError> {
    let code = cursor.u32("the type of a metadata array")?;
    let item_bytes = match code {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        9 => return Err(FormatError::NestedArray { key: key.to_owned() }),
        _ => return Err(FormatError::ValueType { key: key.to_owned(), code }),
    };
    let length = count(cursor, "length of a metadata array", MAX_ARRAY, item_bytes)?;
    if code == 8 {
        let texts = (0..length).map(|_| cursor.string("a string of a metadata array"));
        return Ok(Value::Texts(texts.collect::<Result<_, _>>()?));
    }
    let (mut ints, mut floats) = (Vec::new(), Vec::new());
    for _ in 0..length {
        match value(cursor, key, code)? {
            Value::Int(int) => ints.push(int),
            Value::Bool(bool) => ints.push(bool.into()),
            Value::Float(float) => floats.push(float as f32),
            Value::Text(_) | Value::Texts(_) | Value::Ints(_) | Value::Floats(_) => {}
        }
    }
    Ok(if matches!(code, 6 | 12) { Value::Floats(floats) } else { Value::Ints(ints) })
}

fn alignment(metadata: &Metadata) -> Result<u64, FormatError> {
    const KEY: &str = "general.alignment";
    match metadata.optional_size(KEY)? {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(found) if found.is_power_of_two() && found as u64 <= MAX_ALIGNMENT => Ok(found as u64),
        Some(found) => Err(FormatError::Value {
            key: KEY.to_owned(),
            found: found.to_string(),
            expected: "a power of two up to 1048576",
        }),
    }
}

/// One entry of the tensor table. `start` and `end` still count from the start of the data.
fn tensor<R: Read>(cursor: &mut Cursor<R>, alignment: u64) -> Result<TensorInfo, FormatError> {
    let name = cursor.name("a tensor name")?;
    let num_dims = cursor.u32("a tensor's number of dimensions")?;
    if !(1..=4).contains(&num_dims) {
        return Err(FormatError::Dimensions { tensor: name, count: num_dims });
    }
    let mut dims = Vec::new();
    for _ in 0..num_dims {
        match cursor.u64("a tensor's dimensions")? {
            0 => return Err(FormatError::EmptyDimension { tensor: name }),
            size => dims.push(size),
        }
    }
    let code = cursor.u32("a tensor's type")?;
    let Some(encoding) = Encoding::from_gguf(code) else {
        let found = Encoding::gguf_name(code);
        return Err(FormatError::TensorType { tensor: name, found, supported: Encoding::GGUF });
    };
    let offset = cursor.u64("a tensor's offset")?;
    if !offset.is_multiple_of(alignment) {
        return Err(FormatError::Misaligned { tensor: name, offset, alignment });
    }
    let block = encoding.block_values() as u64;
    if !dims[0].is_multiple_of(block) {
        return Err(FormatError::Block { tensor: name, row: dims[0], block });
    }
    let values = dims.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
    let end = values
        .and_then(|values| (values / block).checked_mul(encoding.block_bytes() as u64))
        .and_then(|bytes| bytes.checked_add(offset));
    let shape = dims.iter().rev().map(|size| usize::try_from(*size).ok()).collect();
    match (end, shape) {
        (Some(end), Some(shape)) => Ok(TensorInfo { name, shape, encoding, start: offset, end }),
        _ => Err(FormatError::TensorOverflow { tensor: name }),
    }
}

/// Moves the tensors to where the data starts, and checks that they lie in the file, side by side.
fn place(tensors: &mut [TensorInfo], data_start: u64, file: u64) -> Result<(), FormatError> {
    let mut names = HashSet::new();
    for tensor in tensors.iter_mut() {
        if !names.insert(&tensor.name) {
            return Err(FormatError::DuplicateTensor { tensor: tensor.name.clone() });
        }
        let Some(end) = tensor.end.checked_add(data_start) else {
            return Err(FormatError::TensorOverflow { tensor: tensor.name.clone() });
        };
        if end > file {
            return Err(FormatError::OutsideFile { tensor: tensor.name.clone(), end, file });
        }
        (tensor.start, tensor.end) = (tensor.start + data_start, end);
    }
    tensors.sort_by_key(|tensor| tensor.start);
    match tensors.windows(2).find(|pair| pair[0].end > pair[1].start) {
        Some(pair) => Err(FormatError::Overlap { first: pair[0].name.clone(), second: pair[1].name.clone() }),
        None => Ok(()),
    }
}
