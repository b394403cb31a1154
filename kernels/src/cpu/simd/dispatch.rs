//! From [`Isa`], a value, to [`Simd`], a type.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls of functions compiled for instructions that were detected first")
)]

use super::{Isa, Work, portable::Portable};
#[cfg(target_arch = "x86_64")]
use super::{Simd, avx2::Avx2, avx512::Avx512};
use crate::cpu::amx::Amx;

// === impl Isa ===

impl Isa {
    /// All that this processor has, the best first. Ends with [`Isa::Portable`].
    pub fn supported() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let all = [Self::Amx, Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Portable];
        #[cfg(not(target_arch = "x86_64"))]
        let all = [Self::Portable];
        all.into_iter().filter(|isa| isa.is_supported()).collect()
    }

    /// The best that this processor has.
    pub fn best() -> Self {
        Self::supported().first().copied().unwrap_or(Self::Portable)
    }

    /// Its name in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => "amx",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => "avx512-bf16",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }

    /// The best that this processor has of those that are exact.
    pub fn best_exact() -> Self {
        Self::supported().into_iter().find(|isa| isa.is_exact()).unwrap_or(Self::Portable)
    }

    /// Whether it multiplies f32 as they are. Tile registers take the sum of two bf16 for one.
    pub fn is_exact(self) -> bool {
        self.amx().is_none()
    }

    /// The tile registers, if it has them.
    pub(crate) fn amx(self) -> Option<Amx> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Amx::new(),
            _ => None,
        }
    }

    /// Whether this processor has it. The answer is remembered.
    fn is_supported(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512Bf16.is_supported() && Amx::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => {
                Self::Avx512.is_supported()
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            Self::Portable => true,
        }
    }

    /// Runs `work` with these instructions, or with plain Rust on a processor
    /// that lacks them (then the results are those of every exact one).
    #[inline]
    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        if !self.is_supported() {
            return work.run(Portable);
        }
        match self {
            // SAFETY: `is_supported` checked every feature that the function enables.
            #[cfg(target_arch = "x86_64")]
            Self::Amx | Self::Avx512Bf16 => unsafe { run_avx512_bf16(work, Avx512::<true>::new_unchecked()) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { run_avx512(work, Avx512::<false>::new_unchecked()) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { run_avx2(work, Avx2::new_unchecked()) },
            Self::Portable => work.run(Portable),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c")]
fn run_avx512_bf16<W: Work, S: Simd>(work: W, simd: S) -> W::Output {
    work.run(simd)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn run_avx512<W: Work, S: Simd>(work: W, simd: S) -> W::Output {
    work.run(simd)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<W: Work, S: Simd>(work: W, simd: S) -> W::Output {
    work.run(simd)
}
