use baton_engine::backend::cpu::Precision;

use super::*;

fn with(set: &[&str]) -> Result<ClusterConfig> {
    let set = set.iter().map(|&s| s.to_owned()).collect();
    ClusterConfig::load(&Settings { set, ..Settings::default() })
}

#[test]
fn settings_reach_their_place() {
    let config = with(&[
        "engine.pages=77",
        "engine.precision=reference",
        "engine.weights=int4",
        "model=a b",
        "registry.kind=etcd",
        "registry.endpoints=[\"x\"]",
    ])
    .unwrap();
    assert_eq!(config.engine.pages, 77);
    assert_eq!(config.engine.precision, Precision::Reference);
    assert_eq!(config.engine.weights, Weights::Int4);
    assert_eq!(config.model, "a b");
    assert!(matches!(config.registry, RegistryConfig::Etcd { .. }));
}

#[test]
fn what_is_not_known_is_refused() {
    for set in [
        "engine.pagess=1",
        "nonsense=1",
        "engine.pages=-1",
        "engine=3",
        "novalue",
        "=1",
        "engine.backend=tpu",
        "engine.page_tokens=1025",
    ] {
        assert!(with(&[set]).is_err(), "{set}");
    }
}

#[test]
fn a_card_has_pages_of_its_own() {
    assert!(with(&["engine.backend=cuda"]).is_ok());
    assert!(with(&["engine.backend=cuda", "engine.page_tokens=64"]).is_ok());
    assert!(with(&["engine.backend=cuda", "engine.page_tokens=16"]).is_err());
}

#[test]
fn settings_of_another_backend_are_refused_by_name() {
    for setting in ["engine.precision=reference", "engine.weights=int4", "engine.threads=3"] {
        assert!(with(&[setting]).is_ok(), "{setting}");
        for backend in ["cuda", "mock"] {
            let error = with(&[setting, &format!("engine.backend={backend}")]).unwrap_err().to_string();
            assert!(error.contains(setting.split('=').next().unwrap()), "{error}");
            assert!(error.contains("engine.backend=cpu") && error.ends_with(backend), "{error}");
        }
    }
    for setting in ["engine.device=1", "engine.weights=fp8", "engine.dtype=float16", "engine.kv_dtype=fp8"] {
        assert!(with(&["engine.backend=cuda", setting]).is_ok(), "{setting}");
    }
    for backend in ["cpu", "mock"] {
        for (setting, name) in [
            ("engine.device=1", "device"),
            ("engine.weights=fp8", "weights=fp8"),
            ("engine.dtype=fp16", "dtype=fp16"),
            ("engine.kv_dtype=fp8", "kv_dtype=fp8"),
        ] {
            let error = with(&[setting, &format!("engine.backend={backend}")]).unwrap_err().to_string();
            let needed = format!("engine.{name} is a setting of engine.backend=cuda");
            assert!(error.starts_with(&needed), "{error}");
        }
    }
}

#[test]
fn nothing_listens_beyond_loopback() {
    let refused = |set: &[&str], words: &[&str]| {
        let error = format!("{:#}", with(set).unwrap_err());
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let node = |addr| format!("nodes=[{{id='a',roles=['decode'],listen='{addr}:0'}}]");
    let (node, anywhere) = (node("10.0.0.1"), node("0.0.0.0"));
    let tls = "tls={ca='a',cert='b',key='c'}";
    refused(&[&node], &["node a", "10.0.0.1", "baton certs init", "[tls]"]);
    with(&[&node, tls]).unwrap();
    refused(&[&anywhere, tls], &["node a", "name an address"]);
    refused(&["transfer.data_listen=0.0.0.0:0", tls], &["transfer.data_listen", "name an address"]);
    refused(&["transfer.data_listen=10.0.0.1:0"], &["transfer.data_listen", "baton certs init"]);
    with(&["transfer.data_listen=10.0.0.1:0", tls]).unwrap();
    refused(&["transfer.tls=true"], &["transfer.tls", "baton certs init"]);
    with(&["transfer.tls=true", tls]).unwrap();
    // Whatever nodes have, clients show keys.
    refused(&["frontend.listen=0.0.0.0:8000", tls], &["frontend.listen", "API keys", "baton key new"]);
    with(&["frontend.listen=0.0.0.0:8000", "frontend.keys_file=keys.toml"]).unwrap();
    refused(&["metrics_listen=0.0.0.0:9000", tls], &["metrics_listen", "API keys"]);
    refused(&["admin.listen=10.0.0.1:8001", "frontend.keys_file=keys.toml"], &["admin.listen"]);
}

#[test]
fn a_lone_role_needs_etcd() {
    let mut config = with(&[]).unwrap();
    assert!(config.choose_nodes(&[], &[Role::Prefill]).is_err());
    assert!(config.choose_nodes(&["nobody".to_owned()], &[]).is_err());
    let mut config = with(&[]).unwrap();
    config.choose_nodes(&[], &[]).unwrap();
    assert_eq!(config.nodes[0].roles, Role::ALL);
}

#[test]
fn nodes_may_serve_models_of_their_own() {
    let nodes = "nodes=[{id='a',roles=['decode']},{id='b',roles=['prefill'],model='other'},\
        {id='c',roles=['prefill']},{id='d',roles=['coordinator']}]";
    let mut config = with(&["model=usual", nodes]).unwrap();
    let by_model: Vec<_> = config.by_model().into_iter().map(|one| (one.model, one.nodes.len())).collect();
    assert_eq!(by_model, [("other".to_owned(), 1), ("usual".to_owned(), 2)]);
    config.choose_nodes(&["a".into(), "b".into()], &[]).unwrap();
    config.engine.backend = BackendKind::Cuda;
    assert!(config.choose_nodes(&[], &[]).is_err());
    config.choose_nodes(&["b".into()], &[]).unwrap();
}

#[test]
fn budgets_of_classes_are_read_and_checked() {
    let load = |classes: &str| with(&[&format!("coordinator.budgets.classes={classes}")]);
    let config = load("[{model='small',min_priority=1,ttft_ms=200}]").unwrap();
    assert_eq!(config.coordinator.budgets.classes[0].ttft_ms, Some(200));
    for wrong in ["[{ttft_ms=0}]", "[{tttf_ms=9}]"] {
        assert!(load(wrong).is_err(), "{wrong}");
    }
}
