//! Rectangles of computed KV, cut into frames.

use baton_protocol::{KvShape, KvSpan};

/// Cuts a span into frames of whole layers up to `frame_bytes`. A single layer
/// that is larger is cut by tokens; a frame is never less than one row.
pub fn cut(span: &KvSpan, shape: &KvShape, frame_bytes: usize) -> Vec<KvSpan> {
    let row_bytes = shape.row_bytes().max(1);
    let layer_bytes = row_bytes.saturating_mul(span.tokens.len()).max(1);
    let clip = |value: usize| u32::try_from(value.max(1)).unwrap_or(u32::MAX);
    let (layers, tokens) = if layer_bytes <= frame_bytes {
        (clip(frame_bytes / layer_bytes), clip(span.tokens.len()))
    } else {
        (1, clip(frame_bytes / row_bytes))
    };
    let mut frames = Vec::new();
    let mut layer = span.layers.start;
    while layer < span.layers.end {
        let layer_end = layer.saturating_add(layers).min(span.layers.end);
        let mut token = span.tokens.start;
        while token < span.tokens.end {
            let token_end = token.saturating_add(tokens).min(span.tokens.end);
            frames.push(KvSpan { layers: layer..layer_end, tokens: token..token_end });
            token = token_end;
        }
        layer = layer_end;
    }
    frames
}

#[cfg(test)]
mod tests {
    use baton_protocol::KvDtype;
    use proptest::prelude::*;

    use super::*;
    use crate::handoff::coverage::Coverage;

    const SHAPE: KvShape =
        KvShape { layers: 6, kv_heads: 2, head_dim: 4, dtype: KvDtype::Bf16, page_tokens: 16 };

    #[test]
    fn frames_are_whole_layers_when_a_layer_fits() {
        // A row has 32 bytes, a layer of ten tokens 320.
        let span = KvSpan { layers: 0..5, tokens: 4..14 };
        let frames = cut(&span, &SHAPE, 700);
        let layers: Vec<_> = frames.iter().map(|frame| frame.layers.clone()).collect();
        assert_eq!(layers, [0..2, 2..4, 4..5]);
        assert!(frames.iter().all(|frame| frame.tokens == (4..14)));
    }

    proptest! {
        #[test]
        fn frames_cover_the_span_once_and_keep_the_size(
            l in 0..6u32, ln in 1..6u32, t in 0..50u32, tn in 1..50u32, frame_bytes in 1..3000usize,
        ) {
            let span = KvSpan { layers: l..(l + ln).min(6).max(l + 1), tokens: t..t + tn };
            prop_assume!(span.layers.end <= 6);
            let mut coverage = Coverage::new(6, t..t + tn);
            for skipped in [0..span.layers.start, span.layers.end..6] {
                if !skipped.is_empty() {
                    let fits = coverage.insert(&KvSpan { layers: skipped, tokens: span.tokens.clone() });
                    prop_assert!(fits);
                }
            }
            for frame in cut(&span, &SHAPE, frame_bytes) {
                prop_assert!(coverage.insert(&frame));
                let bytes = SHAPE.span_bytes(&frame);
                prop_assert!(bytes <= frame_bytes || (frame.layers.len() == 1 && frame.tokens.len() == 1));
            }
            prop_assert!(coverage.is_complete());
        }
    }
}
