//! Enqueueing kernels, alone or overlapping the one before.
#![expect(unsafe_code, reason = "the driver trusts the caller with a kernel's parameters")]

use std::ffi::c_void;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, sys};

use super::error::{GpuError, Named};

/// The most words that a kernel's parameters have: 4 KiB.
const MAX_WORDS: usize = 512;

/// The most parameters that a kernel has.
const MAX_ARGS: usize = 48;

/// A loaded function.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    pub(super) function: sys::CUfunction,
}

/// Blocks and threads of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Blocks in x, y, z.
    pub blocks: [usize; 3],
    /// Threads of a block.
    pub threads: usize,
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
    /// Neighbouring blocks in x that run together and reach each other's shared memory; 1 for none.
    pub cluster: usize,
}

/// Parameters of a kernel, in order.
#[derive(Debug)]
pub struct Args<'a> {
    stream: &'a CudaStream,
    /// Share of a multiprocessor's memory that is to be shared memory, not L1, in percent.
    shared_percent: u32,
    /// Each in the low bytes of a word of its own, records in several.
    words: [u64; MAX_WORDS],
    len: usize,
    /// The first word of each.
    starts: [usize; MAX_ARGS],
    count: usize,
}

/// How a kernel is launched besides its grid.
struct Attributes {
    list: [sys::CUlaunchAttribute; 3],
    count: u32,
}

// === impl Kernel ===

// SAFETY: a function handle may be used by any thread; modules outlive it, see `Gpu`.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Enqueues the kernel. With `overlaps` it may start before the work
    /// enqueued before it has ended, and must itself wait for that
    /// (`griddepcontrol.wait`) before it touches what that work reads or writes.
    ///
    /// # Safety
    /// `args` are the kernel's parameters; every pointer is to memory of this
    /// card as large as the kernel reads or writes for them and for `grid`, and
    /// stays allocated until the stream has got there.
    ///
    /// # Errors
    /// When the driver refuses the launch.
    pub unsafe fn launch(&self, grid: Grid, mut args: Args<'_>, overlaps: bool) -> Result<(), GpuError> {
        let mut parameters: [*mut c_void; MAX_ARGS] = [std::ptr::null_mut(); MAX_ARGS];
        for (parameter, start) in parameters.iter_mut().zip(&args.starts[..args.count]) {
            *parameter = args.words[*start..].as_mut_ptr().cast();
        }
        let mut attributes = Attributes::default();
        attributes.share(args.shared_percent);
        if overlaps {
            attributes.overlap();
        }
        if grid.cluster > 1 {
            attributes.cluster(grid.cluster);
        }
        let [x, y, z] = grid.blocks.map(|blocks| blocks as u32);
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: grid.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes as u32,
            hStream: args.stream.cu_stream(),
            attrs: attributes.list.as_mut_ptr(),
            numAttrs: attributes.count,
        };
        args.stream.context().bind_to_thread().named("cuCtxSetCurrent")?;
        // SAFETY: `config`, its attribute and the parameters live for the call,
        // which copies them; the rest is the caller's promise.
        unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                self.function,
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .named("cuLaunchKernelEx")
    }
}

// === impl Attributes ===

impl Default for Attributes {
    fn default() -> Self {
        let none = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_IGNORE,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { pad: [0; 64] },
        };
        Self { list: [none; 3], count: 0 }
    }
}

impl Attributes {
    fn push(&mut self, id: sys::CUlaunchAttributeID, value: sys::CUlaunchAttributeValue) {
        self.list[self.count as usize] = sys::CUlaunchAttribute { id, pad: [0; 4], value };
        self.count += 1;
    }

    fn share(&mut self, percent: u32) {
        self.push(
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
            sys::CUlaunchAttributeValue { sharedMemCarveout: percent },
        );
    }

    fn overlap(&mut self) {
        self.push(
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        );
    }

    fn cluster(&mut self, blocks: usize) {
        let cluster = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: blocks as u32, y: 1, z: 1 };
        self.push(
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            sys::CUlaunchAttributeValue { clusterDim: cluster },
        );
    }
}

// === impl Grid ===

impl Grid {
    /// `blocks` in a line, without dynamic shared memory.
    #[must_use]
    pub fn line(blocks: usize, threads: usize) -> Self {
        Self { blocks: [blocks, 1, 1], threads, shared_bytes: 0, cluster: 1 }
    }
}

// === impl Args ===

impl<'a> Args<'a> {
    /// None yet, for a launch on `stream`. See [`Gpu::sharing`](super::Gpu::sharing).
    #[must_use]
    pub fn on(stream: &'a CudaStream, shared_percent: u32) -> Self {
        Self { stream, shared_percent, words: [0; MAX_WORDS], len: 0, starts: [0; MAX_ARGS], count: 0 }
    }

    /// A pointer to memory that is read.
    #[must_use]
    pub fn read<T>(self, memory: &impl DevicePtr<T>) -> Self {
        let (pointer, _unused_event) = memory.device_ptr(self.stream);
        self.word(pointer)
    }

    /// A pointer to memory that is read if it is given, else null.
    #[must_use]
    pub fn read_or_null<T>(self, memory: Option<&impl DevicePtr<T>>) -> Self {
        match memory {
            Some(memory) => self.read(memory),
            None => self.null(),
        }
    }

    /// A pointer to nothing.
    #[must_use]
    pub fn null(self) -> Self {
        self.word(0)
    }

    /// A pointer to memory that is written.
    #[must_use]
    pub fn write<T>(self, memory: &mut impl DevicePtrMut<T>) -> Self {
        let (pointer, _unused_event) = memory.device_ptr_mut(self.stream);
        self.word(pointer)
    }

    /// An `int`.
    #[must_use]
    pub fn int(self, value: usize) -> Self {
        debug_assert!(i32::try_from(value).is_ok());
        self.word(u64::from(value as u32))
    }

    /// A `long long` or `unsigned long long`.
    #[must_use]
    pub fn long(self, value: u64) -> Self {
        self.word(value)
    }

    /// A `float`.
    #[must_use]
    pub fn float(self, value: f32) -> Self {
        self.word(u64::from(value.to_bits()))
    }

    /// A struct, as the words it is made of.
    #[must_use]
    pub fn record(mut self, words: &[u64]) -> Self {
        self.words[self.len..self.len + words.len()].copy_from_slice(words);
        self.starts[self.count] = self.len;
        self.count += 1;
        self.len += words.len();
        self
    }

    fn word(self, word: u64) -> Self {
        self.record(&[word])
    }
}
