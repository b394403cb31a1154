//! `baton admin top`: the cluster live in a terminal.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use baton_admin::views::{Cluster, Node, Queue, Request};
use crossterm::event::{Event, EventStream, KeyCode, KeyModifiers};
use futures::StreamExt;
use ratatui::{
    DefaultTerminal, Frame,
    layout::{Constraint, Layout},
    style::{Color, Style, Stylize},
    text::Line,
    widgets::{Block, Paragraph, Row, Sparkline, Table},
};
use serde::de::DeserializeOwned;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{Operator, cluster};
use crate::args::Admin;

/// What is on the screen.
#[derive(Default)]
struct Scene {
    look: Option<Look>,
    /// Why the newest look is not the one that is shown.
    error: Option<String>,
    /// Tokens a second between looks, the newest first.
    rates: VecDeque<u64>,
}

/// The cluster at one moment.
struct Look {
    at: Instant,
    cluster: Cluster,
    nodes: Vec<Node>,
    queues: Vec<Queue>,
    requests: Vec<Request>,
}

/// The terminal is as it was when this is dropped.
struct Screen(DefaultTerminal);

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(2);
const RATES: usize = 400;
/// Cells of a bar.
const BAR: u64 = 12;

/// Shows the cluster until `q` is pressed.
///
/// # Errors
/// When the terminal cannot be used. A coordinator that does not answer is looked for again.
pub async fn run(args: &Admin) -> Result<()> {
    let operator = Operator::new(args)?;
    let mut screen = Screen(ratatui::try_init()?);
    let (mut scene, mut keys) = (Scene::default(), EventStream::new());
    let mut looks = interval(EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        screen.0.draw(|frame| scene.draw(frame))?;
        tokio::select! {
            _ = looks.tick() => scene.take(look(&operator).await),
            event = keys.next() => match event.transpose()? {
                Some(event) if !ends(&event) => {}
                _ => return Ok(()),
            },
        }
    }
}

fn ends(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let interrupts = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    interrupts || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
}

async fn look(operator: &Operator) -> Result<Look> {
    let all = async {
        tokio::try_join!(
            get(operator, "cluster"),
            get(operator, "nodes"),
            get(operator, "queue"),
            get(operator, "requests")
        )
    };
    let all = timeout(PATIENCE, all).await.context("the coordinator does not answer")?;
    let (cluster, nodes, queues, requests) = all?;
    Ok(Look { at: Instant::now(), cluster, nodes, queues, requests })
}

async fn get<T: DeserializeOwned>(operator: &Operator, path: &str) -> Result<T> {
    Ok(serde_json::from_value(operator.get(path.to_owned()).await?)?)
}

// === impl Screen ===

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

// === impl Scene ===

impl Scene {
    fn take(&mut self, look: Result<Look>) {
        let look = match look {
            Ok(look) => look,
            Err(error) => return self.error = Some(format!("{error:#}")),
        };
        if let Some(before) = &self.look {
            self.rates.push_front(look.rate(before));
            self.rates.truncate(RATES);
        }
        self.error = None;
        self.look = Some(look);
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let Some(look) = &self.look else {
            let words = self.error.as_deref().unwrap_or("looking for the coordinator");
            return frame.render_widget(Paragraph::new(words), frame.area());
        };
        let head = look.head(self.error.as_deref());
        let rows = |rows: usize, most| u16::try_from(rows).unwrap_or(most).min(most);
        let areas = Layout::vertical([
            Constraint::Length(rows(head.len(), 10)),
            Constraint::Length(6),
            Constraint::Length(rows(look.nodes.len() + 3, 30)),
            Constraint::Min(3),
        ]);
        let [top, rates, nodes, requests] = areas.areas(frame.area());
        let rate = self.rates.front().copied().unwrap_or(0);
        let title = format!(" {rate} tokens/s, newest at the left; q ends ");
        let line =
            Sparkline::default().data(self.rates.iter().copied()).block(Block::bordered().title(title));
        frame.render_widget(Paragraph::new(head), top);
        frame.render_widget(line, rates);
        frame.render_widget(node_table(&look.nodes), nodes);
        frame.render_widget(request_table(&look.requests), requests);
    }
}

// === impl Look ===

impl Look {
    /// Tokens a second since an earlier look, of requests that still run.
    fn rate(&self, before: &Self) -> u64 {
        let known: BTreeMap<_, _> =
            before.requests.iter().map(|request| (&request.id, request.tokens)).collect();
        let new =
            |request: &Request| request.tokens.saturating_sub(known.get(&request.id).copied().unwrap_or(0));
        let tokens: u32 = self.requests.iter().map(new).sum();
        let seconds = self.at.saturating_duration_since(before.at).as_secs_f64();
        if seconds > 0.0 { (f64::from(tokens) / seconds).round() as u64 } else { 0 }
    }

    /// The cluster, then a line for each model.
    fn head(&self, error: Option<&str>) -> Vec<Line<'static>> {
        let cluster = cluster(&self.cluster).into_iter().map(|line| Line::from(line).bold());
        let models = self.queues.iter().map(|queue| {
            Line::from(format!("{}: {} running, {} waiting", queue.model, queue.running, queue.waiting))
        });
        let error = error.map(|error| Line::from(error.to_owned()).red());
        cluster.chain(models).chain(error).collect()
    }
}

fn node_table(nodes: &[Node]) -> Table<'static> {
    let row = |node: &Node| {
        let (pages, load) = (node.pages.unwrap_or_default(), node.load.unwrap_or_default());
        let used = pages.total - pages.free - pages.cached;
        let health = if node.slow { "slow" } else { &node.health };
        let color = match health {
            "ready" => Color::Green,
            "lost" => Color::Red,
            _ => Color::Yellow,
        };
        let cells = [
            node.id.clone(),
            node.model.clone(),
            node.roles.join("+"),
            health.to_owned(),
            load.running.to_string(),
            load.waiting.to_string(),
            load.waiting_prefill_tokens.to_string(),
            format!("{} {used}/{}", bar(used, pages.total), pages.total),
        ];
        Row::new(cells).style(Style::new().fg(color))
    };
    let head =
        Row::new(["node", "model", "roles", "health", "running", "waiting", "prompts", "pages in use"]);
    let widths = [16, 16, 15, 9, 8, 8, 8, 30].map(Constraint::Length);
    let rows: Vec<_> = nodes.iter().map(row).collect();
    Table::new(rows, widths).header(head.bold()).block(Block::bordered().title(" nodes "))
}

fn request_table(requests: &[Request]) -> Table<'static> {
    let node = |node: &Option<String>| node.clone().unwrap_or_else(|| "-".to_owned());
    let row = |request: &Request| {
        Row::new([
            request.id.clone(),
            request.model.clone(),
            request.tenant.clone(),
            request.stage.clone(),
            format!("{:.1} s", request.age_ms / 1e3),
            request.prompt_tokens.to_string(),
            request.tokens.to_string(),
            node(&request.prefill),
            node(&request.decode),
        ])
    };
    let head =
        Row::new(["request", "model", "tenant", "stage", "age", "prompt", "tokens", "prefill", "decode"]);
    let widths = [32, 16, 10, 8, 9, 7, 7, 16, 16].map(Constraint::Length);
    let title = format!(" {} requests, the oldest first ", requests.len());
    let rows: Vec<_> = requests.iter().map(row).collect();
    Table::new(rows, widths).header(head.bold()).block(Block::bordered().title(title))
}

/// A part of a whole in cells.
fn bar(part: u64, whole: u64) -> String {
    let full = (part * BAR).div_ceil(whole.max(1)).min(BAR);
    (0..BAR).map(|cell| if cell < full { '█' } else { '░' }).collect()
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use ratatui::{Terminal, backend::TestBackend};
    use serde_json::json;

    use super::*;

    fn look(at: Instant, tokens: u32) -> Look {
        let node = json!({
            "id": "decode-1", "roles": ["decode"], "epoch": 0, "incarnation": 7, "health": "ready", "slow": false,
            "announced": true, "model": "m", "control_addr": "127.0.0.1:1", "in_flight": 1, "links": [],
            "indexed_pages": 0, "step_model": { "prefill": null, "decode": null },
            "load": { "running": 1, "waiting": 0, "waiting_prefill_tokens": 0, "running_context_tokens": 9,
                "step_prompt_tokens": 0, "left_over": 0 },
            "pages": { "free": 60, "cached": 10, "running": 30, "receiving": 0, "sending": 0, "quarantined": 0,
                "total": 100, "promised": 0 },
        });
        let request = json!({
            "id": "ab", "tenant": "acme", "model": "m", "stage": "decode", "priority": 0, "age_ms": 2500.0,
            "left_ms": 9.0, "ttft_ms": 1.0, "itl_ms": 1.0, "prompt_tokens": 11, "tokens": tokens, "attempts": 1,
            "decode": "decode-1", "prefill": null,
        });
        Look {
            at,
            cluster: Cluster {
                ready: true,
                registry: "connected".into(),
                nodes: [("ready".into(), 1)].into(),
                ..Cluster::default()
            },
            nodes: vec![serde_json::from_value(node).unwrap()],
            queues: Vec::new(),
            requests: vec![serde_json::from_value(request).unwrap()],
        }
    }

    fn drawn(scene: &Scene) -> String {
        let mut terminal = Terminal::new(TestBackend::new(140, 24)).unwrap();
        terminal.draw(|frame| scene.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn what_is_seen_is_shown_and_stays_when_the_coordinator_goes() {
        let (mut scene, start) = (Scene::default(), Instant::now());
        scene.take(Err(anyhow!("nobody is there")));
        assert!(drawn(&scene).contains("nobody is there"));
        scene.take(Ok(look(start, 5)));
        scene.take(Ok(look(start + 2 * EVERY, 45)));
        let shown = drawn(&scene);
        for words in ["1 ready", "20 tokens/s", "decode-1", "████░░░░░░░░ 30/100", "acme", "2.5 s"]
        {
            assert!(shown.contains(words), "{words}: {shown}");
        }
        scene.take(Err(anyhow!("it went away")));
        let shown = drawn(&scene);
        assert!(shown.contains("it went away") && shown.contains("decode-1"), "{shown}");
    }

    #[test]
    fn a_small_terminal_is_enough() {
        let mut scene = Scene::default();
        scene.take(Ok(look(Instant::now(), 5)));
        let mut terminal = Terminal::new(TestBackend::new(20, 4)).unwrap();
        terminal.draw(|frame| scene.draw(frame)).unwrap();
    }
}
