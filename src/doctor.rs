//! What this machine has, what the configured cluster lacks on it, and how KV travels if it runs.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr, TcpStream, ToSocketAddrs},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use baton_frontend::KvPath;
use baton_kernels::cpu::Isa;
use baton_kv_transfer::{TransferConfig, TransportKind, metrics::Side, transport::offer::Transports};
use baton_trust::{TlsConfig, Trust, authority::file_name};

use crate::{
    args,
    client::Client,
    config::{BackendKind, ClusterConfig, RegistryConfig},
    terminal::say,
    worker_node,
};

/// How long an etcd may take to accept a connection, and a cluster to say how it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// Something that was looked at.
struct Finding {
    what: &'static str,
    /// What was found, or what is wrong and what to do about it.
    found: Result<String, String>,
    /// Whether the cluster cannot run here without it.
    is_needed: bool,
}

/// Prints a line for each finding.
///
/// # Errors
/// When something is missing that the cluster needs.
pub async fn run(args: &args::Doctor) -> Result<()> {
    let config = ClusterConfig::load(&args.settings)?;
    let findings = tokio::task::block_in_place(|| here(&config));
    report(findings.into_iter().chain(cluster(&config, args).await))
}

/// Without a running cluster.
fn here(config: &ClusterConfig) -> Vec<Finding> {
    let models = config.by_model();
    // Without nodes it is about this machine, and the model that would be served.
    let models = if models.is_empty() { vec![config.clone()] } else { models };
    let machine = [processor(), card(config)].into_iter().chain(models.iter().map(model));
    machine.chain([registry(config), certificates(config), transports(config)]).collect()
}

fn report(findings: impl IntoIterator<Item = Finding>) -> Result<()> {
    let mut missing = 0;
    for Finding { what, found, is_needed } in findings {
        let verdict = match (&found, is_needed) {
            (Ok(_), _) => "ok",
            (Err(_), true) => "MISSING",
            (Err(_), false) => "-",
        };
        missing += usize::from(verdict == "MISSING");
        say(format_args!("{verdict:>7}  {what}: {}", found.unwrap_or_else(|error| error)));
    }
    ensure!(missing == 0, "{missing} of what this configuration needs is missing");
    Ok(())
}

fn processor() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let found = format!("{cores} threads, best kernels: {}", Isa::best().as_str());
    Finding { what: "processor", found: Ok(found), is_needed: true }
}

fn card(config: &ClusterConfig) -> Finding {
    let is_needed = config.engine.backend == BackendKind::Cuda;
    Finding { what: "card", found: find_card(config.engine.device), is_needed }
}

#[cfg(feature = "cuda")]
fn find_card(device: usize) -> Result<String, String> {
    use baton_kernels::cuda::{Dtype, Gemm, Gpu, GpuError};
    let advice = |error: GpuError| {
        let what_to_do = match &error {
            GpuError::NoDriver => "install NVIDIA's driver, 580 or newer",
            GpuError::NoDevice { .. } => "set engine.device to a card that nvidia-smi -L lists",
            GpuError::NoImage { .. } => {
                "build with BATON_CUDA_ARCHS for this card, or install a driver of CUDA 13"
            }
            GpuError::NoBlas => {
                "install cuBLAS 13 (package libcublas-13-0, or pip's nvidia-cublas) and name its folder in LD_LIBRARY_PATH"
            }
            _ => "see what nvidia-smi says",
        };
        format!("{error}; {what_to_do}")
    };
    let gpu = Gpu::open(device, Dtype::default()).map_err(advice)?;
    Gemm::new(&gpu, None).map_err(advice)?;
    let memory = gpu.memory().map_err(advice)?;
    let (major, minor) = gpu.capability();
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    Ok(format!(
        "{} (compute capability {major}.{minor}), {:.1} of {:.1} GiB free, cuBLASLt found",
        gpu.name(),
        gib(memory.free),
        gib(memory.total)
    ))
}

#[cfg(not(feature = "cuda"))]
fn find_card(_: usize) -> Result<String, String> {
    Err("this baton was built without feature cuda; build one with `cargo build --release --features cuda`"
        .to_owned())
}

fn model(config: &ClusterConfig) -> Finding {
    let resolve = || baton_model::resolve(&config.model, &baton_model::default_cache());
    let found = match config.engine.backend {
        BackendKind::Mock => Ok("none needed by the mock backend".to_owned()),
        _ => resolve()
            .map(|path| path.display().to_string())
            .map_err(|error| format!("{error}; `baton model pull {}` fetches it", config.model)),
    };
    // `baton serve` fetches what is not there.
    Finding { what: "model", found, is_needed: false }
}

fn registry(config: &ClusterConfig) -> Finding {
    let found = match &config.registry {
        RegistryConfig::Memory => Ok("in this process, no etcd needed".to_owned()),
        RegistryConfig::Etcd(etcd) => reach_one(&etcd.endpoints),
    };
    Finding { what: "registry", found, is_needed: true }
}

fn certificates(config: &ClusterConfig) -> Finding {
    let found = match &config.tls {
        None => Ok("none, so everything stays on this machine".to_owned()),
        Some(tls) => find_certificates(config, tls),
    };
    Finding { what: "certificates", found, is_needed: true }
}

/// A machine has those of its own nodes: one is enough.
fn find_certificates(config: &ClusterConfig, tls: &TlsConfig) -> Result<String, String> {
    let processes =
        config.nodes.iter().map(|node| node.roles.iter().copied().collect()).chain([config.roles()]);
    let (mut good, mut bad) = (BTreeSet::new(), Vec::new());
    for roles in processes {
        match Trust::load(tls, &config.cluster, &roles) {
            Ok(_) => drop(good.insert(file_name(&roles))),
            Err(error) => bad.push(error),
        }
    }
    match bad.first() {
        Some(error) if good.is_empty() => Err(format!("{error}; `baton certs init` makes them")),
        _ => Ok(format!("good for {}", good.into_iter().collect::<Vec<_>>().join(", "))),
    }
}

fn transports(config: &ClusterConfig) -> Finding {
    // Certificates are looked at on their own.
    let device = worker_node::device(config);
    let transfer = TransferConfig { tls: false, device, ..config.transfer.clone() };
    let found = Transports::new(&transfer, &Trust::none(), Side::Receiving)
        .map(|transports| {
            let names: Vec<_> = transports.kinds().map(TransportKind::as_str).collect();
            format!("KV can travel by {}", names.join(", "))
        })
        .map_err(|error| error.to_string());
    Finding { what: "transports", found, is_needed: true }
}

/// The cluster at the given or configured address, if there is one, and every session's path.
async fn cluster(config: &ClusterConfig, args: &args::Doctor) -> Vec<Finding> {
    let url = args.url.clone().unwrap_or_else(|| own_url(config));
    let ca = args.authority.file().or(config.tls.as_ref().map(|tls| tls.ca.as_path()));
    let asked = async { Client::new(&url, ca)?.ready().await };
    let asked = tokio::time::timeout(PATIENCE, asked).await.context("no answer in time").flatten();
    let readiness = match asked {
        Ok(readiness) => readiness,
        Err(error) => {
            let found = Err(format!("none is ready: {error:#}; `baton serve` starts one"));
            return vec![Finding { what: "cluster", found, is_needed: false }];
        }
    };
    let found = Ok(format!("{} nodes are ready at {url}", readiness.nodes));
    let paths = readiness.kv_paths.into_iter().map(kv_path);
    [Finding { what: "cluster", found, is_needed: true }].into_iter().chain(paths).collect()
}

/// Where this machine finds its own API.
fn own_url(config: &ClusterConfig) -> String {
    let scheme = if config.frontend.tls.is_some() { "https" } else { "http" };
    let mut addr = config.frontend.listen;
    if addr.ip().is_unspecified() {
        // No certificate is for all addresses.
        addr.set_ip(if addr.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    format!("{scheme}://{addr}")
}

fn kv_path(path: KvPath) -> Finding {
    let rate = path.bytes_per_second.map(|rate| format!(", {:.1} GB/s when it was opened", rate / 1e9));
    let words = format!("{} to {} over {}{}", path.from, path.to, path.transport, rate.unwrap_or_default());
    let found = match path.fallback {
        None => Ok(words),
        Some(why) => Err(format!("{words}; {why}")),
    };
    Finding { what: "KV path", found, is_needed: false }
}

/// The first of the endpoints that accepts a connection.
fn reach_one(endpoints: &[String]) -> Result<String, String> {
    let accepts = |endpoint: &&String| {
        let host = endpoint.split("://").last().unwrap_or_default().trim_end_matches('/');
        let mut addrs = host.to_socket_addrs().into_iter().flatten();
        addrs.any(|addr| TcpStream::connect_timeout(&addr, PATIENCE).is_ok())
    };
    match endpoints.iter().find(accepts) {
        Some(endpoint) => Ok(format!("etcd at {endpoint}")),
        None => {
            Err(format!("no etcd answers at {}; start one, or set registry.endpoints", endpoints.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_plain_machine_has_what_one_process_needs() {
        report(here(&ClusterConfig::default())).unwrap();
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_card_that_is_asked_for_and_not_there_is_missing() {
        let config = |set: &str| {
            let set = vec![set.to_owned()];
            ClusterConfig::load(&args::Settings { set, ..Default::default() }).unwrap()
        };
        assert!(report(here(&config("engine.backend=\"cuda\""))).is_err());
        assert!(!card(&config("engine.backend=\"cpu\"")).is_needed);
    }

    #[test]
    fn certificates_are_looked_at_for_each_node() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name| format!("'{}/{name}'", dir.path().display());
        let tls =
            format!("tls={{ca={},cert={},key={}}}", file("ca.crt"), file("{roles}.crt"), file("{roles}.key"));
        let node = |role: &str| format!("{{id='{role}',roles=['{role}']}}");
        let config = |roles: [&str; 2]| {
            let set = vec![tls.clone(), format!("nodes=[{}]", roles.map(node).join(","))];
            ClusterConfig::load(&args::Settings { set, ..Default::default() }).unwrap()
        };
        let missing = report(here(&config(["prefill", "decode"])));
        assert!(missing.is_err());
        crate::certs::init(&args::CertsInit {
            cluster: "baton".to_owned(),
            out: dir.path().to_owned(),
            names: Vec::new(),
            roles: vec!["prefill".to_owned()],
            days: 1,
        })
        .unwrap();
        let found = |roles| certificates(&config(roles)).found;
        assert_eq!(found(["prefill", "decode"]), Ok("good for prefill".to_owned()));
        let error = found(["coordinator", "decode"]).unwrap_err();
        assert!(error.contains("coordinator.crt") && error.contains("baton certs init"), "{error}");
    }

    #[test]
    fn an_etcd_is_found_where_something_listens_and_missed_elsewhere() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = format!("http://{}", listener.local_addr().unwrap());
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let gone = format!("http://{gone}");
        assert!(reach_one(&[gone.clone(), there]).is_ok());
        assert!(reach_one(std::slice::from_ref(&gone)).unwrap_err().contains(&gone));
    }
}
