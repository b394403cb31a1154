//! A card, and the kernels loaded on it.
#![expect(unsafe_code, reason = "modules and uninitialised memory come from the driver as raw handles")]

use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    fmt,
    sync::{Arc, LazyLock, Weak},
};

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr, HostSlice, ValidAsZeroBits, result, sys,
};
use parking_lot::Mutex;

use super::{
    Dtype,
    error::{GpuError, Named},
    image::images,
    launch::{Args, Kernel},
};

/// A card and a stream of work on it. Ops are enqueued on the stream and run
/// in order; clones share the stream, [`Gpu::beside`] makes another.
#[derive(Clone)]
pub struct Gpu {
    card: Arc<Card>,
    stream: Arc<CudaStream>,
    overlaps: bool,
    shared_percent: u32,
}

/// Device memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Not allocated by anybody.
    pub free: usize,
    /// Of the card.
    pub total: usize,
}

/// By ordinal and dtype.
type Cards = HashMap<(usize, Dtype), Weak<Card>>;

/// Cards that are open: loading kernels twice would take their memory and time twice.
static CARDS: LazyLock<Mutex<Cards>> = LazyLock::new(Mutex::default);

struct Card {
    name: String,
    dtype: Dtype,
    capability: (i32, i32),
    multiprocessors: usize,
    modules: HashMap<&'static str, Module>,
    kernels: Mutex<HashMap<(&'static str, &'static str), Kernel>>,
    // Last: modules are unloaded before.
    context: Arc<CudaContext>,
}

/// A loaded image; dropped with the card.
struct Module(sys::CUmodule);

// === impl Gpu ===

impl Gpu {
    /// The card `ordinal`, with all kernels that compute in `dtype` loaded; the second
    /// time in a process, the same one with another stream.
    ///
    /// # Errors
    /// When there is no driver, no such card, or no kernel for that card.
    pub fn open(ordinal: usize, dtype: Dtype) -> Result<Self, GpuError> {
        let mut cards = CARDS.lock();
        let card = match cards.get(&(ordinal, dtype)).and_then(Weak::upgrade) {
            Some(card) => card,
            None => Arc::new(Card::open(ordinal, dtype)?),
        };
        cards.insert((ordinal, dtype), Arc::downgrade(&card));
        let stream = card.context.new_stream().named("cuStreamCreate")?;
        Ok(Self { card, stream, overlaps: true, shared_percent: 100 })
    }

    /// The card `ordinal` for copies, in whatever dtype it is open already.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_any(ordinal: usize) -> Result<Self, GpuError> {
        let is_open = |cards: &HashMap<_, Weak<Card>>, dtype| {
            cards.get(&(ordinal, dtype)).is_some_and(|card| card.strong_count() > 0)
        };
        let dtype = {
            let cards = CARDS.lock();
            Dtype::ALL.into_iter().find(|dtype| is_open(&cards, *dtype))
        };
        Self::open(ordinal, dtype.unwrap_or_default())
    }

    /// The same card with a stream of its own, not ordered with this one.
    ///
    /// # Errors
    /// When the driver gives no more streams.
    pub fn beside(&self) -> Result<Self, GpuError> {
        let stream = self.card.context.new_stream().named("cuStreamCreate")?;
        Ok(Self { stream, ..self.clone() })
    }

    /// The same stream; ops start before the one enqueued before them has ended
    /// and wait inside (programmatic dependent launch), or do not. On at first.
    #[must_use]
    pub fn overlapping(&self, overlaps: bool) -> Self {
        Self { overlaps: overlaps && self.card.capability.0 >= 9, ..self.clone() }
    }

    /// The same stream; ops ask for so much of a multiprocessor's memory to be shared memory, in
    /// percent, and leave the rest to L1. Ops in a row ask for the same best: a
    /// multiprocessor must fall idle to change it, and they would not overlap. 100 at first.
    #[must_use]
    pub fn sharing(&self, percent: u32) -> Self {
        Self { shared_percent: percent.min(100), ..self.clone() }
    }

    /// Whether ops overlap: for [`Kernel::launch`].
    #[must_use]
    pub fn overlaps(&self) -> bool {
        self.overlaps && self.card.capability.0 >= 9
    }

    /// What ops are enqueued on.
    #[must_use]
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The card's context.
    #[must_use]
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.card.context
    }

    /// Its number among the cards that this process sees.
    #[must_use]
    pub fn ordinal(&self) -> usize {
        self.card.context.ordinal()
    }

    /// Name of the card.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.card.name
    }

    /// What kernels compute in, and all [`Half`](super::Half) in its memory are.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.card.dtype
    }

    /// Compute capability, major and minor.
    #[must_use]
    pub fn capability(&self) -> (i32, i32) {
        self.card.capability
    }

    /// How many multiprocessors (SMs) the card has.
    #[must_use]
    pub fn multiprocessors(&self) -> usize {
        self.card.multiprocessors
    }

    /// Device memory now.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn memory(&self) -> Result<Memory, GpuError> {
        let (free, total) = self.card.context.mem_get_info().named("cuMemGetInfo")?;
        Ok(Memory { free, total })
    }

    /// Waits until everything enqueued has run.
    ///
    /// # Errors
    /// When something enqueued has failed.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        self.stream.synchronize().named("cuStreamSynchronize")
    }

    /// Memory of `len` zeros.
    ///
    /// # Errors
    /// When there is not so much.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<CudaSlice<T>, GpuError> {
        self.stream.alloc_zeros(len).named("cuMemAllocAsync")
    }

    /// Memory of `len` elements that hold whatever was there.
    ///
    /// # Errors
    /// When there is not so much.
    pub fn unset<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<CudaSlice<T>, GpuError> {
        // SAFETY: every bit pattern is a value of the number types that implement
        // these traits, and the device reads old values, not undefined ones.
        unsafe { self.stream.alloc(len) }.named("cuMemAllocAsync")
    }

    /// A copy of `data` in device memory; enqueued, and complete for `data` that is not pinned.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn upload<T: DeviceRepr>(
        &self,
        data: &(impl HostSlice<T> + ?Sized),
    ) -> Result<CudaSlice<T>, GpuError> {
        self.stream.clone_htod(data).named("cuMemcpyHtoDAsync")
    }

    /// A copy of `memory` on the host, after everything enqueued before.
    ///
    /// # Errors
    /// When something enqueued has failed.
    pub fn download<T: DeviceRepr>(&self, memory: &impl DevicePtr<T>) -> Result<Vec<T>, GpuError> {
        let copy = self.stream.clone_dtoh(memory).named("cuMemcpyDtoHAsync")?;
        self.synchronize()?;
        Ok(copy)
    }

    /// The kernel `function` of `cuda/{image}.cu`.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn kernel(&self, image: &'static str, function: &'static str) -> Result<Kernel, GpuError> {
        let mut kernels = self.card.kernels.lock();
        if let Some(kernel) = kernels.get(&(image, function)) {
            return Ok(*kernel);
        }
        let kernel = self.card.find(image, function)?;
        kernels.insert((image, function), kernel);
        Ok(kernel)
    }

    /// Begins the parameters of a kernel launched on this stream.
    #[must_use]
    pub fn args(&self) -> Args<'_> {
        Args::on(&self.stream, self.shared_percent)
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("name", &self.card.name).finish_non_exhaustive()
    }
}

// === impl Card ===

impl Card {
    fn open(ordinal: usize, dtype: Dtype) -> Result<Self, GpuError> {
        // SAFETY: loads a library by its well-known name.
        if !unsafe { sys::is_culib_present() } {
            return Err(GpuError::NoDriver);
        }
        let found = match CudaContext::device_count() {
            Ok(count) => count as usize,
            Err(result::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => 0,
            Err(source) => return Err(GpuError::Driver { call: "cuInit", source }),
        };
        if ordinal >= found {
            return Err(GpuError::NoDevice { ordinal, found });
        }
        let context = CudaContext::new(ordinal).named("cuDevicePrimaryCtxRetain")?;
        // SAFETY: ops of one `Gpu` run in order on one stream; who uses several
        // orders them with events, which recorded graphs need anyway.
        unsafe { context.disable_event_tracking() };
        Self::load(context, dtype)
    }

    fn load(context: Arc<CudaContext>, dtype: Dtype) -> Result<Self, GpuError> {
        use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let name = context.name().named("cuDeviceGetName")?;
        let capability = context.compute_capability().named("cuDeviceGetAttribute")?;
        let multiprocessors = context.attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        let mut modules = HashMap::new();
        for (image, bytes) in images(dtype) {
            // SAFETY: a complete fat binary made by nvcc.
            let module = unsafe { result::module::load_data(bytes.as_ptr().cast::<c_void>()) };
            let module = module.map_err(|source| GpuError::NoImage {
                image,
                card: name.clone(),
                major: capability.0,
                minor: capability.1,
                source,
            })?;
            modules.insert(image, Module(module));
        }
        Ok(Self {
            name,
            dtype,
            capability,
            multiprocessors: multiprocessors.named("cuDeviceGetAttribute")? as usize,
            modules,
            kernels: Mutex::default(),
            context,
        })
    }

    fn find(&self, image: &'static str, function: &'static str) -> Result<Kernel, GpuError> {
        let missing = GpuError::NoKernel { image, function };
        let (Some(module), Ok(name)) = (self.modules.get(image), CString::new(function)) else {
            return Err(missing);
        };
        self.context.bind_to_thread().named("cuCtxSetCurrent")?;
        // SAFETY: the module is loaded as long as this card.
        let found = unsafe { result::module::get_function(module.0, name) };
        let kernel = Kernel { function: found.map_err(|_| missing)? };
        self.allow_shared_memory(kernel)?;
        Ok(kernel)
    }

    /// Lets a launch ask for as much shared memory as a block can have.
    fn allow_shared_memory(&self, kernel: Kernel) -> Result<(), GpuError> {
        use sys::{CUdevice_attribute as Device, CUfunction_attribute as Function};
        let most = self.context.attribute(Device::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
        let most = most.named("cuDeviceGetAttribute")?;
        let (mut fixed, at) = (0, Function::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
        // SAFETY: a loaded function, and a place for one int.
        unsafe { sys::cuFuncGetAttribute(&raw mut fixed, at, kernel.function) }
            .result()
            .named("cuFuncGetAttribute")?;
        let at = Function::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: as above.
        unsafe { sys::cuFuncSetAttribute(kernel.function, at, most - fixed) }
            .result()
            .named("cuFuncSetAttribute")
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread());
        for (_, module) in self.modules.drain() {
            // SAFETY: loaded by `load`, and no `Gpu` that could launch from it is left.
            self.context.record_err(unsafe { result::module::unload(module.0) });
        }
    }
}

// SAFETY: module handles may be used by any thread.
unsafe impl Send for Module {}
// SAFETY: as above; loading functions from one is guarded by the driver.
unsafe impl Sync for Module {}
