use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn the_search_closes_in_on_where_it_stops_to_hold(limit in 0.02..400.0_f64, first in 0.5..20.0_f64, factor in 1.4..4.0_f64) {
        let mut search = Search::new((first, factor), 0.1, 60);
        let mut tried = Vec::new();
        while let Some(rate) = search.next() {
            prop_assert!(!tried.contains(&rate), "{rate} twice");
            tried.push(rate);
            search.note(rate <= limit);
        }
        let Bracket { held: Some(held), missed: Some(missed) } = search.bracket() else {
            return Err(TestCaseError::fail("both ends are found"));
        };
        prop_assert!(held <= limit && limit < missed, "{held} {limit} {missed}");
        prop_assert!(missed <= held * 1.1);
        prop_assert!(tried.len() <= 40, "{}", tried.len());
    }
}

#[test]
fn a_search_ends_also_where_everything_or_nothing_holds() {
    for holds in [true, false] {
        let mut search = Search::new((1.0, 2.0), 0.1, 5);
        while search.next().is_some() {
            search.note(holds);
        }
        let bracket = search.bracket();
        assert_eq!((bracket.held.is_some(), bracket.missed.is_some()), (holds, !holds));
    }
}
