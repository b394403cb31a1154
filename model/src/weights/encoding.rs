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
    Q8_0,
    Q4_0,
    Q4_1,
}

// === impl Encoding ===

impl Encoding {
    /// Names of the encodings a GGUF file may use, for messages.
    pub const GGUF: &str = "F32, F16, BF16, Q8_0, Q4_0 and Q4_1";

    /// The encoding with this number in a GGUF file.
    pub fn from_gguf(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// Number of values that are written together.
    pub fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => self.ggml().block_size(),
        }
    }

    /// Size of one block.
    pub fn block_bytes(self) -> usize {
        self.ggml().type_size()
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
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => {
                match self.ggml().from_data(Cow::Borrowed(raw)).dequantize(values.len())? {
                    CpuStorage::F32(floats) => {
                        for (value, float) in values.iter_mut().zip(floats) {
                            *value = bf16::from_f32(float);
                        }
                    }
                    _ => return Err(candle_core::Error::Msg("blocks became something else than f32".into())),
                }
            }
        }
        Ok(())
    }

    fn ggml(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::Bf16 => GgmlDType::BF16,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
        }
    }
}
