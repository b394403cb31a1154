//! Which part of a rectangle of KV is in.

use std::ops::Range;

use baton_protocol::KvSpan;

/// Layers times tokens, filled span by span without overlap.
#[derive(Clone, Debug)]
pub struct Coverage {
    tokens: Range<u32>,
    /// One entry a layer: what is in, sorted, disjoint, never touching.
    layers: Vec<Vec<Range<u32>>>,
}

impl Coverage {
    /// Nothing of `layers` times `tokens`.
    pub fn new(layers: u32, tokens: Range<u32>) -> Self {
        Self { tokens, layers: vec![Vec::new(); layers as usize] }
    }

    /// Whether a span lies within the rectangle.
    pub fn contains(&self, span: &KvSpan) -> bool {
        !span.layers.is_empty()
            && !span.tokens.is_empty()
            && span.layers.end as usize <= self.layers.len()
            && self.tokens.start <= span.tokens.start
            && span.tokens.end <= self.tokens.end
    }

    /// Whether a span within the rectangle is still out, all of it.
    pub fn is_free(&self, span: &KvSpan) -> bool {
        let clear = |row: &Vec<Range<u32>>| {
            let at = row.partition_point(|range| range.end <= span.tokens.start);
            row.get(at).is_none_or(|range| span.tokens.end <= range.start)
        };
        self.contains(span)
            && self.layers[span.layers.start as usize..span.layers.end as usize].iter().all(clear)
    }

    /// Adds a span. False, and nothing happens, when it is not wholly inside and out.
    pub fn insert(&mut self, span: &KvSpan) -> bool {
        if !self.is_free(span) {
            return false;
        }
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
        true
    }

    /// Whether everything is in.
    pub fn is_complete(&self) -> bool {
        self.complete_to() == self.tokens.end
    }

    /// All layers of the tokens before this one are in.
    pub fn complete_to(&self) -> u32 {
        let reach = |row: &Vec<Range<u32>>| match row.first() {
            Some(first) if first.start == self.tokens.start => first.end,
            _ => self.tokens.start,
        };
        self.layers.iter().map(reach).min().unwrap_or(self.tokens.end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn span() -> impl Strategy<Value = KvSpan> {
        (0..4u32, 0..4u32, 0..14u32, 0..6u32)
            .prop_map(|(l, ln, t, tn)| KvSpan { layers: l..l + ln, tokens: t..t + tn })
    }

    fn cells(span: &KvSpan) -> BTreeSet<(u32, u32)> {
        span.layers.clone().flat_map(|l| span.tokens.clone().map(move |t| (l, t))).collect()
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_of_cells(spans in prop::collection::vec(span(), 0..24)) {
            let whole = KvSpan { layers: 0..3, tokens: 2..12 };
            let mut coverage = Coverage::new(3, 2..12);
            let mut set = BTreeSet::new();
            for span in spans {
                let cells = cells(&span);
                let fits = !cells.is_empty() && cells.iter().all(|cell| self::cells(&whole).contains(cell));
                let expected = fits && cells.is_disjoint(&set);
                prop_assert_eq!(coverage.insert(&span), expected);
                if expected {
                    set.extend(cells);
                }
                let complete = (2..12).take_while(|&t| (0..3).all(|l| set.contains(&(l, t)))).count() as u32;
                prop_assert_eq!(coverage.complete_to(), 2 + complete);
                prop_assert_eq!(coverage.is_complete(), set.len() == 30);
            }
        }
    }
}
