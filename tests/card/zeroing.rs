//! Pages that are zeroed when they change hands.

use std::sync::Arc;

use baton_engine::{ChoiceSpec, Engine, EngineConfig, Goal, StartFrom, kv::PageSpan};
use baton_protocol::KvSource;

use super::{answer, backend, golden, model, spec};

const PAGES: usize = 64;

/// Whether whoever takes all pages after some answers, which are the reference's, finds zeros alone.
fn finds_nothing(zeroes_pages: bool) -> bool {
    let mut config = EngineConfig { zeroes_pages, ..EngineConfig::new(PAGES, 4096) };
    config.scheduler.promised_share = 1.0;
    let mut engine = Engine::new(Box::new(backend(&model())), config).unwrap();
    let handle = engine.handle();
    for case in golden().iter().take(3) {
        let goal = Goal::Generate { choices: vec![ChoiceSpec { choice: 0, generated: Vec::new() }] };
        let (found, ..) = answer(&mut engine, &handle, spec(case, goal, StartFrom::Cold));
        let until = case.compare_until_fast;
        assert_eq!(found[..until], case.output_ids[..until], "{}", case.name);
    }
    let pool = handle.pool();
    let shape = pool.shape();
    let tokens = PAGES as u32 * shape.page_tokens;
    let span = PageSpan::new(Arc::clone(pool), pool.promise(PAGES).unwrap().bind(), 0, tokens);
    let mut nothing = true;
    span.read(&shape.span(0..shape.layers, 0..tokens), &mut |slices| {
        nothing = slices.iter().all(|slice| slice.iter().all(|&byte| byte == 0));
        Ok(())
    })
    .unwrap();
    nothing
}

#[test]
fn nobody_finds_what_answers_left_where_that_is_asked_for() {
    assert!(finds_nothing(true));
    assert!(!finds_nothing(false));
}
