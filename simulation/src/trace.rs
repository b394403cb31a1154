//! All that happens, in one hash: what the rooms log, each line with its time
//! on the run's clock. Two runs of one seed are the same if their hashes are.

use std::{
    io::{self, Write},
    sync::Arc,
};

use parking_lot::Mutex;
use tracing_subscriber::{
    EnvFilter,
    fmt::{MakeWriter, format::Writer, time::FormatTime},
};

use crate::system;

/// Hashes what is logged; clones are the same.
#[derive(Clone)]
pub struct Trace {
    hash: Arc<Mutex<blake3::Hasher>>,
    is_shown: bool,
}

/// The run's clock.
struct Elapsed;

// === impl Trace ===

impl Trace {
    /// Begins to listen, for as long as the process lives; `is_shown`: on standard error too. What
    /// is heard can be said in `RUST_LOG`.
    pub fn begin(is_shown: bool) -> Self {
        let trace = Self { hash: Arc::default(), is_shown };
        let filter = EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| EnvFilter::new("info,turmoil=warn,baton=debug,baton_kv_transfer=debug"));
        let logging = tracing_subscriber::fmt().with_ansi(false).with_timer(Elapsed).with_env_filter(filter);
        // Fails where somebody listens already, which is then heard by them alone.
        let _ = logging.with_writer(trace.clone()).try_init();
        trace
    }

    /// Of all that was heard.
    pub fn hash(&self) -> String {
        self.hash.lock().finalize().to_hex()[..16].to_owned()
    }
}

impl Write for Trace {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.hash.lock().update(line);
        if self.is_shown {
            io::stderr().write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Trace {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl FormatTime for Elapsed {
    fn format_time(&self, to: &mut Writer<'_>) -> std::fmt::Result {
        write!(to, "{:10.3}", system::elapsed().as_secs_f64())
    }
}
