//! Tensors of one or several safetensors files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io::Read,
    path::{Component, Path},
    sync::Arc,
};

use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};

use crate::{
    error::FormatError,
    weights::{Encoding, Stored, Weights},
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The limit of the format's reference implementation.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const MAX_TENSORS: usize = 1 << 16;
const MAX_SHARDS: usize = 1 << 12;

#[derive(Deserialize)]
struct Index {
    /// Tensor name to file name.
    weight_map: BTreeMap<String, String>,
}

/// The entries of a header, each name once.
struct Header(Vec<(String, TensorInfo)>);

/// Finds all tensors of a directory.
pub fn read(directory: &Path) -> Result<Weights, FormatError> {
    let index: Option<Index> = super::optional_json(directory, INDEX)?;
    let shards: BTreeSet<String> = match &index {
        Some(index) => index.weight_map.values().cloned().collect(),
        None if directory.join(SINGLE).exists() => BTreeSet::from([SINGLE.to_owned()]),
        None => {
            let file = format!("{SINGLE} (pickled weights such as pytorch_model.bin are refused)");
            return Err(FormatError::MissingFile { file });
        }
    };
    if shards.len() > MAX_SHARDS {
        let found = shards.len() as u64;
        return Err(FormatError::Limit { what: "number of shards", found, limit: MAX_SHARDS as u64 });
    }
    let mut tensors = Vec::new();
    for shard in &shards {
        tensors.extend(read_shard(directory, shard)?.into_iter().map(Ok));
    }
    let weights = Weights::from_stored(tensors)?;
    let named = index.into_iter().flat_map(|index| index.weight_map.into_keys());
    match named.into_iter().find(|name| weights.shape(name).is_none()) {
        Some(tensor) => Err(FormatError::MissingTensor { tensor }),
        None => Ok(weights),
    }
}

/// Opens one file and checks its header against its size.
fn read_shard(directory: &Path, shard: &str) -> Result<Vec<(String, Stored)>, FormatError> {
    let mut components = Path::new(shard).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(name)), None) if name == shard);
    if !plain || !shard.ends_with(".safetensors") {
        return Err(FormatError::ShardName { file: INDEX, shard: shard.to_owned() });
    }
    let missing = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => FormatError::MissingFile { file: shard.to_owned() },
        _ => FormatError::Io(error),
    };
    let mut file = File::open(directory.join(shard)).map_err(missing)?;
    let file_bytes = file.metadata()?.len();
    let (entries, data_start) = parse(&mut file, file_bytes, shard)?;
    let file = Arc::new(file);
    let stored = entries.into_iter().map(|(name, info)| {
        let encoding = match info.dtype {
            Dtype::F32 => Encoding::F32,
            Dtype::F16 => Encoding::F16,
            Dtype::BF16 => Encoding::Bf16,
            found => {
                let found = format!("{found:?}");
                return Err(FormatError::TensorType { tensor: name, found, supported: "F32, F16 and BF16" });
            }
        };
        if info.shape.contains(&0) {
            return Err(FormatError::EmptyDimension { tensor: name });
        }
        let start = data_start + info.data_offsets.0 as u64;
        Ok((name, Stored::in_file(info.shape, Arc::clone(&file), start, encoding)))
    });
    stored.collect()
}

/// Parses a header; returns its tensors and the offset of the first byte of data.
fn parse(
    mut source: impl Read,
    file_bytes: u64,
    shard: &str,
) -> Result<(Vec<(String, TensorInfo)>, u64), FormatError> {
    let truncated = |what| FormatError::Truncated { what, end: file_bytes };
    if file_bytes < 8 {
        return Err(truncated("the length of the header"));
    }
    let mut length = [0; 8];
    source.read_exact(&mut length)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(FormatError::Limit { what: "header", found: header_bytes, limit: MAX_HEADER_BYTES });
    }
    let data_start = 8 + header_bytes;
    if data_start > file_bytes {
        return Err(truncated("the header"));
    }
    let mut header = vec![0; header_bytes as usize];
    source.read_exact(&mut header)?;
    let wrong = |source| FormatError::Json { file: format!("the header of {shard}"), source };
    let Header(entries) = serde_json::from_slice(&header).map_err(wrong)?;
    // The crate checks that the tensors cover the data without holes and fit their shapes.
    let metadata = Metadata::new(None, entries.clone())
        .map_err(|source| FormatError::Safetensors { file: shard.to_owned(), source })?;
    let (found, expected) = (file_bytes - data_start, metadata.data_len() as u64);
    if found != expected {
        return Err(FormatError::DataLength { file: shard.to_owned(), found, expected });
    }
    Ok((entries, data_start))
}

// === impl Header ===

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if tensors.len() == MAX_TENSORS {
                return Err(A::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
            }
            let info: TensorInfo = map.next_value()?;
            if tensors.contains_key(&name) {
                return Err(A::Error::custom(format_args!("tensor `{name}` appears twice")));
            }
            tensors.insert(name, info);
        }
        let mut tensors: Vec<_> = tensors.into_iter().collect();
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        Ok(Header(tensors))
    }
}

#[cfg(test)]
mod tests;
