use super::*;

/// Sums in the order that the module promises, from zero.
fn expected(a: Blocks<'_>, rows: usize, panel: &[bf16]) -> Vec<f32> {
    let mut c = vec![0.0; rows * PANEL];
    for (at, sum) in c.iter_mut().enumerate() {
        let (row, column) = (at / PANEL, at % PANEL);
        for (block, pairs) in panel.chunks(BLOCK * PANEL).enumerate() {
            for part in 0..a.parts {
                let from = (block * a.parts + part) * a.step + row * a.stride;
                let mut products = [0.0_f32; 2];
                for (k, value) in a.values[from..][..BLOCK].iter().enumerate() {
                    let weight = pairs[k / 2 * 2 * PANEL + 2 * column + k % 2];
                    products[k % 2] = value.to_f32().mul_add(weight.to_f32(), products[k % 2]);
                }
                *sum += products[0] + products[1];
            }
        }
    }
    c
}

#[test]
fn sums_are_made_in_the_promised_order() {
    let Some(amx) = Amx::new() else { return };
    let mut rng = fastrand::Rng::with_seed(5);
    for rows in 1..=MAX_ROWS {
        let (blocks, parts) = (rng.usize(1..6), rng.usize(1..3));
        let mut random = |len| (0..len).map(|_| bf16::from_f32(rng.f32() - 0.5)).collect::<Vec<_>>();
        let (values, panel) = (random(rows * blocks * parts * BLOCK), random(blocks * BLOCK * PANEL));
        let row_by_row = Blocks { values: &values, stride: blocks * parts * BLOCK, step: BLOCK, parts };
        let block_by_block = Blocks { stride: BLOCK, step: rows * BLOCK, ..row_by_row };
        for a in [row_by_row, block_by_block] {
            let expected = expected(a, rows, &panel);
            // A stranger's column beside each row must stay as it is.
            let mut c = vec![7.0; rows * (PANEL + 1)];
            let tiles = amx.tiles(rows);
            tiles.multiply(a, &panel, Tile { values: &mut c, stride: PANEL + 1, accumulate: false });
            for (found, expected) in c.chunks(PANEL + 1).zip(expected.chunks(PANEL)) {
                assert_eq!(found, [expected, &[7.0]].concat(), "{rows} rows, {blocks} blocks of {parts}");
            }
        }
    }
}

#[test]
fn a_thread_sets_up_its_tiles_once_at_a_time() {
    let Some(amx) = Amx::new() else { return };
    drop(amx.tiles(3));
    let _tiles = amx.tiles(32);
    assert!(std::panic::catch_unwind(|| amx.tiles(32)).is_err());
    std::thread::spawn(move || drop(amx.tiles(1))).join().unwrap();
}
