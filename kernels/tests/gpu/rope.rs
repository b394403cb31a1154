//! Rotary embedding, and the write of keys and values into pages of either form.

use baton_kernels::{
    cuda::{
        Gpu, Half,
        rope::{KvForm, Places, PoolShape, Rope},
    },
    reference,
};

use crate::{assert_close, gpus, numbers, put, random, wide};

struct Case {
    heads: usize,
    turning: usize,
    magnitude: f32,
    pool: PoolShape,
}

/// What the rows become, and of each row what is cached: `[K|V][kv_head][head_dim]`.
fn roped(case: &Case, qkv: &[f32], places: &[(i32, i32)], frequencies: &[f32]) -> (Vec<f64>, Vec<Vec<f64>>) {
    let PoolShape { kv_heads, head_dim, .. } = case.pool;
    let mut rows = wide(qkv);
    let mut cached = Vec::new();
    for (row, &(position, _)) in rows.chunks_mut((case.heads + 2 * kv_heads) * head_dim).zip(places) {
        let original = row.to_vec();
        for head in row[..(case.heads + kv_heads) * head_dim].chunks_mut(head_dim) {
            for (i, frequency) in frequencies.iter().enumerate() {
                let angle = f64::from(position as f32 * frequency);
                let (sin, cos) = angle.sin_cos();
                let magnitude = f64::from(case.magnitude);
                let (sin, cos) = (sin * magnitude, cos * magnitude);
                let (low, high) = (head[i], head[i + frequencies.len()]);
                head[i] = low * cos - high * sin;
                head[i + frequencies.len()] = high * cos + low * sin;
            }
        }
        let kv = case.heads * head_dim;
        cached.push(row[kv..].to_vec());
        // Keys and values stay as they were in the row.
        row[kv..].copy_from_slice(&original[kv..]);
    }
    (rows, cached)
}

fn cases(form: KvForm) -> [Case; 5] {
    let pool = |layers, page_tokens, kv_heads, head_dim| PoolShape {
        form,
        pages: 5,
        layers,
        page_tokens,
        kv_heads,
        head_dim,
    };
    [
        Case { heads: 32, turning: 128, magnitude: 1.0, pool: pool(2, 64, 8, 128) },
        Case { heads: 9, turning: 64, magnitude: 1.0, pool: pool(3, 16, 3, 64) },
        Case { heads: 4, turning: 32, magnitude: 1.2, pool: pool(1, 32, 1, 80) },
        Case { heads: 8, turning: 256, magnitude: 1.0, pool: pool(2, 16, 2, 256) },
        Case { heads: 2, turning: 0, magnitude: 1.0, pool: pool(2, 16, 2, 128) },
    ]
}

#[test]
fn turns_queries_and_writes_keys_and_values_to_pages() {
    for gpu in gpus() {
        for case in &cases(KvForm::Plain) {
            let (found, expected) = turned_and_written(&gpu, case);
            let found: Vec<f32> = found
                .iter()
                .flat_map(|row| bytemuck::pod_collect_to_vec::<u8, Half>(row))
                .map(|half| gpu.dtype().value(half))
                .collect();
            assert_close(&gpu, &found, &expected.concat(), "pages");
        }
    }
}

#[test]
fn writes_keys_and_values_to_pages_in_fp8() {
    for gpu in gpus() {
        for case in &cases(KvForm::Fp8) {
            let PoolShape { kv_heads, head_dim, .. } = case.pool;
            let (found, expected) = turned_and_written(&gpu, case);
            for (bytes, expected) in found.into_iter().zip(expected) {
                let found = reference::of_fp8_row(&bytes, head_dim);
                for (found, expected) in found.chunks(head_dim).zip(expected.chunks(head_dim)) {
                    let greatest = expected.iter().fold(0.0_f64, |greatest, x| greatest.max(x.abs()));
                    for (found, x) in found.iter().zip(expected) {
                        let half_a_step = (x.abs() / 15.0).max(greatest / 448.0 / 1000.0);
                        assert!((f64::from(*found) - x).abs() <= half_a_step, "{found}, not {x}");
                    }
                }
                // Values were not turned: they are the reference's to the bit.
                let narrow: Vec<f32> = expected.iter().map(|x| *x as f32).collect();
                let exact = reference::fp8_row(&narrow, head_dim);
                let elements = kv_heads * head_dim;
                assert_eq!(bytes[elements..2 * elements], exact[elements..2 * elements]);
                assert_eq!(bytes[2 * elements + 4 * kv_heads..], exact[2 * elements + 4 * kv_heads..]);
            }
        }
    }
}

/// Checks rows of queries, and that nothing is written but rows that have a place: what these
/// are, and what they should be.
fn turned_and_written(gpu: &Gpu, case: &Case) -> (Vec<Vec<u8>>, Vec<Vec<f64>>) {
    let (rows, pool) = (37, case.pool);
    let mut rng = fastrand::Rng::with_seed(9);
    let mut slots: Vec<i32> = (0..(pool.pages * pool.page_tokens) as i32).collect();
    rng.shuffle(&mut slots);
    let mut places: Vec<(i32, i32)> = slots[..rows].iter().map(|&slot| (rng.i32(0..131_072), slot)).collect();
    places[0].0 = 0;
    places[1].0 = 131_071;
    // Rows without a place.
    places[3].1 = -1;
    places[rows - 1].1 = -1;
    let half = case.turning / 2;
    let frequencies: Vec<f32> = (0..half).map(|i| 500_000f32.powf(-(i as f32) / half as f32)).collect();
    let qkv = random(gpu, 4, rows * (case.heads + 2 * pool.kv_heads) * pool.head_dim, 3.0);
    let layer = pool.layers - 1;
    let (expected_rows, cached) = roped(case, &qkv, &places, &frequencies);

    let positions = gpu.upload(&places.iter().map(|place| place.0).collect::<Vec<_>>()).unwrap();
    let slots = gpu.upload(&places.iter().map(|place| place.1).collect::<Vec<_>>()).unwrap();
    let frequencies = gpu.upload(&frequencies).unwrap();
    let mut qkv = put(gpu, &qkv);
    let poison: Half = bytemuck::cast(u16::MAX);
    let mut pages = gpu.upload(&vec![poison; pool.pages * pool.page_halves()]).unwrap();
    let rope = Rope {
        frequencies: frequencies.as_view(),
        magnitude: case.magnitude,
        heads: case.heads,
        layer,
        pool,
    };
    let there = Places { positions: positions.as_view(), slots: slots.as_view() };
    rope.write(gpu, &there, &mut qkv, &mut pages).unwrap();
    assert_close(gpu, &numbers(gpu, &qkv), &expected_rows, "rows");

    let mut pages = gpu.download(&pages).unwrap();
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    for ((_, slot), cached) in places.into_iter().zip(cached).filter(|((_, slot), _)| *slot >= 0) {
        let (page, token) = (slot as usize / pool.page_tokens, slot as usize % pool.page_tokens);
        let at = ((page * pool.layers + layer) * pool.page_tokens + token) * pool.row_halves();
        let row = &mut pages[at..at + pool.row_halves()];
        found.push(bytemuck::cast_slice(row).to_vec());
        row.fill(poison);
        expected.push(cached);
    }
    assert!(pages.iter().all(|half| *half == poison), "written where nothing belongs");
    (found, expected)
}
