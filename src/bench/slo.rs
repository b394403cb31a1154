//! The highest rate at which requests keep their budgets: of servers that are there, or of split
//! clusters beside one that is not, on the same two cores.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use baton_lab::{
    measure::{Endpoint, Manner},
    report::{Measured, html},
    slo::{Search, Side, SloFile, Trial},
    traffic::Workload,
};
use tokio::runtime::Runtime;

use super::{
    cluster::{Cluster, Layout},
    load, serve,
};
use crate::{
    args::BenchSlo,
    config::ClusterConfig,
    terminal::{note, say},
};

/// A side before it is searched.
#[derive(Clone)]
struct Contender {
    name: String,
    place: Place,
    /// Settings that are being tried.
    settings: Vec<String>,
}

#[derive(Clone)]
enum Place {
    Url(String),
    Own(Layout),
}

/// A contender that can be asked.
struct Running {
    endpoint: Arc<Endpoint>,
    _cluster: Option<Cluster>,
}

struct Slo<'a> {
    args: &'a BenchSlo,
    workload: Workload,
    runtime: Runtime,
}

/// Requests of a trial, at least: fewer say little about nine of ten.
const LEAST: usize = 20;

/// Prints the summary and writes the files.
///
/// # Errors
/// When a server does not start or answer, or a file cannot be read or written.
pub fn run(args: &BenchSlo) -> Result<()> {
    let mut files = Vec::new();
    for path in &args.compare {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        files.push((name, SloFile::load(path)?));
    }
    if files.is_empty() {
        files.push(("this run".to_owned(), Slo::new(args)?.measure()?));
    }
    say(html::summary(&files).to_string().trim_end());
    if let Some(path) = &args.html {
        serve::write(path, &html::slo(&files, &[]))?;
    }
    Ok(())
}

// === impl Slo ===

impl<'a> Slo<'a> {
    fn new(args: &'a BenchSlo) -> Result<Self> {
        let workload = args.questions.workload()?;
        let asks = workload.classes.iter().any(|class| !class.budgets.is_empty());
        ensure!(asks, "a search needs a budget: --ttft-ms, --itl-ms, --tpot-ms or --e2e-ms");
        ensure!(args.questions.rate.is_some(), "a search needs the first rate to try: --rate");
        ensure!((1.01..=100.0).contains(&args.factor), "--factor is from 1.01 to 100");
        ensure!(args.questions.seconds.is_some(), "a search needs the time of a measurement: --seconds");
        Ok(Self { args, workload, runtime: load::runtime()? })
    }

    fn measure(&self) -> Result<SloFile> {
        let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
        let budgets = self.workload.classes.first().map(|class| class.budgets).unwrap_or_default();
        let mut file = SloFile::new(format!("baton {command}"), self.args.target, budgets);
        let mut best = Vec::new();
        for (name, place) in self.places()? {
            let mut found: Option<(Contender, Side)> = None;
            for settings in self.settings() {
                let contender = Contender { name: name.clone(), place: place.clone(), settings };
                let side = self.search(&contender)?;
                note(format_args!("{}: holds at {:?} requests/s", side.name, side.bracket.held));
                let is_better = |(_, best): &(Contender, Side)| side.bracket.held > best.bracket.held;
                if found.as_ref().is_none_or(is_better) {
                    found = Some((contender, side));
                }
            }
            best.extend(found);
            self.keep(&mut file, &best)?;
        }
        self.compare(&mut best)?;
        self.keep(&mut file, &best)?;
        Ok(file)
    }

    /// Writes what is known so far: a search takes long, and may be ended.
    fn keep(&self, file: &mut SloFile, best: &[(Contender, Side)]) -> Result<()> {
        file.sides = best.iter().map(|(_, side)| side.clone()).collect();
        match &self.args.json {
            Some(path) => Ok(file.save(path)?),
            None => Ok(()),
        }
    }

    fn places(&self) -> Result<Vec<(String, Place)>> {
        if self.args.urls.is_empty() {
            let model = Some(self.args.own.clone());
            let settings = crate::args::Settings { model, set: self.args.set.clone(), config: None };
            ClusterConfig::load(&settings)?.make_model_available()?;
            let own = |layout: Layout| (layout.name(), Place::Own(layout));
            let split = self.args.ratio.iter().map(|ratio| Layout::Split(*ratio));
            return Ok(split.chain([Layout::Local]).map(own).collect());
        }
        let given = self.args.urls.iter().map(|url| serve::split_name(url));
        Ok(given.map(|(name, url)| (name.to_owned(), Place::Url(url.to_owned()))).collect())
    }

    /// Every combination that is to be tried.
    fn settings(&self) -> Vec<Vec<String>> {
        let of = |name: &str, values: Vec<String>| -> Vec<String> {
            values.iter().map(|value| format!("engine.scheduler.{name}={value}")).collect()
        };
        let words = |values: &[usize]| values.iter().map(ToString::to_string).collect();
        let choices = [
            of("max_batch_tokens", words(&self.args.chunk)),
            of("mixed_step_ms", self.args.step_ms.iter().map(ToString::to_string).collect()),
            of("max_sequences", words(&self.args.sequences)),
        ];
        let mut all = vec![Vec::new()];
        for choice in choices.iter().filter(|choice| !choice.is_empty()) {
            let with = |settings: &Vec<String>| -> Vec<Vec<String>> {
                choice.iter().map(|one| [settings.as_slice(), std::slice::from_ref(one)].concat()).collect()
            };
            all = all.iter().flat_map(with).collect();
        }
        all
    }

    fn start(&self, contender: &Contender) -> Result<Running> {
        let (url, cluster) = match &contender.place {
            Place::Url(url) => (url.clone(), None),
            Place::Own(layout) => {
                let set = [self.args.set.as_slice(), &contender.settings].concat();
                let cluster = Cluster::start(*layout, &self.args.own, &set);
                let cluster = cluster.with_context(|| format!("cannot start {}", contender.name))?;
                (cluster.url(), Some(cluster))
            }
        };
        let metrics = cluster.as_ref().map(Cluster::metrics).unwrap_or_default();
        let manner = Manner { metrics, ..self.args.manner.manner() };
        let endpoint = self.runtime.block_on(async {
            let endpoint = Arc::new(Endpoint::connect(&url, manner).await?);
            serve::warm_up(&endpoint, &self.workload, 4).await?;
            anyhow::Ok(endpoint)
        })?;
        Ok(Running { endpoint, _cluster: cluster })
    }

    fn search(&self, contender: &Contender) -> Result<Side> {
        let running = self.start(contender)?;
        let first = self.args.questions.rate.unwrap_or(1.0);
        let mut search = Search::new((first, self.args.factor), self.args.precision, self.args.trials);
        let short = contender.settings.iter().map(|set| set.trim_start_matches("engine.scheduler."));
        let name = [contender.name.as_str()].into_iter().chain(short).collect::<Vec<_>>().join(" ");
        let mut side = Side {
            name,
            settings: contender.settings.clone(),
            trials: Vec::new(),
            bracket: search.bracket(),
        };
        while let Some(rate) = search.next() {
            let mut trial = Trial { rate, runs: Vec::new() };
            for repeat in 0..self.args.repeats.max(1) {
                trial.runs.push(self.once(&side.name, &running, (rate, repeat))?);
            }
            search.note(trial.attainment() >= self.args.target);
            note(format_args!("{} at {rate:.3}/s: {:.1} %", side.name, 1e2 * trial.attainment()));
            side.trials.push(trial);
        }
        side.bracket = search.bracket();
        Ok(side)
    }

    /// The rate that all of the best hold, measured again by turns.
    fn compare(&self, best: &mut [(Contender, Side)]) -> Result<()> {
        let held: Option<Vec<f64>> = best.iter().map(|(_, side)| side.bracket.held).collect();
        let lowest = held.and_then(|held| held.into_iter().min_by(f64::total_cmp));
        let Some(rate) = lowest.filter(|_| best.len() > 1 && self.args.pairs > 0) else { return Ok(()) };
        let mut trials = vec![Trial { rate, runs: Vec::new() }; best.len()];
        for pair in 0..self.args.pairs {
            for ((contender, side), trial) in best.iter().zip(&mut trials) {
                let running = self.start(contender)?;
                // Questions that no search had.
                let repeat = self.args.repeats + pair;
                trial.runs.push(self.once(&side.name, &running, (rate, repeat))?);
            }
        }
        for ((_, side), trial) in best.iter_mut().zip(trials) {
            side.trials.retain(|earlier| earlier.rate != rate);
            side.trials.push(trial);
        }
        Ok(())
    }

    fn once(&self, name: &str, running: &Running, (rate, repeat): (f64, usize)) -> Result<Measured> {
        let seconds = self.workload.seconds.unwrap_or(60.0);
        let workload = Workload {
            arrivals: self.workload.arrivals.with_rate(rate),
            sessions: ((rate * seconds).ceil() as usize).max(LEAST),
            seconds: None,
            // Questions of an earlier trial would be answered from caches; sides are asked the same.
            seed: self.workload.seed.wrapping_add(rate.to_bits()).wrapping_add(repeat as u64),
            ..self.workload.clone()
        };
        let name = format!("{name} at {rate:.3}/s");
        self.runtime.block_on(serve::once(&name, &running.endpoint, workload))
    }
}
