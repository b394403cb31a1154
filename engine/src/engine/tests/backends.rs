//! Backends that misbehave.

use std::sync::Arc;

use baton_protocol::KvShape;

use super::fixture;
use crate::{
    backend::{Backend, BackendError, mock::MockConfig},
    batch::{Batch, Logits, Rows},
    kv::KvStore,
};

type Spoil = dyn FnMut(usize, Result<Logits, BackendError>) -> Result<Logits, BackendError> + Send;

/// The mock, with something done to what it returns, by number of the step.
pub struct Spoiled {
    mock: Box<dyn Backend>,
    steps: usize,
    spoil: Box<Spoil>,
}

impl Spoiled {
    pub fn new(
        spoil: impl FnMut(usize, Result<Logits, BackendError>) -> Result<Logits, BackendError> + Send + 'static,
    ) -> Box<Self> {
        Box::new(Self { mock: fixture::mock(MockConfig::default()), steps: 0, spoil: Box::new(spoil) })
    }
}

impl Backend for Spoiled {
    fn name(&self) -> &'static str {
        "spoiled"
    }

    fn kv_shape(&self) -> &KvShape {
        self.mock.kv_shape()
    }

    fn vocab_tokens(&self) -> usize {
        self.mock.vocab_tokens()
    }

    fn allocate(&mut self, pages: usize) -> Result<Arc<dyn KvStore>, BackendError> {
        self.mock.allocate(pages)
    }

    fn forward(
        &mut self,
        batch: &Batch<'_>,
        layer_done: &mut dyn FnMut(usize),
    ) -> Result<Logits, BackendError> {
        let logits = self.mock.forward(batch, layer_done);
        self.steps += 1;
        (self.spoil)(self.steps, logits)
    }
}

/// The mock, when nobody asks for more than the likeliest token; otherwise a failure.
pub struct Likeliest(pub Box<dyn Backend>);

impl Backend for Likeliest {
    fn name(&self) -> &'static str {
        "likeliest"
    }

    fn kv_shape(&self) -> &KvShape {
        self.0.kv_shape()
    }

    fn vocab_tokens(&self) -> usize {
        self.0.vocab_tokens()
    }

    fn allocate(&mut self, pages: usize) -> Result<Arc<dyn KvStore>, BackendError> {
        self.0.allocate(pages)
    }

    fn forward(&mut self, _: &Batch<'_>, _: &mut dyn FnMut(usize)) -> Result<Logits, BackendError> {
        Err(BackendError::Device("logits were asked for".to_owned()))
    }

    fn draw(&mut self, batch: &Batch<'_>, layer_done: &mut dyn FnMut(usize)) -> Result<Rows, BackendError> {
        if batch.draws.iter().any(Option::is_none) {
            return Err(BackendError::Device("logits were asked for".to_owned()));
        }
        self.0.draw(batch, layer_done)
    }
}

/// The mock, watched from inside of its steps.
pub struct Watched(pub Box<dyn Backend>, pub Box<dyn FnMut(usize) + Send>);

impl Backend for Watched {
    fn name(&self) -> &'static str {
        "watched"
    }

    fn kv_shape(&self) -> &KvShape {
        self.0.kv_shape()
    }

    fn vocab_tokens(&self) -> usize {
        self.0.vocab_tokens()
    }

    fn allocate(&mut self, pages: usize) -> Result<Arc<dyn KvStore>, BackendError> {
        self.0.allocate(pages)
    }

    fn forward(
        &mut self,
        batch: &Batch<'_>,
        layer_done: &mut dyn FnMut(usize),
    ) -> Result<Logits, BackendError> {
        let Self(mock, watch) = self;
        mock.forward(batch, &mut |layer| {
            layer_done(layer);
            watch(layer);
        })
    }
}

type SpoilDrawn =
    dyn FnMut(Result<Vec<Option<u32>>, BackendError>) -> Result<Vec<Option<u32>>, BackendError> + Send;

/// The mock that runs ahead, with something done to what is collected.
pub struct SpoiledAhead(pub Box<dyn Backend>, pub Box<SpoilDrawn>);

impl Backend for SpoiledAhead {
    fn name(&self) -> &'static str {
        "spoiled ahead"
    }

    fn kv_shape(&self) -> &KvShape {
        self.0.kv_shape()
    }

    fn vocab_tokens(&self) -> usize {
        self.0.vocab_tokens()
    }

    fn allocate(&mut self, pages: usize) -> Result<Arc<dyn KvStore>, BackendError> {
        self.0.allocate(pages)
    }

    fn forward(
        &mut self,
        batch: &Batch<'_>,
        layer_done: &mut dyn FnMut(usize),
    ) -> Result<Logits, BackendError> {
        self.0.forward(batch, layer_done)
    }

    fn runs_ahead(&self) -> bool {
        true
    }

    fn enqueue(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        self.0.enqueue(batch)
    }

    fn collect(&mut self) -> Result<Vec<Option<u32>>, BackendError> {
        let Self(mock, spoil) = self;
        spoil(mock.collect())
    }
}
