use super::*;
use crate::{
    budgets::Budgets,
    measure::{Outcome, Phases, Record, Run, Summary},
    slo::{Bracket, Side, SloFile, Trial},
    traffic::{Class, Workload},
};

fn measured() -> Measured {
    let class = |name: &str| Class { name: name.to_owned(), ..Class::default() };
    let workload = Workload { classes: vec![class("chat"), class("a, b|\"c\"")], ..Workload::default() };
    let record = |class, outcome| Record {
        class,
        session: class,
        turn: 0,
        intended: 0.5,
        sent: 0.5625,
        end: 2.5,
        outcome,
        ttft: Some(0.25),
        gaps: vec![0.015625, 0.03125],
        prompt_tokens: Some(10),
        cached_tokens: Some(5),
        output_tokens: 3,
        wanted_tokens: 3,
        phases: None,
    };
    let failed = Outcome::Failed { why: "it\nbroke".to_owned() };
    let records = vec![record(0, Outcome::Answered), record(1, failed)];
    let run = Run { records, seconds: 2.0, kv_usage: vec![0.25, 0.875, 0.5], ..Run::default() };
    let summary = Summary::of(&run, &workload.classes);
    Measured { name: "ours".into(), url: "http://x".into(), model: "m".into(), workload, summary, run }
}

#[test]
fn engines_are_compared_as_in_public() {
    let text = tables::engines(&[measured()]).to_string();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0].matches('|').count(), 7);
    let cells: Vec<_> = lines[2].split('|').map(str::trim).collect();
    assert_eq!(cells[1..7], ["ours", "2", "15.6", "31.2", "87.5 %", "250.0"]);
}

#[test]
fn every_class_has_its_rows() {
    let runs = [measured()];
    let text = tables::throughput(&runs).to_string();
    assert_eq!(text.lines().count(), 5, "head, rule, all, two classes");
    let widths: Vec<_> = text.lines().map(|line| line.chars().count()).collect();
    assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "columns stand below each other");
    assert!(text.contains("a, b\\|\"c\"") && text.contains("50.0 %"));
    // The class whose only request failed has no times.
    assert_eq!(tables::latency(&runs).to_string().lines().count(), 2 + 2 * 4);
}

#[test]
fn requests_are_rows_whose_fields_may_hold_anything() {
    let csv = tables::requests(&[measured()]).csv();
    assert!(csv.contains("ours,chat,0,0,500.0,562.5,250.0,23.4,31.2,2000.0,10,5,3,answered,,,,,\n"), "{csv}");
    assert!(csv.contains("\"a, b|\"\"c\"\"\"") && csv.contains("\"failed: it\nbroke\""), "{csv}");
}

#[test]
fn runs_are_kept_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.json");
    let file = RunFile::new(vec![measured()]);
    file.save(&path).unwrap();
    assert_eq!(RunFile::load(&path).unwrap(), file);
    RunFile { format: 9, ..file }.save(&path).unwrap();
    assert!(matches!(RunFile::load(&path), Err(FileError::Version { found: 9, .. })));
    std::fs::write(&path, "{}").unwrap();
    assert!(matches!(RunFile::load(&path), Err(FileError::Form { .. })));
}

fn slo_file(name: &str) -> SloFile {
    let mut file =
        SloFile::new("bench slo <x>".to_owned(), 0.5, Budgets { ttft_ms: Some(300.0), ..Budgets::default() });
    for side in ["split", "two & local"] {
        let phases =
            Phases { queue_ms: 5.0, prefill_ms: 100.0, transfer_ms: 60.0, wait_ms: 10.0, decode_ms: 200.0 };
        let mut run = measured();
        run.run.records[0].phases = Some(phases);
        let trial = |rate| Trial { rate, runs: vec![run.clone()] };
        let bracket = Bracket { held: Some(2.0), missed: Some(4.0) };
        let (name, trials) = (format!("{name} {side}"), vec![trial(2.0), trial(1.0)]);
        file.sides.push(Side { name, settings: Vec::new(), trials, bracket });
    }
    file
}

#[test]
fn the_page_needs_nothing_and_carries_its_data() {
    let mut rows = Table::new(["node", "what"]);
    rows.push(vec!["decode-1".to_owned(), "slow & out".to_owned()]);
    let more = [html::Section::Table("What was <done>".to_owned(), rows)];
    let page = html::slo(&[("a".to_owned(), slo_file("one")), ("b".to_owned(), slo_file("other"))], &more);
    for needs in ["http://", "https://", "src=", "<script", "@import", "url("] {
        assert!(!page.contains(needs), "{needs}");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
    assert!(page.contains("two &amp; local") && page.contains("bench slo &lt;x&gt;"), "text is escaped");
    assert!(page.contains("What was &lt;done&gt;") && page.contains("slow &amp; out"), "text is escaped");
    // Attainment, three distributions, KV use, the requests of each of four sides, and the table.
    let plots = page.matches("<section>").count();
    assert_eq!(plots, 5 + 4 + 1);
    assert_eq!(page.matches("href=\"data:text/csv;charset=utf-8,").count(), plots);
    for number in
        page.split("points=\"").skip(1).flat_map(|rest| rest.split('"').next().unwrap().split([' ', ',']))
    {
        assert!(number.parse::<f64>().unwrap().is_finite());
    }
}

#[test]
fn sides_are_compared_where_all_hold() {
    let mut file = slo_file("one");
    assert_eq!(file.common_rate(), Some(2.0));
    file.sides[1].trials.remove(0);
    assert_eq!(file.common_rate(), Some(1.0));
    file.target = 0.6;
    assert_eq!(file.common_rate(), None);
    assert!(html::summary(&[("a".to_owned(), file)]).to_string().contains("2.000"));
}

#[test]
fn ticks_are_round_and_within() {
    for (low, high, is_log) in [(0.0, 97.0, false), (3.0, 4.0, false), (0.2, 900.0, true), (5.0, 5.0, true)] {
        let axis = axis::Axis::new([low, high], None, is_log).to(10.0, 110.0);
        let ticks = axis.ticks();
        assert!((2..=12).contains(&ticks.len()), "{ticks:?}");
        assert!(ticks.iter().all(|(_, at)| (9.9..=110.1).contains(at)), "{ticks:?}");
        assert!(ticks.is_sorted_by(|one, other| one.0 < other.0 && one.1 < other.1), "{ticks:?}");
    }
    assert_eq!([0.0, 0.25, 12.5, 1500.0].map(axis::label), ["0", "0.25", "12.5", "1500"]);
}

#[test]
fn a_busy_or_late_client_is_told() {
    let mut run = measured();
    assert_eq!(tables::doubt(&run), None);
    run.run.overhead.lag.p99 = 0.02;
    assert!(tables::doubt(&run).unwrap().contains("late"));
    (run.run.overhead.cpu_seconds, run.run.overhead.seconds) = (0.95, 1.0);
    assert!(tables::doubt(&run).unwrap().contains("core"));
}
