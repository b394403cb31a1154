//! Who goes next of those that wait. Pure: no clock, no I/O.
//!
//! The highest priority first. Within it, tenants take turns by what they were
//! given, in tokens; a tenant that comes back after a pause starts beside the
//! one that was given least, not before it. Within a tenant, whoever is due first.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use tokio::time::Instant;

/// What is asked for a place.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Whose it is.
    pub tenant: String,
    /// Higher goes first.
    pub priority: i32,
    /// When its first token should be there.
    pub due: Instant,
    /// Prompt and answer at most: what it costs its tenant.
    pub tokens: u64,
}

/// Those that wait, each with what it waits with.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    waiting: Vec<(u64, Claim, T)>,
    /// Tokens that tenants were given, as long as anybody waits.
    given: HashMap<String, u64>,
    arrivals: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: Vec::new(), given: HashMap::new(), arrivals: 0 }
    }
}

impl<T> Queue<T> {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// How many of each tenant wait.
    pub(crate) fn by_tenant(&self) -> BTreeMap<String, usize> {
        let mut tenants = BTreeMap::new();
        for (_, claim, _) in &self.waiting {
            *tenants.entry(claim.tenant.clone()).or_default() += 1;
        }
        tenants
    }

    /// Lines up, and returns a number by which to leave.
    pub(crate) fn push(&mut self, claim: Claim, with: T) -> u64 {
        if !self.waiting.iter().any(|(_, other, _)| other.tenant == claim.tenant) {
            let least = self.waiting.iter().map(|(_, other, _)| self.given_to(&other.tenant)).min();
            let given = self.given.entry(claim.tenant.clone()).or_default();
            *given = (*given).max(least.unwrap_or(0));
        }
        self.arrivals += 1;
        self.waiting.push((self.arrivals, claim, with));
        self.arrivals
    }

    /// Takes whoever goes next.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let key = |(arrival, claim, _): &(u64, Claim, T)| {
            (Reverse(claim.priority), self.given_to(&claim.tenant), claim.due, *arrival)
        };
        let (at, _) = self.waiting.iter().enumerate().min_by_key(|(_, one)| key(one))?;
        let (_, claim, with) = self.waiting.swap_remove(at);
        *self.given.entry(claim.tenant).or_default() += claim.tokens.max(1);
        self.forget();
        Some(with)
    }

    /// Leaves the line; nothing happens if it has gone.
    pub(crate) fn leave(&mut self, number: u64) {
        self.waiting.retain(|(arrival, _, _)| *arrival != number);
        self.forget();
    }

    /// How many would go before this one, as things are.
    pub(crate) fn ahead_of(&self, claim: &Claim) -> usize {
        let is_ahead = |other: &Claim| {
            other.priority > claim.priority
                || (other.priority == claim.priority
                    && (other.tenant != claim.tenant || other.due <= claim.due))
        };
        self.waiting.iter().filter(|(_, other, _)| is_ahead(other)).count()
    }

    fn given_to(&self, tenant: &str) -> u64 {
        self.given.get(tenant).copied().unwrap_or(0)
    }

    fn forget(&mut self) {
        if self.waiting.is_empty() {
            self.given.clear();
        }
    }
}

#[cfg(test)]
mod tests;
