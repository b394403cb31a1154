//! How a file writes numbers, and how they become bf16.

use std::borrow::Cow;

use candle_core::{CpuStorage, quantized::GgmlDType};
use half::{bf16, f16};

/// How the values of a tensor are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

// === impl Encoding ===

impl Encoding {
    /// Names of the encodings a GGUF file may use, for messages.
    pub const GGUF: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K";

    /// The encoding with this number in a GGUF file.
    pub fn from_gguf(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// What an encoding that is not supported is called.
    pub fn gguf_name(code: u32) -> String {
        let name = match code {
            9 => "Q8_1",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            24 => "I8",
            25 => "I16",
            26 => "I32",
            27 => "I64",
            28 => "F64",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            39 => "MXFP4",
            40 => "NVFP4",
            41 => "Q1_0",
            _ => return format!("number {code}"),
        };
        name.to_owned()
    }

    /// Number of values that are written together.
    pub fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            _ => self.ggml().block_size(),
        }
    }

    /// Size of one block.
    pub fn block_bytes(self) -> usize {
        self.ggml().type_size()
    }

    /// Size of whole blocks of `values` values.
    pub fn bytes(self, values: usize) -> usize {
        values / self.block_values() * self.block_bytes()
    }

    /// Decodes whole blocks. `raw` is aligned to 4 bytes and fits `values` exactly.
    pub fn decode(self, raw: &[u8], values: &mut [bf16]) -> Result<(), candle_core::Error> {
        match self {
            Self::F32 => {
                for (value, raw) in values.iter_mut().zip(raw.as_chunks().0) {
                    *value = bf16::from_f32(f32::from_le_bytes(*raw));
                }
            }
            Self::F16 => {
                for (value, raw) in values.iter_mut().zip(raw.as_chunks().0) {
                    *value = bf16::from_f32(f16::from_le_bytes(*raw).to_f32());
                }
            }
            Self::Bf16 => {
                for (value, raw) in values.iter_mut().zip(raw.as_chunks().0) {
                    *value = bf16::from_le_bytes(*raw);
                }
            }
            _ => match self.ggml().from_data(Cow::Borrowed(raw)).dequantize(values.len())? {
                CpuStorage::F32(floats) => {
                    for (value, float) in values.iter_mut().zip(floats) {
                        *value = bf16::from_f32(float);
                    }
                }
                _ => return Err(candle_core::Error::Msg("blocks became something else than f32".into())),
            },
        }
        Ok(())
    }

    /// Decodes whole blocks without rounding. `raw` is aligned to 4 bytes.
    pub fn floats(self, raw: &[u8]) -> Result<Vec<f32>, candle_core::Error> {
        let values = raw.len() / self.block_bytes() * self.block_values();
        Ok(match self {
            Self::F32 => raw.as_chunks().0.iter().map(|raw| f32::from_le_bytes(*raw)).collect(),
            Self::F16 => raw.as_chunks().0.iter().map(|raw| f16::from_le_bytes(*raw).to_f32()).collect(),
            Self::Bf16 => raw.as_chunks().0.iter().map(|raw| bf16::from_le_bytes(*raw).to_f32()).collect(),
            _ => match self.ggml().from_data(Cow::Borrowed(raw)).dequantize(values)? {
                CpuStorage::F32(floats) => floats,
                _ => return Err(candle_core::Error::Msg("blocks became something else than f32".into())),
            },
        })
    }

    fn ggml(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::Bf16 => GgmlDType::BF16,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q2K => GgmlDType::Q2K,
            Self::Q3K => GgmlDType::Q3K,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
        }
    }
}

#[cfg(test)]
mod tests;
