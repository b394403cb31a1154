//! Which part of a box of KV is in.

use std::ops::Range;

use baton_protocol::KvSpan;

/// Layers times tokens times heads, filled span by span without overlap.
#[derive(Clone, Debug)]
pub struct Coverage {
    whole: KvSpan,
    /// Bands of heads that spans have told apart so far: in order, without gaps.
    bands: Vec<Band>,
}

/// Heads of which the same is in.
#[derive(Clone, Debug)]
struct Band {
    heads: Range<u32>,
    /// One entry a layer: what is in, sorted, disjoint, never touching.
    layers: Vec<Vec<Range<u32>>>,
}

// === impl Coverage ===

impl Coverage {
    /// Nothing of the first `layers` layers of `tokens` and `heads`.
    pub fn new(layers: u32, tokens: Range<u32>, heads: Range<u32>) -> Self {
        let band = Band { heads: heads.clone(), layers: vec![Vec::new(); layers as usize] };
        Self { whole: KvSpan { layers: 0..layers, tokens, heads }, bands: vec![band] }
    }

    /// Takes everything out again.
    pub fn clear(&mut self) {
        let KvSpan { layers, tokens, heads } = self.whole.clone();
        *self = Self::new(layers.end, tokens, heads);
    }

    /// Whether a span lies within the box.
    pub fn contains(&self, span: &KvSpan) -> bool {
        let within = |part: &Range<u32>, all: &Range<u32>| {
            !part.is_empty() && all.start <= part.start && part.end <= all.end
        };
        within(&span.layers, &self.whole.layers)
            && within(&span.tokens, &self.whole.tokens)
            && within(&span.heads, &self.whole.heads)
    }

    /// Whether a span within the box is still out, all of it.
    pub fn is_free(&self, span: &KvSpan) -> bool {
        let touched = |band: &&Band| band.heads.start < span.heads.end && span.heads.start < band.heads.end;
        self.contains(span) && self.bands.iter().filter(touched).all(|band| band.is_free(span))
    }

    /// Adds a span. False, and nothing happens, when it is not wholly inside and out.
    pub fn insert(&mut self, span: &KvSpan) -> bool {
        if !self.is_free(span) {
            return false;
        }
        self.split(span.heads.start);
        self.split(span.heads.end);
        let inside = |band: &&mut Band| span.heads.contains(&band.heads.start);
        self.bands.iter_mut().filter(inside).for_each(|band| band.insert(span));
        true
    }

    /// Makes a border between bands before this head.
    fn split(&mut self, head: u32) {
        let Some(at) = self.bands.iter().position(|band| band.heads.start < head && head < band.heads.end)
        else {
            return;
        };
        let mut above = self.bands[at].clone();
        above.heads.start = head;
        self.bands[at].heads.end = head;
        self.bands.insert(at + 1, above);
    }

    /// Whether everything is in.
    pub fn is_complete(&self) -> bool {
        self.complete_to() == self.whole.tokens.end
    }

    /// All layers and heads of the tokens before this one are in.
    pub fn complete_to(&self) -> u32 {
        let KvSpan { tokens, .. } = &self.whole;
        let reach = |row: &Vec<Range<u32>>| match row.first() {
            Some(first) if first.start == tokens.start => first.end,
            _ => tokens.start,
        };
        self.bands.iter().flat_map(|band| &band.layers).map(reach).min().unwrap_or(tokens.end)
    }
}

// === impl Band ===

impl Band {
    fn is_free(&self, span: &KvSpan) -> bool {
        self.layers[span.layers.start as usize..span.layers.end as usize].iter().all(|row| {
            let at = row.partition_point(|range| range.end <= span.tokens.start);
            row.get(at).is_none_or(|range| span.tokens.end <= range.start)
        })
    }

    fn insert(&mut self, span: &KvSpan) {
        for row in &mut self.layers[span.layers.start as usize..span.layers.end as usize] {
            let at = row.partition_point(|range| range.end < span.tokens.start);
            let mut merged = span.tokens.clone();
            let mut until = at;
            while let Some(range) = row.get(until).filter(|range| range.start <= merged.end) {
                merged = merged.start.min(range.start)..merged.end.max(range.end);
                until += 1;
            }
            row.splice(at..until, [merged]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn span() -> impl Strategy<Value = KvSpan> {
        (0..4u32, 0..4u32, 0..14u32, 0..6u32, 0..5u32, 0..4u32).prop_map(|(l, ln, t, tn, h, hn)| KvSpan {
            layers: l..l + ln,
            tokens: t..t + tn,
            heads: h..h + hn,
        })
    }

    fn cells(span: &KvSpan) -> BTreeSet<(u32, u32, u32)> {
        let heads = |l, t| span.heads.clone().map(move |h| (l, t, h));
        let tokens = |l| span.tokens.clone().flat_map(move |t| heads(l, t));
        span.layers.clone().flat_map(tokens).collect()
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_of_cells(spans in prop::collection::vec(span(), 0..24)) {
            let whole = KvSpan { layers: 0..3, tokens: 2..12, heads: 1..5 };
            let mut coverage = Coverage::new(3, 2..12, 1..5);
            let mut set = BTreeSet::new();
            for span in spans {
                let cells = cells(&span);
                let fits = !cells.is_empty() && cells.is_subset(&self::cells(&whole));
                let expected = fits && cells.is_disjoint(&set);
                prop_assert_eq!(coverage.insert(&span), expected);
                if expected {
                    set.extend(cells);
                }
                let has = |t| (0..3).all(|l| (1..5).all(|h| set.contains(&(l, t, h))));
                let complete = (2..12).take_while(|&t| has(t)).count() as u32;
                prop_assert_eq!(coverage.complete_to(), 2 + complete);
                prop_assert_eq!(coverage.is_complete(), set.len() == 120);
            }
            coverage.clear();
            prop_assert!(coverage.is_free(&whole));
        }
    }
}
