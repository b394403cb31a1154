//! Boxes of computed KV, cut into frames.

use std::ops::Range;

use baton_protocol::{KvShape, KvSpan};

/// How a sender cuts what it has into frames.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Shape of the cache, all heads of the model counted.
    pub shape: KvShape,
    /// Runs of heads that travel apart, since each lies within one shard of either side.
    pub heads: Vec<Range<u32>>,
    /// Largest frame, unless a single row is larger.
    pub frame_bytes: usize,
}

// === impl Cut ===

impl Cut {
    /// All heads that travel.
    pub fn all_heads(&self) -> Range<u32> {
        let ends = (self.heads.first(), self.heads.last());
        if let (Some(first), Some(last)) = ends { first.start..last.end } else { 0..0 }
    }

    /// Cuts layers times tokens into frames of whole layers up to `frame_bytes`.
    /// A single layer that is larger is cut by tokens; a frame is never less
    /// than one row of a run of heads.
    pub fn frames(&self, layers: &Range<u32>, tokens: &Range<u32>) -> Vec<KvSpan> {
        let mut frames = Vec::new();
        for heads in &self.heads {
            let (layer_step, token_step) = self.steps(heads, tokens.len());
            for layer in layers.clone().step_by(layer_step) {
                for token in tokens.clone().step_by(token_step) {
                    frames.push(KvSpan {
                        layers: layer..end(layer, layer_step, layers),
                        tokens: token..end(token, token_step, tokens),
                        heads: heads.clone(),
                    });
                }
            }
        }
        frames
    }

    /// Layers and tokens of a frame.
    fn steps(&self, heads: &Range<u32>, tokens: usize) -> (usize, usize) {
        let row_bytes = (2 * heads.len() * self.shape.head_bytes()).max(1);
        let layer_bytes = row_bytes.saturating_mul(tokens).max(1);
        if layer_bytes <= self.frame_bytes {
            (self.frame_bytes / layer_bytes, tokens.max(1))
        } else {
            (1, (self.frame_bytes / row_bytes).max(1))
        }
    }
}

fn end(start: u32, step: usize, of: &Range<u32>) -> u32 {
    start.saturating_add(u32::try_from(step).unwrap_or(u32::MAX)).min(of.end)
}

#[cfg(test)]
mod tests {
    use baton_protocol::KvDtype;
    use proptest::prelude::*;

    use super::*;
    use crate::handoff::coverage::Coverage;

    fn cut(heads: &[Range<u32>], frame_bytes: usize) -> Cut {
        let shape = KvShape { layers: 6, kv_heads: 4, head_dim: 2, dtype: KvDtype::Bf16, page_tokens: 16 };
        Cut { shape, heads: heads.to_vec(), frame_bytes }
    }

    #[test]
    fn frames_are_whole_layers_when_a_layer_fits() {
        // A row has 32 bytes, a layer of ten tokens 320.
        let layers = |heads: &[Range<u32>]| {
            let frames = cut(heads, 700).frames(&(0..5), &(4..14));
            assert!(frames.iter().all(|frame| frame.tokens == (4..14)));
            frames.into_iter().map(|frame| (frame.layers, frame.heads)).collect::<Vec<_>>()
        };
        assert_eq!(layers(&[0..4]), [(0..2, 0..4), (2..4, 0..4), (4..5, 0..4)]);
        assert_eq!(layers(&[0..2, 2..4]), [(0..4, 0..2), (4..5, 0..2), (0..4, 2..4), (4..5, 2..4)]);
    }

    proptest! {
        #[test]
        fn frames_cover_the_box_once_and_keep_the_size(
            l in 0..6u32, ln in 1..6u32, t in 0..50u32, tn in 1..50u32,
            frame_bytes in 1..3000usize, runs in 1..5u32,
        ) {
            let layers = l..(l + ln).min(6);
            let heads: Vec<_> = (0..runs).map(|run| run * 4 / runs..(run + 1) * 4 / runs).collect();
            let cut = cut(&heads, frame_bytes);
            let mut coverage = Coverage::new(layers.end, t..t + tn, cut.all_heads());
            if layers.start > 0 {
                let below = cut.shape.span(0..layers.start, t..t + tn);
                prop_assert!(coverage.insert(&below));
            }
            for frame in cut.frames(&layers, &(t..t + tn)) {
                prop_assert!(coverage.insert(&frame));
                let bytes = cut.shape.span_bytes(&frame);
                prop_assert!(bytes <= frame_bytes || (frame.layers.len() == 1 && frame.tokens.len() == 1));
            }
            prop_assert!(coverage.is_complete());
        }
    }
}
