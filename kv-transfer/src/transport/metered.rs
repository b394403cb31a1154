//! Counts what goes through a path.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use baton_protocol::{FrameHeader, KvSource};

use super::{FrameReceiver, FrameSender, Link, PathError, Placement, Received};
use crate::TransferMetrics;

struct Metered<E: ?Sized> {
    end: Box<E>,
    metrics: TransferMetrics,
}

/// Counts the frames sent.
pub fn sender(link: Link<dyn FrameSender>, metrics: TransferMetrics) -> Link<dyn FrameSender> {
    Link { end: Box::new(Metered { end: link.end, metrics }), closer: link.closer }
}

/// Counts the frames received, those for the bit bucket included.
pub fn receiver(link: Link<dyn FrameReceiver>, metrics: TransferMetrics) -> Link<dyn FrameReceiver> {
    Link { end: Box::new(Metered { end: link.end, metrics }), closer: link.closer }
}

// === impl Metered ===

impl<E: ?Sized> Metered<E> {
    fn count(&self, header: &FrameHeader, duration: Duration) {
        self.metrics.frame(u64::from(header.bytes), duration);
    }
}

impl FrameSender for Metered<dyn FrameSender> {
    fn asked_every(&self) -> Option<Duration> {
        self.end.asked_every()
    }

    fn ahead(&self) -> usize {
        self.end.ahead()
    }

    fn begin(&mut self, header: &FrameHeader, source: &Arc<dyn KvSource>) -> Result<(), PathError> {
        self.end.begin(header, source)
    }

    fn send(
        &mut self,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
        told: Option<u32>,
    ) -> Result<u32, PathError> {
        let begun = Instant::now();
        let told = self.end.send(header, source, told)?;
        self.count(header, begun.elapsed());
        Ok(told)
    }
}

impl FrameReceiver for Metered<dyn FrameReceiver> {
    fn asked_every(&self) -> Option<Duration> {
        self.end.asked_every()
    }

    fn recv(&mut self, place: &mut dyn FnMut(&FrameHeader) -> Placement) -> Result<Received, PathError> {
        let received = self.end.recv(place)?;
        self.count(&received.header, received.duration);
        Ok(received)
    }
}
