use std::io::Write;

use proptest::prelude::*;

use super::*;

fn workload(arrivals: Arrivals, sessions: usize, seed: u64) -> Workload {
    Workload { arrivals, sessions, seed, ..Workload::default() }
}

/// Mean of the gaps, and their variance over its square.
fn gaps(traffic: &Traffic) -> (f64, f64) {
    let at: Vec<f64> = traffic.sessions.iter().map(|session| session.at.as_secs_f64()).collect();
    let gaps: Vec<f64> = std::iter::once(at[0]).chain(at.windows(2).map(|pair| pair[1] - pair[0])).collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
    (mean, variance / mean.powi(2))
}

fn any_shape() -> impl Strategy<Value = Shape> {
    (1..200_usize, 1..100_usize, 1..40_usize, 1..5_usize, 0..50_usize).prop_map(
        |(least, more, output, turns, tokens)| Shape {
            input: Length::between(least, least + more),
            output: Length::between(1, output),
            turns: Length::between(1, turns),
            pause_ms: 5,
            prefixes: Prefixes { tokens, count: 3 },
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn rates_and_burstiness_are_as_asked(rate in 0.1..500.0, burstiness in 0.2..5.0_f64, seed: u64) {
        let count = 20_000;
        for (arrivals, spread) in [
            (Arrivals::Poisson { rate }, 1.0),
            (Arrivals::Gamma { rate, burstiness }, 1.0 / burstiness),
            (Arrivals::Constant { rate }, 0.0),
        ] {
            let (mean, squared_cv) = gaps(&workload(arrivals, count, seed).traffic().unwrap());
            // Six standard errors of the mean; more for the variance, whose own error has a heavy tail.
            let error = 6.0 * (spread / count as f64).sqrt() + 1e-6;
            prop_assert!((mean * rate - 1.0).abs() <= error, "{mean} at {rate}");
            prop_assert!((squared_cv - spread).abs() <= 0.25 * spread + 1e-3, "{squared_cv}, not {spread}");
        }
    }

    #[test]
    fn traffic_follows_from_its_seed(shape in any_shape(), seed: u64, rate in 0.1..100.0) {
        let classes = ["a", "b"].map(|name| Class { name: name.to_owned(), shape: shape.clone(), ..Class::default() });
        let of = |seed, rate| {
            let workload = Workload { classes: classes.to_vec(), ..workload(Arrivals::Poisson { rate }, 40, seed) };
            workload.traffic().unwrap()
        };
        prop_assert_eq!(of(seed, rate), of(seed, rate));
        prop_assert_ne!(of(seed, rate), of(!seed, rate));
        // Another rate is the same sessions at other times, scaled.
        let (slow, fast) = (of(seed, rate), of(seed, 2.0 * rate));
        for (slow, fast) in slow.sessions.iter().zip(&fast.sessions) {
            prop_assert_eq!((&slow.turns, slow.class, &slow.prefix), (&fast.turns, fast.class, &fast.prefix));
            prop_assert!((slow.at.as_secs_f64() - 2.0 * fast.at.as_secs_f64()).abs() < 1e-6);
        }
    }

    #[test]
    fn sessions_keep_to_their_shape(shape in any_shape(), seed: u64) {
        let class = Class { shape: shape.clone(), ..Class::default() };
        let traffic = Workload { classes: vec![class], ..workload(Arrivals::default(), 60, seed) }.traffic().unwrap();
        let mut prefixes = Vec::new();
        for session in &traffic.sessions {
            prop_assert!(shape.turns.contains(session.turns.len()));
            prop_assert_eq!(session.prefix.as_ref().map_or(0, Piece::tokens), shape.prefixes.tokens);
            for turn in &session.turns {
                prop_assert!(shape.output.contains(turn.output_tokens));
                prop_assert!(turn.said.iter().all(|piece| shape.input.contains(piece.tokens())));
            }
            prefixes.extend(session.prefix.iter().filter(|prefix| !prefixes.contains(prefix)).collect::<Vec<_>>());
        }
        prop_assert!(prefixes.len() <= shape.prefixes.count);
        prop_assert!(traffic.sessions.is_sorted_by_key(|session| session.at));
    }

    #[test]
    fn pieces_are_spelled_alike_and_as_long_as_asked(seed: u64, tokens in 1..400_usize, around in 0.0..20.0_f64) {
        let piece = Piece::Drawn { seed, tokens };
        let ids = Vocabulary::Ids { low: 32, high: 127 };
        let drawn = ids.ids(&piece).unwrap();
        prop_assert_eq!(drawn.len(), tokens);
        prop_assert_eq!(ids.ids(&piece).unwrap(), drawn);
        // A server that counts bytes.
        let counted = |words: usize| (words, words * 5 + around as usize);
        let bytes = Vocabulary::fit(counted(16), counted(64)).unwrap();
        let text = bytes.text(&piece, true);
        let wanted = (tokens as f64 - around.floor()).max(5.0);
        prop_assert!((text.len() as f64 - wanted).abs() <= 2.5, "{} bytes for {wanted}", text.len());
        prop_assert_eq!(bytes.text(&piece, true), text);
    }
}

#[test]
fn shares_are_kept() {
    let class = |name: &str, share| Class { name: name.to_owned(), share, ..Class::default() };
    let classes = vec![class("rare", 0.1), class("usual", 0.9)];
    let traffic = Workload { classes, ..workload(Arrivals::default(), 10_000, 3) }.traffic().unwrap();
    let rare = traffic.sessions.iter().filter(|session| session.class == 0).count();
    assert!((900..1100).contains(&rare), "{rare} of 10000 are rare");
}

#[test]
fn numbers_that_mean_nothing_are_refused() {
    for arrivals in [
        Arrivals::Poisson { rate: 0.0 },
        Arrivals::Constant { rate: f64::INFINITY },
        Arrivals::Gamma { rate: 1.0, burstiness: -1.0 },
        Arrivals::Closed { clients: 0 },
        Arrivals::Replay { speed: 1.0 },
    ] {
        assert!(workload(arrivals.clone(), 1, 1).traffic().is_err(), "{arrivals:?}");
    }
    let none = Workload { classes: Vec::new(), ..Workload::default() };
    assert!(matches!(none.traffic(), Err(TrafficError::NoClass)));
}

#[test]
fn a_workload_can_be_written_and_read() {
    let text = r#"{
        "seed": 4, "sessions": 9, "arrivals": {"kind": "gamma", "rate": 2.5, "burstiness": 0.5},
        "class": [{"name": "chat", "shape": {"input": "10:20", "prefixes": {"tokens": 8, "count": 2}},
                   "budgets": {"ttft_ms": 200.0}}]
    }"#;
    let workload: Workload = serde_json::from_str(text).unwrap();
    assert_eq!(workload.classes[0].shape.input, Length::between(10, 20));
    let again = serde_json::to_string(&workload).unwrap();
    assert_eq!(serde_json::from_str::<Workload>(&again).unwrap(), workload);
    assert!(serde_json::from_str::<Workload>(r#"{"sede": 4}"#).is_err());
    assert!("20:10".parse::<Length>().is_err() && "many".parse::<Length>().is_err());
}

fn traced(format: TraceFormat, text: &str, arrivals: Arrivals) -> Result<Traffic, TrafficError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let trace = Trace { path: file.path().to_owned(), format };
    Workload { trace: Some(trace), ..workload(arrivals, 100, 1) }.traffic()
}

#[test]
fn mooncake_traces_are_replayed_with_their_shared_blocks() {
    let text = r#"{"timestamp": 1000, "input_length": 1100, "output_length": 7, "hash_ids": [5, 6, 7]}
{"timestamp": 3000, "input_length": 700, "output_length": 2, "hash_ids": [5]}"#;
    let traffic = traced(TraceFormat::Mooncake, text, Arrivals::Replay { speed: 4.0 }).unwrap();
    let [first, second] = traffic.sessions.as_slice() else { panic!("two requests") };
    assert_eq!((first.at, second.at), (Duration::ZERO, Duration::from_millis(500)));
    let said = |session: &Session| session.turns[0].said.clone();
    assert_eq!(said(first).iter().map(Piece::tokens).collect::<Vec<_>>(), [512, 512, 76]);
    assert_eq!(said(first)[0], said(second)[0]);
    assert_eq!(said(second)[1].tokens(), 188);
    assert_eq!(first.turns[0].output_tokens, 7);
    let wrong = traced(TraceFormat::Mooncake, "{}", Arrivals::default());
    assert!(matches!(wrong, Err(TrafficError::Malformed { entry: 1, .. })));
}

#[test]
fn conversations_of_sharegpt_are_sessions() {
    let text = r#"[{"conversations": [{"from": "system", "value": "x"}, {"from": "gpt", "value": "unasked"},
        {"from": "human", "value": "hello?"}, {"from": "gpt", "value": "twelve bytes"},
        {"from": "human", "value": "more"}, {"from": "gpt", "value": "ok"}, {"from": "human", "value": "left"}]},
        {"conversations": []}]"#;
    let traffic = traced(TraceFormat::ShareGpt, text, Arrivals::Constant { rate: 1.0 }).unwrap();
    let [session] = traffic.sessions.as_slice() else { panic!("one session") };
    let turns: Vec<_> = session.turns.iter().map(|turn| (turn.said.clone(), turn.output_tokens)).collect();
    assert_eq!(turns, [(vec![Piece::Text("hello?".into())], 3), (vec![Piece::Text("more".into())], 1)]);
    assert_eq!(session.at, Duration::from_secs(1));
    assert!(traced(TraceFormat::ShareGpt, "{}", Arrivals::default()).is_err());
}
