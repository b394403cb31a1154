//! Who did what: the last few hundred acts of operators, refused ones too. The log has all of them.

use std::{collections::VecDeque, fmt::Display, time::SystemTime};

use parking_lot::Mutex;

use crate::{
    desk::Operator,
    views::{Act, since_1970_ms},
};

/// The last acts.
#[derive(Debug, Default)]
pub(crate) struct Audit(Mutex<VecDeque<Act>>);

/// What is done, before it is known whether it is.
#[derive(Debug, Default)]
pub(crate) struct Deed<'a> {
    pub(crate) what: &'static str,
    pub(crate) whom: Option<&'a str>,
    pub(crate) how: Option<String>,
}

/// So many are kept.
const MOST: usize = 256;

// === impl Audit ===

impl Audit {
    /// Keeps what came of a deed, and passes it on.
    pub(crate) fn keep<T, E: Display>(
        &self,
        Operator { name: who, .. }: &Operator,
        deed: Deed<'_>,
        outcome: Result<T, E>,
    ) -> Result<T, E> {
        let Deed { what, whom, how } = deed;
        let refused = outcome.as_ref().err().map(ToString::to_string);
        tracing::info!(%who, what, whom, how, refused, "an operator's act");
        let mut acts = self.0.lock();
        if acts.len() == MOST {
            acts.pop_front();
        }
        acts.push_back(Act {
            at_ms: since_1970_ms(SystemTime::now()),
            who: who.clone(),
            what: what.to_owned(),
            whom: whom.map(str::to_owned),
            how,
            refused,
        });
        outcome
    }

    /// The newest first.
    pub(crate) fn latest(&self) -> Vec<Act> {
        self.0.lock().iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use baton_trust::Rank;

    use super::*;

    #[test]
    fn the_newest_come_first_and_the_oldest_make_room() {
        let (audit, who) = (Audit::default(), Operator { name: "ann".to_owned(), rank: Rank::Admin });
        for number in 0..=MOST {
            let whom = number.to_string();
            let outcome = if number % 2 == 0 { Ok(number) } else { Err("not now") };
            let deed = Deed { what: "drain", whom: Some(&whom), how: None };
            assert_eq!(audit.keep(&who, deed, outcome), outcome);
        }
        let latest = audit.latest();
        assert_eq!((latest.len(), latest[0].whom.as_deref()), (MOST, Some("256")));
        assert_eq!((&latest[0].refused, &latest[1].refused), (&None, &Some("not now".to_owned())));
        assert_eq!(latest[MOST - 1].whom.as_deref(), Some("1"));
    }
}
