use std::{fs::File, io::Write, sync::Arc};

use super::*;

/// A file of random blocks with small scales, as a tensor of `rows` rows.
fn stored(encoding: Encoding, rows: usize, cols: usize) -> Stored {
    let mut bytes: Vec<u8> = (0..rows * encoding.bytes(cols)).map(|i| (i * 167 + i / 251) as u8).collect();
    for (index, block) in bytes.chunks_exact_mut(encoding.block_bytes()).enumerate() {
        for (at, scale) in [(0, 0.01 + index as f32 * 0.001), (2, -0.03)] {
            if at == 0 || encoding != Encoding::Q8_0 {
                block[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            }
        }
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    Stored::in_file(vec![rows, cols], Arc::<File>::new(file), 0, encoding)
}

fn values(rows: Rows<'_>) -> Vec<f32> {
    rows.tensor.values("x").unwrap().into_iter().map(bf16::to_f32).collect()
}

fn q4_1(rows: Rows<'_>, first: usize, count: usize) -> Vec<f32> {
    let mut blocks = vec![[0; 20]; count * rows.cols() / 32];
    rows.read_q4_1(first, &mut blocks).unwrap();
    let value = |block: &[u8; 20], k: usize| {
        let quant = f32::from(block[4 + k % 16] >> (k / 16 * 4) & 15);
        quant * half(block, 0).to_f32() + half(block, 2).to_f32()
    };
    blocks.iter().flat_map(|block| (0..32).map(move |k| value(block, k))).collect()
}

#[test]
fn four_bits_are_read_without_loss() {
    for encoding in [Encoding::Q4_0, Encoding::Q4_1] {
        let tensor = stored(encoding, 6, 64);
        let rows = Rows { name: "x", tensor: &tensor };
        assert_eq!([rows.blocks(), rows.lossless_blocks()], [Blocks::Q4_1; 2]);
        let found: Vec<f32> = q4_1(rows, 0, 6).into_iter().map(|v| bf16::from_f32(v).to_f32()).collect();
        assert_eq!(found, values(rows), "{encoding:?}");
    }
}

#[test]
fn q4_k_is_read_almost_without_loss() {
    let tensor = stored(Encoding::Q4K, 3, 512);
    let rows = Rows { name: "x", tensor: &tensor };
    assert_eq!((rows.blocks(), rows.lossless_blocks()), (Blocks::Q4_1, Blocks::None));
    let (found, expected) = (q4_1(rows, 0, 3), values(rows));
    let greatest = expected.iter().fold(0.0, |greatest: f32, value| greatest.max(value.abs()));
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 0.004 * greatest, "{found} is not {expected}");
    }
}

#[test]
fn eight_bits_are_read_as_they_are() {
    let tensor = stored(Encoding::Q8_0, 4, 32);
    let rows = Rows { name: "x", tensor: &tensor };
    assert_eq!((rows.blocks(), rows.row_bytes()), (Blocks::Q8_0, 34));
    let mut blocks = [[0; 34]; 2];
    rows.read_q8_0(1, &mut blocks).unwrap();
    let scale = half(&blocks[1], 0).to_f32();
    let found: Vec<f32> = blocks[1][2..].iter().map(|q| f32::from(*q as i8) * scale).collect();
    let expected = &values(rows)[2 * 32..3 * 32];
    assert!(found.iter().zip(expected).all(|(found, expected)| bf16::from_f32(*found).to_f32() == *expected));
    assert!(rows.read_q4_1(0, &mut [[0; 20]; 1]).is_err());
}

#[test]
fn rows_of_interleaved_heads_are_read_in_order() {
    let plain = stored(Encoding::Q4_1, 16, 32);
    let turned = stored(Encoding::Q4_1, 16, 32).with_interleaved_heads(2);
    let [plain, turned] = [&plain, &turned].map(|tensor| Rows { name: "x", tensor });
    let all = values(plain);
    // Heads of eight rows: 0, 2, 4, 6, 1, 3, 5, 7 of each.
    for (row, source) in [(0, 0), (1, 2), (3, 6), (4, 1), (7, 7), (8, 8), (9, 10)] {
        let mut found = [bf16::ZERO; 32];
        turned.read(row, &mut found).unwrap();
        assert_eq!(found.map(bf16::to_f32), all[source * 32..][..32], "row {row}");
        let blocks: Vec<_> = q4_1(turned, row, 1).into_iter().map(|v| bf16::from_f32(v).to_f32()).collect();
        assert_eq!(blocks, all[source * 32..][..32], "row {row}");
    }
}

#[test]
fn scales_that_are_no_numbers_are_refused() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[0xff; 54]).unwrap();
    let file = Arc::new(file);
    let tensor = Stored::in_file(vec![1, 32], Arc::clone(&file), 0, Encoding::Q4_1);
    assert!(Rows { name: "x", tensor: &tensor }.read_q4_1(0, &mut [[0; 20]]).is_err());
    let tensor = Stored::in_file(vec![1, 32], file, 0, Encoding::Q8_0);
    let error = Rows { name: "x", tensor: &tensor }.read_q8_0(0, &mut [[0; 34]]).unwrap_err();
    assert_eq!(error.to_string(), "tensor `x` holds a value that is not a finite number");
}

#[test]
fn floats_are_as_exact_as_the_file() {
    let tensor = stored(Encoding::Q4_1, 6, 64);
    let rows = Rows { name: "x", tensor: &tensor };
    let found = rows.floats(1, 3).unwrap();
    let rounded: Vec<f32> = found.iter().map(|value| bf16::from_f32(*value).to_f32()).collect();
    assert_eq!(rounded, values(rows)[64..4 * 64]);
    assert_ne!(rounded, found);
    let tensor = Stored::in_memory(vec![4, 1], vec![0.1, 0.2, 0.3, 0.4]).with_interleaved_heads(1);
    let rows = Rows { name: "x", tensor: &tensor };
    assert_eq!(rows.floats(1, 2).unwrap(), [0.3, 0.2]);
}
