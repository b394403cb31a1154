//! Members of a cluster, held under leases in etcd.
//!
//! - `lease`: keeps this process's entries under one lease
//! - `follow`: lists and watches everyone's entries
//! - `office`: what one process does alone
//! - `view`: what is known from lists and events, without I/O
//!
//! Both loops run on an OS thread of their own, so that a starved runtime
//! elsewhere in the process cannot cost the lease. Neither ever gives up.

mod follow;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod lease;
mod office;
mod view;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use baton_protocol::NodeInfo;
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::{runtime, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{Backoff, Members, Registration, Registry, RegistryHealth};

/// How to reach etcd.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdConfig {
    /// URLs, for example `http://127.0.0.1:2379`, or all `https://` with a `ca`; nothing else is tried.
    pub endpoints: Vec<String>,
    /// PEM file of the authority that signed etcd's certificate.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// PEM files of the certificate and key shown to etcd, if it asks for them.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// See `cert`.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// Seconds that our entries outlive our last sign of life.
    #[serde(default = "default_lease_seconds")]
    pub lease_seconds: u32,
    /// Seconds between full lists, which repair what a watch may have missed.
    #[serde(default = "default_relist_seconds")]
    pub relist_seconds: u32,
}

/// Why a registry could not start.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No endpoint was configured.
    #[error("no etcd endpoint is configured")]
    NoEndpoints,
    /// No path, and the scheme that goes with the rest.
    #[error(
        "etcd endpoint {endpoint:?} is not of the form {scheme}host:port (https with registry.ca, http without)"
    )]
    BadEndpoint {
        /// As configured.
        endpoint: String,
        /// What it must begin with.
        scheme: &'static str,
    },
    /// One of two settings without the other, or both without an authority.
    #[error("registry.cert and registry.key go together, and with registry.ca")]
    HalfCertificate,
    /// A certificate or key that cannot be read.
    #[error("cannot read {path}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Names are parts of keys.
    #[error("cluster name {name:?} is empty or holds a character other than a-z, A-Z, 0-9, '-', '_' and '.'")]
    BadCluster {
        /// As configured.
        name: String,
    },
    /// A lease or list interval of zero.
    #[error("{field} must be at least 1")]
    Zero {
        /// Which setting.
        field: &'static str,
    },
    /// The operating system refused a thread.
    #[error("could not start a thread for the registry")]
    Thread(#[source] io::Error),
}

/// A registry in etcd: keys `/{cluster}/v1/nodes/{id}`, values `NodeInfo` as JSON, and `/{cluster}/v1/office`.
#[derive(Debug)]
pub struct EtcdRegistry {
    wanted: Arc<watch::Sender<Members>>,
    published: watch::Receiver<Members>,
    members: watch::Receiver<Members>,
    standing: watch::Sender<bool>,
    office: watch::Receiver<bool>,
    counters: Arc<Counters>,
    stop: CancellationToken,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What both loops need to reach the store.
#[derive(Clone, Debug)]
struct Store {
    config: EtcdConfig,
    /// As it was at the start.
    tls: Option<TlsOptions>,
    /// `/{cluster}/v1/nodes/`
    prefix: String,
    /// `/{cluster}/v1/office`
    office: String,
    counters: Arc<Counters>,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Counters {
    connected: AtomicBool,
    bad_values: AtomicU64,
    resyncs: AtomicU64,
    lease_losses: AtomicU64,
}

/// Trouble with the store; both loops wait a little and start over.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("etcd refused or broke off")]
    Etcd(#[from] etcd_client::Error),
    #[error("etcd did not answer in time")]
    Slow(#[from] tokio::time::error::Elapsed),
    #[error("etcd ended the watch")]
    Ended,
    #[error("an entry could not be written as json")]
    Json(#[from] serde_json::Error),
}

const HTTP: &str = "http://";
const HTTPS: &str = "https://";
/// How long one answer of etcd may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long leaving may take when etcd does not answer.
const LEAVE: Duration = Duration::from_secs(2);

fn default_lease_seconds() -> u32 {
    15
}

fn default_relist_seconds() -> u32 {
    60
}

// === impl EtcdConfig ===

impl EtcdConfig {
    /// These endpoints, everything else as by default.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            ca: None,
            cert: None,
            key: None,
            lease_seconds: default_lease_seconds(),
            relist_seconds: default_relist_seconds(),
        }
    }

    fn check(&self) -> Result<(), RegistryError> {
        if self.endpoints.is_empty() {
            return Err(RegistryError::NoEndpoints);
        }
        for endpoint in &self.endpoints {
            let scheme = if self.ca.is_some() { HTTPS } else { HTTP };
            let address = endpoint.strip_prefix(scheme).and_then(|rest| rest.rsplit_once(':'));
            if !address.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
                return Err(RegistryError::BadEndpoint { endpoint: endpoint.clone(), scheme });
            }
        }
        for (field, value) in [("lease_seconds", self.lease_seconds), ("relist_seconds", self.relist_seconds)]
        {
            if value == 0 {
                return Err(RegistryError::Zero { field });
            }
        }
        Ok(())
    }

    /// Reads what TLS needs; none without an authority.
    fn tls(&self) -> Result<Option<TlsOptions>, RegistryError> {
        let read = |path: &Path| {
            fs::read(path).map_err(|source| RegistryError::Certificate { path: path.to_owned(), source })
        };
        match (&self.ca, &self.cert, &self.key) {
            (None, None, None) => Ok(None),
            (Some(ca), None, None) => {
                Ok(Some(TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?))))
            }
            (Some(ca), Some(cert), Some(key)) => {
                let identity = Identity::from_pem(read(cert)?, read(key)?);
                let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?));
                Ok(Some(tls.identity(identity)))
            }
            _ => Err(RegistryError::HalfCertificate),
        }
    }
}

// === impl EtcdRegistry ===

impl EtcdRegistry {
    /// Starts following `cluster`. Returns at once: an etcd that is away is
    /// waited for in the background.
    ///
    /// # Errors
    /// When the configuration cannot work, a certificate cannot be read, or no thread can be started.
    pub fn start(cluster: &str, config: EtcdConfig) -> Result<Self, RegistryError> {
        config.check()?;
        let tls = config.tls()?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if cluster.is_empty() || !cluster.chars().all(allowed) {
            return Err(RegistryError::BadCluster { name: cluster.to_owned() });
        }
        let (counters, stop) = (Arc::new(Counters::default()), CancellationToken::new());
        let prefix = format!("/{cluster}/v1/nodes/");
        let office = format!("/{cluster}/v1/office");
        let store =
            Store { config, tls, prefix, office, counters: Arc::clone(&counters), stop: stop.clone() };

        let wanted = Arc::new(watch::Sender::new(Members::new()));
        let (publish, published) = watch::channel(Members::new());
        let (tell, members) = watch::channel(Members::new());
        let (standing, stands) = watch::channel(false);
        let (held, office) = watch::channel(false);
        let threads = Mutex::default();
        let mut registry = Self { wanted, published, members, standing, office, counters, stop, threads };
        let office = office::Office { wanted: stands, held };
        let lease = lease::Lease::new(store.clone(), (registry.wanted.subscribe(), publish), office);
        registry.spawn("registry-lease", move |runtime| runtime.block_on(lease.run()))?;
        let follow = follow::Follow::new(store, tell);
        registry.spawn("registry-watch", move |runtime| runtime.block_on(follow.run()))?;
        Ok(registry)
    }

    /// Stops following, revokes the lease (so that others see us leave at
    /// once) and waits for both threads, about two seconds at most.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let threads = std::mem::take(&mut *self.threads.lock());
        let joined = tokio::task::spawn_blocking(move || join(threads));
        if joined.await.is_err() {
            tracing::error!("waiting for the registry's threads failed");
        }
    }

    fn spawn(
        &mut self,
        name: &str,
        body: impl FnOnce(runtime::Runtime) + Send + 'static,
    ) -> Result<(), RegistryError> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(RegistryError::Thread)?;
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || body(runtime));
        self.threads.get_mut().push(thread.map_err(RegistryError::Thread)?);
        Ok(())
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a thread of the registry panicked");
        }
    }
}

impl Drop for EtcdRegistry {
    fn drop(&mut self) {
        self.stop.cancel();
        join(std::mem::take(self.threads.get_mut()));
    }
}

impl Registry for EtcdRegistry {
    fn register(&self, info: NodeInfo) -> Registration {
        Registration::new(info, Arc::clone(&self.wanted), self.published.clone())
    }

    fn watch(&self) -> watch::Receiver<Members> {
        self.members.clone()
    }

    fn stand(&self) -> watch::Receiver<bool> {
        self.standing.send_replace(true);
        self.office.clone()
    }

    fn health(&self) -> RegistryHealth {
        let counters = &self.counters;
        RegistryHealth {
            connected: counters.connected.load(Ordering::Relaxed),
            bad_values: counters.bad_values.load(Ordering::Relaxed),
            resyncs: counters.resyncs.load(Ordering::Relaxed),
            lease_losses: counters.lease_losses.load(Ordering::Relaxed),
        }
    }
}

// === impl Store ===

impl Store {
    /// A new connection each time: after trouble nothing of the old one is trusted.
    async fn connect(&self) -> Result<Client, Trouble> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(2))
            .with_keep_alive(Duration::from_secs(5), Duration::from_secs(3))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        // Files may have changed since. Both callers are on threads of their own, where a read may block.
        let tls = self.config.tls().unwrap_or_else(|error| {
            tracing::warn!(%error, "kept the certificates for etcd as they were");
            self.tls.clone()
        });
        if let Some(tls) = tls {
            options = options.with_tls(tls);
        }
        Ok(tokio::time::timeout(ANSWER, Client::connect(&self.config.endpoints, Some(options))).await??)
    }

    fn key(&self, id: &str) -> String {
        format!("{}{id}", self.prefix)
    }

    /// Sleeps for the next wait; true when it is time to stop.
    async fn wait(&self, backoff: &mut Backoff) -> bool {
        let pause = backoff.next(fastrand::f64());
        tokio::select! {
            () = self.stop.cancelled() => true,
            () = tokio::time::sleep(pause) => false,
        }
    }
}

fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(100)..Duration::from_secs(5))
}
