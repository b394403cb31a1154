//! Chains of ops that overlap and are replayed.

use baton_kernels::cuda::{
    Gemm, Gemv, Gpu, GpuError, Graph, Half, Weights,
    cudarc::driver::CudaSlice,
    gate::{Activation, gate},
    norm::Norm,
};

use crate::{gpus, is_sanitized, numbers, put, random};

const HIDDEN: usize = 512;
const INNER: usize = 1536;
const ROWS: usize = 5;

/// Feed-forward parts over one residual stream, fused and not.
struct Chain {
    gain: CudaSlice<Half>,
    gate_up: CudaSlice<Half>,
    down: CudaSlice<Half>,
    x: CudaSlice<Half>,
    normed: CudaSlice<Half>,
    wide: CudaSlice<Half>,
    inner: CudaSlice<Half>,
    delta: CudaSlice<Half>,
    gemm: Gemm,
}

impl Chain {
    fn new(gpu: &Gpu) -> Self {
        let upload = |seed, len, scale| put(gpu, &random(gpu, seed, len, scale));
        let chain = Self {
            gain: upload(1, HIDDEN, 1.0),
            gate_up: upload(2, 2 * INNER * HIDDEN, 0.05),
            down: upload(3, HIDDEN * INNER, 0.05),
            x: upload(4, ROWS * HIDDEN, 1.0),
            normed: gpu.zeros(ROWS * HIDDEN).unwrap(),
            wide: gpu.zeros(ROWS * 2 * INNER).unwrap(),
            inner: gpu.zeros(ROWS * INNER).unwrap(),
            delta: gpu.zeros(ROWS * HIDDEN).unwrap(),
            gemm: Gemm::new(gpu, None).unwrap(),
        };
        gpu.synchronize().unwrap();
        chain
    }

    fn run(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        let gate_up = || Weights { data: self.gate_up.as_view(), outputs: 2 * INNER, inputs: HIDDEN };
        let down = || Weights { data: self.down.as_view(), outputs: HIDDEN, inputs: INNER };
        let norm = || Norm { weight: self.gain.as_view(), eps: 1e-5 };
        for _ in 0..4 {
            norm().run(gpu, &self.x, &mut self.normed)?;
            Gemv::new(gate_up()).gated(gpu, Activation::Silu, &self.normed, &mut self.inner)?;
            Gemv::new(down()).add(gpu, &self.inner, &mut self.x)?;
            norm().run(gpu, &self.x, &mut self.normed)?;
            self.gemm.run(&gate_up(), &self.normed, &mut self.wide)?;
            gate(gpu, Activation::Silu, INNER, &self.wide, &mut self.inner)?;
            Gemv::new(down()).run(gpu, &self.inner, &mut self.delta)?;
            norm().add(gpu, &mut self.x, &self.delta, &mut self.normed)?;
            Gemv::new(gate_up()).run(gpu, &self.normed, &mut self.wide)?;
            gate(gpu, Activation::Silu, INNER, &self.wide, &mut self.inner)?;
            self.gemm.add(&down(), &self.inner, &mut self.x)?;
        }
        Ok(())
    }
}

#[test]
fn large_chains_that_overlap_or_are_replayed_give_the_bits_of_ops_one_by_one() {
    for gpu in gpus() {
        let mut chain = Chain::new(&gpu);
        let start = gpu.download(&chain.x).unwrap();
        let restart = |chain: &mut Chain| chain.x = gpu.upload(&start).unwrap();

        chain.run(&gpu.overlapping(false)).unwrap();
        let expected = gpu.download(&chain.x).unwrap();
        assert!(numbers(&gpu, &chain.x).iter().all(|x| x.is_finite()) && expected != start);

        let times = if is_sanitized() { 2 } else { 20 };
        for _ in 0..times {
            restart(&mut chain);
            chain.run(&gpu).unwrap();
            assert_eq!(gpu.download(&chain.x).unwrap(), expected);
        }
        restart(&mut chain);
        let graph = Graph::record(&gpu, |gpu| chain.run(gpu)).unwrap();
        for _ in 0..times {
            gpu.stream().memcpy_htod(&start, &mut chain.x).unwrap();
            graph.replay().unwrap();
            assert_eq!(gpu.download(&chain.x).unwrap(), expected);
        }
    }
}

#[test]
fn a_recording_that_fails_leaves_the_stream_usable() {
    for gpu in gpus() {
        let mut x = gpu.zeros::<Half>(8).unwrap();
        let refused = Graph::record(&gpu, |_| Err(GpuError::NoBlas));
        assert!(matches!(refused, Err(GpuError::NoBlas)));
        assert!(matches!(gpu.kernel("norm", "nothing"), Err(GpuError::NoKernel { .. })));
        let weight = put(&gpu, &[1.0; 8]);
        let norm = Norm { weight: weight.as_view(), eps: 1.0 };
        norm.then_add(&gpu, &mut x, &put(&gpu, &[1.0; 8])).unwrap();
        assert!(numbers(&gpu, &x).iter().all(|x| (x - 0.707).abs() < 0.01));
    }
}
