//! The fastest algorithm of a shape, by timing.

use cudarc::driver::{CudaEvent, CudaSlice, DevicePtr, sys::CUevent_flags};

use super::{
    super::{
        Gpu, Half, ScaledMut,
        error::{GpuError, Named},
        quantise::quantise,
        random::fill_uniform,
    },
    Found, Sizes, Then,
    blas::{Algorithm, Handle, Input, Kind, Product},
};

/// How many algorithms are tried.
const CANDIDATES: usize = 24;

/// Weights are taken in turn from so many bytes, more than any L2 holds: in a
/// model, too, they were last read a whole step ago.
const COLD_BYTES: usize = 160 << 20;

/// Products timed for a candidate in the first round.
const FIRST_ROUND: usize = 4;

/// How many candidates go to the final.
const FINALISTS: usize = 6;

/// The final's turns, and how long a candidate multiplies in each: one after another, so that all
/// do so at the clock that the card holds. It lowers that for power where rows are many.
const TURNS: usize = 5;
const TURN_MICROS: f32 = 4e3;
const TURN_MICROS_OF_FEW: f32 = 500.0;
const MANY_ROWS: usize = 512;

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
    then: Then,
    weights: Rows,
    x: Rows,
    out: CudaSlice<Half>,
}

/// An input that means nothing.
enum Rows {
    Plain(CudaSlice<Half>),
    E4m3(CudaSlice<u8>, CudaSlice<f32>),
}

/// A candidate, by its place in cuBLASLt's order, and the time of one product.
#[derive(Clone, Copy)]
struct Candidate {
    rank: usize,
    algorithm: Algorithm,
    micros: f32,
}

/// Times the candidates for `sizes` in what products are `then` for.
pub(super) fn search(handle: &Handle, kind: Kind, sizes: Sizes, then: Then) -> Result<Timed, GpuError> {
    let product = Product::new(handle, sizes, kind, false)?;
    let algorithms = product.candidates(handle, CANDIDATES)?;
    let mut bench = Bench::new(handle, product, kind, (sizes, then))?;
    let mut timed = Vec::new();
    for (rank, algorithm) in algorithms.into_iter().enumerate() {
        // Some are offered that then refuse to run.
        if let Ok(micros) = bench.time(algorithm, FIRST_ROUND) {
            timed.push(Candidate { rank, algorithm, micros });
        }
    }
    let candidates = timed.len();
    timed.sort_by(|a, b| a.micros.total_cmp(&b.micros));
    // cuBLASLt's own choice is told of, however slow it is.
    let place = |candidate: &Candidate| candidate.rank > 0;
    timed[candidates.min(FINALISTS)..].sort_by_key(place);
    timed.truncate(FINALISTS + 1);
    bench.finish(&mut timed)?;
    let Sizes { n, k, m } = sizes;
    let best = timed.iter().min_by(|a, b| a.micros.total_cmp(&b.micros));
    let best = best.ok_or(GpuError::NoAlgorithm { m, n, k })?;
    let first_micros = timed.iter().find(|candidate| candidate.rank == 0).map_or(0.0, |first| first.micros);
    Ok(Timed { best: Found { algorithm: best.algorithm, micros: best.micros }, first_micros, candidates })
}

// === impl Bench ===

impl<'a> Bench<'a> {
    fn new(
        handle: &'a Handle,
        product: Product,
        kind: Kind,
        (sizes, then): (Sizes, Then),
    ) -> Result<Self, GpuError> {
        let Sizes { n, k, m } = sizes;
        let copies = COLD_BYTES.div_ceil(kind.bytes() * n * k).max(1);
        let gpu = &handle.gpu;
        let mut bench = Self {
            handle,
            product,
            sizes,
            then,
            weights: Rows::new(gpu, kind, (1, 0.05), (copies * n, k))?,
            x: Rows::new(gpu, kind, (2, 1.0), (m, k))?,
            out: gpu.unset(m * n)?,
        };
        fill_uniform(gpu, 3, 1.0, &mut bench.out)?;
        Ok(bench)
    }

    /// Times finalists again, in turns.
    fn finish(&mut self, finalists: &mut [Candidate]) -> Result<(), GpuError> {
        let micros = if self.sizes.m < MANY_ROWS { TURN_MICROS_OF_FEW } else { TURN_MICROS };
        let mut totals = vec![0.0; finalists.len()];
        for _ in 0..TURNS {
            for (total, finalist) in totals.iter_mut().zip(&*finalists) {
                *total += self.time(finalist.algorithm, (micros / finalist.micros) as usize + 1)?;
            }
        }
        for (total, finalist) in totals.into_iter().zip(finalists) {
            finalist.micros = total / TURNS as f32;
        }
        Ok(())
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
        self.product.enqueue(self.handle, inputs, &mut self.out, self.then.keep())
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
