//! What the client has received, by choice and position.

use baton_protocol::{PromptPart, Request, Token, wire::ChoiceJournal};

/// Tokens received so far. Every new attempt starts from it, so that the
/// client sees no token twice and misses none.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    choices: Vec<Choice>,
}

#[derive(Clone, Debug, Default)]
struct Choice {
    tokens: Vec<u32>,
    finished: bool,
}

/// Whether the client has to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Not seen before.
    New,
    /// Received before, or of a choice that has ended.
    Old,
}

/// An attempt that cannot be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JournalError {
    /// Tokens in between are missing.
    #[error("token {position} of choice {choice} came after only {known} tokens")]
    Gap { choice: u32, position: u32, known: usize },
    /// The request has no such choice.
    #[error("the request has no choice {choice}")]
    UnknownChoice { choice: u32 },
    /// Tokens of the prompt in between are missing, or told of twice, or by nobody asked for.
    #[error("tokens of the prompt from {first} on were told of in place of {next:?}")]
    Prompt { first: u32, next: Option<u32> },
    /// The answer began before all was told of the prompt, or ended.
    #[error("the answer came before what was asked of the prompt")]
    Untold,
    /// An embedding in place of an answer, or the other way round.
    #[error("something else came than was asked for")]
    Unasked,
}

/// Enters what was told of the prompt: the next attempt of the request is asked for the rest.
pub(crate) fn record_prompt(request: &mut Request, part: &PromptPart) -> Result<(), JournalError> {
    let next = request.prompt_logprobs.map(|asked| asked.from);
    let end = part.first as usize + part.tokens.len();
    if next != Some(part.first) || end > request.tokens.len() {
        return Err(JournalError::Prompt { first: part.first, next });
    }
    match &mut request.prompt_logprobs {
        Some(asked) if end < request.tokens.len() => asked.from = end as u32,
        done => *done = None,
    }
    Ok(())
}

impl Journal {
    pub(crate) fn new(choices: u32) -> Self {
        Self { choices: (0..choices).map(|_| Choice::default()).collect() }
    }

    /// Enters a token.
    pub(crate) fn record(&mut self, token: &Token) -> Result<News, JournalError> {
        let choice = self.choice(token.choice)?;
        let known = choice.tokens.len();
        if choice.finished || (token.position as usize) < known {
            return Ok(News::Old);
        }
        if token.position as usize > known {
            return Err(JournalError::Gap { choice: token.choice, position: token.position, known });
        }
        choice.tokens.push(token.id);
        Ok(News::New)
    }

    /// Enters the end of a choice.
    pub(crate) fn finish(&mut self, choice: u32) -> Result<News, JournalError> {
        let choice = self.choice(choice)?;
        let news = if choice.finished { News::Old } else { News::New };
        choice.finished = true;
        Ok(news)
    }

    /// Whether every choice has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.choices.iter().all(|choice| choice.finished)
    }

    /// Whether this choice exists and has not ended.
    pub(crate) fn is_open(&self, choice: u32) -> bool {
        self.choices.get(choice as usize).is_some_and(|choice| !choice.finished)
    }

    /// Whether this choice is the only one that has not ended.
    pub(crate) fn is_last_open(&self, choice: u32) -> bool {
        self.is_open(choice) && self.choices.iter().filter(|choice| !choice.finished).count() == 1
    }

    /// Unfinished choices that have this many tokens.
    pub(crate) fn full(&self, max_tokens: u32) -> Vec<u32> {
        let full = |choice: &Choice| !choice.finished && choice.tokens.len() >= max_tokens as usize;
        (0u32..).zip(&self.choices).filter(|(_, choice)| full(choice)).map(|(index, _)| index).collect()
    }

    /// Whether anything was received.
    pub(crate) fn is_empty(&self) -> bool {
        self.choices.iter().all(|choice| choice.tokens.is_empty() && !choice.finished)
    }

    /// Tokens of all choices.
    pub(crate) fn tokens(&self) -> usize {
        self.choices.iter().map(|choice| choice.tokens.len()).sum()
    }

    /// For the next attempt, one entry a choice, in order.
    pub(crate) fn to_wire(&self) -> Vec<ChoiceJournal> {
        let wire =
            |choice: &Choice| ChoiceJournal { tokens: choice.tokens.clone(), finished: choice.finished };
        self.choices.iter().map(wire).collect()
    }

    fn choice(&mut self, choice: u32) -> Result<&mut Choice, JournalError> {
        self.choices.get_mut(choice as usize).ok_or(JournalError::UnknownChoice { choice })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(choice: u32, position: u32) -> Token {
        Token { choice, position, id: choice * 1000 + position, logprob: None, top: Vec::new() }
    }

    #[test]
    fn gaps_and_unknown_choices_are_errors() {
        let mut journal = Journal::new(2);
        assert_eq!(journal.record(&token(0, 0)), Ok(News::New));
        let gap = JournalError::Gap { choice: 0, position: 2, known: 1 };
        assert_eq!(journal.record(&token(0, 2)), Err(gap));
        assert_eq!(journal.record(&token(2, 0)), Err(JournalError::UnknownChoice { choice: 2 }));
        assert_eq!(journal.finish(7), Err(JournalError::UnknownChoice { choice: 7 }));
    }

    #[test]
    fn nothing_of_an_ended_choice_is_news() {
        let mut journal = Journal::new(2);
        assert_eq!(journal.finish(1), Ok(News::New));
        assert_eq!(journal.finish(1), Ok(News::Old));
        assert_eq!(journal.record(&token(1, 9)), Ok(News::Old));
        assert!(!journal.is_finished());
        assert_eq!(journal.record(&token(0, 0)), Ok(News::New));
        assert_eq!(journal.full(1), [0]);
        assert!(journal.finish(0).is_ok() && journal.is_finished());
    }

    proptest! {
        /// Whatever attempts send, in whatever order: what is passed on is
        /// each choice's tokens in order, once each, and equals the journal.
        #[test]
        fn passed_on_tokens_are_whole(
            sent in prop::collection::vec((0u32..4, 0u32..12, prop::bool::weighted(0.02)), 0..400),
        ) {
            let mut journal = Journal::new(3);
            let mut passed: Vec<Vec<u32>> = vec![Vec::new(); 3];
            let mut ended = [false; 3];
            for (choice, position, end) in sent {
                if end && choice < 3 {
                    journal.finish(choice).unwrap();
                    ended[choice as usize] = true;
                }
                match journal.record(&token(choice, position)) {
                    Ok(News::New) => {
                        prop_assert!(!ended[choice as usize]);
                        passed[choice as usize].push(position);
                    }
                    Ok(News::Old) => {
                        let seen = (position as usize) < passed[choice as usize].len();
                        prop_assert!(seen || ended[choice as usize]);
                    }
                    Err(JournalError::Gap { .. }) => {
                        prop_assert!(position as usize > passed[choice as usize].len());
                    }
                    Err(JournalError::UnknownChoice { .. }) => prop_assert!(choice >= 3),
                    Err(error) => prop_assert!(false, "{error}"),
                }
            }
            for (choice, (wire, passed)) in journal.to_wire().iter().zip(&passed).enumerate() {
                prop_assert_eq!(passed, &(0..passed.len() as u32).collect::<Vec<_>>());
                let ids: Vec<_> = passed.iter().map(|position| token(choice as u32, *position).id).collect();
                prop_assert_eq!(&wire.tokens, &ids);
                prop_assert_eq!(wire.finished, ended[choice]);
            }
        }
    }
}
