//! The fastest algorithm of a shape, by timing.

use cudarc::driver::{CudaEvent, CudaSlice, DevicePtr, sys::CUevent_flags};

use super::{
    super::{
        Gpu, Half, ScaledMut,
        error::{GpuError, Named},
        quantise::quantise,
        random::fill_uniform,
    },
    Found, Sizes,
    blas::{Algorithm, Handle, Input, Kind, Product},
};

/// How many algorithms are tried.
const CANDIDATES: usize = 24;

/// Weights are taken in turn from so many bytes, more than any L2 holds: in a
/// model, too, they were last read a whole step ago.
const COLD_BYTES: usize = 160 << 20;

/// Products timed for a candidate in the first round, and in the final.
const ROUNDS: [usize; 2] = [4, 16];

/// How many candidates go to the final.
const FINALISTS: usize = 4;

/// What a search saw.
#[derive(Clone, Debug)]
pub struct Timed {
    /// The fastest.
    pub best: Found,
    /// Time of cuBLASLt's own first choice.
    pub first_micros: f32,
    /// How many were tried.
    pub candidates: usize,
}

struct Bench<'a> {
    handle: &'a Handle,
    product: Product,
    sizes: Sizes,
    weights: Rows,
    x: Rows,
    out: CudaSlice<Half>,
}

/// An input that means nothing.
enum Rows {
    Plain(CudaSlice<Half>),
    E4m3(CudaSlice<u8>, CudaSlice<f32>),
}

/// Times the candidates for `sizes`.
pub(super) fn search(handle: &Handle, kind: Kind, sizes: Sizes) -> Result<Timed, GpuError> {
    let product = Product::new(handle, sizes, kind, false)?;
    let candidates = product.candidates(handle, CANDIDATES)?;
    let mut bench = Bench::new(handle, product, kind, sizes)?;
    let mut timed = Vec::new();
    for (rank, algorithm) in candidates.into_iter().enumerate() {
        // Some are offered that then refuse to run.
        if let Ok(micros) = bench.time(algorithm, ROUNDS[0]) {
            timed.push((micros, rank, algorithm));
        }
    }
    let tried = timed.len();
    let by_time = |a: &(f32, usize, Algorithm), b: &(f32, usize, Algorithm)| a.0.total_cmp(&b.0);
    timed.sort_by(by_time);
    let first = timed.iter().position(|(_, rank, _)| *rank == 0);
    let first = first.map(|at| timed[at]);
    timed.truncate(FINALISTS);
    timed.extend(first);
    for (micros, _, algorithm) in &mut timed {
        *micros = bench.time(*algorithm, ROUNDS[1])?;
    }
    let first_micros = timed.last().map_or(0.0, |first| first.0);
    let Sizes { n, k, m } = sizes;
    let (micros, _, algorithm) =
        timed.into_iter().min_by(by_time).ok_or(GpuError::NoAlgorithm { m, n, k })?;
    Ok(Timed { best: Found { algorithm, micros }, first_micros, candidates: tried })
}

// === impl Bench ===

impl<'a> Bench<'a> {
    fn new(handle: &'a Handle, product: Product, kind: Kind, sizes: Sizes) -> Result<Self, GpuError> {
        let Sizes { n, k, m } = sizes;
        let copies = COLD_BYTES.div_ceil(kind.bytes() * n * k).max(1);
        let gpu = &handle.gpu;
        let mut bench = Self {
            handle,
            product,
            sizes,
            weights: Rows::new(gpu, kind, (1, 0.05), (copies * n, k))?,
            x: Rows::new(gpu, kind, (2, 1.0), (m, k))?,
            out: gpu.unset(m * n)?,
        };
        fill_uniform(gpu, 3, 1.0, &mut bench.out)?;
        Ok(bench)
    }

    /// Microseconds of one product, over `times` of them after one more.
    fn time(&mut self, algorithm: Algorithm, times: usize) -> Result<f32, GpuError> {
        self.product.choose(self.handle, Some(algorithm))?;
        self.enqueue(0)?;
        let begin = self.moment()?;
        for turn in 1..=times {
            self.enqueue(turn)?;
        }
        let end = self.moment()?;
        end.synchronize().named("cuEventSynchronize")?;
        Ok(begin.elapsed_ms(&end).named("cuEventElapsedTime")? * 1e3 / times as f32)
    }

    fn enqueue(&mut self, turn: usize) -> Result<(), GpuError> {
        let Sizes { n, k, .. } = self.sizes;
        let (gpu, copies) = (&self.handle.gpu, self.weights.rows(k) / n);
        let inputs = (self.weights.input(gpu, turn % copies * n, k), self.x.input(gpu, 0, k));
        self.product.enqueue(self.handle, inputs, &mut self.out, 0.0)
    }

    fn moment(&self) -> Result<CudaEvent, GpuError> {
        self.handle.gpu.stream().record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).named("cuEventRecord")
    }
}

// === impl Rows ===

impl Rows {
    fn new(
        gpu: &Gpu,
        kind: Kind,
        (seed, scale): (u64, f32),
        (rows, k): (usize, usize),
    ) -> Result<Self, GpuError> {
        let mut values = gpu.unset(rows * k)?;
        // Not zeros: a card computes those faster.
        fill_uniform(gpu, seed, scale, &mut values)?;
        if kind == Kind::Plain {
            return Ok(Self::Plain(values));
        }
        let (mut data, mut scales) = (gpu.unset(rows * k)?, gpu.unset(rows)?);
        quantise(gpu, &values, &mut ScaledMut::new(&mut data, &mut scales, k))?;
        Ok(Self::E4m3(data, scales))
    }

    fn rows(&self, k: usize) -> usize {
        match self {
            Self::Plain(data) => data.len() / k,
            Self::E4m3(_, scales) => scales.len(),
        }
    }

    /// From `row` on.
    fn input(&self, gpu: &Gpu, row: usize, k: usize) -> Input {
        let (at, stream) = ((row * k) as u64, gpu.stream());
        match self {
            Self::Plain(data) => Input { data: data.device_ptr(stream).0 + 2 * at, scales: 0 },
            Self::E4m3(data, scales) => {
                let scales = scales.device_ptr(stream).0 + 4 * row as u64;
                Input { data: data.device_ptr(stream).0 + at, scales }
            }
        }
    }
}

// === impl Kind ===

impl Kind {
    fn bytes(self) -> usize {
        match self {
            Self::Plain => 2,
            Self::E4m3 => 1,
        }
    }
}
