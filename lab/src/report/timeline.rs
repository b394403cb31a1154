//! A few requests, phase by phase, as bars.

use std::fmt::Write;

use super::{
    axis::{Axis, label},
    plot::escape,
};
use crate::measure::{Phases, Record};

/// Phases in the order in which they come; the transfer's own time lies in that of prefill.
const PHASES: [&str; 4] = ["queue", "prefill", "wait", "decode"];
const WIDTH: f64 = 640.0;
const ROW: f64 = 20.0;
const LEFT: f64 = 90.0;
/// Requests shown.
const ROWS: usize = 12;

/// Requests of a run that have phases, evenly chosen over its time.
pub(super) fn chosen(records: &[Record]) -> Vec<&Record> {
    let mut with: Vec<&Record> =
        records.iter().filter(|record| record.is_answered() && record.phases.is_some()).collect();
    with.sort_by(|one, other| one.intended.total_cmp(&other.intended));
    let every = with.len().div_ceil(ROWS).max(1);
    with.into_iter().step_by(every).collect()
}

/// The bars, each from when its request was to be sent.
pub(super) fn svg(title: &str, records: &[&Record]) -> String {
    let height = ROW * records.len() as f64 + 56.0;
    let ends = records.iter().map(|record| record.e2e() * 1e3);
    let x = Axis::new(ends, Some((0.0, 0.0)), false).to(LEFT, WIDTH - 24.0);
    let title = escape(title);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\">\n");
    let (end, below, under) = (height - 44.0, height - 28.0, height - 8.0);
    for (value, at) in x.ticks() {
        let value = label(value);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"8\" y2=\"{end}\"/>\
             <text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{value}</text>"
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"axis\" x=\"{}\" y=\"{under}\" text-anchor=\"middle\">ms since it was to be sent</text>",
        (LEFT + WIDTH) / 2.0
    );
    for (row, record) in records.iter().enumerate() {
        draw(&mut svg, 8.0 + ROW * row as f64, record, &x);
    }
    svg + "</svg>"
}

/// One request's bars.
fn draw(svg: &mut String, y: f64, record: &Record, x: &Axis) {
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">at {:.1} s</text>",
        LEFT - 8.0,
        y + 13.0,
        record.intended
    );
    for (phase, from, to) in bars(record) {
        let _ = writeln!(
            svg,
            "<rect class=\"{phase}\" x=\"{:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\"><title>{phase}: {} ms</title></rect>",
            x.place(from),
            (x.place(to) - x.place(from)).max(0.5),
            if phase == "transfer" { 3.0 } else { ROW - 5.0 },
            label(to - from)
        );
    }
    if let Some(ms) = record.ttft.map(|ttft| ttft * 1e3) {
        let (at, top, end, ms) = (x.place(ms), y - 2.0, y + ROW - 3.0, label(ms));
        let _ = writeln!(
            svg,
            "<line class=\"first\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{end}\"><title>first token: {ms} ms</title></line>"
        );
    }
}

/// What the colours mean.
pub(super) fn legend() -> String {
    let names = PHASES.into_iter().chain(["transfer"]);
    let items: String = names.map(|name| format!("<span class=\"key {name}\">{name}</span>")).collect();
    format!("<p class=\"legend\">{items}<span class=\"key first\">first token</span></p>")
}

/// Name, beginning and end of each bar, in milliseconds; transfer goes on during prefill and wait.
fn bars(record: &Record) -> Vec<(&'static str, f64, f64)> {
    let Some(phases) = record.phases else { return Vec::new() };
    let Phases { queue_ms, prefill_ms, transfer_ms, wait_ms, decode_ms } = phases;
    let mut at = 0.0;
    let mut bars: Vec<_> = PHASES
        .into_iter()
        .zip([queue_ms, prefill_ms, wait_ms, decode_ms])
        .map(|(name, ms)| {
            let from = at;
            at += ms;
            (name, from, at)
        })
        .filter(|(_, from, to)| to > from)
        .collect();
    if transfer_ms > 0.0 {
        let end = queue_ms + prefill_ms + wait_ms;
        bars.push(("transfer", (end - transfer_ms).max(queue_ms), end));
    }
    bars
}
