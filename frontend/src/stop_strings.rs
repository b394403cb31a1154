//! Finds stop strings in text that arrives in pieces.
//!
//! Text is cut where the first stop string is *complete*, so that the result
//! does not depend on where tokens begin and end. Only a suffix that could
//! still become a stop string is held back.

use std::sync::Arc;

/// Watches one choice's text. One Knuth-Morris-Pratt automaton a stop string.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    automata: Vec<Automaton>,
    held: String,
}

/// What may be shown after a piece of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Text that is certain.
    pub text: String,
    /// The stop string that is complete; no text follows.
    pub stopped: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
struct Automaton {
    stop: Arc<str>,
    /// Whether it stays in the text.
    shown: bool,
    /// For each prefix length - 1: the longest proper prefix of it that is also its suffix.
    borders: Vec<usize>,
    /// How much of `stop` the text ends with.
    matched: usize,
}

// === impl StopStrings ===

impl StopStrings {
    /// Watches for `stops` too, none of which is empty. One that is `shown` stays in the text.
    #[must_use]
    pub fn and(mut self, stops: &[impl AsRef<str>], shown: bool) -> Self {
        self.automata.extend(stops.iter().map(|stop| Automaton::new(stop.as_ref(), shown)));
        self
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, piece: &str) -> Released {
        let before = self.held.len();
        self.held.push_str(piece);
        for (i, byte) in piece.bytes().enumerate() {
            if let Some((stop, shown)) = self.step(byte) {
                self.held.truncate(before + i + 1 - if shown { 0 } else { stop.len() });
                return Released { text: std::mem::take(&mut self.held), stopped: Some(stop) };
            }
        }
        // A stop string begins with a whole character, so the cut lies between characters.
        let hidden = self.automata.iter().filter(|automaton| !automaton.shown);
        let possible = hidden.map(|automaton| automaton.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - possible);
        Released { text: std::mem::replace(&mut self.held, rest), stopped: None }
    }

    /// The text that was held back, when nothing follows any more.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The longest stop string that ends with this byte, and whether it is shown.
    fn step(&mut self, byte: u8) -> Option<(Arc<str>, bool)> {
        let ended =
            self.automata.iter_mut().filter_map(|automaton| automaton.step(byte).then_some(&*automaton));
        let longest = ended.max_by_key(|automaton| automaton.stop.len())?;
        Some((Arc::clone(&longest.stop), longest.shown))
    }
}

// === impl Automaton ===

impl Automaton {
    fn new(stop: &str, shown: bool) -> Self {
        let bytes = stop.as_bytes();
        let mut borders = vec![0; bytes.len()];
        for end in 1..bytes.len() {
            let mut border: usize = borders[end - 1];
            while border > 0 && bytes[border] != bytes[end] {
                border = borders[border - 1];
            }
            borders[end] = border + usize::from(bytes[border] == bytes[end]);
        }
        Self { stop: stop.into(), shown, borders, matched: 0 }
    }

    /// Whether this byte completes it.
    fn step(&mut self, byte: u8) -> bool {
        let stop = self.stop.as_bytes();
        while self.matched > 0 && stop[self.matched] != byte {
            self.matched = self.borders[self.matched - 1];
        }
        self.matched += usize::from(stop[self.matched] == byte);
        self.matched == stop.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::answers::cut;

    /// Longest suffix of `text` with which a stop string begins.
    fn possible(text: &str, stops: &[String]) -> usize {
        let begins = |n: &usize| {
            stops.iter().any(|stop| stop.as_bytes().starts_with(&text.as_bytes()[text.len() - n..]))
        };
        (0..=text.len()).rev().find(begins).unwrap_or(0)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_cutting_gives_what_the_whole_text_gives(
            pieces in prop::collection::vec("[abé🦀]{0,4}", 0..12),
            stops in prop::collection::vec("[abé🦀]{1,5}", 0..4),
            shows in any::<bool>(),
        ) {
            let whole = pieces.concat();
            let mut watched = StopStrings::default().and(&stops, shows);
            let (mut shown, mut given, mut stopped) = (String::new(), String::new(), None);
            for piece in &pieces {
                let released = watched.push(piece);
                shown.push_str(&released.text);
                given.push_str(piece);
                stopped = released.stopped.map(|stop| stop.to_string());
                if stopped.is_some() {
                    break;
                }
                // Nothing is held back that need not be.
                let held = if shows { 0 } else { possible(&given, &stops) };
                prop_assert_eq!(given.len() - shown.len(), held);
            }
            if stopped.is_none() {
                shown.push_str(&watched.finish());
            }
            prop_assert_eq!((shown, stopped), cut(&whole, &stops, shows));
        }
    }
}
