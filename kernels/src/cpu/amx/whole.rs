//! Products of whole numbers: sixteen rows with 64 inputs of a panel at a time.
//!
//! Sums of products of bytes are exact, so there is no order to keep.

use std::arch::asm;

use super::{Amx, Registers, Shapes};

/// Rows of a tile.
const ROWS: usize = 16;

/// `[half of a panel][row][column]`
#[repr(C, align(64))]
pub struct Wholes(pub [[[i32; 16]; ROWS]; 2]);

/// The calling thread's tile registers while they are set up for whole numbers.
pub struct WholeTiles {
    rows: usize,
    _registers: Registers,
}

// === impl Wholes ===

impl Wholes {
    pub const ZERO: Self = Self([[[0; 16]; ROWS]; 2]);
}

// === impl Amx ===

impl Amx {
    /// Sets the calling thread up for so many rows, at most sixteen.
    ///
    /// # Panics
    /// When it is set up already.
    pub fn whole_tiles(self, rows: usize) -> WholeTiles {
        assert!(0 < rows && rows <= ROWS);
        // Sums, the rows, two halves of a panel.
        let shapes = Shapes::new([64; 8], [rows, rows, rows, rows, rows, rows, 16, 16]);
        WholeTiles { rows, _registers: Registers::new(self, &shapes) }
    }
}

// === impl WholeTiles ===

impl WholeTiles {
    /// Multiplies all rows with `[half of a panel][input / 4][column][input % 4]`.
    ///
    /// # Panics
    /// When there are other rows than the registers are set up for.
    pub fn multiply(&self, rows: &[[i8; 64]], quads: &[[[u8; 64]; 16]; 2], sums: &mut Wholes) {
        assert_eq!(rows.len(), self.rows);
        // SAFETY: the registers are set up for `rows.len()` while `self` lives; other sizes
        // are those of the types.
        unsafe {
            asm!(
                "tileloadd tmm4, [{rows} + {line}]",
                "tilezero tmm0; tilezero tmm1",
                "tileloadd tmm6, [{quads} + {line}]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{quads} + {line} + 1024]",
                "tdpbsud tmm1, tmm4, tmm7",
                "tilestored [{sums} + {line}], tmm0",
                "tilestored [{sums} + {line} + 1024], tmm1",
                quads = in(reg) quads,
                rows = in(reg) rows.as_ptr(),
                sums = in(reg) sums,
                line = in(reg) size_of::<[u8; 64]>(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_whole_numbers() {
        let Some(amx) = Amx::new() else { return };
        let mut rng = fastrand::Rng::with_seed(5);
        for count in 1..=ROWS {
            let rows: Vec<[i8; 64]> = (0..count).map(|_| std::array::from_fn(|_| rng.i8(..))).collect();
            let quads = [0; 2].map(|_| [0; 16].map(|_| std::array::from_fn(|_| rng.u8(..))));
            let mut sums = Wholes([[[7; 16]; ROWS]; 2]);
            amx.whole_tiles(count).multiply(&rows, &quads, &mut sums);
            for (at, sum) in sums.0.as_flattened().as_flattened().iter().enumerate() {
                let (half, row, column) = (at / 256, at / 16 % 16, at % 16);
                let product = |k: usize, row: &[i8; 64]| {
                    i32::from(row[k]) * i32::from(quads[half][k / 4][4 * column + k % 4])
                };
                let expected = rows.get(row).map_or(7, |row| (0..64).map(|k| product(k, row)).sum());
                assert_eq!(*sum, expected, "row {row} of {count}");
            }
        }
    }
}
