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
    assert!(matches!(PackedMatrix::pack(&[&[[0; 20]; 2]], 48), Err(ShapeError::Blocks { cols: 48 })));
    assert!(matches!(
        PackedMatrix::pack_gated(&values, &values, 6),
        Err(ShapeError::Gated { gate: 20, up: 20 })
    ));
}

fn block4(scale: f32, min: f32, quants: [u8; 32]) -> Q4_1 {
    let mut block = [0; 20];
    block[..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
    block[2..4].copy_from_slice(&half::f16::from_f32(min).to_le_bytes());
    for (k, quant) in quants.into_iter().enumerate() {
        block[4 + k % 16] |= quant << (k / 16 * 4);
    }
    block
}

#[test]
fn four_bits_read_back_as_scale_times_quant_plus_min() {
    let row = |r: usize| -> [Q4_1; 2] {
        [0, 1].map(|g| {
            let quants = std::array::from_fn(|k| ((k * 7 + r + g) % 16) as u8);
            block4(0.25 + r as f32, g as f32 - 1.0, quants)
        })
    };
    let rows: Vec<Q4_1> = (0..40).flat_map(row).collect();
    let packed = PackedMatrix::pack(&[&rows], 64).unwrap();
    assert_eq!((packed.rows(), packed.panels(), packed.bytes()), (40, 2, 4 * 640));
    for r in 0..40 {
        let mut values = [0.0; 64];
        packed.read_row(r, &mut values);
        for (k, value) in values.iter().enumerate() {
            let quant = ((k % 32 * 7 + r + k / 32) % 16) as f32;
            let expected = quant * (0.25 + r as f32) + (k / 32) as f32 - 1.0;
            assert_eq!(*value, bf16::from_f32(expected).to_f32(), "row {r}, {k}");
        }
    }
}

#[test]
fn eight_bits_read_back_as_scale_times_quant() {
    let mut row = [0; 34];
    row[..2].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
    for (k, byte) in row[2..].iter_mut().enumerate() {
        *byte = (k as i32 * 7 - 100) as u8;
    }
    let packed = PackedMatrix::pack(&[&[[0; 34]; 9], &[row]], 32).unwrap();
    let mut values = [0.0; 32];
    packed.read_row(9, &mut values);
    assert_eq!(values, std::array::from_fn(|k| (k as f32 * 7.0 - 100.0) / 2.0));
    assert_eq!(packed.bytes(), 1088);
}

#[test]
fn quantising_is_off_by_half_a_step() {
    let mut rng = fastrand::Rng::with_seed(3);
    let values: Vec<bf16> = (0..320).map(|_| bf16::from_f32(rng.f32() - 0.3)).collect();
    let largest = |packed: &PackedMatrix| {
        let mut found = vec![0.0; 320];
        packed.read_row(0, &mut found);
        let off = found.iter().zip(&values).map(|(found, value)| (found - value.to_f32()).abs());
        off.fold(0.0, f32::max)
    };
    let four = PackedMatrix::pack(&[&quantise_q4_1(&values)], 320).unwrap();
    assert!(largest(&four) < 0.5 / 15.0 + 0.003, "{}", largest(&four));
    let eight = PackedMatrix::pack(&[&quantise_q8_0(&values)], 320).unwrap();
    assert!(largest(&eight) < 0.5 * 0.7 / 127.0 + 0.003, "{}", largest(&eight));
}

#[test]
fn what_is_on_the_grid_is_quantised_without_loss() {
    let quants = std::array::from_fn(|k| (k % 16) as u8);
    let block = block4(0.5, -3.0, quants);
    let values: Vec<bf16> = quants.map(|q| bf16::from_f32(f32::from(q) * 0.5 - 3.0)).to_vec();
    assert_eq!(quantise_q4_1(&values), [block]);
    assert_eq!(quantise_q4_1(&[bf16::from_f32(0.75); 32]), [block4(0.0, 0.75, [0; 32])]);
    assert_eq!(quantise_q8_0(&[bf16::ZERO; 32]), [[0; 34]]);
}

#[test]
fn rows_are_read_while_packing() {
    let values = numbered(50, 4, 3);
    let read = |first: usize, to: &mut [bf16]| -> Result<(), String> {
        to.copy_from_slice(&values[first * 4..][..to.len()]);
        if first + to.len() / 4 > 45 { Err(format!("row {first}")) } else { Ok(()) }
    };
    let part = |rows| Part { rows, read: &read };
    let packed = PackedMatrix::read(&[part(7), part(33), part(2)], 4).unwrap().unwrap();
    assert_eq!(packed.rows(), 42);
    assert_eq!(row(&packed, 6), values[6 * 4..7 * 4]);
    assert_eq!(row(&packed, 7), values[..4]);
    assert_eq!(row(&packed, 39), values[32 * 4..33 * 4]);
    assert_eq!(row(&packed, 41), values[4..8]);
    assert_eq!(PackedMatrix::read(&[part(48)], 4).unwrap().err().unwrap(), "row 32");
    let gated = PackedMatrix::read_gated(&[part(32), part(32)], 4).unwrap().unwrap();
    assert_eq!(row(&gated, 48), values[16 * 4..17 * 4]);
}
