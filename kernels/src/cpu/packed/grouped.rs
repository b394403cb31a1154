//! Weights of four and eight bits: each 32 of a row share a scale, and of four bits a minimum.
//!
//! A weight is `bf16(scale * q + min)`, so the products of a file that was
//! written like this are the same bits as with its weights unpacked to bf16.
//!
//! ```text
//! word[v][h] lane l, field t  is  weight k = 2 * (h * fields + t) + l % 2
//!                                 of row     8 * v + l / 2
//! ```
//!
//! so that unpacking a vector gives pairs in the order of a bf16 panel.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use super::{Unit, Values};
use crate::cpu::{
    simd::{LANES, Simd},
    tile::PANEL,
};

/// Weights of a row that share a scale.
pub const GROUP: usize = 32;

/// Rows of a vector of pairs.
const OCTET: usize = LANES / 2;

/// 32 weights of a row as GGUF writes them in Q4_1: the scale, the minimum, and four bits
/// each, `i` and `i + 16` in one byte.
pub type Q4_1 = [u8; 20];

/// 32 weights of a row as GGUF writes them in Q8_0: the scale, and eight bits each.
pub type Q8_0 = [u8; 34];

/// A group of each row of a panel.
pub trait Group: Pod + Send + Sync {
    /// Writes all weights as part of a bf16 panel.
    fn unpack<S: Simd>(&self, simd: S, to: &mut [bf16; GROUP * PANEL]);
    /// Weight `k` of row `lane`.
    fn get(&self, lane: usize, k: usize) -> bf16;
}

/// Groups of four-bit weights.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Nibbles {
    scales: [[f16; OCTET]; PANEL / OCTET],
    mins: [[f16; OCTET]; PANEL / OCTET],
    words: [[[u32; LANES]; 2]; PANEL / OCTET],
}

/// Groups of eight-bit weights.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Bytes {
    scales: [[f16; OCTET]; PANEL / OCTET],
    words: [[[u32; LANES]; 4]; PANEL / OCTET],
}

/// Where weight `k` of row `row` is, if a word holds `fields`.
struct Place {
    octet: usize,
    word: usize,
    lane: usize,
    shift: usize,
}

fn place(fields: usize, row: usize, k: usize) -> Place {
    let bits = 32 / fields;
    Place {
        octet: row / OCTET,
        word: k / 2 / fields,
        lane: row % OCTET * 2 + k % 2,
        shift: k / 2 % fields * bits,
    }
}

fn half(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

// === impl Nibbles ===

impl Group for Nibbles {
    #[inline(always)]
    fn unpack<S: Simd>(&self, s: S, to: &mut [bf16; GROUP * PANEL]) {
        let (to, _) = to.as_chunks_mut::<LANES>();
        for (v, words) in self.words.iter().enumerate() {
            let (scale, min) = (s.load_f16_twice(&self.scales[v]), s.load_f16_twice(&self.mins[v]));
            for (h, words) in words.iter().enumerate() {
                for t in 0..8 {
                    let values = s.fma(s.nibbles(words, t), scale, min);
                    s.store_bf16(values, &mut to[(h * 8 + t) * 4 + v]);
                }
            }
        }
    }

    fn get(&self, lane: usize, k: usize) -> bf16 {
        let Place { octet, word, lane: at, shift } = place(8, lane, k);
        let quant = self.words[octet][word][at] >> shift & 15;
        let [scale, min] = [&self.scales, &self.mins].map(|all| all[octet][lane % OCTET].to_f32());
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
                group.scales[lane / OCTET][lane % OCTET] = half(block, 0);
                group.mins[lane / OCTET][lane % OCTET] = half(block, 2);
                for k in 0..GROUP {
                    let quant = block[4 + k % 16] >> (k / 16 * 4) & 15;
                    let Place { octet, word, lane, shift } = place(8, lane, k);
                    group.words[octet][word][lane] |= u32::from(quant) << shift;
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
    #[inline(always)]
    fn unpack<S: Simd>(&self, s: S, to: &mut [bf16; GROUP * PANEL]) {
        let (to, _) = to.as_chunks_mut::<LANES>();
        for (v, words) in self.words.iter().enumerate() {
            let scale = s.load_f16_twice(&self.scales[v]);
            for (h, words) in words.iter().enumerate() {
                for t in 0..4 {
                    let values = s.mul(s.bytes(words, t), scale);
                    s.store_bf16(values, &mut to[(h * 4 + t) * 4 + v]);
                }
            }
        }
    }

    fn get(&self, lane: usize, k: usize) -> bf16 {
        let Place { octet, word, lane: at, shift } = place(4, lane, k);
        let quant = (self.words[octet][word][at] >> shift) as i8;
        bf16::from_f32(f32::from(quant) * self.scales[octet][lane % OCTET].to_f32())
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
                group.scales[lane / OCTET][lane % OCTET] = half(block, 0);
                for (k, quant) in block[2..].iter().enumerate() {
                    let Place { octet, word, lane, shift } = place(4, lane, k);
                    group.words[octet][word][lane] |= u32::from(*quant) << shift;
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
