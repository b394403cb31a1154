//! Everything that happens, in its order: requests come, the coordinator's code routes them, nodes
//! step, KV travels, nodes fail and come back.
//!
//! - `callers`: requests come and leave; `routing`: where they go
//! - `changes`: what comes from outside; `steering`: what the coordinator does about nodes

mod callers;
mod changes;
mod routing;
mod steering;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use baton_coordinator::{
    CoordinatorConfig, Limits, Outliers,
    balancer::{Demands, Looks},
    places::Places,
    prefix::PrefixIndex,
    router::{Pool, Router},
};
use baton_protocol::Role;
use tokio::time::Instant;

use super::{
    Change, Cost, Done,
    live::{Lives, Phase},
    machine::LAYER_GROUPS,
    node::{Answer, Node, Prompt, Shown, Stepped, Whose},
};
use crate::{
    measure::{Outcome, Record},
    traffic::{Class, Traffic},
};

/// Seconds from the start, to be compared; never NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
struct At(f64);

/// What happens at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A turn of a session is sent.
    Arrive { session: usize, turn: usize },
    /// It is routed.
    Route { request: usize },
    /// A request has waited in line for too long.
    GiveUp { request: usize, number: u64 },
    /// Nobody waits for a request any more.
    TooLate { request: usize, serial: u64 },
    /// A prompt comes to its prefill node.
    Prompt { attempt: u64 },
    /// A node's step ends.
    Step { node: usize, life: u32 },
    /// All KV of an answer is on its decode node.
    Join { attempt: u64 },
    /// All nodes report.
    Report,
    /// A scheduled change.
    Change { index: usize },
}

/// The cluster, its coordinator and its callers.
pub(super) struct World<'a> {
    config: &'a CoordinatorConfig,
    classes: &'a [Class],
    traffic: Traffic,
    changes: &'a [Change],
    seed: u64,
    /// Whether anything of a prompt may be cached anywhere.
    shares: bool,
    start: Instant,
    now: f64,
    events: BinaryHeap<Reverse<(At, u64, Event)>>,
    scheduled: u64,
    nodes: Vec<Node>,
    pools: [Pool<Rc<Shown>>; 2],
    /// Numbers of the pools' nodes.
    pool_nodes: [Vec<usize>; 2],
    index: Arc<PrefixIndex>,
    router: Router,
    places: Places<usize>,
    demands: Demands,
    looks: Looks,
    outliers: Outliers,
    /// When the balancer, and when whoever looks for outliers, looks next.
    next_looks: (f64, f64),
    live: Lives,
    arrived: u64,
    tried: u64,
    /// What sessions of several turns have said.
    said: BTreeMap<usize, Vec<u32>>,
    next_session: usize,
    stepped: Stepped,
    /// The node whose step has just ended: its next one begins when all of it is known.
    stepping: Option<usize>,
    begun: Vec<u64>,
    pub(super) records: Vec<Record>,
    pub(super) kv_usage: Vec<f64>,
    pub(super) done: Vec<Done>,
    pub(super) roles: Vec<(f64, [usize; 2])>,
    pub(super) cost: Cost,
}

/// Between two samples of pages in use, as `measure` has it.
const SAMPLE: f64 = 0.5;
/// How long after a loss the next attempt begins, as the coordinator's first backoff.
const BACKOFF: f64 = 0.02;
/// How long a request that finds no node waits before it looks again.
const LOOK: f64 = 0.1;

// === impl At ===

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

// === impl World ===

impl<'a> World<'a> {
    pub(super) fn new(
        (config, seed): (&'a CoordinatorConfig, u64),
        (nodes, index): (Vec<Node>, Arc<PrefixIndex>),
        (traffic, classes): (Traffic, &'a [Class]),
        changes: &'a [Change],
    ) -> Self {
        let mut world = Self {
            shares: traffic.shares(),
            config,
            classes,
            changes,
            seed,
            start: Instant::now(),
            now: 0.0,
            events: BinaryHeap::new(),
            scheduled: 0,
            pools: [Pool::new(Vec::new()), Pool::new(Vec::new())],
            pool_nodes: [Vec::new(), Vec::new()],
            nodes,
            index,
            router: Router::new(config),
            places: Places::new(&Limits::of(config)),
            demands: Demands::default(),
            looks: Looks::default(),
            outliers: Outliers::default(),
            next_looks: (0.0, 0.0),
            live: Lives::default(),
            arrived: 0,
            tried: 0,
            said: BTreeMap::new(),
            next_session: 0,
            stepped: Stepped::default(),
            stepping: None,
            begun: Vec::new(),
            records: Vec::with_capacity(traffic.requests()),
            kv_usage: Vec::new(),
            done: Vec::new(),
            roles: Vec::new(),
            cost: Cost::default(),
            traffic,
        };
        world.set_pools();
        world
    }

    /// Runs until every request has ended.
    pub(super) fn run(&mut self) {
        match self.traffic.clients {
            Some(clients) => (0..clients).for_each(|_| self.next_client(0.0)),
            None => self.next_arrival(),
        }
        for (index, change) in self.changes.iter().enumerate() {
            self.at(change.at, Event::Change { index });
        }
        self.at(0.0, Event::Report);
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            self.now = at.0;
            self.cost.events += 1;
            self.happen(event);
        }
        self.cost.seconds = self.now;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { session, turn } => {
                if turn == 0 && self.traffic.clients.is_none() {
                    self.next_arrival();
                }
                self.arrive(session, turn);
            }
            Event::Route { request } => self.route(request),
            Event::GiveUp { request, number } => self.give_up(request, number),
            Event::TooLate { request, serial } => self.too_late(request, serial),
            Event::Prompt { attempt } => self.prompt(attempt),
            Event::Step { node, life } if self.nodes[node].life == life => self.step(node),
            Event::Step { .. } => {}
            Event::Join { attempt } => self.join(attempt),
            Event::Report => self.report(),
            Event::Change { index } => self.change(index),
        }
    }

    fn at(&mut self, at: f64, event: Event) {
        self.scheduled += 1;
        self.events.push(Reverse((At(at), self.scheduled, event)));
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_secs_f64(self.now)
    }

    /// A node begins a step if it has something to do.
    fn kick(&mut self, node: usize) {
        if self.stepping == Some(node) {
            return;
        }
        self.begun.clear();
        let Some(seconds) = self.nodes[node].begin(&mut self.begun) else { return };
        for attempt in &self.begun {
            if let Some(live) = self.live.of(*attempt) {
                live.began = self.now;
            }
        }
        let life = self.nodes[node].life;
        self.at(self.now + seconds, Event::Step { node, life });
    }

    /// Pages have become free on a node: answers that wait for them get them, and it goes on.
    fn wake(&mut self, node: usize) {
        self.let_in(node);
        self.kick(node);
    }

    fn step(&mut self, node: usize) {
        let mut stepped = std::mem::take(&mut self.stepped);
        self.stepping = Some(node);
        self.nodes[node].end(&mut stepped);
        for prompt in &stepped.prompts {
            self.prompt_ran(node, prompt);
        }
        for attempt in &stepped.tokens {
            let Some(live) = self.live.of(*attempt) else { continue };
            live.token(self.now);
            if live.left == 0 {
                self.end(Lives::request(*attempt), Outcome::Answered);
            }
        }
        self.stepped = stepped;
        self.stepping = None;
        self.wake(node);
    }

    fn prompt_ran(&mut self, node: usize, prompt: &Prompt) {
        let now = self.instant();
        let request = Lives::request(prompt.attempt);
        let Some(live) = self.live.of(prompt.attempt) else {
            // Nobody waits for it any more.
            self.nodes[node].release(prompt.pages);
            return;
        };
        if let Some((at, number)) = live.sent.take() {
            self.nodes[at].shown.ledger.borrow_mut().prompt_ended(number, now);
        }
        live.generates(&self.nodes[live.decode]);
        let of = &mut self.nodes[node];
        let room = of.room();
        of.cache.insert(&live.chain, room);
        let link = of.machine.link;
        let hop = if prompt.whose == Whose::Others { link.hop } else { 0.0 };
        match prompt.whose {
            Whose::Preempted => live.token(self.now),
            Whose::Own | Whose::Others => live.first_token(self.now + hop, link.front),
        }
        if live.left == 0 {
            self.nodes[node].release(prompt.pages);
            self.end(request, Outcome::Answered);
        } else if prompt.whose != Whose::Others {
            live.phase = Phase::Answer;
            let pages = if std::mem::take(&mut live.holds) { live.pages } else { prompt.pages };
            let (attempt, context) = (prompt.attempt, prompt.end + 1);
            self.nodes[node].join(Answer { attempt, context, left: live.left, pages });
        } else {
            live.phase = Phase::Transfer;
            live.held_there = prompt.pages;
            let ends = self.transfer(request, node);
            self.at(ends + hop + link.handoff, Event::Join { attempt: prompt.attempt });
        }
    }

    /// When a prompt's KV has travelled: pages go as they are made, so that what shows is what the
    /// road is slower by, and the last group of layers.
    fn transfer(&mut self, request: usize, from: usize) -> f64 {
        let Some(live) = self.live.get_mut(request) else { return self.now };
        let tokens = live.tokens.len() - live.cached(live.have, &self.nodes[live.decode]);
        let seconds = self.nodes[from].machine.transfer(tokens);
        let free = self.nodes[from].busy_until.0.max(self.nodes[live.decode].busy_until.1);
        let begins = live.began.max(free);
        let ends = (begins + seconds).max(self.now + seconds / LAYER_GROUPS);
        self.nodes[from].busy_until.0 = ends;
        self.nodes[live.decode].busy_until.1 = ends;
        live.transfer = ends - begins;
        ends
    }

    fn join(&mut self, attempt: u64) {
        let Some(live) = self.live.of(attempt) else { return };
        live.phase = Phase::Answer;
        live.joined = self.now;
        let (from, to) = (live.runs, live.decode);
        let held = std::mem::take(&mut live.held_there);
        self.nodes[from].release(held);
        live.holds = false;
        let (context, pages) = (live.tokens.len() + 1, live.pages);
        let answer = Answer { attempt, context, left: live.left, pages };
        let room = self.nodes[to].room();
        self.nodes[to].cache.insert(&live.chain, room);
        self.nodes[to].join(answer);
        self.wake(from);
        self.kick(to);
    }

    fn set_pools(&mut self) {
        for (at, role) in [Role::Prefill, Role::Decode].into_iter().enumerate() {
            let has = |node: &Node| node.shown.info.borrow().roles.contains(&role);
            let of: Vec<usize> = (0..self.nodes.len()).filter(|&node| has(&self.nodes[node])).collect();
            self.pools[at] = Pool::new(of.iter().map(|&node| Rc::clone(&self.nodes[node].shown)).collect());
            self.pool_nodes[at] = of;
        }
        self.note_roles();
    }

    /// Nodes, to be looked at when all is over.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }
}
