use super::*;

/// All ops on some lanes, as bits.
struct AllOps {
    a: [f32; LANES],
    b: [f32; LANES],
    c: [f32; LANES],
}

impl Work for AllOps {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let [a, b, c] = [s.load(&self.a), s.load(&self.b), s.load(&self.c)];
        let mut narrow = [[bf16::ZERO; LANES]; 2];
        s.store_bf16(a, &mut narrow[0]);
        s.store_bf16(b, &mut narrow[1]);
        let pairs = narrow.as_flattened().first_chunk().unwrap();
        let [even, odd] = s.load_split(pairs);
        let mut paired = [bf16::ZERO; 2 * LANES];
        s.store_pairs(a, b, &mut paired);
        let [first, second] = s.load_split(&paired);
        let quads = s.load_quads(bytemuck::cast_ref(&self.a));
        let whole = s.load_whole(&self.c.map(|c| c.to_bits() as i32 >> 12));
        let dot = s.dot_quads(whole, [-128, 127, 3, -77], quads);
        let mut two = [bf16::ZERO; 2 * LANES];
        s.store_two_bf16([a, b], &mut two);
        let results = [
            s.add(a, b),
            s.sub(a, b),
            s.mul(a, b),
            s.div(a, b),
            s.max(a, b),
            s.min(a, b),
            s.fma(a, b, c),
            s.load_bf16(&narrow[0]),
            even,
            odd,
            s.dot(c, [narrow[0][3], narrow[1][7]], s.load_pairs(pairs)),
            exp2(s, a),
            exp2_coarse(s, a),
            tanh(s, a),
            s.load_f16(&self.b.map(f16::from_f32)),
            s.nibbles(&self.b.map(f32::to_bits), 0),
            s.nibbles(&self.b.map(f32::to_bits), 7),
            s.bytes(&self.b.map(f32::to_bits), 1),
            s.bytes(&self.b.map(f32::to_bits), 3),
            first,
            second,
            s.load_bf16(two.first_chunk().unwrap()),
            s.load_bf16(two.last_chunk().unwrap()),
            s.value(s.join(whole, dot), 12345),
            s.value(dot, -7),
            s.splat(s.sum(a)),
            s.splat(s.greatest(a)),
        ];
        let mut lanes = [[0.0; LANES]; 27];
        for (result, lanes) in results.into_iter().zip(&mut lanes) {
            s.store(result, lanes);
        }
        lanes.as_flattened().iter().map(|lane| lane.to_bits()).collect()
    }
}

/// The power and its coarse form.
struct Exp2(f32);

impl Work for Exp2 {
    type Output = [f32; 2];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; 2] {
        let x = s.splat(self.0);
        [s.greatest(exp2(s, x)), s.greatest(exp2_coarse(s, x))]
    }
}

struct Transpose([[u32; LANES]; LANES]);

impl Work for Transpose {
    type Output = [[u32; 2 * LANES]; LANES];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut to = [[0; 2 * LANES]; LANES];
        s.transpose(std::array::from_fn(|i| &self.0[i]), &mut to, 0);
        s.transpose(std::array::from_fn(|i| &self.0[LANES - 1 - i]), &mut to, 1);
        to
    }
}

#[test]
fn all_instruction_sets_give_the_same_bits() {
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..2000 {
        let scale = 2.0_f32.powi(random.i32(-10..10));
        let [a, b, c] = [0; 3].map(|_| std::array::from_fn(|_| scale * (random.f32() - 0.5)));
        let expected = Isa::Portable.run(AllOps { a, b, c });
        for isa in Isa::supported() {
            assert_eq!(isa.run(AllOps { a, b, c }), expected, "{isa:?}");
        }
    }
}

#[test]
fn bf16_ties_go_to_even() {
    // Halfway between two neighbours, and the smallest step to either side of it.
    for bits in [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x3f80_7fff, 0xc2ff_8000_u32] {
        let value = f32::from_bits(bits);
        for isa in Isa::supported() {
            let mut rounded = [bf16::ZERO; LANES];
            crate::cpu::round_into(isa, &[value; LANES], &mut rounded);
            assert_eq!(rounded, [bf16::from_f32(value); LANES], "{isa:?} {bits:x}");
        }
    }
}

#[test]
fn exp2_is_close_and_exact_where_it_matters() {
    for isa in Isa::supported() {
        for step in -12_000..12_700 {
            let x = step as f32 / 100.0;
            let expected = f64::from(x).exp2();
            for (found, tolerance) in isa.run(Exp2(x)).into_iter().zip([3e-7, 4e-6]) {
                let error = (f64::from(found) / expected - 1.0).abs();
                assert!(error < tolerance, "{isa:?}: 2^{x} is {expected}, not {found}");
            }
        }
        assert_eq!(isa.run(Exp2(0.0)), [1.0; 2]);
        assert_eq!(isa.run(Exp2(f32::NEG_INFINITY)), [0.0; 2]);
        assert_eq!(isa.run(Exp2(-1e30)), [0.0; 2]);
    }
}

struct Tanh(f32);

impl Work for Tanh {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        s.greatest(tanh(s, s.splat(self.0)))
    }
}

#[test]
fn tanh_is_close_everywhere() {
    for isa in Isa::supported() {
        for step in 0..4000 {
            let x = 2.0_f32.powf(step as f32 / 100.0 - 30.0);
            for x in [x, -x] {
                let (found, expected) = (f64::from(isa.run(Tanh(x))), f64::from(x).tanh());
                assert!(
                    (found / expected - 1.0).abs() < 5e-7,
                    "{isa:?}: tanh {x} is {expected}, not {found}"
                );
            }
        }
        assert_eq!(isa.run(Tanh(0.0)), 0.0);
        assert_eq!([f32::NEG_INFINITY, f32::INFINITY].map(|x| isa.run(Tanh(x))), [-1.0, 1.0]);
    }
}

#[test]
fn transpose_fills_both_halves() {
    let from: [[u32; LANES]; LANES] = std::array::from_fn(|i| std::array::from_fn(|j| (100 * i + j) as u32));
    for isa in Isa::supported() {
        for (j, row) in isa.run(Transpose(from)).iter().enumerate() {
            for i in 0..LANES {
                assert_eq!(row[i], from[i][j], "{isa:?}");
                assert_eq!(row[LANES + i], from[LANES - 1 - i][j], "{isa:?}");
            }
        }
    }
}
