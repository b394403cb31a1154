use parking_lot::Mutex;

use super::*;

/// Weights on a grid that four bits hold exactly; the first 32 of a row meet both of its ends.
fn weights(rows: usize, cols: usize) -> Weights {
    let grid = |i: usize| ((i * 7 + i / 37) % 16) as f32 * 0.25 - 2.0;
    let ends = |i: usize| if i.is_multiple_of(32) { 0 } else { 15 };
    let value = |i: usize| if i % 32 < 2 { ends(i) as f32 * 0.25 - 2.0 } else { grid(i) };
    let tensor = |name: &str| (name.to_owned(), vec![rows, cols], (0..rows * cols).map(value).collect());
    Weights::from_tensors([tensor("gate"), tensor("up")]).unwrap()
}

fn loading(weights: WeightForm) -> Loading<'static> {
    Loading { weights, ..Loading::default() }
}

fn row(matrix: &PackedMatrix, row: usize) -> Vec<f32> {
    let mut values = vec![0.0; matrix.cols()];
    matrix.read_row(row, &mut values);
    values
}

#[test]
fn every_form_holds_the_same_rows() {
    let weights = weights(48, 64);
    let packers = [WeightForm::Bf16, WeightForm::Int4].map(|form| Packer::new(&weights, loading(form)));
    let parts = [("gate", 48), ("up", 48)];
    let [plain, four] = packers.each_ref().map(|packer| packer.stacked(Use::Layer, &parts, 64).unwrap());
    assert_eq!((plain.bytes(), four.bytes()), (96 * 64 * 2, 96 * 2 * 20));
    assert!((0..96).all(|index| row(&plain, index) == row(&four, index)));
    let [plain, four] = packers.each_ref().map(|packer| packer.gated(["gate", "up"], 48, 64).unwrap());
    assert!((0..96).all(|index| row(&plain, index) == row(&four, index)));
}

#[test]
fn tokens_keep_eight_bits() {
    let weights = weights(32, 64);
    let packer = Packer::new(&weights, loading(WeightForm::Int4));
    let eight = packer.stacked(Use::Tokens, &[("up", 32)], 64).unwrap();
    assert_eq!(eight.bytes(), 32 * 2 * 34);
    let plain = Packer::new(&weights, loading(WeightForm::Bf16));
    let plain = plain.stacked(Use::Tokens, &[("up", 32)], 64).unwrap();
    for (found, expected) in row(&eight, 31).iter().zip(row(&plain, 31)) {
        assert!((found - expected).abs() < 0.02, "{found} is not {expected}");
    }
}

#[test]
fn what_a_file_has_in_no_blocks_is_held_in_bf16() {
    let weights = weights(32, 64);
    let packer = Packer::new(&weights, loading(WeightForm::File));
    assert_eq!(packer.stacked(Use::Layer, &[("up", 32)], 64).unwrap().bytes(), 32 * 64 * 2);
}

#[test]
fn rows_that_are_not_whole_blocks_stay_bf16() {
    let weights = weights(16, 40);
    let packer = Packer::new(&weights, loading(WeightForm::Int4));
    assert_eq!(packer.stacked(Use::Layer, &[("up", 16)], 40).unwrap().bytes(), 32 * 40 * 2);
}

#[test]
fn progress_ends_at_everything() {
    let weights = weights(48, 64);
    let heard = Mutex::new(Vec::new());
    let progress = |done, total| heard.lock().push((done, total));
    let how = Loading { progress: Some(&progress), ..Loading::default() };
    let packer = Packer::new(&weights, how);
    packer.stacked(Use::Layer, &[("gate", 48), ("up", 48)], 64).unwrap();
    let (done, totals): (Vec<u64>, Vec<u64>) = heard.into_inner().into_iter().unzip();
    let all = 2 * 48 * 64 * 4;
    assert_eq!(done.into_iter().max(), Some(all));
    assert!(totals.into_iter().all(|total| total == all));
}

#[test]
fn other_shapes_are_refused() {
    let weights = weights(16, 32);
    let packer = Packer::new(&weights, loading(WeightForm::Bf16));
    let error = packer.stacked(Use::Layer, &[("up", 17)], 32).err().unwrap();
    assert_eq!(error.to_string(), "up is 16 x 32, not 17 x 32");
}

#[test]
fn what_a_file_has_in_more_than_four_bits_keeps_eight() {
    // Bytes of 256 weights of Q4_0, Q4_1, Q4_K, F16, F32; of Q5_0, Q5_1, Q5_K, Q6_K, Q8_0.
    assert!([144, 160, 144, 512, 1024].into_iter().all(|bytes| !wants_eight_bits(bytes, 256)));
    assert!([176, 192, 176, 210, 272].into_iter().all(|bytes| wants_eight_bits(bytes, 256)));
}
