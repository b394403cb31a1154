//! One request's life, top to bottom.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use baton_protocol::{Bill, Budgets, ErrorCode, Event, Failure, FinishReason, NodeId, Request, Token, wire};
use baton_registry::Backoff;
use baton_traces::Span;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Answer, IncidentKind, Shared, Wishes,
    admission::Permit,
    attempt::{Attempt, Loss},
    balancer::{Asked, Ended},
    computing::{Computing, Verdict},
    ends::{Ends, by_an_operator},
    journal::{Journal, JournalError, News, record_prompt},
    lines::Line,
    metrics::Meter,
    places::overloaded,
    quarantine::NODES,
    queue::Claim,
    requests::Tracked,
    route::{self, Route, Wanted},
};

/// A request that was admitted. Pulled by the answer's reader: nothing of it
/// runs on its own, so dropping it is all that cancel needs.
pub(crate) struct Run {
    course: Course,
    ends: Ends,
}

/// How it goes, unless it is ended from outside.
struct Course {
    shared: Arc<Shared>,
    request: Request,
    budgets: Budgets,
    /// Time between tokens that decode nodes are to keep.
    kept_itl: Option<Duration>,
    journal: Journal,
    /// Fingerprint of the model that said the first of what was passed on.
    fingerprint: Option<String>,
    deadline: Instant,
    /// Choices that the reader has seen enough of.
    stops: mpsc::Receiver<u32>,
    attempt: Option<Box<Attempt>>,
    /// The running attempt's.
    span: Span,
    /// Attempts begun.
    attempts: u32,
    /// Whether the running attempt had a token.
    generates: bool,
    /// Decode nodes that failed this request.
    avoid: Vec<NodeId>,
    computing: Computing,
    /// When the first attempt began, and the running one.
    begun: Option<(Instant, Instant)>,
    backoff: Backoff,
    /// Whether `Accepted` was passed on.
    accepted: bool,
    /// Whether the embedding was, if one is asked for: only the end is missing then.
    embedded: bool,
    /// The running attempt's bill, held until the last choice ends.
    bill: Option<Bill>,
    /// Events to pass on, in order.
    ready: VecDeque<Event>,
    /// Nothing follows what is in `ready`.
    over: bool,
    meter: Meter,
    tracked: Tracked,
    line: Line,
    _permit: Permit,
}

/// How long the bill is waited for when the reader has stopped the last choice.
const BILL_WAIT: Duration = Duration::from_millis(500);
/// A deadline further away than this is none.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Admits the request and runs it until a node has taken it.
pub(crate) async fn dispatch(
    shared: &Arc<Shared>,
    request: Request,
    wishes: Wishes,
) -> Result<Answer, Failure> {
    let deadline = Instant::now() + request.deadline.min(FAR);
    let mut meter = Meter::start(shared.metrics.clone(), request.choices);
    let usual = shared.limits.read().budgets.of(&request.model, wishes.priority);
    let budgets = wishes.budgets(usual);
    if shared.fleet.knows(&request.model) {
        shared.demands.arrived(&request.model, Asked::of(&request, budgets), Instant::now());
    }
    let tracked = shared.requests.enter(&request, (wishes.priority, budgets), deadline);
    let cancelled = tracked.cancelled();
    let due = deadline.min(Instant::now() + budgets.ttft);
    let (tenant, tokens) = (request.tenant.clone(), tokens(&request));
    let claim = Claim { tenant, priority: wishes.priority, due, tokens };
    let (line, permit) = match enter(shared, &request, claim, (deadline, &cancelled)).await {
        Ok(entered) => entered,
        Err(failure) => {
            meter.failed(failure.code);
            return Err(failure);
        }
    };
    meter.admitted();
    tracked.admitted();
    let (stop, stops) = mpsc::channel(request.choices.max(1) as usize);
    let choices = request.choices;
    let computing = Computing::new(request.id, &shared.suspects);
    let course = Course {
        shared: Arc::clone(shared),
        journal: Journal::new(request.choices),
        fingerprint: None,
        request,
        budgets,
        kept_itl: wishes.kept_itl(usual),
        deadline,
        stops,
        attempt: None,
        span: Span::default(),
        attempts: 0,
        generates: false,
        avoid: Vec::new(),
        computing,
        begun: None,
        backoff: Backoff::new(Duration::from_millis(20)..Duration::from_millis(500)),
        accepted: false,
        embedded: false,
        bill: None,
        ready: VecDeque::new(),
        over: false,
        meter,
        tracked,
        line,
        _permit: permit,
    };
    let mut run = Box::new(Run { course, ends: Ends::new(deadline, cancelled) });
    match run.next().await {
        Some(Event::Failed(failure)) => Err(failure),
        Some(first) => Ok(Answer::new(first, run, stop, choices)),
        None => Err(Failure::new(ErrorCode::InvalidRequest, "the request asks for no choices")),
    }
}

/// A place in its model's line for a request that may be tried.
async fn enter(
    shared: &Shared,
    request: &Request,
    claim: Claim,
    (deadline, cancelled): (Instant, &CancellationToken),
) -> Result<(Line, Permit), Failure> {
    let mut span = Span::part("admission", &request.trace);
    let entering = async {
        shared.quarantine.check(request, Instant::now())?;
        route::known(shared, &request.model, deadline).await?;
        let line = shared.lines.of(&request.model);
        line.retries.request(Instant::now());
        let permit = line.admission.admit(claim, deadline).await?;
        Ok((line, permit))
    };
    let entered = cancelled.run_until_cancelled(entering).await.unwrap_or_else(|| Err(by_an_operator()));
    entered.inspect_err(|failure| span.fail(failure.message.clone()))
}

impl Run {
    /// The next event; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let Self { course, ends } = self;
        while course.ready.is_empty() && !course.over {
            let ended = tokio::select! {
                biased;
                failure = ends.come() => Some(failure),
                () = course.advance() => None,
            };
            if let Some(failure) = ended {
                course.fail(failure);
            }
        }
        course.ready.pop_front()
    }
}

impl Course {
    /// One step: begin an attempt, or take one message of the running one.
    async fn advance(&mut self) {
        let step = match self.attempt.take() {
            None => self.begin().await,
            Some(attempt) => self.step(attempt).await,
        };
        match step {
            Ok(attempt) => self.attempt = attempt,
            Err(loss) => self.lose(loss).await,
        }
    }

    /// The next attempt, on nodes chosen now.
    async fn begin(&mut self) -> Result<Option<Box<Attempt>>, Loss> {
        self.settle();
        if self.over {
            return Ok(None);
        }
        let wanted = Wanted {
            request: &self.request,
            budgets: &self.budgets,
            avoid: &self.avoid,
            fingerprint: self.fingerprint.as_deref(),
        };
        let route = match route::find(&self.shared, &wanted).await {
            Ok(route) => route,
            Err(failure) => {
                self.fail(failure);
                return Ok(None);
            }
        };
        if let Some(refusal) = self.too_late(&route) {
            self.fail(refusal);
            return Ok(None);
        }
        self.bill = None;
        let now = Instant::now();
        self.begun = Some((self.begun.map_or(now, |(first, _)| first), now));
        self.generates = false;
        self.computing.attempt();
        self.meter.foretold(route.prediction);
        self.tracked.attempt(&route);
        let number = self.attempts;
        self.attempts += 1;
        self.shared.metrics.attempt(number > 0 && !self.journal.is_empty());
        tracing::debug!(
            request = %self.request.id, attempt = number, node = %route.decode.id(),
            prefill = ?route.prefill.first().map(|node| node.id()), "attempt begins"
        );
        self.span = Span::part("attempt", &self.request.trace);
        self.span.set("baton.attempt", || i64::from(number));
        self.span.set("baton.decode_node", || route.decode.id().to_string());
        let left = self.deadline.saturating_duration_since(Instant::now());
        let deadline_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let open = wire::Open {
            request: Some(wire::Request {
                deadline_ms,
                trace: self.span.parent(),
                ..wire::Request::from(&self.request)
            }),
            attempt: number,
            journal: self.journal.to_wire(),
            candidates: Vec::new(),
            may_lose: self.computing.may_lose(),
            itl_us: self.kept_itl.map_or(0, |itl| u64::try_from(itl.as_micros()).unwrap_or(u64::MAX)),
        };
        let attempt = Attempt::open(route, open, self.request.choices).await?;
        Ok(Some(Box::new(attempt)))
    }

    /// Why an attempt that is foretold to miss the deadline is not begun. What
    /// has sent tokens already goes on as long as it can.
    fn too_late(&self, route: &Route) -> Option<Failure> {
        let ttft = Duration::try_from_secs_f64(route.prediction?.ttft).ok()?;
        let left = self.deadline.saturating_duration_since(Instant::now());
        (ttft > left && self.journal.is_empty())
            .then(|| overloaded("no first token is expected before the deadline", ttft - left))
    }

    /// Ends choices that need no further attempt: those that the reader
    /// stopped, and those that lack only the word that they are at their limit.
    fn settle(&mut self) {
        while let Ok(choice) = self.stops.try_recv() {
            self.end_choice(choice, FinishReason::Stop);
        }
        if self.embedded {
            self.end_choice(0, FinishReason::Stop);
        }
        for choice in self.journal.full(self.request.stop.max_tokens) {
            self.end_choice(choice, FinishReason::Length);
        }
    }

    /// One message of the node, or one word of the reader.
    async fn step(&mut self, mut attempt: Box<Attempt>) -> Result<Option<Box<Attempt>>, Loss> {
        let message = tokio::select! {
            biased;
            Some(choice) = self.stops.recv() => {
                self.stop_choice(&mut attempt, choice).await;
                return Ok(Some(attempt));
            }
            message = attempt.next() => message?,
        };
        if message.message.is_none() {
            // A word of a newer node.
            return Ok(Some(attempt));
        }
        let event = Event::try_from(message).map_err(|error| attempt.wrong(&error))?;
        match event {
            Event::Accepted { .. } => {
                self.computing.taken();
                if !std::mem::replace(&mut self.accepted, true) {
                    self.ready.push_back(event);
                }
            }
            Event::Computing { node, cached_tokens } => {
                self.tracked.computes(node.as_ref());
                self.computing.begin(attempt.computes(node.as_ref()), cached_tokens);
            }
            Event::BrokeOff { node } => self.computing.prefill_broke_off(attempt.computes(Some(&node))),
            Event::Token(_) if self.request.embedding.is_some() => {
                return Err(attempt.wrong(&JournalError::Unasked));
            }
            Event::Token(_) | Event::Finished { .. } if self.has_untold() => {
                return Err(attempt.wrong(&JournalError::Untold));
            }
            Event::Token(token) => {
                attempt.prefilled();
                return self.token(&attempt, token).map(|()| Some(attempt));
            }
            Event::Finished { choice, reason } => {
                attempt.prefilled();
                self.end_choice(choice, reason);
            }
            Event::Bill(bill) => self.bill = Some(self.of_the_request(bill)),
            Event::Failed(failure) => return Err(attempt.failed(failure)),
            before => self.before_tokens(&attempt, before)?,
        }
        Ok(if self.over { None } else { Some(attempt) })
    }

    /// What comes before an answer, or in its place.
    fn before_tokens(&mut self, attempt: &Attempt, event: Event) -> Result<(), Loss> {
        self.computing.end();
        match event {
            Event::Prompt(part) => {
                self.fingerprint.get_or_insert_with(|| attempt.fingerprint());
                record_prompt(&mut self.request, &part).map_err(|error| attempt.wrong(&error))?;
                self.ready.push_back(Event::Prompt(part));
            }
            Event::Embedding(vector) if self.request.embedding.is_some() && !self.embedded => {
                self.embedded = true;
                self.ready.push_back(Event::Embedding(vector));
            }
            _ => return Err(attempt.wrong(&JournalError::Unasked)),
        }
        Ok(())
    }

    fn token(&mut self, attempt: &Attempt, token: Token) -> Result<(), Loss> {
        if !std::mem::replace(&mut self.generates, true) {
            self.span.mark("first token");
        }
        self.computing.end();
        self.fingerprint.get_or_insert_with(|| attempt.fingerprint());
        let news = self.journal.record(&token).map_err(|error| attempt.wrong(&error))?;
        if news == News::New {
            self.meter.token(token.choice);
            self.tracked.token();
            self.ready.push_back(Event::Token(token));
        }
        Ok(())
    }

    /// The node's bill is of its attempt; the reader's is of the request.
    fn of_the_request(&self, bill: Bill) -> Bill {
        let earlier = self.begun.map_or(Duration::ZERO, |(first, last)| last - first);
        self.computing.bill(&self.request, Bill { earlier, ..bill })
    }

    /// Whether something comes before the answer, or in its place, that did not come yet.
    fn has_untold(&self) -> bool {
        self.request.prompt_logprobs.is_some() || self.request.embedding.is_some() && !self.embedded
    }

    /// The reader needs no more of this choice.
    async fn stop_choice(&mut self, attempt: &mut Attempt, choice: u32) {
        if !self.journal.is_open(choice) {
            return;
        }
        attempt.stop_choice(choice);
        if self.journal.is_last_open(choice) {
            // Nobody waits for tokens any more: a node that is slow to send
            // its bill costs the bill, not time.
            let bill = timeout(BILL_WAIT, next_bill(attempt, self.bill.take())).await.ok().flatten();
            self.bill = bill.map(|bill| self.of_the_request(bill));
        }
        self.end_choice(choice, FinishReason::Stop);
    }

    /// Passes on a choice's end once, the last one after the bill.
    fn end_choice(&mut self, choice: u32, reason: FinishReason) {
        if self.journal.finish(choice) != Ok(News::New) {
            return;
        }
        if self.journal.is_finished() {
            if let Some(bill) = &mut self.bill {
                bill.queue += self.meter.waited();
                let (prompt_tokens, answer_tokens) = (self.request.tokens.len(), self.journal.tokens());
                let ended = Ended::billed(prompt_tokens, answer_tokens, bill);
                self.shared.demands.ended(&self.request.model, ended);
            }
            self.meter.finished(self.bill.as_ref());
            drop(std::mem::take(&mut self.span));
            self.ready.extend(self.bill.take().map(Event::Bill));
            self.over = true;
        }
        self.ready.push_back(Event::Finished { choice, reason });
    }

    /// An attempt is lost: the node is asked whether it lives, and the next
    /// attempt comes after a short wait, if there may be one.
    async fn lose(&mut self, loss: Loss) {
        let Loss { failure, node, unexplained } = loss;
        tracing::warn!(request = %self.request.id, node = %node.id(), code = %failure.code, "attempt lost");
        let words = format!("an answer broke off: {} ({})", failure.message, failure.code);
        std::mem::take(&mut self.span).fail(words.clone());
        self.shared.incidents.of(node.id(), IncidentKind::AttemptLost, words);
        if unexplained {
            node.suspect();
            self.computing.decode_broke_off(&node);
        }
        // A decode node whose prefill nodes broke off is none to be avoided: it has what came from them.
        let prefill_lost =
            !unexplained && failure.code == ErrorCode::PeerLost && self.computing.lost_prefill();
        if !prefill_lost {
            self.avoid.push(node.id().clone());
        }
        let verdict = self.computing.verdict().await;
        if verdict == Verdict::Unsure {
            self.computing.be_alone().await;
        }
        if verdict == Verdict::Deadly {
            tracing::error!(request = %self.request.id, "quarantined: nodes died of it");
            self.shared.metrics.quarantined();
            let words = format!("request {} is locked out: {NODES} nodes died of it", self.request.id);
            self.shared.incidents.all(IncidentKind::Quarantined, words);
            let refusal = self.shared.quarantine.put(&self.request, Instant::now());
            return self.fail(refusal);
        }
        // Its roles were changed while the request was on its way: nothing failed, nothing ran.
        let moved = failure.code == ErrorCode::Moved;
        if moved {
            node.check_soon();
        }
        let may_retry = || unexplained || prefill_lost || moved || self.line.retries.take(Instant::now());
        if !failure.code.is_retryable() || self.attempts >= self.shared.config.max_attempts || !may_retry() {
            return self.fail(failure);
        }
        sleep(self.backoff.next(fastrand::f64())).await;
    }

    fn fail(&mut self, failure: Failure) {
        self.attempt = None;
        std::mem::take(&mut self.span).fail(failure.message.clone());
        self.meter.failed(failure.code);
        self.ready.push_back(Event::Failed(failure));
        self.over = true;
    }
}

/// Tokens of the prompt and of the answers at most.
fn tokens(request: &Request) -> u64 {
    let answers = u64::from(request.choices) * u64::from(request.stop.max_tokens);
    request.tokens.len() as u64 + answers
}

/// The bill already here, or the next one that the node sends.
async fn next_bill(attempt: &mut Attempt, known: Option<Bill>) -> Option<Bill> {
    let mut bill = known;
    while bill.is_none() {
        if let Event::Bill(sent) = Event::try_from(attempt.next().await.ok()?).ok()? {
            bill = Some(sent);
        }
    }
    bill
}
