//! Weights of four and eight bits: each 32 of a row share a scale, and of four bits a minimum.
//!
//! A weight is `scale * q + min` with a whole `q`. Products by [`Quads`] take it as it is,
//! exact ones round it to bf16 first.
//!
//! ```text
//! words[v][j] lane l, byte b  is  weight k = 4 * j + b of row 16 * v + l
//! ```
//!
//! and of four bits also, in the upper half of the byte, weight `k + 16`.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use super::{Unit, Values};
use crate::cpu::{
    simd::{LANES, Simd},
    tile::PANEL,
};

/// Weights of a row that share a scale.
pub const GROUP: usize = 32;

/// Vectors that 32 weights of sixteen rows lie in as bytes.
const QUADS: usize = GROUP / 4;

/// Whole numbers from 0 to 255 of a group of each row of a panel, four neighbours of a row
/// beside each other: `[16-row half][k / 4][row][k % 4]`.
pub type Quads = [[[u8; 4 * LANES]; QUADS]; PANEL / LANES];

/// What tile registers multiply the high parts of 32 inputs with, then the low ones.
pub type Joined = [[[u8; 4 * LANES]; 2 * QUADS]; PANEL / LANES];

/// 32 weights of a row as GGUF writes them in Q4_1: the scale, the minimum, and four bits
/// each, `i` and `i + 16` in one byte.
pub type Q4_1 = [u8; 20];

/// 32 weights of a row as GGUF writes them in Q8_0: the scale, and eight bits each.
pub type Q8_0 = [u8; 34];

/// A group of each row of a panel.
pub trait Group: Pod + Send + Sync {
    /// What numbers are larger by in [`quads`](Self::quads).
    const OFFSET: i32;
    /// The numbers as bytes, in place or written to `to`.
    fn quads<'a>(&'a self, to: &'a mut Quads) -> &'a Quads;
    /// Whether something is added to each weight of a row.
    const HAS_MINS: bool;
    /// Sums that tile registers make: one of both parts of activations, or one of each.
    const SUMS: usize;
    /// The numbers as tile registers take them, written to `to`: sixteen times the numbers and
    /// the numbers, if that fits into bytes. If not, the numbers for the high parts only, and for the low
    /// parts only.
    fn joined(&self, to: &mut [Joined]);
    /// Scale of each row.
    fn scales(&self) -> &[[f16; LANES]; PANEL / LANES];
    /// What is added to each weight of a row: nothing without [`HAS_MINS`](Self::HAS_MINS).
    fn mins(&self) -> &[[f16; LANES]; PANEL / LANES];
    /// Writes all weights as part of a bf16 panel.
    fn unpack<S: Simd>(&self, simd: S, to: &mut [bf16; GROUP * PANEL]);
    /// Weight `k` of row `lane`.
    fn get(&self, lane: usize, k: usize) -> bf16;
}

/// Groups of four-bit weights.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Nibbles {
    scales: [[f16; LANES]; PANEL / LANES],
    mins: [[f16; LANES]; PANEL / LANES],
    words: [[[u32; LANES]; QUADS / 2]; PANEL / LANES],
}

/// Groups of eight-bit weights, each larger by 128.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Bytes {
    scales: [[f16; LANES]; PANEL / LANES],
    words: [[[u32; LANES]; QUADS]; PANEL / LANES],
}

/// The pair of a bf16 panel that begins with weight `k` of the `v`-th sixteen rows.
#[inline(always)]
fn pair(to: &mut [bf16; GROUP * PANEL], k: usize, v: usize) -> &mut [bf16; 2 * LANES] {
    &mut to.as_chunks_mut().0[k + v]
}

fn half(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

// === impl Nibbles ===

impl Group for Nibbles {
    const OFFSET: i32 = 0;
    const HAS_MINS: bool = true;
    const SUMS: usize = 1;

    #[inline(always)]
    fn quads<'a>(&'a self, to: &'a mut Quads) -> &'a Quads {
        for (words, to) in self.words.iter().zip(&mut *to) {
            let (lower, upper) = to.split_at_mut(QUADS / 2);
            for (words, (lower, upper)) in words.iter().zip(lower.iter_mut().zip(upper)) {
                let bytes: &[u8; 4 * LANES] = bytemuck::cast_ref(words);
                *lower = bytes.map(|byte| byte & 15);
                *upper = bytes.map(|byte| byte >> 4);
            }
        }
        to
    }

    #[inline(always)]
    fn joined(&self, to: &mut [Joined]) {
        for (words, to) in self.words.iter().zip(to.as_flattened_mut()) {
            for (j, words) in words.iter().enumerate() {
                let bytes: &[u8; 4 * LANES] = bytemuck::cast_ref(words);
                to[j] = bytes.map(|byte| byte << 4);
                to[QUADS / 2 + j] = bytes.map(|byte| byte & 0xf0);
                to[QUADS + j] = bytes.map(|byte| byte & 15);
                to[QUADS + QUADS / 2 + j] = bytes.map(|byte| byte >> 4);
            }
        }
    }

    #[inline(always)]
    fn scales(&self) -> &[[f16; LANES]; PANEL / LANES] {
        &self.scales
    }

    #[inline(always)]
    fn mins(&self) -> &[[f16; LANES]; PANEL / LANES] {
        &self.mins
    }

    #[inline(always)]
    fn unpack<S: Simd>(&self, s: S, to: &mut [bf16; GROUP * PANEL]) {
        for (v, words) in self.words.iter().enumerate() {
            let (scale, min) = (s.load_f16(&self.scales[v]), s.load_f16(&self.mins[v]));
            for (j, words) in words.iter().enumerate() {
                for t in 0..4 {
                    // Of each byte the lower half and the upper one.
                    let (b, half) = (2 * (t % 2), t / 2);
                    let weight = |b: usize| s.fma(s.nibbles(words, 2 * b + half), scale, min);
                    s.store_pairs(weight(b), weight(b + 1), pair(to, 16 * half + 4 * j + b, v));
                }
            }
        }
    }

    fn get(&self, lane: usize, k: usize) -> bf16 {
        let (v, lane) = (lane / LANES, lane % LANES);
        let quant = self.words[v][k % 16 / 4][lane] >> (8 * (k % 4) + k / 16 * 4) & 15;
        let [scale, min] = [&self.scales, &self.mins].map(|all| all[v][lane].to_f32());
        bf16::from_f32((quant as f32).mul_add(scale, min))
    }
}

impl Unit for Q4_1 {
    const VALUES: usize = GROUP;
    const ZERO: Self = [0; 20];
    type Cell = Nibbles;

    fn cells(cols: usize) -> usize {
        cols / GROUP
    }

    fn place(rows: &[Self], row: usize, panel: &mut [Nibbles]) {
        for (index, group) in panel.iter_mut().enumerate() {
            for (lane, blocks) in rows.chunks_exact(row).enumerate() {
                let block = &blocks[index];
                let (v, lane) = (lane / LANES, lane % LANES);
                group.scales[v][lane] = half(block, 0);
                group.mins[v][lane] = half(block, 2);
                // Bytes lie in the file as they do here.
                for (j, four) in block[4..].as_chunks().0.iter().enumerate() {
                    group.words[v][j][lane] = u32::from_le_bytes(*four);
                }
            }
        }
    }

    fn wrap(cells: Vec<Nibbles>) -> Values {
        Values::Int4(cells)
    }
}

// === impl Bytes ===

impl Group for Bytes {
    const OFFSET: i32 = 128;
    const HAS_MINS: bool = false;
    const SUMS: usize = 2;

    #[inline(always)]
    fn quads<'a>(&'a self, _: &'a mut Quads) -> &'a Quads {
        bytemuck::cast_ref(&self.words)
    }

    #[inline(always)]
    fn joined(&self, to: &mut [Joined]) {
        let quads: &Quads = bytemuck::cast_ref(&self.words);
        for (part, to) in to.iter_mut().enumerate() {
            for (quads, to) in quads.iter().zip(to) {
                to[part * QUADS..][..QUADS].copy_from_slice(quads);
                to[(1 - part) * QUADS..][..QUADS].fill([0; 4 * LANES]);
            }
        }
    }

    #[inline(always)]
    fn scales(&self) -> &[[f16; LANES]; PANEL / LANES] {
        &self.scales
    }

    #[inline(always)]
    fn mins(&self) -> &[[f16; LANES]; PANEL / LANES] {
        &[[f16::ZERO; LANES]; PANEL / LANES]
    }

    #[inline(always)]
    fn unpack<S: Simd>(&self, s: S, to: &mut [bf16; GROUP * PANEL]) {
        let offset = s.splat(Self::OFFSET as f32);
        for (v, words) in self.words.iter().enumerate() {
            let scale = s.load_f16(&self.scales[v]);
            for (j, words) in words.iter().enumerate() {
                for b in [0, 2] {
                    let weight = |b: usize| s.mul(s.sub(s.bytes(words, b), offset), scale);
                    s.store_pairs(weight(b), weight(b + 1), pair(to, 4 * j + b, v));
                }
            }
        }
    }

    fn get(&self, lane: usize, k: usize) -> bf16 {
        let (v, lane) = (lane / LANES, lane % LANES);
        let quant = (self.words[v][k / 4][lane] >> (8 * (k % 4)) & 255) as i32 - Self::OFFSET;
        bf16::from_f32(quant as f32 * self.scales[v][lane].to_f32())
    }
}

impl Unit for Q8_0 {
    const VALUES: usize = GROUP;
    const ZERO: Self = [0; 34];
    type Cell = Bytes;

    fn cells(cols: usize) -> usize {
        cols / GROUP
    }

    fn place(rows: &[Self], row: usize, panel: &mut [Bytes]) {
        for (index, group) in panel.iter_mut().enumerate() {
            for (lane, blocks) in rows.chunks_exact(row).enumerate() {
                let block = &blocks[index];
                let (v, lane) = (lane / LANES, lane % LANES);
                group.scales[v][lane] = half(block, 0);
                for (j, four) in block[2..].as_chunks::<4>().0.iter().enumerate() {
                    group.words[v][j][lane] = u32::from_le_bytes(four.map(|quant| quant ^ 128));
                }
            }
        }
    }

    fn wrap(cells: Vec<Bytes>) -> Values {
        Values::Int8(cells)
    }
}

/// Rounds each 32 weights to sixteen evenly spaced values between the least and the greatest.
///
/// # Panics
/// When `values` are not whole groups.
pub fn quantise_q4_1(values: &[bf16]) -> Vec<Q4_1> {
    let (groups, rest) = values.as_chunks::<GROUP>();
    assert!(rest.is_empty(), "not whole groups");
    groups.iter().map(|group| affine(&group.map(bf16::to_f32))).collect()
}

/// Rounds each 32 weights to 255 evenly spaced values around zero.
///
/// # Panics
/// When `values` are not whole groups.
pub fn quantise_q8_0(values: &[bf16]) -> Vec<Q8_0> {
    let (groups, rest) = values.as_chunks::<GROUP>();
    assert!(rest.is_empty(), "not whole groups");
    groups.iter().map(|group| symmetric(&group.map(bf16::to_f32))).collect()
}

fn affine(values: &[f32; GROUP]) -> Q4_1 {
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let greatest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let [scale, min] = [(greatest - least) / 15.0, least].map(saturated);
    let mut block = [0; 20];
    block[..2].copy_from_slice(&scale.to_le_bytes());
    block[2..4].copy_from_slice(&min.to_le_bytes());
    let [scale, min] = [scale, min].map(f16::to_f32);
    for (k, value) in values.iter().enumerate() {
        // Conversion saturates, and takes the quotient of nothing by nothing as zero.
        let quant = ((value - min) / scale).round().clamp(0.0, 15.0) as u8;
        block[4 + k % 16] |= quant << (k / 16 * 4);
    }
    block
}

fn symmetric(values: &[f32; GROUP]) -> Q8_0 {
    let greatest = values.iter().fold(0.0, |greatest: f32, value| greatest.max(value.abs()));
    let scale = saturated(greatest / 127.0);
    let mut block = [0; 34];
    block[..2].copy_from_slice(&scale.to_le_bytes());
    for (byte, value) in block[2..].iter_mut().zip(values) {
        *byte = (value / scale.to_f32()).round() as i8 as u8;
    }
    block
}

/// The nearest f16 that is a number.
fn saturated(value: f32) -> f16 {
    f16::from_f32(value.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}
