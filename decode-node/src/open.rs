//! What a coordinator asks for, checked.

use std::{sync::Arc, time::Duration};

use baton_kv_transfer::{HandoffAsk, KvPeer};
use baton_protocol::{
    BlockHash, ErrorCode, Failure, HandoffId, Incarnation, NodeId, Request, Role, Stop, Token, chain,
    wire::{self, ChoiceJournal, PrefillCandidate},
};
use tokio::time::Instant;

/// More answers than this are no request of ours: the API allows far fewer.
const MAX_CHOICES: u32 = 1024;

/// Prefill nodes that an attempt may lose where nothing is said of it.
const MAY_LOSE: u32 = 2;

/// Longest time budget; longer ones are cut to it.
const MAX_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// One attempt, ready to run.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) attempt: u32,
    /// As the client sent it: `tokens` is the prompt alone.
    pub(crate) request: Request,
    /// The prompt, and after it what the journals of all choices that go on have in common.
    pub(crate) tokens: Arc<[u32]>,
    /// Of the full pages of `tokens`.
    pub(crate) hashes: Vec<BlockHash>,
    /// One entry a choice, in order.
    pub(crate) choices: Vec<Resumed>,
    /// Whom to ask to prefill, best first.
    pub(crate) candidates: Vec<KvPeer>,
    pub(crate) deadline: Instant,
    /// Time between tokens that the reader was promised.
    pub(crate) itl: Option<Duration>,
    /// Prefill nodes that may break off with this prompt: it may be what they die of, and whether they did
    /// is for the coordinator to find out before anybody else computes it.
    pub(crate) may_lose: u32,
}

/// What the client has of one choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resumed {
    /// Its end too.
    Finished,
    /// Every token there will be, but not its end: the last attempt was lost in between.
    Full { known: u32 },
    /// Tokens, of which `rest` come after the common ones.
    GoesOn { known: u32, rest: Vec<u32> },
}

/// What a token tells of its choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Learnt {
    /// It goes on.
    GoesOn,
    /// That was its last token.
    Full,
    /// The token is not the choice's next one.
    Misplaced,
}

// === impl Opened ===

impl Opened {
    /// Checks the message that opens an attempt on a node with such pages.
    ///
    /// # Errors
    /// A failure with code `InvalidRequest`.
    pub(crate) fn check(open: wire::Open, page_tokens: usize) -> Result<Self, Failure> {
        let request = open.request.ok_or_else(|| invalid("open without a request"))?;
        let request = Request::try_from(request).map_err(|malformed| invalid(malformed.to_string()))?;
        if request.choices > MAX_CHOICES {
            return Err(invalid(format!("{} choices, at most {MAX_CHOICES}", request.choices)));
        }
        if request.embedding.is_some() && request.choices != 1 {
            return Err(invalid(format!("an embedding of {} choices", request.choices)));
        }
        let journal = journal(open.journal, request.choices)?;
        let (tokens, choices) = resume(&request.tokens, &journal, &request.stop);
        let candidates = open.candidates.into_iter().map(peer).collect();
        let deadline = Instant::now() + request.deadline.min(MAX_DEADLINE);
        let hashes = chain(&request.tenant, page_tokens, &tokens);
        let tokens = tokens.into();
        let itl = (open.itl_us > 0).then(|| Duration::from_micros(open.itl_us));
        let may_lose = if open.may_lose == 0 { MAY_LOSE } else { open.may_lose };
        let attempt = open.attempt;
        Ok(Self { itl, may_lose, attempt, request, tokens, hashes, choices, candidates, deadline })
    }

    /// Choices to generate, each with what is known of it after the common tokens.
    pub(crate) fn going_on(&self) -> impl Iterator<Item = (u32, &[u32])> {
        (0u32..).zip(&self.choices).filter_map(|(choice, resumed)| match resumed {
            Resumed::GoesOn { rest, .. } => Some((choice, rest.as_slice())),
            Resumed::Finished | Resumed::Full { .. } => None,
        })
    }

    /// Choices whose end is not told, but known.
    pub(crate) fn full(&self) -> Vec<u32> {
        let is_full = |(_, resumed): &(u32, &Resumed)| matches!(resumed, Resumed::Full { .. });
        (0u32..).zip(&self.choices).filter(is_full).map(|(choice, _)| choice).collect()
    }

    /// Takes in the next token of a choice. Whether it is the next one, and
    /// with it the choice goes on.
    pub(crate) fn learn(&mut self, token: &Token) -> Learnt {
        let Some(resumed) = self.choices.get_mut(token.choice as usize) else { return Learnt::Misplaced };
        let Resumed::GoesOn { known, rest } = resumed else { return Learnt::Misplaced };
        if token.position != *known {
            return Learnt::Misplaced;
        }
        *known += 1;
        rest.push(token.id);
        if *known < self.request.stop.max_tokens {
            return Learnt::GoesOn;
        }
        *resumed = Resumed::Full { known: *known };
        Learnt::Full
    }

    /// What to ask a prefill node for: KV of `[have, tokens)` and the next
    /// token of the choices in `sample`.
    pub(crate) fn ask(&self, leg: u32, have: u32, sample: Vec<u32>) -> HandoffAsk {
        let id = HandoffId { request: self.request.id, attempt: self.attempt, leg };
        let deadline = self.deadline.saturating_duration_since(Instant::now());
        let request = Request { tokens: self.tokens.to_vec(), deadline, ..self.request.clone() };
        let prompt_tokens = self.request.tokens.len() as u32;
        HandoffAsk { id, request, prompt_tokens, have, sample, deadline, from_cache: false, holder: None }
    }
}

// === impl Resumed ===

impl Resumed {
    /// What is known of it after the common tokens, while it goes on.
    pub(crate) fn rest(&self) -> &[u32] {
        match self {
            Self::Finished | Self::Full { .. } => &[],
            Self::GoesOn { rest, .. } => rest,
        }
    }

    /// Tokens of the choice that the client has; none when it has the end too.
    pub(crate) fn known(&self) -> Option<u32> {
        match self {
            Self::Finished => None,
            Self::Full { known } | Self::GoesOn { known, .. } => Some(*known),
        }
    }
}

/// An empty journal is a first attempt's.
fn journal(journal: Vec<ChoiceJournal>, choices: u32) -> Result<Vec<ChoiceJournal>, Failure> {
    match journal.len() {
        0 => Ok(vec![ChoiceJournal::default(); choices as usize]),
        len if len == choices as usize => Ok(journal),
        len => Err(invalid(format!("journal of {len} choices for a request of {choices}"))),
    }
}

/// The common tokens, and what each choice has beyond them.
fn resume(prompt: &[u32], journal: &[ChoiceJournal], stop: &Stop) -> (Vec<u32>, Vec<Resumed>) {
    let is_full = |choice: &ChoiceJournal| choice.tokens.len() >= stop.max_tokens as usize;
    let goes_on = |choice: &&ChoiceJournal| !choice.finished && !is_full(choice);
    let common = journal
        .iter()
        .filter(goes_on)
        .map(|choice| choice.tokens.as_slice())
        .reduce(|a, b| &a[..a.iter().zip(b).take_while(|(a, b)| a == b).count()])
        .unwrap_or_default();
    let choice = |choice: &ChoiceJournal| match choice {
        choice if choice.finished => Resumed::Finished,
        choice if is_full(choice) => Resumed::Full { known: choice.tokens.len() as u32 },
        choice => Resumed::GoesOn {
            known: choice.tokens.len() as u32,
            rest: choice.tokens[common.len()..].to_vec(),
        },
    };
    ([prompt, common].concat(), journal.iter().map(choice).collect())
}

fn peer(candidate: PrefillCandidate) -> KvPeer {
    KvPeer {
        node: NodeId(candidate.node),
        control_addr: candidate.control_addr,
        incarnation: Incarnation(candidate.incarnation),
        role: Role::Prefill,
    }
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::InvalidRequest, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(choices: u32, max_tokens: u32, journal: &[(&[u32], bool)]) -> wire::Open {
        let request = wire::Request {
            id: vec![0; 16].into(),
            tokens: vec![1, 2, 3],
            sampling: Some(wire::Sampling::default()),
            stop: Some(wire::Stop { max_tokens, ..wire::Stop::default() }),
            choices,
            deadline_ms: u64::MAX,
            ..wire::Request::default()
        };
        let journal = journal
            .iter()
            .map(|(tokens, finished)| ChoiceJournal { tokens: tokens.to_vec(), finished: *finished });
        wire::Open { request: Some(request), journal: journal.collect(), ..wire::Open::default() }
    }

    fn goes_on(known: u32, rest: &[u32]) -> Resumed {
        Resumed::GoesOn { known, rest: rest.to_vec() }
    }

    #[test]
    fn a_first_attempt_has_nothing_in_common_but_the_prompt() {
        let opened = Opened::check(open(2, 8, &[]), 2).unwrap();
        assert_eq!(&*opened.tokens, [1, 2, 3]);
        assert_eq!(opened.choices, [goes_on(0, &[]), goes_on(0, &[])]);
    }

    #[test]
    fn only_choices_that_go_on_decide_what_is_common() {
        let journal: [(&[u32], bool); 4] =
            [(&[7, 8, 9], false), (&[6], true), (&[7, 8, 5, 5], false), (&[1, 1, 1, 1, 1], false)];
        let opened = Opened::check(open(4, 5, &journal), 2).unwrap();
        assert_eq!(&*opened.tokens, [1, 2, 3, 7, 8]);
        assert_eq!(
            opened.choices,
            [goes_on(3, &[9]), Resumed::Finished, goes_on(4, &[5, 5]), Resumed::Full { known: 5 }]
        );
    }

    #[test]
    fn a_single_choice_is_resumed_from_all_of_its_journal() {
        let opened = Opened::check(open(1, 5, &[(&[7, 8], false)]), 2).unwrap();
        assert_eq!(&*opened.tokens, [1, 2, 3, 7, 8]);
        assert_eq!(opened.choices, [goes_on(2, &[])]);
        assert_eq!(opened.hashes, chain("", 2, &[1, 2, 3, 7]));
    }

    #[test]
    fn a_learnt_token_is_known_and_the_last_one_fills_its_choice() {
        let mut opened = Opened::check(open(2, 2, &[]), 2).unwrap();
        let token = |choice, position| Token { choice, position, id: 9, logprob: None, top: Vec::new() };
        assert_eq!(opened.learn(&token(0, 1)), Learnt::Misplaced);
        assert_eq!(opened.learn(&token(2, 0)), Learnt::Misplaced);
        assert_eq!(opened.learn(&token(0, 0)), Learnt::GoesOn);
        assert_eq!(opened.learn(&token(0, 0)), Learnt::Misplaced);
        assert_eq!(opened.going_on().collect::<Vec<_>>(), [(0, [9].as_slice()), (1, &[])]);
        assert_eq!(opened.learn(&token(0, 1)), Learnt::Full);
        assert_eq!(opened.learn(&token(0, 2)), Learnt::Misplaced);
        assert_eq!((opened.full(), opened.going_on().count()), (vec![0], 1));
    }

    #[test]
    fn malformed_opens_are_refused() {
        let refused =
            |open: wire::Open| Opened::check(open, 2).unwrap_err().code == ErrorCode::InvalidRequest;
        assert!(refused(wire::Open::default()));
        assert!(refused(open(0, 8, &[])));
        assert!(refused(open(MAX_CHOICES + 1, 8, &[])));
        assert!(refused(open(2, 8, &[(&[1], false)])));
    }
}
