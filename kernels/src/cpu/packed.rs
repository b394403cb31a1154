//! Weights laid out for the tile kernel.

use half::bf16;

use super::tile::PANEL;

/// A weight matrix of `rows` outputs by `cols` inputs, in panels of 32 outputs:
/// `[rows / 32][cols / 2][32][2]`. The last panel is padded with zeros.
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    gated: bool,
    values: Vec<bf16>,
}

/// A matrix of a shape that cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// Rows of different lengths, or not whole rows.
    #[error("{values} values are not rows of {cols}")]
    Ragged {
        /// Values given.
        values: usize,
        /// Length of a row.
        cols: usize,
    },
    /// Rows are read in pairs of elements.
    #[error("rows of {cols} elements: the length must be even and not zero")]
    Odd {
        /// Length of a row.
        cols: usize,
    },
    /// A gated pair whose halves differ, or cannot be interleaved by sixteen.
    #[error("gate of {gate} rows and up of {up}: must be equal multiples of 16")]
    Gated {
        /// Rows of the gate matrix.
        gate: usize,
        /// Rows of the up matrix.
        up: usize,
    },
}

// === impl PackedMatrix ===

impl PackedMatrix {
    /// Packs matrices of equal `cols`, one below the other. Each is row-major
    /// `[outputs][cols]`.
    ///
    /// # Errors
    /// When a matrix is not whole rows of an even length.
    pub fn pack(parts: &[&[bf16]], cols: usize) -> Result<Self, ShapeError> {
        check(parts, cols)?;
        let rows = parts.iter().flat_map(|part| part.chunks_exact(cols));
        Ok(Self::from_rows(rows, cols, false))
    }

    /// Packs a gate and an up matrix so that each panel has sixteen outputs of
    /// both: what [`gemm_gated`](super::gemm_gated) takes.
    ///
    /// # Errors
    /// When the shapes differ or their rows are not a multiple of sixteen.
    pub fn pack_gated(gate: &[bf16], up: &[bf16], cols: usize) -> Result<Self, ShapeError> {
        check(&[gate, up], cols)?;
        let half = PANEL / 2;
        let rows = [gate.len() / cols, up.len() / cols];
        if rows[0] != rows[1] || !rows[0].is_multiple_of(half) {
            return Err(ShapeError::Gated { gate: rows[0], up: rows[1] });
        }
        let order = (0..2 * rows[0]).map(|packed| {
            let matrix = if packed % PANEL < half { gate } else { up };
            let row = packed / PANEL * half + packed % half;
            &matrix[row * cols..][..cols]
        });
        Ok(Self::from_rows(order, cols, true))
    }

    fn from_rows<'a>(rows: impl Iterator<Item = &'a [bf16]>, cols: usize, gated: bool) -> Self {
        let mut packed = Self { rows: 0, cols, gated, values: Vec::new() };
        for row in rows {
            let lane = packed.rows % PANEL;
            if lane == 0 {
                packed.values.resize(packed.values.len() + PANEL * cols, bf16::ZERO);
            }
            let panel = packed.rows / PANEL * PANEL * cols;
            let (pairs, _) = packed.values[panel..].as_chunks_mut::<{ 2 * PANEL }>();
            for (pair, two) in pairs.iter_mut().zip(row.as_chunks::<2>().0) {
                pair[2 * lane..2 * lane + 2].copy_from_slice(two);
            }
            packed.rows += 1;
        }
        packed.values.shrink_to_fit();
        packed
    }

    /// Outputs.
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    #[inline]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of the packed values.
    pub fn bytes(&self) -> usize {
        size_of_val(self.values.as_slice())
    }

    /// Reads back row `row` as it was packed: the embedding of a token, when
    /// input and output embeddings are one matrix.
    ///
    /// # Panics
    /// When there is no such row or `to` is not of `cols` elements.
    pub fn read_row(&self, row: usize, to: &mut [f32]) {
        assert!(row < self.rows && to.len() == self.cols);
        let (pairs, _) = self.panel(row / PANEL).as_chunks::<{ 2 * PANEL }>();
        let lane = row % PANEL;
        for (pair, two) in pairs.iter().zip(to.as_chunks_mut::<2>().0) {
            *two = [pair[2 * lane].to_f32(), pair[2 * lane + 1].to_f32()];
        }
    }

    pub(super) fn gated(&self) -> bool {
        self.gated
    }

    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    pub(super) fn panel(&self, index: usize) -> &[bf16] {
        let len = PANEL * self.cols;
        &self.values[index * len..][..len]
    }
}

/// Whether all parts are whole rows of an even length.
fn check(parts: &[&[bf16]], cols: usize) -> Result<(), ShapeError> {
    if cols == 0 || !cols.is_multiple_of(2) {
        return Err(ShapeError::Odd { cols });
    }
    match parts.iter().find(|part| !part.len().is_multiple_of(cols)) {
        Some(part) => Err(ShapeError::Ragged { values: part.len(), cols }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(rows: usize, cols: usize, first: usize) -> Vec<bf16> {
        (0..rows * cols).map(|i| bf16::from_f32(((first + i) % 251) as f32)).collect()
    }

    fn row(matrix: &PackedMatrix, row: usize) -> Vec<bf16> {
        let mut values = vec![0.0; matrix.cols()];
        matrix.read_row(row, &mut values);
        values.into_iter().map(bf16::from_f32).collect()
    }

    #[test]
    fn rows_read_back_as_packed() {
        let [q, k] = [numbered(33, 6, 0), numbered(8, 6, 77)];
        let packed = PackedMatrix::pack(&[&q, &k], 6).unwrap();
        assert_eq!((packed.rows(), packed.panels(), packed.bytes()), (41, 2, 2 * 64 * 6));
        assert_eq!(row(&packed, 32), q[32 * 6..]);
        assert_eq!(row(&packed, 40), k[7 * 6..]);
    }

    #[test]
    fn gate_and_up_alternate_by_sixteen() {
        let [gate, up] = [numbered(32, 4, 0), numbered(32, 4, 100)];
        let packed = PackedMatrix::pack_gated(&gate, &up, 4).unwrap();
        assert_eq!(row(&packed, 15), gate[15 * 4..16 * 4]);
        assert_eq!(row(&packed, 16), up[..4]);
        assert_eq!(row(&packed, 32), gate[16 * 4..17 * 4]);
        assert_eq!(row(&packed, 63), up[31 * 4..]);
    }

    #[test]
    fn odd_shapes_are_refused() {
        let values = numbered(20, 6, 0);
        assert!(matches!(PackedMatrix::pack(&[&values], 5), Err(ShapeError::Odd { cols: 5 })));
        assert!(matches!(PackedMatrix::pack(&[&values], 8 * 2), Err(ShapeError::Ragged { .. })));
        assert!(matches!(
            PackedMatrix::pack_gated(&values, &values, 6),
            Err(ShapeError::Gated { gate: 20, up: 20 })
        ));
    }
}
