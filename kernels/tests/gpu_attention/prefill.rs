//! Many new tokens per sequence.

use baton_kernels::cuda::{
    Gpu,
    attention::{Attention, Chunk, Paged, Rows, prefill, prefill_on_any_card, row_tiles, unpack, unpacked},
    rope::KvForm,
};

use crate::fixture::{
    Fixture, SHAPES, Shape, gpus, in_both_forms, is_sanitized, length, numbers, poisoned, put, random,
    some_of,
};

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    ForThisCard,
    ForAny,
}

fn run(
    gpu: &Gpu,
    fixture: &Fixture,
    made: Made,
    (q, chunks): (&[f32], &[Chunk]),
    (window, cap): (Option<usize>, Option<f32>),
) -> Vec<f32> {
    let q_slice = put(gpu, q);
    let tiles = gpu.upload(&row_tiles(chunks)).unwrap();
    let rows = Rows { q: &q_slice, rows: q.len() / fixture.q_width(), tiles: &tiles };
    let mut out = poisoned(gpu, q.len());
    let (attention, pages) = (fixture.attention(window, cap), fixture.pages());
    match made {
        Made::ForThisCard => prefill(gpu, &attention, &rows, &pages, &mut out),
        Made::ForAny => prefill_on_any_card(gpu, &attention, &rows, &pages, &mut out),
    }
    .unwrap();
    numbers(gpu, &out)
}

/// Sequences of (tokens before, new tokens).
fn scene(gpu: &Gpu, shape: Shape, cuts: &[(usize, usize)]) -> Fixture {
    let sequences: Vec<_> =
        cuts.iter().enumerate().map(|(i, (start, new))| (start + new, i as u64)).collect();
    Fixture::new(gpu, shape, &sequences)
}

/// Checks the new tokens of a [`scene`], as chunks with a row between them that is nobody's.
fn check(
    gpu: &Gpu,
    fixture: &Fixture,
    made: Made,
    cuts: &[(usize, usize)],
    options: (Option<usize>, Option<f32>),
) {
    let mut first_row = 1;
    let mut chunks = Vec::new();
    for (sequence, (start, rows)) in cuts.iter().copied().enumerate() {
        chunks.push(Chunk { sequence, first_row, rows, start });
        first_row += rows + 1;
    }
    let width = fixture.q_width();
    let q = random(gpu, 55, first_row * width, 4.0);
    let out = run(gpu, fixture, made, (&q, &chunks), options);
    let (q, out): (Vec<_>, Vec<_>) = (q.chunks(width).collect(), out.chunks(width).collect());
    let attention = fixture.attention(options.0, options.1);
    assert!(out[0].iter().all(|x| x.is_nan()), "{made:?}: row 0 was written");
    for chunk in chunks {
        let Chunk { sequence, first_row, rows, start } = chunk;
        assert!(out[first_row + rows].iter().all(|x| x.is_nan()), "{made:?}: a row beyond was written");
        for row in (0..rows).filter(|row| row % 128 < 2 || row % 61 == 0 || row % 64 == 63 || row + 1 == rows)
        {
            let at = first_row + row;
            fixture.check(&attention, (sequence, start + row), q[at], out[at]);
        }
        for row in &out[first_row..first_row + rows] {
            assert!(row.iter().all(|x| x.is_finite()), "{made:?} {:?}: a row was not written", fixture.shape);
        }
    }
}

const CUTS: [(usize, usize); 14] = [
    (127, 130),
    (0, 129),
    (63, 1),
    (0, 65),
    (0, 1),
    (0, 63),
    (0, 64),
    (0, 127),
    (0, 128),
    (64, 64),
    (100, 30),
    (128, 128),
    (700, 300),
    (1000, 17),
];

#[test]
fn prefill_is_right_for_a_few_rows() {
    for gpu in gpus() {
        for shape in in_both_forms([SHAPES[0], SHAPES[1]]) {
            let cuts = [(0, 130), (70, 60), (0, 257)];
            let fixture = scene(&gpu, shape, &cuts);
            for made in [Made::ForThisCard, Made::ForAny] {
                check(&gpu, &fixture, made, &cuts, (None, None));
            }
        }
    }
}

#[test]
fn large_prefill_is_right_at_every_edge() {
    for gpu in gpus() {
        for shape in in_both_forms(SHAPES) {
            let cuts = some_of(&CUTS, 4);
            let fixture = scene(&gpu, shape, &cuts);
            for made in [Made::ForThisCard, Made::ForAny] {
                check(&gpu, &fixture, made, &cuts, (None, None));
            }
        }
    }
}

#[test]
fn large_prefill_is_right_for_one_long_prompt() {
    for gpu in gpus() {
        for shape in in_both_forms([SHAPES[1]]) {
            let cuts = [(0, length(3000))];
            let fixture = scene(&gpu, shape, &cuts);
            for made in [Made::ForThisCard, Made::ForAny] {
                check(&gpu, &fixture, made, &cuts, (None, None));
            }
        }
    }
}

#[test]
fn large_prefill_sees_its_window_and_caps_scores() {
    for gpu in gpus() {
        for shape in in_both_forms(SHAPES) {
            let cuts = some_of(&CUTS, 3);
            let fixture = scene(&gpu, shape, &cuts);
            for made in [Made::ForThisCard, Made::ForAny] {
                let both = [(Some(70), Some(2.0)), (Some(64), None)];
                let others = [(Some(1), None), (Some(200), None), (None, Some(2.0))];
                for options in some_of(&[&both[..], &others].concat(), 2) {
                    check(&gpu, &fixture, made, &cuts, options);
                }
            }
        }
    }
}

#[test]
fn large_a_row_has_the_same_bits_however_a_prompt_is_chunked() {
    for gpu in gpus() {
        let (pieces, others) = match is_sanitized() {
            false => (&[100, 28, 1, 200, 127, 321][..], [300, 512]),
            true => (&[100, 28, 1, 131][..], [70, 130]),
        };
        let first = pieces.iter().sum();
        let lengths = [first, others[0], others[1]];
        for shape in in_both_forms([SHAPES[0], SHAPES[1], SHAPES[6]]) {
            for made in [Made::ForThisCard, Made::ForAny] {
                let together = Fixture::new(&gpu, shape, &[(first, 1), (others[0], 2), (others[1], 3)]);
                let width = together.q_width();
                let q = random(&gpu, 5, lengths.iter().sum::<usize>() * width, 4.0);
                let mut first_row = 0;
                let mut chunks = Vec::new();
                for (sequence, rows) in lengths.into_iter().enumerate() {
                    chunks.push(Chunk { sequence, first_row, rows, start: 0 });
                    first_row += rows;
                }
                let whole = run(&gpu, &together, made, (&q, &chunks), (None, None));
                let alone = Fixture::new(&gpu, shape, &[(first, 1)]);
                let mut start = 0;
                for &rows in pieces {
                    let range = start * width..(start + rows) * width;
                    let chunk = Chunk { sequence: 0, first_row: 0, rows, start };
                    let part = run(&gpu, &alone, made, (&q[range.clone()], &[chunk]), (None, None));
                    assert_eq!(part, whole[range], "{shape:?} {made:?}: from {start}");
                    start += rows;
                }
            }
        }
    }
}

#[test]
fn unpacked_pages_give_the_same_bits() {
    for gpu in gpus() {
        for shape in SHAPES {
            let shape = Shape { form: KvForm::Fp8, ..shape };
            let lengths = [300, 1, 65];
            let sequences = [(300, 1), (1, 2), (65, 3)];
            let fixture = Fixture::new(&gpu, shape, &sequences);
            let chunks = [(0, 0, 290, 10), (1, 290, 1, 0), (2, 291, 20, 45)];
            let chunks =
                chunks.map(|(sequence, first_row, rows, start)| Chunk { sequence, first_row, rows, start });
            let q = random(&gpu, 5, 311 * fixture.q_width(), 1.0);
            let expected = run(&gpu, &fixture, Made::ForThisCard, (&q, &chunks), (None, None));
            let (cached, attention) = (fixture.pages(), fixture.attention(None, None));
            let entries = lengths.len() * fixture.max_pages;
            let pool_shape = unpacked(fixture.pool_shape, entries);
            let mut pool = poisoned(&gpu, entries * pool_shape.page_halves());
            unpack(&gpu, (&cached, attention.layer), &gpu.upload(&lengths).unwrap(), &mut pool).unwrap();
            let table = gpu.upload(&(0..entries as i32).collect::<Vec<_>>()).unwrap();
            let pages = Paged {
                shape: pool_shape,
                pool: pool.as_view(),
                table: table.as_view(),
                max_pages: fixture.max_pages,
            };
            let (q, tiles) = (put(&gpu, &q), gpu.upload(&row_tiles(&chunks)).unwrap());
            let rows = Rows { q: &q, rows: 311, tiles: &tiles };
            let mut out = poisoned(&gpu, 311 * fixture.q_width());
            prefill(&gpu, &Attention { layer: 0, ..attention }, &rows, &pages, &mut out).unwrap();
            let found = numbers(&gpu, &out);
            assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{shape:?}");
        }
    }
}
