//! cuBLASLt's handles.
#![expect(unsafe_code, reason = "cuBLASLt is a C library")]

use std::{ffi::c_void, fmt, ptr};

use cudarc::{
    cublaslt::{result, sys},
    driver::{CudaSlice, DevicePtr},
};
use parking_lot::Mutex;

use super::{
    super::{
        Dtype, Gpu, Write,
        error::{GpuError, Named},
    },
    Sizes,
};

use sys::cublasLtMatmulDescAttributes_t as Describe;

/// An algorithm as cuBLASLt describes it: plain data, good for one version of it.
pub(super) type Algorithm = [u64; 8];

/// `CUBLAS_OP_T`, which the bindings have in cuBLAS's part only.
static TRANSPOSED: i32 = 1;

/// `CUBLASLT_REDUCTION_SCHEME_INPLACE | .._COMPUTE_TYPE`: parts of sums over k
/// that were shared out are not rounded before they are added.
static SUMS_IN_F32: u32 = 1 | 2;

/// Whether sums of products of e4m3 stay in the tensor cores, which keep some fourteen bits.
static FAST_SUMS: i8 = 0;

/// What inputs hold. Outputs are the card's own elements or f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The card's own elements.
    Plain,
    /// With a scale for each row of both inputs.
    E4m3,
}

/// Addresses on the card of an input and of its rows' scales, if it has any.
#[derive(Clone, Copy)]
pub(super) struct Input {
    pub(super) data: u64,
    pub(super) scales: u64,
}

/// The library, and memory for its algorithms; its work runs on one stream.
pub(super) struct Handle {
    pub(super) gpu: Gpu,
    raw: sys::cublasLtHandle_t,
    workspace: Mutex<CudaSlice<u8>>,
    workspace_bytes: usize,
}

/// A product of some sizes with its algorithm.
pub(super) struct Product {
    sizes: Sizes,
    kind: Kind,
    how: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// === impl Handle ===

// SAFETY: a handle may be used by any thread.
unsafe impl Send for Handle {}
// SAFETY: as above; cuBLASLt locks inside.
unsafe impl Sync for Handle {}

impl Handle {
    pub(super) fn new(gpu: &Gpu, workspace_bytes: usize) -> Result<Self, GpuError> {
        // SAFETY: loads a library by its well-known name.
        if !unsafe { sys::is_culib_present() } {
            return Err(GpuError::NoBlas);
        }
        gpu.context().bind_to_thread().named("cuCtxSetCurrent")?;
        let workspace = Mutex::new(gpu.unset(workspace_bytes)?);
        let raw = result::create_handle().named("cublasLtCreate")?;
        Ok(Self { gpu: gpu.clone(), raw, workspace, workspace_bytes })
    }

    pub(super) fn version(&self) -> usize {
        // SAFETY: takes nothing and returns a number.
        unsafe { sys::cublasLtGetVersion() }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created by `new`. An error of destroying has no taker.
        let _ = unsafe { result::destroy_handle(self.raw) };
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

// === impl Product ===

// SAFETY: descriptors may be used by any thread.
unsafe impl Send for Product {}
// SAFETY: after `new` and `choose` they are changed by `enqueue` alone, under the handle's lock.
unsafe impl Sync for Product {}

impl Product {
    /// Without an algorithm yet. cuBLASLt thinks in columns: it sees
    /// `out` as `[n]` by `[m]`, the weights transposed times `x`.
    pub(super) fn new(handle: &Handle, sizes: Sizes, kind: Kind, is_f32: bool) -> Result<Self, GpuError> {
        let Sizes { n, k, m } = sizes;
        let f32 = sys::cudaDataType::CUDA_R_32F;
        let own = match handle.gpu.dtype() {
            Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
            Dtype::F16 => sys::cudaDataType::CUDA_R_16F,
        };
        let input = match kind {
            Kind::Plain => own,
            Kind::E4m3 => sys::cudaDataType::CUDA_R_8F_E4M3,
        };
        let matrix = |kind, rows: usize, columns: usize| {
            result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64)
                .named("cublasLtMatrixLayoutCreate")
        };
        let product = Self {
            sizes,
            kind,
            how: result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, f32)
                .named("cublasLtMatmulDescCreate")?,
            w: matrix(input, k, n)?,
            x: matrix(input, k, m)?,
            out: matrix(if is_f32 { f32 } else { own }, n, m)?,
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        product.set(Describe::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if kind == Kind::E4m3 {
            let each_row = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
            product.set(Describe::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &each_row)?;
            product.set(Describe::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &each_row)?;
            product.set(Describe::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &FAST_SUMS)?;
            // Algorithms are told by whether there are scales, not by what they are.
            let workspace = handle.workspace.lock();
            let (some, _) = DevicePtr::device_ptr(&*workspace, handle.gpu.stream());
            product.set_scales(some, some)?;
        }
        Ok(product)
    }

    fn set_scales(&self, w: u64, x: u64) -> Result<(), GpuError> {
        self.set(Describe::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &w)?;
        self.set(Describe::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &x)
    }

    /// `value` is of the attribute's type.
    fn set<T>(&self, at: Describe, value: &T) -> Result<(), GpuError> {
        // SAFETY: the descriptor is alive, and the value as large as is said.
        unsafe {
            result::set_matmul_desc_attribute(self.how, at, ptr::from_ref(value).cast(), size_of::<T>())
        }
        .named("cublasLtMatmulDescSetAttribute")
    }

    /// At most `most` algorithms that cuBLASLt thinks good, best first.
    pub(super) fn candidates(&self, handle: &Handle, most: usize) -> Result<Vec<Algorithm>, GpuError> {
        let preference = result::create_matmul_pref().named("cublasLtMatmulPreferenceCreate")?;
        let space = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let bytes = handle.workspace_bytes;
        let sums = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
        // SAFETY: zeros are a value of this plain struct of numbers.
        let mut found: Vec<sys::cublasLtMatmulHeuristicResult_t> = vec![unsafe { std::mem::zeroed() }; most];
        let mut count = 0;
        // SAFETY: the attributes are of these types and sizes; the descriptors are alive,
        // and there is room for `most` results.
        let status = unsafe {
            let set = |at, value: *const c_void, size| {
                result::set_matmul_pref_attribute(preference, at, value, size)
            };
            let set_both = set(space, (&raw const bytes).cast(), size_of_val(&bytes))
                .and_then(|()| set(sums, (&raw const SUMS_IN_F32).cast(), size_of_val(&SUMS_IN_F32)));
            let status = set_both.and_then(|()| {
                sys::cublasLtMatmulAlgoGetHeuristic(
                    handle.raw,
                    self.how,
                    self.w,
                    self.x,
                    self.out,
                    self.out,
                    preference,
                    most as i32,
                    found.as_mut_ptr(),
                    &raw mut count,
                )
                .result()
            });
            let _ = result::destroy_matmul_pref(preference);
            status
        };
        status.named("cublasLtMatmulAlgoGetHeuristic")?;
        found.truncate(count as usize);
        found.retain(|found| found.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        Ok(found.into_iter().map(|found| found.algo.data).collect())
    }

    /// Takes `wished` if it does these sizes, else cuBLASLt's first choice.
    pub(super) fn choose(&mut self, handle: &Handle, wished: Option<Algorithm>) -> Result<(), GpuError> {
        if let Some(wished) = wished
            && self.does(handle, wished)
        {
            self.algorithm.data = wished;
            return Ok(());
        }
        let Sizes { n, k, m } = self.sizes;
        let first = self.candidates(handle, 1)?.into_iter().next();
        self.algorithm.data = first.ok_or(GpuError::NoAlgorithm { m, n, k })?;
        Ok(())
    }

    fn does(&self, handle: &Handle, algorithm: Algorithm) -> bool {
        let algorithm = sys::cublasLtMatmulAlgo_t { data: algorithm };
        // SAFETY: zeros are a value of this plain struct of numbers.
        let mut found: sys::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptors are alive, and there is room for a result.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                handle.raw,
                self.how,
                self.w,
                self.x,
                self.out,
                self.out,
                &raw const algorithm,
                &raw mut found,
            )
        };
        status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && found.workspaceSize <= handle.workspace_bytes
    }

    /// `out = w x + keep * out`; the caller has checked that the memory is of these sizes.
    pub(super) fn enqueue<T>(
        &self,
        handle: &Handle,
        (w, x): (Input, Input),
        out: &mut impl Write<T>,
        keep: f32,
    ) -> Result<(), GpuError> {
        let stream = handle.gpu.stream();
        let mut workspace = handle.workspace.lock();
        handle.gpu.context().bind_to_thread().named("cuCtxSetCurrent")?;
        let one = 1.0_f32;
        if self.kind == Kind::E4m3 {
            self.set_scales(w.scales, x.scales)?;
        }
        let (out, _out) = out.device_ptr_mut(stream);
        let (space, _space) = cudarc::driver::DevicePtrMut::device_ptr_mut(&mut *workspace, stream);
        // SAFETY: descriptors are alive, memory is as large as they say, and work
        // that shares the workspace is ordered by the one stream.
        unsafe {
            result::matmul(
                handle.raw,
                self.how,
                (&raw const one).cast(),
                (&raw const keep).cast(),
                ptr::with_exposed_provenance(w.data as usize),
                self.w,
                ptr::with_exposed_provenance(x.data as usize),
                self.x,
                ptr::with_exposed_provenance(out as usize),
                self.out,
                ptr::with_exposed_provenance_mut(out as usize),
                self.out,
                &raw const self.algorithm,
                ptr::with_exposed_provenance_mut(space as usize),
                handle.workspace_bytes,
                stream.cu_stream().cast(),
            )
        }
        .named("cublasLtMatmul")
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and copied by every call that was enqueued;
        // errors of destroying have no taker.
        unsafe {
            let _ = result::destroy_matmul_desc(self.how);
            for layout in [self.w, self.x, self.out] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

impl fmt::Debug for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Product").field("sizes", &self.sizes).finish_non_exhaustive()
    }
}
