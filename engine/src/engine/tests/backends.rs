//! Backends that misbehave.

use baton_protocol::KvShape;

use super::fixture;
use crate::{
    backend::{Backend, BackendError, mock::MockConfig},
    batch::{Batch, Logits},
    kv::KvMemory,
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

    fn forward(
        &mut self,
        batch: &Batch<'_>,
        memory: &KvMemory,
        layer_done: &mut dyn FnMut(usize),
    ) -> Result<Logits, BackendError> {
        let logits = self.mock.forward(batch, memory, layer_done);
        self.steps += 1;
        (self.spoil)(self.steps, logits)
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

    fn forward(
        &mut self,
        batch: &Batch<'_>,
        memory: &KvMemory,
        layer_done: &mut dyn FnMut(usize),
    ) -> Result<Logits, BackendError> {
        let Self(mock, watch) = self;
        mock.forward(batch, memory, &mut |layer| {
            layer_done(layer);
            watch(layer);
        })
    }
}
