//! Frames of pages: gathered, scattered, and their check word; the regions they lie in.
#![expect(unsafe_code, reason = "copies from and to addresses")]

use baton_kernels::{
    cuda::{Gpu, GpuError, PieceCopy, Pieces, Region},
    reference,
};

use crate::gpu;

/// Device memory of random words, and the words.
fn memory(gpu: &Gpu, random: &mut fastrand::Rng, words: usize) -> (Region, Vec<u32>) {
    let content: Vec<u32> = (0..words).map(|_| random.u32(..)).collect();
    let mut region = Region::new(gpu, words * 4).unwrap();
    region.write(gpu, 0, bytemuck::cast_slice(&content)).unwrap();
    (region, content)
}

fn words(gpu: &Gpu, region: &Region) -> Vec<u32> {
    let mut content = vec![0_u32; region.bytes() / 4];
    region.read(gpu, 0, bytemuck::cast_slice_mut(&mut content)).unwrap();
    content
}

/// Places and lengths of pieces of random sizes, in words: pages in random order, with gaps.
fn places(random: &mut fastrand::Rng, unit: usize) -> (Vec<(usize, usize)>, usize) {
    let mut at = 0;
    let mut places = Vec::new();
    for _ in 0..random.usize(1..40) {
        at += unit * random.usize(0..9);
        let len = unit * random.usize(1..3000);
        places.push((at, len));
        at += len;
    }
    random.shuffle(&mut places);
    (places, at + unit)
}

#[test]
fn pieces_are_gathered_and_scattered_with_their_check_word() {
    let gpu = gpu();
    let mut random = fastrand::Rng::with_seed(5);
    let (mut gather, mut scatter) = (Pieces::new(&gpu).unwrap(), Pieces::new(&gpu).unwrap());
    for round in 0..40 {
        // Of whole 16 bytes, and of single words.
        let (places, len) = places(&mut random, if round % 2 == 0 { 4 } else { 1 });
        let (pages, content) = memory(&gpu, &mut random, len);
        let frame: Vec<u32> =
            places.iter().flat_map(|&(at, len)| content[at..at + len].iter().copied()).collect();
        let (staging, _) = memory(&gpu, &mut random, frame.len());
        let (landing, before) = memory(&gpu, &mut random, len);
        let mut at = staging.address();
        let mut lists = (Vec::new(), Vec::new());
        for &(place, len) in &places {
            let (bytes, offset) = (len as u64 * 4, place as u64 * 4);
            lists.0.push(PieceCopy { from: pages.address() + offset, to: at, bytes });
            lists.1.push(PieceCopy { from: at, to: landing.address() + offset, bytes });
            at += bytes;
        }
        let checked = round % 3 != 0;
        // SAFETY: all within the regions above, which live to the end of this turn.
        unsafe {
            gather.copy(&gpu, &lists.0, checked).unwrap();
            scatter.copy(&gpu, &lists.1, checked).unwrap();
        }
        let found = (gather.finish().unwrap(), scatter.finish().unwrap());
        assert_eq!(words(&gpu, &staging), frame, "round {round}");
        if checked {
            let word = reference::check_word(&frame);
            assert_eq!(found, (word, word), "round {round}");
        }
        let mut expected = before;
        for &(place, len) in &places {
            expected[place..place + len].copy_from_slice(&content[place..place + len]);
        }
        assert_eq!(words(&gpu, &landing), expected, "round {round}");
    }
}

#[test]
fn a_frame_of_nothing_has_an_empty_check_word_and_odd_bytes_are_refused() {
    let gpu = gpu();
    let mut pieces = Pieces::new(&gpu).unwrap();
    let region = Region::new(&gpu, 64).unwrap();
    let copy = |bytes| PieceCopy { from: region.address(), to: region.address(), bytes };
    // SAFETY: within the region.
    unsafe {
        pieces.copy(&gpu, &[], true).unwrap();
        assert_eq!(pieces.finish().unwrap(), 0);
        let refused = pieces.copy(&gpu, &[copy(6)], true);
        assert!(matches!(refused, Err(GpuError::Shape { op: "pieces", .. })));
        pieces.copy(&gpu, &[copy(64)], true).unwrap();
    }
    assert_eq!(pieces.finish().unwrap(), reference::check_word(&words(&gpu, &region)));
    assert!(matches!(region.read(&gpu, 60, &mut [0; 8]), Err(GpuError::Shape { .. })));
}
