//! Headers of KV frames.

use std::hint::black_box;

use baton_protocol::{FrameHeader, HandoffId, KvSpan, RequestId};
use criterion::Criterion;

/// Written and read again.
pub fn header(criterion: &mut Criterion) {
    let header = FrameHeader {
        handoff: HandoffId { request: RequestId(7), attempt: 1, leg: 0 },
        seq: 3,
        span: KvSpan { layers: 8..16, tokens: 512..1024, heads: 0..8 },
        bytes: 1 << 20,
    };
    criterion.bench_function("frame/header", |bencher| {
        bencher.iter(|| FrameHeader::decode(&black_box(&header).encode()).unwrap());
    });
}
