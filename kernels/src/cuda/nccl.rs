//! Pairs of cards joined by NCCL, which is loaded when it is first asked for.
#![expect(unsafe_code, reason = "NCCL is a C library found at run time")]

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    fmt,
    sync::OnceLock,
    time::{Duration, Instant},
};

use cudarc::{driver::sys::CUstream, nccl::sys};
use libloading::Library;

use super::{
    Gpu, Mark, Region,
    error::{GpuError, Named, at_least},
};

/// Bytes of the name under which two ranks find each other.
pub const ID_BYTES: usize = 128;

/// The oldest version that is used: 2.28.
const OLDEST: c_int = 22_800;
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
/// `ncclInt8`.
const BYTES: c_int = 0;
/// How long what NCCL does in the background is looked at without a nap: joining takes longer, enqueueing does not.
const SPIN: Duration = Duration::from_micros(200);
/// Between two looks after that.
const NAP: Duration = Duration::from_micros(20);

/// Results are taken as numbers: later versions have more of them than an enum here would know.
type Call<A> = unsafe extern "C" fn(A) -> c_int;
type Init = unsafe extern "C" fn(
    *mut sys::ncclComm_t,
    c_int,
    sys::ncclUniqueId,
    c_int,
    *mut sys::ncclConfig_t,
) -> c_int;
type Group = unsafe extern "C" fn() -> c_int;
type AsyncError = unsafe extern "C" fn(sys::ncclComm_t, *mut c_int) -> c_int;
type Transfer = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, sys::ncclComm_t, CUstream) -> c_int;

/// The loaded library.
pub struct Nccl {
    version: c_int,
    new_id: Call<*mut sys::ncclUniqueId>,
    init: Init,
    abort: Call<sys::ncclComm_t>,
    async_error: AsyncError,
    group_start: Group,
    group_end: Group,
    send: Transfer,
    recv: Transfer,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    /// What the functions are in.
    _library: Library,
}

/// A communicator of this card and one other. Dropping it aborts whatever is
/// under way between the two, and touches no other pair.
pub struct Pair {
    nccl: &'static Nccl,
    communicator: sys::ncclComm_t,
    peer: c_int,
    gpu: Gpu,
    /// The call of which NCCL may still do something in the background.
    begun: Option<&'static str>,
}

// === impl Nccl ===

impl Nccl {
    /// The library of this process.
    ///
    /// # Errors
    /// When there is none, it is too old, or NVLink multicast was not turned off:
    /// NCCL reads `NCCL_NVLS_ENABLE` from the environment, which threads must not change.
    pub fn load() -> Result<&'static Self, GpuError> {
        static LOADED: OnceLock<Result<Nccl, String>> = OnceLock::new();
        let loaded = LOADED.get_or_init(Self::find);
        loaded.as_ref().map_err(|reason| GpuError::NoNccl { reason: reason.clone() })
    }

    fn find() -> Result<Self, String> {
        if std::env::var("NCCL_NVLS_ENABLE").as_deref() != Ok("0") {
            return Err("set NCCL_NVLS_ENABLE=0 in the environment: multicast stays off".to_owned());
        }
        let open = |name| {
            // SAFETY: NCCL's initialisers do nothing but set up its own state.
            unsafe { Library::new(name) }
        };
        let library = open("libnccl.so.2").or_else(|_| open("libnccl.so"));
        let library = library.map_err(|_| "libnccl.so.2 is not on the library path".to_owned())?;
        // SAFETY: the types are those of NCCL's header for these names; the library stays loaded.
        let nccl = unsafe {
            let get_version: Call<*mut c_int> = function(&library, c"ncclGetVersion")?;
            let mut version = 0;
            get_version(&raw mut version);
            Self {
                version,
                new_id: function(&library, c"ncclGetUniqueId")?,
                init: function(&library, c"ncclCommInitRankConfig")?,
                abort: function(&library, c"ncclCommAbort")?,
                async_error: function(&library, c"ncclCommGetAsyncError")?,
                group_start: function(&library, c"ncclGroupStart")?,
                group_end: function(&library, c"ncclGroupEnd")?,
                send: function(&library, c"ncclSend")?,
                recv: function(&library, c"ncclRecv")?,
                error_string: function(&library, c"ncclGetErrorString")?,
                _library: library,
            }
        };
        if nccl.version < OLDEST {
            let (found, oldest) = (named(nccl.version), named(OLDEST));
            return Err(format!("version {found} is too old, needs {oldest}"));
        }
        Ok(nccl)
    }

    /// Its version, as people write it.
    #[must_use]
    pub fn version(&self) -> String {
        named(self.version)
    }

    /// A name for a pair that is to be.
    ///
    /// # Errors
    /// When NCCL finds no network interface.
    pub fn new_id(&self) -> Result<[u8; ID_BYTES], GpuError> {
        let mut id = sys::ncclUniqueId { internal: [0; ID_BYTES] };
        // SAFETY: a place for an id.
        self.check("ncclGetUniqueId", unsafe { (self.new_id)(&raw mut id) })?;
        Ok(id.internal.map(|byte| byte as u8))
    }

    /// Joins the pair `id` as rank 0 or 1; takes seconds. `given_up` is asked all the time.
    ///
    /// # Errors
    /// When the other rank does not come before `given_up`, or NCCL fails.
    pub fn join(
        &'static self,
        gpu: &Gpu,
        id: &[u8; ID_BYTES],
        rank: bool,
        given_up: &dyn Fn() -> bool,
    ) -> Result<Pair, GpuError> {
        gpu.context().bind_to_thread().named("cuCtxSetCurrent")?;
        let id = sys::ncclUniqueId { internal: id.map(|byte| byte as c_char) };
        let mut config = config();
        let mut communicator = std::ptr::null_mut();
        // SAFETY: places for a communicator and a config of the version that it names.
        let begun = unsafe { (self.init)(&raw mut communicator, 2, id, c_int::from(rank), &raw mut config) };
        if communicator.is_null() {
            self.check("ncclCommInitRankConfig", begun)?;
            return Err(GpuError::Nccl { call: "ncclCommInitRankConfig", reason: "gave nothing".to_owned() });
        }
        let peer = c_int::from(!rank);
        let mut pair = Pair { nccl: self, communicator, peer, gpu: gpu.clone(), begun: None };
        pair.began("ncclCommInitRankConfig", begun)?;
        pair.settle(given_up)?;
        Ok(pair)
    }

    fn check(&self, call: &'static str, result: c_int) -> Result<(), GpuError> {
        if result == SUCCESS {
            return Ok(());
        }
        // SAFETY: gives a constant string for any number.
        let reason = unsafe { CStr::from_ptr((self.error_string)(result)) };
        Err(GpuError::Nccl { call, reason: reason.to_string_lossy().into_owned() })
    }
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nccl").field("version", &self.version()).finish_non_exhaustive()
    }
}

/// SAFETY, for the caller: `F` is the function's type.
unsafe fn function<F: Copy>(library: &Library, name: &CStr) -> Result<F, String> {
    // SAFETY: the caller's promise.
    let found = unsafe { library.get::<F>(name.to_bytes_with_nul()) };
    found.map(|function| *function).map_err(|_| format!("it has no {}", name.to_string_lossy()))
}

fn named(version: c_int) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// `NCCL_CONFIG_INITIALIZER` of the version of these bindings, not blocking.
fn config() -> sys::ncclConfig_t {
    const UNSET: c_int = c_int::MIN;
    sys::ncclConfig_t {
        size: size_of::<sys::ncclConfig_t>(),
        magic: 0xcafe_beef,
        version: 22_803,
        blocking: 0,
        cgaClusterSize: UNSET,
        minCTAs: UNSET,
        maxCTAs: UNSET,
        netName: std::ptr::null(),
        splitShare: UNSET,
        trafficClass: UNSET,
        commName: std::ptr::null(),
        collnetEnable: UNSET,
        CTAPolicy: UNSET,
        shrinkShare: UNSET,
        nvlsCTAs: UNSET,
        nChannelsPerNetPeer: UNSET,
        nvlinkCentricSched: UNSET,
    }
}

// === impl Pair ===

// SAFETY: a communicator may be used by any one thread at a time.
unsafe impl Send for Pair {}

impl Pair {
    /// Begins with sending parts of a region (where they begin, and their bytes), one after the other in one
    /// launch; the peer receives as many of the same sizes. A thread of NCCL enqueues it: see
    /// [`settle`](Self::settle).
    ///
    /// # Errors
    /// When NCCL fails, or is not done with the launch before until `given_up`.
    pub fn send(
        &mut self,
        region: &Region,
        parts: &[(usize, usize)],
        given_up: &dyn Fn() -> bool,
    ) -> Result<(), GpuError> {
        self.transfer(("ncclSend", self.nccl.send), region, parts, given_up)
    }

    /// Begins with receiving into parts of a region; the peer sends as many of the same sizes.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn recv(
        &mut self,
        region: &mut Region,
        parts: &[(usize, usize)],
        given_up: &dyn Fn() -> bool,
    ) -> Result<(), GpuError> {
        self.transfer(("ncclRecv", self.nccl.recv), region, parts, given_up)
    }

    fn transfer(
        &mut self,
        (call, function): (&'static str, Transfer),
        region: &Region,
        parts: &[(usize, usize)],
        given_up: &dyn Fn() -> bool,
    ) -> Result<(), GpuError> {
        for (at, bytes) in parts {
            at_least("nccl", "bytes of a region", region.bytes(), at + bytes)?;
        }
        self.settle(given_up)?;
        self.gpu.context().bind_to_thread().named("cuCtxSetCurrent")?;
        let stream = self.gpu.stream().cu_stream();
        // SAFETY: begins this thread's group, which is ended below whatever came of its calls.
        self.nccl.check("ncclGroupStart", unsafe { (self.nccl.group_start)() })?;
        let mut enqueued = Ok(());
        for (at, bytes) in parts {
            let address = (region.address() + *at as u64) as *mut c_void;
            // SAFETY: within a region, whose memory goes only when the card is done with it.
            let result = unsafe { function(address, *bytes, BYTES, self.peer, self.communicator, stream) };
            // In a group a pair that does not block may call itself busy.
            let result = if result == IN_PROGRESS { SUCCESS } else { result };
            enqueued = enqueued.and(self.nccl.check(call, result));
        }
        // SAFETY: of this thread's group.
        let begun = unsafe { (self.nccl.group_end)() };
        enqueued?;
        self.began(call, begun)
    }

    /// Notes what a call left to the background.
    fn began(&mut self, call: &'static str, result: c_int) -> Result<(), GpuError> {
        if result != IN_PROGRESS {
            return self.nccl.check(call, result);
        }
        self.begun = Some(call);
        Ok(())
    }

    /// Sets a mark behind everything enqueued so far: what has only begun is not.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn mark(&self, mark: &Mark) -> Result<(), GpuError> {
        mark.set(&self.gpu)
    }

    /// Whether the peer or the link has failed, as far as NCCL knows.
    ///
    /// # Errors
    /// When it has.
    pub fn check(&self) -> Result<(), GpuError> {
        match self.state("ncclCommGetAsyncError")? {
            IN_PROGRESS => Ok(()),
            state => self.nccl.check("ncclCommGetAsyncError", state),
        }
    }

    fn state(&self, call: &'static str) -> Result<c_int, GpuError> {
        let mut state = SUCCESS;
        // SAFETY: a communicator that was not aborted, and a place for a number.
        self.nccl.check(call, unsafe { (self.nccl.async_error)(self.communicator, &raw mut state) })?;
        Ok(state)
    }

    /// Whether the last launch is enqueued.
    ///
    /// # Errors
    /// When it failed.
    pub fn is_settled(&mut self) -> Result<bool, GpuError> {
        let Some(call) = self.begun else { return Ok(true) };
        let state = self.state(call)?;
        if state == IN_PROGRESS {
            return Ok(false);
        }
        self.begun = None;
        self.nccl.check(call, state).map(|()| true)
    }

    /// Waits until the last launch is enqueued.
    ///
    /// # Errors
    /// When it failed, or is not before `given_up`.
    pub fn settle(&mut self, given_up: &dyn Fn() -> bool) -> Result<(), GpuError> {
        let since = Instant::now();
        while !self.is_settled()? {
            if given_up() {
                let call = self.begun.unwrap_or_default();
                return Err(GpuError::Nccl { call, reason: "given up".to_owned() });
            }
            if since.elapsed() >= SPIN {
                std::thread::sleep(NAP);
            }
        }
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.gpu.context().record_err(self.gpu.context().bind_to_thread());
        // SAFETY: made by `join`, aborted only here. Not finalized: that would wait for the peer.
        unsafe { (self.nccl.abort)(self.communicator) };
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("peer", &self.peer).finish_non_exhaustive()
    }
}
