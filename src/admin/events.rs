//! Roads, incidents and operators' acts as lines of text.

use std::time::{SystemTime, UNIX_EPOCH};

use baton_admin::views::{Act, Handoff, Incident, Road};

/// How KV comes from each prefill node to each decode node.
pub(super) fn roads(roads: &[Road]) -> Vec<String> {
    if roads.is_empty() {
        return vec!["none: no two nodes hand KV to each other".to_owned()];
    }
    let head = format!(
        "{:<16} {:<16} {:<9} {:>12} {:>12} {:<8}",
        "from", "to", "transport", "carries", "prompts make", "transfer"
    );
    let rate = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{:.0} MB/s", rate / 1e6));
    let row = |road: &Road| {
        let row = format!(
            "{:<16} {:<16} {:<9} {:>12} {:>12} {:<8}",
            road.prefill,
            road.decode,
            road.transport.as_deref().unwrap_or("-"),
            rate(road.bytes_per_second),
            rate(road.made_per_second),
            road.verdict
        );
        let notes = [road.fallback.as_ref().map(|why| format!("not {why}")), road.advice.clone()];
        let notes = notes.into_iter().flatten().map(|note| format!("  {note}"));
        std::iter::once(row).chain(notes).collect::<Vec<_>>()
    };
    std::iter::once(head).chain(roads.iter().flat_map(row)).collect()
}

/// KV on its way.
pub(super) fn handoffs(handoffs: &[Handoff]) -> Vec<String> {
    if handoffs.is_empty() {
        return vec!["none under way".to_owned()];
    }
    let head = format!(
        "{:<32} {:>3} {:<16} {:<16} {:<9} {:>9} {:>8} {:>9}",
        "request", "att", "from", "to", "state", "age", "tokens", "came"
    );
    let row = |handoff: &Handoff| {
        let (tokens, came) = (handoff.tokens - handoff.have.min(handoff.tokens), handoff.bytes as f64 / 1e6);
        format!(
            "{:<32} {:>3} {:<16} {:<16} {:<9} {:>6.0} ms {tokens:>8} {came:>6.1} MB",
            handoff.request, handoff.attempt, handoff.prefill, handoff.decode, handoff.state, handoff.age_ms
        )
    };
    std::iter::once(head).chain(handoffs.iter().map(row)).collect()
}

/// What has happened, the newest first.
pub(super) fn incidents(incidents: &[Incident]) -> Vec<String> {
    if incidents.is_empty() {
        return vec!["nothing has happened since this coordinator began".to_owned()];
    }
    let now = now_ms();
    incidents.iter().map(|incident| incident_line(incident, now)).collect()
}

/// What operators did, the newest first.
pub(super) fn acts(acts: &[Act]) -> Vec<String> {
    if acts.is_empty() {
        return vec!["no operator has done anything since this coordinator began".to_owned()];
    }
    let now = now_ms();
    acts.iter().map(|act| act_line(act, now)).collect()
}

fn act_line(act: &Act, now_ms: u128) -> String {
    let ago = now_ms.saturating_sub(u128::from(act.at_ms)) / 1000;
    let whom = act.whom.as_ref().map_or(String::new(), |whom| format!(" {whom}"));
    let how = act.how.as_ref().map_or(String::new(), |how| format!(" ({how})"));
    let refused = act.refused.as_ref().map_or(String::new(), |why| format!(": refused, {why}"));
    format!("{:>8} ago  {}: {}{whom}{how}{refused}", age(ago), act.who, act.what)
}

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

fn incident_line(incident: &Incident, now_ms: u128) -> String {
    let ago = now_ms.saturating_sub(u128::from(incident.last_ms)) / 1000;
    let times = if incident.times > 1 { format!(" ({} times)", incident.times) } else { String::new() };
    let who = incident.node.as_ref().map_or(String::new(), |node| format!("{node} "));
    format!("{:>8} ago  {who}{}{times}", age(ago), incident.words)
}

/// The two greatest units.
fn age(seconds: u128) -> String {
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} m {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} m"),
        (days, hours, ..) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incidents_say_when_who_what_and_how_often() {
        let incident = Incident {
            node: Some("d1".to_owned()),
            words: "does not answer".to_owned(),
            last_ms: 1_000,
            times: 3,
            ..Incident::default()
        };
        assert_eq!(incident_line(&incident, 63_500), " 1 m 2 s ago  d1 does not answer (3 times)");
        let once = Incident { node: None, times: 1, ..incident };
        assert_eq!(incident_line(&once, 1_000), "     0 s ago  does not answer");
    }

    #[test]
    fn acts_say_who_did_what_to_whom_and_whether() {
        let act = Act {
            at_ms: 1_000,
            who: "ann".to_owned(),
            what: "drain".to_owned(),
            whom: Some("d1".to_owned()),
            how: None,
            refused: Some("it is the last one".to_owned()),
            rank: "operator".to_owned(),
            call: "c".to_owned(),
        };
        assert_eq!(act_line(&act, 63_500), " 1 m 2 s ago  ann: drain d1: refused, it is the last one");
        let done = Act { how: Some("decode".to_owned()), refused: None, ..act };
        assert_eq!(act_line(&done, 1_000), "     0 s ago  ann: drain d1 (decode)");
    }

    #[test]
    fn ages_have_two_units() {
        let ages: Vec<_> = [59, 61, 3_600, 90_000].into_iter().map(age).collect();
        assert_eq!(ages, ["59 s", "1 m 1 s", "1 h 0 m", "1 d 1 h"]);
    }
}
