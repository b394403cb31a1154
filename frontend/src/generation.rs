//! Events of one or more answers, merged and turned into text.

use std::{
    borrow::Cow,
    collections::{HashSet, VecDeque},
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use baton_model::{Detokenizer, ModelText};
use baton_protocol::{Bill, ErrorCode, Event, Failure, FinishReason, PromptPart, Request, Token};
use futures::future::join_all;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    Answer,
    ask::{Ask, Content, Told},
    choice_text::ChoiceText,
    metrics::Tally,
    parts::{self, CallForm, CallPart, Form, PartReader, Parts},
    stop_strings::{Released, StopStrings},
    tools::Tools,
};

/// The answers of one call. Dropping it cancels what is not finished.
pub struct Generation {
    /// One a prompt.
    answers: Vec<PromptAnswer>,
    /// Whose turn it is to be asked first.
    turn: usize,
    pending: VecDeque<Delta>,
    /// Waited for once, not with every event.
    deadline: Pin<Box<Sleep>>,
    showing: Showing,
    tally: Arc<Tally>,
}

/// How tokens become text that is shown.
pub struct Showing {
    pub text: Arc<ModelText>,
    /// The client's.
    pub stop_strings: Vec<String>,
    /// Whether those stay in the text.
    pub shows_stop: bool,
    /// Texts that end an answer of the model as its tokens do.
    pub ends: &'static [&'static str],
    /// Whether control tokens are spelled out.
    pub spells_control: bool,
    /// Whether nothing of an answer is shown but its end.
    pub hides_answer: bool,
    /// How the parts of an answer are told apart.
    pub parts: PartReader,
}

/// A step of one choice. Choices count through all prompts of a call: choice
/// `c` of prompt `p` is `p * n + c`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    pub index: u32,
    /// Text that became certain; may be empty.
    pub text: String,
    /// What the model thought before it.
    pub thoughts: String,
    /// Calls of tools.
    pub calls: Vec<CallPart>,
    /// The token behind it.
    pub id: Option<u32>,
    /// The same, if log-probabilities were asked for.
    pub token: Option<TokenWords>,
    /// Set on the last step of the choice, which has a token if a stop string ended it.
    pub end: Option<End>,
}

/// Why a choice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The model said so, by a token or text that is not shown.
    Model,
    /// The same, and it waits for what it called.
    Calls,
    /// One of the client's stop strings.
    StopString(Arc<str>),
    /// There may be no more tokens.
    Length,
}

/// A token with its log-probability, as bytes of text.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenWords {
    pub id: u32,
    pub bytes: Vec<u8>,
    pub logprob: f32,
    /// Likeliest tokens at its place, best first; they have no others in turn.
    pub top: Vec<TokenWords>,
}

/// A token of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptWord {
    pub id: u32,
    pub bytes: Vec<u8>,
    /// Whether it steers the model, and is no text.
    pub is_control: bool,
    pub told: Option<Likelihood>,
}

/// How likely a token of a prompt is.
#[derive(Clone, Debug, PartialEq)]
pub struct Likelihood {
    pub logprob: f32,
    /// 1 for the likeliest at its place.
    pub rank: u32,
    /// Likeliest tokens at its place, best first.
    pub top: Vec<TokenWords>,
}

/// What a prompt and its answers used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Used {
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    pub cached_tokens: u32,
    /// What was told of the prompt's tokens, with the one before them, of which nothing is;
    /// complete before the first step.
    pub prompt: Arc<Vec<PromptWord>>,
    /// Known at the end.
    pub bill: Option<Bill>,
}

struct PromptAnswer {
    /// None once it ended.
    events: Option<Box<dyn Answer>>,
    choices: Vec<Choice>,
    prompt_tokens: u32,
    cached_tokens: u32,
    /// Tokens of the prompt that are told of, with the one before them.
    shown: Arc<[u32]>,
    prompt: Arc<Vec<PromptWord>>,
    bill: Option<Bill>,
}

struct Choice {
    text: ChoiceText,
    parts: PartReader,
    tokens: u32,
    finished: bool,
}

/// The cluster keeps the deadline; this much later (for short ones, a quarter of it) we stop believing in it.
const DEADLINE_SLACK: Duration = Duration::from_secs(5);

/// How long the end of answers is waited for when nobody needs their tokens any more.
const END_WAIT: Duration = Duration::from_secs(1);

// === impl Generation ===

impl Generation {
    /// Follows `answers`, one for each of `prompts`.
    pub fn new(
        answers: Vec<Box<dyn Answer>>,
        prompts: &[PromptTerms],
        showing: Showing,
        tally: Arc<Tally>,
    ) -> Self {
        let stops =
            StopStrings::default().and(&showing.stop_strings, showing.shows_stop).and(showing.ends, false);
        let follow = |(events, terms): (Box<dyn Answer>, &PromptTerms)| {
            let choice = |_| Choice {
                text: ChoiceText::new(showing.detokenizer(), stops.clone(), Arc::clone(&terms.silent)),
                parts: showing.parts.clone(),
                tokens: 0,
                finished: false,
            };
            PromptAnswer {
                events: Some(events),
                choices: (0..terms.choices).map(choice).collect(),
                prompt_tokens: terms.prompt_tokens,
                cached_tokens: 0,
                prompt: Arc::new(
                    terms.shown.first().map(|id| showing.prompt_word(*id, None)).into_iter().collect(),
                ),
                shown: Arc::clone(&terms.shown),
                bill: None,
            }
        };
        let answers = answers.into_iter().zip(prompts).map(follow).collect();
        let deadline = prompts.iter().map(|terms| terms.deadline).max().unwrap_or_default();
        let deadline = Instant::now() + deadline + DEADLINE_SLACK.min(deadline / 4);
        let deadline = Box::pin(sleep_until(deadline));
        Self { answers, turn: 0, pending: VecDeque::new(), deadline, showing, tally }
    }

    /// Waits for the first step, and keeps it for [`next`](Self::next).
    ///
    /// # Errors
    /// When there is none: the call failed before anything was generated.
    pub async fn begin(&mut self) -> Result<(), Failure> {
        let first = self.next().await?;
        if let Some(delta) = first {
            self.pending.push_front(delta);
        }
        Ok(())
    }

    /// The next step; none when every choice has finished.
    ///
    /// # Errors
    /// When an answer fails or the time is over. Nothing follows.
    pub async fn next(&mut self) -> Result<Option<Delta>, Failure> {
        loop {
            if let Some(delta) = self.pending.pop_front() {
                return Ok(Some(delta));
            }
            if self.answers.iter().all(PromptAnswer::is_finished) {
                return Ok(None);
            }
            let (prompt, event) = poll_fn(|cx| self.poll(cx)).await?;
            self.take(prompt, event)?;
        }
    }

    /// What was used so far, by prompt.
    pub fn used(&self) -> Vec<Used> {
        self.answers.iter().map(PromptAnswer::used).collect()
    }

    /// What was used, by prompt, once all choices have finished. Reads the answers
    /// to their end: for those that stop strings have ended, that takes a moment.
    pub async fn settle(&mut self) -> Vec<Used> {
        let ends = self.answers.iter_mut().map(PromptAnswer::read_to_end);
        // In time or not: then the bill is missing.
        let _ = tokio::time::timeout(END_WAIT, join_all(ends)).await;
        self.used()
    }

    /// An event of any answer that has one, or that there is no more time for it.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(usize, Option<Event>), Failure>> {
        let prompts = self.answers.len();
        for prompt in (0..prompts).map(|offset| (self.turn + offset) % prompts) {
            let Some(events) = &mut self.answers[prompt].events else { continue };
            if let Poll::Ready(event) = events.poll_event(cx) {
                self.turn = prompt + 1;
                return Poll::Ready(Ok((prompt, event)));
            }
        }
        let late = || Failure::new(ErrorCode::DeadlineExceeded, "the answer took too long");
        self.deadline.as_mut().poll(cx).map(|()| Err(late()))
    }

    fn take(&mut self, prompt: usize, event: Option<Event>) -> Result<(), Failure> {
        let answer = &mut self.answers[prompt];
        match event {
            Some(Event::Token(token)) => {
                self.tally.saw_token();
                if self.showing.hides_answer { Ok(()) } else { self.token(prompt, &token) }
            }
            Some(Event::Prompt(part)) => {
                answer.tell(&self.showing, part);
                Ok(())
            }
            Some(Event::Finished { choice, reason }) => self.finished(prompt, choice, reason),
            Some(Event::Failed(failure)) => Err(failure),
            Some(event) => {
                answer.note(event);
                Ok(())
            }
            None if answer.is_finished() => {
                answer.events = None;
                Ok(())
            }
            None => Err(Failure::new(ErrorCode::Internal, "the answer broke off")),
        }
    }

    fn token(&mut self, prompt: usize, token: &Token) -> Result<(), Failure> {
        let index = self.index(prompt, token.choice);
        let answer = &mut self.answers[prompt];
        let choice = answer.choice(token.choice)?;
        if choice.finished {
            return Ok(());
        }
        choice.tokens += 1;
        let Released { text, stopped } = choice.text.push(token.id);
        choice.finished = stopped.is_some();
        let Parts { thoughts, text, calls } = choice.parts.push(&text, choice.finished);
        if let (true, Some(events)) = (choice.finished, &mut answer.events) {
            events.stop_choice(token.choice);
        }
        let words = token.logprob.map(|logprob| TokenWords {
            top: token.top.iter().map(|top| self.showing.words(top.id, top.logprob)).collect(),
            ..self.showing.words(token.id, logprob)
        });
        let end = stopped.map(|stop| self.showing.end(stop));
        let id = Some(token.id);
        self.pending.push_back(Delta { index, text, thoughts, calls, id, token: words, end });
        Ok(())
    }

    fn finished(&mut self, prompt: usize, choice: u32, reason: FinishReason) -> Result<(), Failure> {
        let index = self.index(prompt, choice);
        let choice = self.answers[prompt].choice(choice)?;
        if choice.finished {
            return Ok(());
        }
        choice.finished = true;
        let Released { text, stopped } = choice.text.finish();
        let Parts { thoughts, text, calls } = choice.parts.push(&text, true);
        let end = match (stopped, reason) {
            (Some(stop), _) => self.showing.end(stop),
            (None, _) if self.showing.hides_answer => End::Length,
            (None, FinishReason::Stop) if choice.parts.has_called() => End::Calls,
            (None, FinishReason::Stop) => End::Model,
            (None, FinishReason::Length) => End::Length,
        };
        self.pending.push_back(Delta { index, text, thoughts, calls, end: Some(end), ..Delta::default() });
        Ok(())
    }

    fn index(&self, prompt: usize, choice: u32) -> u32 {
        // Every prompt of a call has the same number of choices.
        (prompt * self.answers[prompt].choices.len()) as u32 + choice
    }
}

// === impl Showing ===

impl Showing {
    /// As a call wants it.
    pub fn of(ask: Ask, requests: &[Request], text: Arc<ModelText>) -> Self {
        let parts = part_reader(&ask, requests, &text);
        let Ask { prompts, parameters, .. } = ask;
        let is_chat = prompts.iter().any(|prompt| matches!(prompt.content, Content::Chat(_)));
        Self {
            // Like the tokens that end an answer, such texts can be ignored.
            ends: if is_chat && !parameters.ignore_eos { text.chat_ends() } else { &[] },
            text,
            stop_strings: parameters.stop_strings,
            shows_stop: parameters.shows_stop,
            spells_control: parameters.spells_control,
            hides_answer: parameters.hides_answer,
            parts,
        }
    }

    fn detokenizer(&self) -> Detokenizer {
        let detokenizer = self.text.detokenizer();
        if self.spells_control {
            detokenizer.spelling_control()
        } else {
            detokenizer.spelling(self.parts.marks())
        }
    }

    fn prompt_word(&self, id: u32, told: Option<Likelihood>) -> PromptWord {
        PromptWord { id, bytes: self.text.token_bytes(id), is_control: self.text.is_control(id), told }
    }

    fn words(&self, id: u32, logprob: f32) -> TokenWords {
        TokenWords { id, bytes: self.text.token_bytes(id), logprob, top: Vec::new() }
    }

    fn end(&self, stop: Arc<str>) -> End {
        if self.stop_strings.iter().any(|own| **own == *stop) { End::StopString(stop) } else { End::Model }
    }
}

/// How the parts of an answer to `ask` are told apart. Only conversations have any.
fn part_reader(ask: &Ask, requests: &[Request], text: &ModelText) -> PartReader {
    let (Some(_), Some(request)) = (ask.conversation(), requests.first()) else {
        return PartReader::default();
    };
    let tools = ask.tools();
    let calls = tools.map(|tools| if tools.are_demanded() { CallForm::Json } else { CallForm::of(text) });
    // Whoever is held to a grammar cannot think first.
    let thinks = request.sampling.grammar.is_none() && parts::thinks(text);
    let begins_thinking = thinks && parts::ends_thinking(text, &request.tokens);
    let names = tools.map(Tools::names).unwrap_or_default();
    PartReader::new(Form { thinks, begins_thinking, calls }, &names)
}

// === impl TokenWords ===

impl TokenWords {
    /// Its text, with marks for what is no character by itself.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }

    /// Characters of its text, each broken one counted as one.
    pub fn chars(&self) -> usize {
        self.text().chars().count()
    }
}

// === impl PromptWord ===

impl PromptWord {
    /// Its text, with marks for what is no character by itself.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }
}

// === impl PromptAnswer ===

impl PromptAnswer {
    /// Takes what is told of the prompt's next tokens.
    fn tell(&mut self, showing: &Showing, part: PromptPart) {
        let words = Arc::make_mut(&mut self.prompt);
        let ids = self.shown[words.len().min(self.shown.len())..].iter();
        words.extend(ids.zip(part.tokens).map(|(id, token)| {
            let top = token.top.iter().map(|top| showing.words(top.id, top.logprob)).collect();
            let told = Likelihood { logprob: token.logprob, rank: token.rank, top };
            showing.prompt_word(*id, Some(told))
        }));
    }

    fn used(&self) -> Used {
        Used {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.choices.iter().map(|choice| choice.tokens).sum(),
            cached_tokens: self.cached_tokens,
            prompt: Arc::clone(&self.prompt),
            bill: self.bill.clone(),
        }
    }

    fn is_finished(&self) -> bool {
        self.choices.iter().all(|choice| choice.finished)
    }

    fn choice(&mut self, choice: u32) -> Result<&mut Choice, Failure> {
        self.choices
            .get_mut(choice as usize)
            .ok_or_else(|| Failure::new(ErrorCode::Internal, "the answer has a choice that nobody asked for"))
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Accepted { cached_tokens } => self.cached_tokens = cached_tokens,
            Event::Bill(bill) => {
                self.cached_tokens = bill.cached_tokens;
                self.bill = Some(bill);
            }
            Event::Computing { .. }
            | Event::BrokeOff { .. }
            | Event::Prompt(_)
            | Event::Embedding(_)
            | Event::Token(_)
            | Event::Finished { .. }
            | Event::Failed(_) => {}
        }
    }

    async fn read_to_end(&mut self) {
        while let Some(events) = &mut self.events {
            match poll_fn(|cx| events.poll_event(cx)).await {
                Some(event) => self.note(event),
                None => self.events = None,
            }
        }
    }
}

/// What a generation keeps of a request.
#[derive(Clone, Debug)]
pub struct PromptTerms {
    prompt_tokens: u32,
    choices: u32,
    deadline: Duration,
    silent: Arc<HashSet<u32>>,
    shown: Arc<[u32]>,
}

// === impl PromptTerms ===

impl PromptTerms {
    /// Of a request to a model with these end-of-sequence tokens, of whose prompt this is told.
    pub fn of(request: &Request, eos_tokens: &[u32], told: Option<Told>) -> Self {
        let tokens = &request.tokens;
        let shown = told.map_or(&[][..], |told| &tokens[told.from(tokens.len()).saturating_sub(1)..]);
        let mut silent: HashSet<u32> = request.stop.token_ids.iter().copied().collect();
        if !request.stop.ignore_eos {
            silent.extend(eos_tokens);
        }
        Self {
            prompt_tokens: request.tokens.len() as u32,
            choices: request.choices,
            deadline: request.deadline,
            silent: Arc::new(silent),
            shown: shown.into(),
        }
    }
}
