#![expect(unsafe_code, reason = "UCX is a C library")]
//! An opening of UCX: the devices it may use, and memory registered with them.

use std::{
    ffi::CStr,
    ptr::null_mut,
    sync::{Arc, Weak},
    time::Instant,
};

use parking_lot::Mutex;
use ucx_rs::{status_string, sys};

use crate::transport::PathError;

/// Asks UCX to leave the system's memory functions alone. It would patch eight of them while
/// the program is loaded, 50 ms each, to hear of memory that goes while its cache has it
/// registered. Nothing here is in that cache: staging is registered by hand.
#[used]
#[unsafe(link_section = ".init_array.00100")]
static WITHOUT_HOOKS: extern "C" fn() = {
    #[expect(clippy::disallowed_methods, reason = "UCX reads it before anything could be passed to it")]
    extern "C" fn ask() {
        if std::env::var_os("UCX_MEM_EVENTS").is_none() {
            // SAFETY: there are no other threads yet. UCX's constructor, which has no number, comes later.
            unsafe { std::env::set_var("UCX_MEM_EVENTS", "n") };
        }
    }
    ask
};

/// How far frames may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Shared memory and loopback: this host. Whatever lands is copied by a
    /// thread of this process, so that nothing lands once its worker is gone.
    Host,
    /// Every device that UCX knows, those that write into memory by themselves included.
    Network,
}

/// UCX as long as somebody needs it.
pub struct OnDemand {
    reach: Reach,
    opened: Mutex<Weak<Context>>,
}

/// UCX with its devices; workers share it.
pub struct Context {
    raw: sys::ucp_context_h,
}

// SAFETY: made for workers of several threads (`mt_workers_shared`).
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// Memory of one path that UCX allocated and registered once.
pub struct Staging {
    context: Arc<Context>,
    handle: sys::ucp_mem_h,
    base: *mut u8,
    bytes: usize,
}

/// What UCX says as a path's error.
pub fn error(status: sys::ucs_status_t) -> PathError {
    match status {
        sys::ucs_status_t_UCS_ERR_CONNECTION_RESET
        | sys::ucs_status_t_UCS_ERR_ENDPOINT_TIMEOUT
        | sys::ucs_status_t_UCS_ERR_NOT_CONNECTED
        | sys::ucs_status_t_UCS_ERR_CANCELED => PathError::Closed,
        other => PathError::Unavailable { reason: format!("UCX: {}", status_string(other)) },
    }
}

/// Whether a call went well.
///
/// # Errors
/// When it did not.
pub fn check(status: sys::ucs_status_t) -> Result<(), PathError> {
    if status == sys::ucs_status_t_UCS_OK { Ok(()) } else { Err(error(status)) }
}

// === impl OnDemand ===

impl OnDemand {
    /// Not opened yet.
    pub fn new(reach: Reach) -> Self {
        Self { reach, opened: Mutex::default() }
    }

    /// Whether anybody needs it.
    #[cfg(test)]
    pub fn is_open(&self) -> bool {
        self.opened.lock().strong_count() > 0
    }

    /// The one that is open, or a new one. Blocks.
    ///
    /// # Errors
    /// When UCX finds nothing to use.
    pub fn open(&self) -> Result<Arc<Context>, PathError> {
        let mut opened = self.opened.lock();
        if let Some(context) = opened.upgrade() {
            return Ok(context);
        }
        let begun = Instant::now();
        let context = Arc::new(Context::new(self.reach)?);
        tracing::debug!(reach = ?self.reach, took = ?begun.elapsed(), "UCX opened");
        *opened = Arc::downgrade(&context);
        Ok(context)
    }
}

// === impl Context ===

impl Context {
    /// Opens UCX. `UCX_*` in the environment is heard, but for the devices of [`Reach::Host`].
    ///
    /// # Errors
    /// When UCX finds nothing to use.
    pub fn new(reach: Reach) -> Result<Self, PathError> {
        let mut config = null_mut();
        // SAFETY: fills `config` or fails.
        check(unsafe { sys::ucp_config_read(null_mut(), null_mut(), &mut config) })?;
        // Endpoints must hear of peers that die, which UCX's shared memory does only when asked.
        let mut settings = vec![(c"MM_ERROR_HANDLING", c"y")];
        let usual = [
            // It would write to stdout; whatever goes wrong is told by a status too.
            ("UCX_LOG_LEVEL", c"LOG_LEVEL", c"fatal"),
            // UCX 1.22 crashes where it looks after a peer whose endpoint is changing its lanes (a lane
            // without an endpoint, in `ucp_ep_do_uct_ep_am_keepalive`). Who dies is missed by the session.
            ("UCX_KEEPALIVE_INTERVAL", c"KEEPALIVE_INTERVAL", c"inf"),
        ];
        let unset = usual.into_iter().filter(|(variable, ..)| std::env::var_os(variable).is_none());
        settings.extend(unset.map(|(_, name, value)| (name, value)));
        if reach == Reach::Host {
            settings.push((c"NET_DEVICES", c"lo"));
        }
        let opened = settings.into_iter().try_for_each(|(name, value)| modify(config, name, value));
        let opened = opened.and_then(|()| open(config));
        // SAFETY: read above, released once.
        unsafe { sys::ucp_config_release(config) };
        Ok(Self { raw: opened? })
    }

    /// For UCX's calls.
    pub fn raw(&self) -> sys::ucp_context_h {
        self.raw
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: workers and memory hold the context, so none is left.
        unsafe { sys::ucp_cleanup(self.raw) };
    }
}

fn modify(config: *mut sys::ucp_config_t, name: &CStr, value: &CStr) -> Result<(), PathError> {
    // SAFETY: a configuration that was read and not released; strings that UCX copies.
    check(unsafe { sys::ucp_config_modify(config, name.as_ptr(), value.as_ptr()) })
}

fn open(config: *mut sys::ucp_config_t) -> Result<sys::ucp_context_h, PathError> {
    let fields = sys::ucp_params_field_UCP_PARAM_FIELD_FEATURES
        | sys::ucp_params_field_UCP_PARAM_FIELD_MT_WORKERS_SHARED;
    let features = sys::ucp_feature_UCP_FEATURE_AM | sys::ucp_feature_UCP_FEATURE_WAKEUP;
    let params = sys::ucp_params_t {
        field_mask: u64::from(fields),
        features: u64::from(features),
        mt_workers_shared: 1,
        ..Default::default()
    };
    let mut raw = null_mut();
    // SAFETY: `params` names what it has; `raw` is filled or the call fails.
    check(unsafe {
        sys::ucp_init_version(sys::UCP_API_MAJOR, sys::UCP_API_MINOR, &params, config, &mut raw)
    })?;
    Ok(raw)
}

// === impl Staging ===

impl Staging {
    /// Allocates and registers.
    ///
    /// # Errors
    /// When there is no more memory that may be registered.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, PathError> {
        let begun = Instant::now();
        let fields = sys::ucp_mem_map_params_field_UCP_MEM_MAP_PARAM_FIELD_LENGTH
            | sys::ucp_mem_map_params_field_UCP_MEM_MAP_PARAM_FIELD_FLAGS;
        let params = sys::ucp_mem_map_params_t {
            field_mask: u64::from(fields),
            length: bytes,
            flags: sys::UCP_MEM_MAP_ALLOCATE,
            ..Default::default()
        };
        let mut handle = null_mut();
        // SAFETY: `params` names what it has; `handle` is filled or the call fails.
        check(unsafe { sys::ucp_mem_map(context.raw, &params, &mut handle) })?;
        let mut staging = Self { context: context.clone(), handle, base: null_mut(), bytes };
        let fields = sys::ucp_mem_attr_field_UCP_MEM_ATTR_FIELD_ADDRESS;
        let mut attr = sys::ucp_mem_attr_t { field_mask: u64::from(fields), ..Default::default() };
        // SAFETY: mapped above; fills what is asked for.
        check(unsafe { sys::ucp_mem_query(handle, &mut attr) })?;
        staging.base = attr.address.cast();
        tracing::debug!(bytes, took = ?begun.elapsed(), "memory registered with UCX");
        Ok(staging)
    }

    /// For UCX's calls.
    pub fn handle(&self) -> sys::ucp_mem_h {
        self.handle
    }

    /// Where `bytes` at `at` are.
    ///
    /// # Panics
    /// When that is not within the memory.
    pub fn at(&self, at: usize, bytes: usize) -> *mut u8 {
        assert!(at <= self.bytes && bytes <= self.bytes - at, "{bytes} bytes at {at}");
        // SAFETY: within the allocation.
        unsafe { self.base.add(at) }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; the worker that used it is gone.
        if let Err(error) = check(unsafe { sys::ucp_mem_unmap(self.context.raw, self.handle) }) {
            tracing::error!(%error, "cannot unmap memory of UCX");
        }
    }
}
