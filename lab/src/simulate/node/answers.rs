//! Answers on a node, and the pages that they grow into. Where there are none left, the youngest
//! gives its own back and is computed again, as in the scheduler.

use super::{Node, Prompt, Whose};

/// An answer on its node.
#[derive(Clone, Copy, Debug)]
pub(in crate::simulate) struct Answer {
    pub(in crate::simulate) attempt: u64,
    pub(in crate::simulate) context: usize,
    /// Tokens to come.
    pub(in crate::simulate) left: usize,
    /// Pages that it holds.
    pub(in crate::simulate) pages: usize,
}

impl Node {
    /// An answer goes on here, on the pages that it brings.
    pub(in crate::simulate) fn join(&mut self, answer: Answer) {
        self.joining.push_back(answer);
        self.has_news = true;
    }

    /// Nobody waits for an attempt any more: what it holds by its prompt or its answer is free.
    pub(in crate::simulate) fn withdraw(&mut self, attempt: u64) {
        let other = |of: u64| of != attempt;
        self.waiting.retain(|prompt| other(prompt.attempt));
        let (mut pages, mut context) = (0, 0);
        self.prompts.retain(|prompt| {
            pages += if other(prompt.attempt) { 0 } else { prompt.pages };
            other(prompt.attempt)
        });
        self.joining.retain(|answer| {
            pages += if other(answer.attempt) { 0 } else { answer.pages };
            other(answer.attempt)
        });
        self.answers.retain(|answer| {
            let (own_pages, own_context) =
                if other(answer.attempt) { (0, 0) } else { (answer.pages, answer.context) };
            (pages, context) = (pages + own_pages, context + own_context);
            other(answer.attempt)
        });
        self.context -= context;
        self.release(pages);
    }

    /// Those that came since the last step, as far as there are places.
    pub(super) fn let_join(&mut self) {
        while self.answers.len() < self.machine.limits.max_sequences
            && let Some(answer) = self.joining.pop_front()
        {
            self.context += answer.context;
            self.answers.push(answer);
        }
    }

    /// Pages for the next token of every answer. One that is alone goes on without.
    pub(super) fn grow(&mut self) {
        let (page, total) = (self.machine.kv.page_tokens as usize, self.machine.limits.pages);
        let before = self.used;
        let mut at = 0;
        while let Some(&Answer { context, pages, .. }) = self.answers.get(at) {
            if context <= pages * page {
                at += 1;
            } else if self.used < total {
                self.answers[at].pages += 1;
                self.used += 1;
            } else if self.answers.len() + self.joining.len() == 1 {
                at += 1;
            } else if self.preempt_youngest().is_some_and(|gone| gone < at) {
                at -= 1;
            }
        }
        if self.used != before {
            self.make_room();
        }
    }

    /// The youngest waits without its pages, before all others. Where it stood among those that
    /// run; none: it had not begun to.
    fn preempt_youngest(&mut self) -> Option<usize> {
        let age = |answer: &Answer| answer.attempt;
        let joining = self.joining.iter().enumerate().max_by_key(|(_, answer)| age(answer));
        let running = self.answers.iter().enumerate().max_by_key(|(_, answer)| age(answer));
        let is_joining =
            joining.is_some_and(|(_, one)| running.is_none_or(|(_, other)| age(one) > age(other)));
        let (joining, running) = (joining.map(|(at, _)| at), running.map(|(at, _)| at));
        let (answer, stood) = match (is_joining, joining, running) {
            (true, Some(at), _) => (self.joining.remove(at)?, None),
            (false, _, Some(at)) => (self.answers.remove(at), Some(at)),
            _ => return None,
        };
        self.context -= if stood.is_some() { answer.context } else { 0 };
        self.used -= answer.pages;
        self.preempted += 1;
        let pages = self.machine.kv.pages_for(answer.context + 1).min(self.machine.limits.pages);
        self.waiting.push_front(Prompt {
            whose: Whose::Preempted,
            begun: true,
            ..Prompt::of_others(answer.attempt, 0..answer.context, pages)
        });
        stood
    }

    /// A token for every answer; the last one ends it.
    pub(super) fn answer(&mut self, tokens: &mut Vec<u64>) {
        self.context += self.answers.len();
        let (mut context, mut pages) = (0, 0);
        self.answers.retain_mut(|answer| {
            tokens.push(answer.attempt);
            answer.context += 1;
            answer.left -= 1;
            if answer.left == 0 {
                (context, pages) = (context + answer.context, pages + answer.pages);
            }
            answer.left > 0
        });
        self.context -= context;
        self.release(pages);
    }
}
