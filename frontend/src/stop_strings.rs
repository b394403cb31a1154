//! Finds stop strings in text that arrives in pieces.
//!
//! Text is cut where the first stop string is *complete*, so that the result
//! does not depend on where tokens begin and end. Only a suffix that could
//! still become a stop string is held back.

/// Watches one choice's text. One Knuth-Morris-Pratt automaton a stop string.
#[derive(Clone, Debug)]
pub struct StopStrings {
    automata: Vec<Automaton>,
    held: String,
}

/// What may be shown after a piece of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Text that is certain.
    pub text: String,
    /// Whether a stop string is complete; no text follows.
    pub stopped: bool,
}

#[derive(Clone, Debug)]
struct Automaton {
    stop: Vec<u8>,
    /// For each prefix length - 1: the longest proper prefix of it that is also its suffix.
    borders: Vec<usize>,
    /// How much of `stop` the text ends with.
    matched: usize,
}

// === impl StopStrings ===

impl StopStrings {
    /// Watches for `stops`, none of which is empty.
    pub fn new(stops: &[String]) -> Self {
        Self { automata: stops.iter().map(|stop| Automaton::new(stop)).collect(), held: String::new() }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, piece: &str) -> Released {
        let before = self.held.len();
        self.held.push_str(piece);
        for (i, byte) in piece.bytes().enumerate() {
            if let Some(stop_bytes) = self.step(byte) {
                self.held.truncate(before + i + 1 - stop_bytes);
                return Released { text: std::mem::take(&mut self.held), stopped: true };
            }
        }
        // A stop string begins with a whole character, so the cut lies between characters.
        let possible = self.automata.iter().map(|automaton| automaton.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - possible);
        Released { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// The text that was held back, when nothing follows any more.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes of the longest stop string that ends with this byte.
    fn step(&mut self, byte: u8) -> Option<usize> {
        self.automata.iter_mut().filter_map(|automaton| automaton.step(byte)).max()
    }
}

// === impl Automaton ===

impl Automaton {
    fn new(stop: &str) -> Self {
        let stop = stop.as_bytes().to_vec();
        let mut borders = vec![0; stop.len()];
        for end in 1..stop.len() {
            let mut border: usize = borders[end - 1];
            while border > 0 && stop[border] != stop[end] {
                border = borders[border - 1];
            }
            borders[end] = border + usize::from(stop[border] == stop[end]);
        }
        Self { stop, borders, matched: 0 }
    }

    /// The length of the stop string if this byte completes it.
    fn step(&mut self, byte: u8) -> Option<usize> {
        while self.matched > 0 && self.stop[self.matched] != byte {
            self.matched = self.borders[self.matched - 1];
        }
        self.matched += usize::from(self.stop[self.matched] == byte);
        (self.matched == self.stop.len()).then_some(self.matched)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Cuts whole text where the first stop string is complete.
    fn oracle(text: &str, stops: &[String]) -> (String, bool) {
        for end in 1..=text.len() {
            let longest = stops.iter().filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()));
            if let Some(stop) = longest.max_by_key(|stop| stop.len()) {
                return (text[..end - stop.len()].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

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
        ) {
            let whole = pieces.concat();
            let mut watched = StopStrings::new(&stops);
            let (mut shown, mut given, mut stopped) = (String::new(), String::new(), false);
            for piece in &pieces {
                let released = watched.push(piece);
                shown.push_str(&released.text);
                given.push_str(piece);
                stopped = released.stopped;
                if stopped {
                    break;
                }
                // Nothing is held back that need not be.
                prop_assert_eq!(given.len() - shown.len(), possible(&given, &stops));
            }
            if !stopped {
                shown.push_str(&watched.finish());
            }
            prop_assert_eq!((shown, stopped), oracle(&whole, &stops));
        }
    }
}
