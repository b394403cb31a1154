//! A page that needs nothing else: plots as SVG, data within, light and dark.

use std::fmt::Write;

use super::{
    Plot, Series, Table,
    plot::{color, escape},
    tables, timeline,
};
use crate::{
    budgets::Budgets,
    measure::Record,
    slo::{Side, SloFile, Trial},
};

/// What a page may have below its plots.
#[derive(Clone, Debug)]
pub enum Section {
    /// A plot.
    Plot(Plot),
    /// Rows, under a title.
    Table(String, Table),
}

/// Searches side by side; several files compare several searches. `more` stands below.
pub fn slo(files: &[(String, SloFile)], more: &[Section]) -> String {
    let sides: Vec<(String, &SloFile, &Side)> = files
        .iter()
        .flat_map(|(name, file)| {
            let named = move |side: &Side| {
                if files.len() > 1 { format!("{name}: {}", side.name) } else { side.name.clone() }
            };
            file.sides.iter().map(move |side| (named(side), file, side))
        })
        .collect();
    let mut page = String::new();
    for (name, file) in files {
        let _ = writeln!(
            page,
            "<p><b>{}</b>: {} % of requests are to keep {}.<br><code>{}</code></p>",
            escape(name),
            file.target * 1e2,
            budgets(&file.budgets),
            escape(&file.command)
        );
    }
    page += &table(&summary(files));
    // A single rate is no curve, and stands in the table.
    if sides.iter().any(|(_, _, side)| side.trials.len() > 1) {
        page += &figure(&attainment(&sides, files));
    }
    let shown = shown_trials(&sides);
    for plot in distributions(&shown) {
        page += &figure(&plot);
    }
    for (name, trial) in &shown {
        page += &requests(name, trial);
    }
    page.extend(more.iter().map(Section::html));
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Goodput</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<style>{STYLE}</style></head>\n\
         <body><main>\n<h1>How much can be asked in time</h1>\n{page}</main></body></html>\n"
    )
}

// === impl Section ===

impl Section {
    fn html(&self) -> String {
        match self {
            Self::Plot(plot) => figure(plot),
            Self::Table(title, rows) => section(title, &table(rows), &rows.csv()),
        }
    }
}

/// What the searches came to, for the terminal too.
pub fn summary(files: &[(String, SloFile)]) -> Table {
    let mut table = Table::new([
        "side",
        "holds, requests/s",
        "misses, requests/s",
        "compared at",
        "attainment",
        "goodput/s",
        "TTFT p50 ms",
        "TTFT p99 ms",
        "ITL p50 ms",
        "ITL p99 ms",
    ]);
    for (_, file) in files {
        for side in &file.sides {
            let rate = |rate: Option<f64>| rate.map_or("none".to_owned(), |rate| format!("{rate:.3}"));
            let mut row = vec![side.name.clone(), rate(side.bracket.held), rate(side.bracket.missed)];
            match trial_of(file, side) {
                Some(trial) => {
                    let middle = |figure: fn(&super::Measured) -> f64| trial.middle(figure);
                    row.push(format!("{:.3}", trial.rate));
                    row.push(format!("{:.1} %", 1e2 * trial.attainment()));
                    row.push(format!("{:.3}", middle(|run| run.summary.all.goodput)));
                    row.push(format!("{:.1}", 1e3 * middle(|run| run.summary.all.ttft.p50)));
                    row.push(format!("{:.1}", 1e3 * middle(|run| run.summary.all.ttft.p99)));
                    row.push(format!("{:.1}", 1e3 * middle(|run| run.summary.all.itl.p50)));
                    row.push(format!("{:.1}", 1e3 * middle(|run| run.summary.all.itl.p99)));
                }
                None => row.extend(std::iter::repeat_n("-".to_owned(), 7)),
            }
            table.push(row);
        }
    }
    table
}

/// The trial whose distributions are shown: at the highest rate that all sides
/// hold, else at the highest of the side's own, else at the lowest tried.
fn trial_of<'a>(file: &SloFile, side: &'a Side) -> Option<&'a Trial> {
    let rate = file.common_rate().or(side.bracket.held);
    rate.and_then(|rate| side.at(rate)).or(side.by_rate().first().copied())
}

fn shown_trials<'a>(sides: &[(String, &SloFile, &'a Side)]) -> Vec<(String, &'a Trial)> {
    let named = |(name, file, side): &(String, &SloFile, &'a Side)| {
        trial_of(file, side).map(|trial| (format!("{name} at {:.2}/s", trial.rate), trial))
    };
    sides.iter().filter_map(named).collect()
}

fn attainment(sides: &[(String, &SloFile, &Side)], files: &[(String, SloFile)]) -> Plot {
    let series = sides.iter().map(|(name, _, side)| Series {
        name: name.clone(),
        points: side.by_rate().iter().map(|trial| (trial.rate, 1e2 * trial.attainment())).collect(),
        dots: true,
    });
    let target = files.first().map_or(0.9, |(_, file)| file.target);
    Plot {
        title: "Attainment against rate".to_owned(),
        x: "requests a second",
        y: "% of requests within budgets",
        x_is_log: false,
        y_range: Some((0.0, 100.0)),
        mark: Some((1e2 * target, format!("{} % wanted", 1e2 * target))),
        series: series.collect(),
    }
}

fn distributions(trials: &[(String, &Trial)]) -> Vec<Plot> {
    let of = |title: &str, x, values: fn(&Record) -> Vec<f64>| Plot {
        title: title.to_owned(),
        x,
        y: "share at or below",
        x_is_log: true,
        y_range: Some((0.0, 1.0)),
        mark: None,
        series: trials
            .iter()
            .map(|(name, trial)| Series::distribution(name, records(trial).flat_map(values)))
            .filter(|series| !series.points.is_empty())
            .collect(),
    };
    let mut plots = vec![
        of("Time to first token", "ms", |record| record.ttft.map(|ttft| ttft * 1e3).into_iter().collect()),
        of("Time between tokens", "ms", |record| {
            // What came together has nothing between it.
            record.gaps.iter().map(|&gap| f64::from(gap) * 1e3).filter(|gap| *gap > 0.0).collect()
        }),
        of("Exposed transfer", "ms that an answer waited for its KV pages", |record| {
            record.phases.map(|phases| phases.wait_ms).filter(|ms| *ms > 0.0).into_iter().collect()
        }),
    ];
    let usage = trials.iter().filter_map(|(name, trial)| {
        let points: Vec<(f64, f64)> =
            trial.runs.first()?.run.kv_points().map(|(at, usage)| (at, 1e2 * usage)).collect();
        (!points.is_empty()).then(|| Series { name: name.clone(), points, dots: false })
    });
    plots.push(Plot {
        title: "KV use".to_owned(),
        x: "seconds",
        y: "% of KV pages in use",
        x_is_log: false,
        y_range: Some((0.0, 1.0)),
        mark: None,
        series: usage.collect(),
    });
    plots.retain(|plot| !plot.series.is_empty());
    plots
}

fn records(trial: &Trial) -> impl Iterator<Item = &Record> {
    trial.runs.iter().flat_map(|run| &run.run.records).filter(|record| record.is_answered())
}

/// A few requests of a trial; nothing if the server tells no phases.
fn requests(name: &str, trial: &Trial) -> String {
    let Some(run) = trial.runs.first() else { return String::new() };
    let chosen = timeline::chosen(&run.run.records);
    if chosen.is_empty() {
        return String::new();
    }
    let title = format!("Requests: {name}");
    let data = tables::requests(std::slice::from_ref(run)).csv();
    section(&title, &(timeline::legend() + &timeline::svg(&title, &chosen)), &data)
}

fn figure(plot: &Plot) -> String {
    let keys = plot.series.iter().enumerate().map(|(index, series)| {
        format!("<span class=\"key {}\">{}</span>", color(index), escape(&series.name))
    });
    let legend = format!("<p class=\"legend\">{}</p>", keys.collect::<String>());
    section(&plot.title, &(legend + &plot.svg()), &plot.csv())
}

fn section(title: &str, picture: &str, data: &str) -> String {
    let file: String =
        title.to_lowercase().chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    format!(
        "<section><h2>{}</h2>{picture}\n<p class=\"data\"><a download=\"{file}.csv\" href=\"data:text/csv;charset=utf-8,{}\">data as CSV</a></p></section>\n",
        escape(title),
        percent_encoded(data)
    )
}

fn table(table: &Table) -> String {
    let row = |cells: &[String], tag: &str| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>")
    };
    let rows: String = table.rows().iter().map(|cells| row(cells, "td")).collect();
    format!("<div class=\"wide\"><table>{}{rows}</table></div>\n", row(table.head(), "th"))
}

fn budgets(budgets: &Budgets) -> String {
    let Budgets { ttft_ms, itl_ms, tpot_ms, e2e_ms } = *budgets;
    let all = [("TTFT", ttft_ms), ("ITL", itl_ms), ("TPOT", tpot_ms), ("E2E", e2e_ms)];
    let told: Vec<_> = all.iter().filter_map(|(name, ms)| ms.map(|ms| format!("{name} ≤ {ms} ms"))).collect();
    if told.is_empty() { "no budget".to_owned() } else { told.join(" and ") }
}

/// Bytes of a `data:` URL.
fn percent_encoded(text: &str) -> String {
    let mut url = String::with_capacity(text.len() * 5 / 4);
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b',' => {
                url.push(char::from(byte));
            }
            _ => {
                let _ = write!(url, "%{byte:02X}");
            }
        }
    }
    url
}

const STYLE: &str = include_str!("html/style.css");
