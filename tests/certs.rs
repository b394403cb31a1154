//! A cluster of processes whose nodes know each other by certificates, and
//! those who are not let in.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use baton_protocol::{Role, Sampling, wire};
use baton_trust::{
    TlsConfig, Trust,
    authority::{Authority, Bearer},
};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::sandbox::{Cluster, Outcome, PATIENCE, Plan, Process, complete, eventually, mock_expected};

const CLUSTER: &str = "certified";

pub fn baton(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_baton")).args(args).output().unwrap()
}

/// Certificates of a whole cluster, as a person makes them.
pub fn init(dir: &Path) {
    let made = baton(&["certs", "init", "--cluster", CLUSTER, "--out", dir.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&made.stdout);
    assert!(made.status.success() && said.contains("{roles}.crt") && said.contains("ca.key"), "{made:?}");
}

/// What nodes with such certificates are told.
pub fn settings(certs: &Path) -> String {
    let certs = certs.display();
    format!(
        r#"
cluster = "{CLUSTER}"
model = "mock"

[tls]
ca = "{certs}/ca.crt"
cert = "{certs}/{{roles}}.crt"
key = "{certs}/{{roles}}.key"

[engine]
backend = "mock"
pages = 64

[frontend]
listen = "127.0.0.1:0"

[transfer]
transport = "tcp"
tls = true
"#
    )
}

async fn describe(channel: Channel) -> Result<String, Status> {
    let mut client = wire::node_client::NodeClient::new(channel);
    let asked = client.describe(wire::DescribeRequest {});
    let answer = tokio::time::timeout(PATIENCE, asked).await.expect("an answer or none, but no silence");
    Ok(answer?.into_inner().info_json)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_serves_over_certificates_and_strangers_get_nothing() {
    let certs = TempDir::new().unwrap();
    init(certs.path());
    let plan = Plan { settings: settings(certs.path()), prefill: 1, decode: 1 };
    let cluster = Cluster::start_certified(&plan, certs.path()).await;
    let prompt: Vec<u32> = (0..100).map(|i| 32 + i % 90).collect();
    for seed in 0..4 {
        let body = json!({
            "model": "mock", "prompt": prompt, "max_tokens": 20, "n": 2, "seed": seed, "temperature": 1.0,
            "stream": true, "ignore_eos": true, "stream_options": {"include_usage": true},
        });
        let answer = complete(&cluster.http, &cluster.url, &body).await;
        assert_eq!(answer.outcome, Outcome::Done, "{answer:?}");
        let sampling = Sampling { seed, ..Sampling::default() };
        assert_eq!(answer.texts, mock_expected(&prompt, &sampling, 2, 20));
    }
    // The pages came from the other node.
    assert!(committed(&cluster).await > 0);

    for node in ["prefill-1", "decode-1"] {
        let addr = cluster.nodes[node].control_addr().unwrap();
        refuses_strangers(certs.path(), &addr, node.split('-').next().unwrap().parse().unwrap()).await;
    }
    guards_each_service(certs.path(), &cluster).await;
}

/// Handoffs that have ended well at the decode node.
async fn committed(cluster: &Cluster) -> u64 {
    let metrics = cluster.nodes["decode-1"].metrics_url().unwrap();
    let text = cluster.http.get(metrics).send().await.unwrap().text().await.unwrap();
    let committed = text
        .lines()
        .find(|line| line.contains("transfer_receiving_handoffs_total") && line.contains("committed"));
    committed.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse().unwrap())
}

/// This process as a holder of one of the files in `certs`.
fn trust(certs: &Path, role: Role) -> Trust {
    let [ca, cert, key] = ["ca.crt", "{roles}.crt", "{roles}.key"].map(|name| certs.join(name));
    Trust::load(&TlsConfig { ca, cert, key, name: None }, CLUSTER, &[role].into()).unwrap()
}

/// No answer of a service: the connection did not stand, or was cut off.
fn is_broken(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
}

/// A coordinator's certificate of the same authority, good until the end of a year.
fn until(certs: &Path, year: i32) -> Identity {
    let name = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let authority = KeyPair::from_pem(&std::fs::read_to_string(certs.join("ca.key")).unwrap()).unwrap();
    let authority = Issuer::new(name(&format!("baton cluster {CLUSTER}")), authority);
    let mut params = name("coordinator");
    let uri = format!("baton://{CLUSTER}/coordinator");
    params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
    params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(year, 12, 31);
    let key = KeyPair::generate().unwrap();
    Identity::from_pem(params.signed_by(&key, &authority).unwrap().pem(), key.serialize_pem())
}

async fn refuses_strangers(certs: &Path, addr: &str, node: Role) {
    let as_role = |role| trust(certs, role).callee(addr, &[node].into()).unwrap().connect_lazy();
    assert!(describe(as_role(Role::Coordinator)).await.unwrap().contains("mock"));
    for role in [Role::Prefill, Role::Decode] {
        let refused = describe(as_role(role)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    let ca = Certificate::from_pem(std::fs::read(certs.join("ca.crt")).unwrap());
    let tls = ClientTlsConfig::new().ca_certificate(ca);
    let endpoint = |tls| {
        let endpoint = Endpoint::from_shared(format!("https://{addr}")).unwrap();
        endpoint.tls_config(tls).unwrap().connect_lazy()
    };
    let elsewhere = TempDir::new().unwrap();
    init(elsewhere.path());
    let read = |name| std::fs::read(elsewhere.path().join(name)).unwrap();
    let stranger = Identity::from_pem(read("coordinator.crt"), read("coordinator.key"));
    let plain = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect_lazy();
    let with = |identity| endpoint(tls.clone().identity(identity));
    // As the expired one, but for its time.
    assert!(describe(with(until(certs, 4000))).await.is_ok());
    for nobody in [endpoint(tls.clone()), with(stranger), with(until(certs, 2020)), plain] {
        let refused = describe(nobody).await.unwrap_err();
        assert!(is_broken(&refused), "{refused}");
    }
}

/// A decode node is no coordinator, and a coordinator no decode node.
async fn guards_each_service(certs: &Path, cluster: &Cluster) {
    let connect = |node: &str, from: Role, to: Role| {
        let addr = cluster.nodes[node].control_addr().unwrap();
        trust(certs, from).callee(&addr, &BTreeSet::from([to])).unwrap().connect_lazy()
    };
    let channel = connect("decode-1", Role::Decode, Role::Decode);
    let mut decode = wire::decode_client::DecodeClient::new(channel);
    let refused = decode.generate(futures::stream::empty()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let channel = connect("prefill-1", Role::Coordinator, Role::Prefill);
    let mut prefill = wire::prefill_client::PrefillClient::new(channel);
    let refused = prefill.session(futures::stream::empty()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}

/// What `baton serve` says of a node that it does not start.
fn refusal(set: &[&str]) -> String {
    let mut args = vec!["serve", "--set", "engine.backend=mock", "--set", "model=mock"];
    args.extend(set.iter().flat_map(|set| ["--set", set]));
    let ended = baton(&args);
    assert!(!ended.status.success(), "{ended:?}");
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

#[test]
fn a_node_without_good_certificates_does_not_start() {
    let beyond = "nodes=[{id='a',roles=['coordinator','prefill','decode'],listen='192.0.2.1:0'}]";
    let said = refusal(&[beyond]);
    assert!(said.contains("baton certs init") && said.contains("[tls]"), "{said}");

    let dir = TempDir::new().unwrap();
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    let authority = Authority::new(CLUSTER, now - 2 * hour..now + hour).unwrap();
    let bearer = Bearer::Nodes(Role::ALL.into());
    let tls = |valid| {
        let issued = authority.issue(&bearer, &[], valid).unwrap();
        let put = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        put("ca", authority.itself().cert);
        put("cert", issued.cert);
        put("key", issued.key);
        let dir = dir.path().display();
        format!("tls={{ca='{dir}/ca',cert='{dir}/cert',key='{dir}/key'}}")
    };
    let said = refusal(&[&tls(now - 2 * hour..now - hour), "cluster=certified"]);
    assert!(said.contains("Expired"), "{said}");
    let said = refusal(&[&tls(now - hour..now + hour), "cluster=another"]);
    assert!(said.contains("is not for role") && said.contains("another"), "{said}");
}

/// Files of an authority in place of those of `certs`, each at once.
fn replace(certs: &Path, files: &[(&str, String)]) {
    for (name, text) in files {
        let fresh = certs.join("fresh");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, certs.join(name)).unwrap();
    }
}

fn read(certs: &Path, name: &str) -> String {
    std::fs::read_to_string(certs.join(name)).unwrap()
}

/// How often the nodes together have read certificates again.
async fn until_read(cluster: &Cluster, times: usize) {
    eventually("certificates are read again", || async {
        let read = |node: &Process| node.output().matches("read certificates again").count();
        cluster.nodes.values().all(|node| read(node) >= times).then_some(())
    })
    .await;
}

/// Whether each worker answers a coordinator with these certificates.
async fn answered(cluster: &Cluster, certs: &Path) -> [bool; 2] {
    let ask = async |node: &str, role: Role| {
        let addr = cluster.nodes[node].control_addr().unwrap();
        describe(trust(certs, Role::Coordinator).callee(&addr, &[role].into()).unwrap().connect_lazy()).await
    };
    [ask("prefill-1", Role::Prefill).await.is_ok(), ask("decode-1", Role::Decode).await.is_ok()]
}

/// An answer that is as it must be.
async fn ask(http: &reqwest::Client, url: &str, seed: u64) {
    let prompt: Vec<u32> = (0..100).map(|i| 32 + (i + seed as u32) % 90).collect();
    let body = json!({
        "model": "mock", "prompt": prompt, "max_tokens": 20, "seed": seed, "temperature": 1.0,
        "stream": true, "ignore_eos": true, "stream_options": {"include_usage": true},
    });
    let answer = complete(http, url, &body).await;
    assert_eq!(answer.outcome, Outcome::Done, "{answer:?}");
    assert_eq!(answer.texts, mock_expected(&prompt, &Sampling { seed, ..Sampling::default() }, 1, 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_goes_over_to_another_authority_while_it_serves() {
    let [etcd, certs, fresh] = [(); 3].map(|()| TempDir::new().unwrap());
    let (etcd, certs, fresh) = (etcd.path(), certs.path(), fresh.path());
    init(etcd);
    init(fresh);
    for file in std::fs::read_dir(etcd).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), certs.join(file.file_name())).unwrap();
    }
    let plan = Plan { settings: settings(certs), prefill: 1, decode: 1 };
    let mut cluster = Cluster::start_certified(&plan, etcd).await;
    let (http, url) = (cluster.http.clone(), cluster.url.clone());
    let mut calls = JoinSet::new();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    calls.spawn(async move {
        let mut seed = 0;
        while !stopped.load(Ordering::Relaxed) {
            ask(&http, &url, seed).await;
            seed += 1;
        }
        seed
    });

    let (old, new) = (read(etcd, "ca.crt"), read(fresh, "ca.crt"));
    assert_eq!((answered(&cluster, etcd).await, answered(&cluster, fresh).await), ([true; 2], [false; 2]));
    replace(certs, &[("ca.crt", old.clone() + &new)]);
    until_read(&cluster, 1).await;
    let names =
        ["prefill", "decode", "coordinator"].map(|role| [format!("{role}.key"), format!("{role}.crt")]);
    let files: Vec<_> = names.iter().flatten().map(|name| (name.as_str(), read(fresh, name))).collect();
    replace(certs, &files);
    eventually("the new certificates are shown", || async {
        (answered(&cluster, fresh).await == [true; 2]).then_some(())
    })
    .await;
    // Of no use, and so without effect.
    replace(certs, &[("ca.crt", "nothing".to_owned())]);
    for node in cluster.nodes.values() {
        node.wait_for("kept the certificates as they were", PATIENCE);
    }
    replace(certs, &[("ca.crt", new)]);
    eventually("the old authority's are refused", || async {
        let (of_old, of_new) = (answered(&cluster, etcd).await, answered(&cluster, fresh).await);
        (of_old == [false; 2] && of_new == [true; 2]).then_some(())
    })
    .await;
    until_read(&cluster, 2).await;

    // What stood was never cut off. And whoever comes anew is let in by everyone.
    stop.store(true, Ordering::Relaxed);
    assert!(calls.join_next().await.unwrap().unwrap() > 0);
    let before = committed(&cluster).await;
    cluster.kill("prefill-1");
    cluster.wait_for_members(1).await;
    cluster.start_node("prefill-1");
    cluster.wait_for_members(2).await;
    let mut seeds = 1000..;
    eventually("KV travels again", || {
        let (cluster, seed) = (&cluster, seeds.next().unwrap());
        async move {
            ask(&cluster.http, &cluster.url, seed).await;
            (committed(cluster).await > before).then_some(())
        }
    })
    .await;
}
