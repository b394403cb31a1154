//! Random regular expressions of bounded length.

use crate::parity::Random;

/// Two to four parts, one after the other.
pub fn regex(random: &mut Random) -> String {
    (0..2 + random.below(3)).map(|_| part(random, 2)).collect()
}

fn part(random: &mut Random, depth: u64) -> String {
    let most = 2 + random.below(6);
    match random.below(if depth == 0 { 6 } else { 9 }) {
        0 => format!("[a-z]{{1,{most}}}"),
        1 => format!(r"\d{{{most}}}"),
        2 => "[^\\s\"]{1,4}".to_owned(),
        3 => [r"\.", "/", "-", "ä", r"\+", " ", "東", "=>"][random.below(8) as usize].to_owned(),
        4 => "[äöüß]?".to_owned(),
        5 => r"[\w_]{2,5}".to_owned(),
        6 => format!("({}|{})", part(random, depth - 1), part(random, depth - 1)),
        7 => format!("(?:{}){{1,2}}", part(random, depth - 1)),
        _ => format!("(x{})?", part(random, depth - 1)),
    }
}
