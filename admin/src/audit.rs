//! Who did what: the last few hundred acts of operators, refused ones too. The log has all of them,
//! and so has a file, if there is one, before they are done.

use std::{collections::VecDeque, sync::Arc, time::SystemTime};

use baton_trust::Rank;
use parking_lot::Mutex;
use tokio::{sync::oneshot, task::JoinSet};

use crate::{
    desk::Operator,
    error::AdminError,
    ledger::{Entry, Ledger, LedgerError},
    views::{Act, since_1970_ms},
};

/// The last acts, those under way, and the file of all.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    acts: Mutex<VecDeque<Act>>,
    under_way: Mutex<JoinSet<()>>,
    ledger: Option<Arc<Ledger>>,
}

/// What is done, before it is known whether it is.
#[derive(Debug)]
pub(crate) struct Deed<'a> {
    pub(crate) what: &'static str,
    pub(crate) whom: Option<&'a str>,
    pub(crate) how: Option<String>,
    /// What it takes.
    pub(crate) needs: Rank,
}

/// So many are kept.
const MOST: usize = 256;
/// So many may be under way.
const UNDER_WAY: usize = 64;

// === impl Audit ===

impl Audit {
    /// With a file that has every act before it is done.
    pub(crate) fn in_file(ledger: Ledger) -> Self {
        Self { ledger: Some(Arc::new(ledger)), ..Self::default() }
    }

    /// Does something to its end, also where whoever asked for it has left: neither an act nor its record is
    /// cut in half.
    ///
    /// # Errors
    /// Its own; and when too much is under way, or the process ends.
    pub(crate) async fn whole<T: Send + 'static>(
        &self,
        act: impl Future<Output = Result<T, AdminError>> + Send + 'static,
    ) -> Result<T, AdminError> {
        let (tell, told) = oneshot::channel();
        {
            let mut under_way = self.under_way.lock();
            while under_way.try_join_next().is_some() {}
            if under_way.len() >= UNDER_WAY {
                return Err(AdminError::Busy);
            }
            under_way.spawn(async move {
                // Nobody listens where the caller has left.
                let _ = tell.send(act.await);
            });
        }
        told.await.unwrap_or(Err(AdminError::Ended))
    }

    /// What comes of an act, which is kept whatever that is. If there is a file, and the act cannot
    /// be written there first, it is not begun.
    ///
    /// # Errors
    /// Those of the act; and when somebody may not do it, or it cannot be kept.
    pub(crate) async fn of<T, E: Into<AdminError>>(
        &self,
        who: &Operator,
        deed: Deed<'_>,
        act: impl Future<Output = Result<T, E>>,
    ) -> Result<T, AdminError> {
        let allowed = who.may(deed.needs);
        if allowed.is_ok() {
            let begun = self.write(who, &deed, ("begun", None)).await;
            begun.map_err(|error| AdminError::Unwritten { reason: error.to_string() })?;
        }
        let outcome = match allowed {
            Ok(()) => act.await.map_err(Into::into),
            Err(refused) => Err(refused),
        };
        let why = outcome.as_ref().err().map(ToString::to_string);
        let word = if why.is_some() { "refused" } else { "done" };
        let written = self.write(who, &deed, (word, why.clone())).await;
        self.remember(who, deed, why);
        let value = outcome?;
        written.map_err(|error| AdminError::Unrecorded { reason: error.to_string() })?;
        Ok(value)
    }

    /// The newest first.
    pub(crate) fn latest(&self) -> Vec<Act> {
        self.acts.lock().iter().rev().cloned().collect()
    }

    async fn write(
        &self,
        who: &Operator,
        deed: &Deed<'_>,
        (outcome, why): (&str, Option<String>),
    ) -> Result<(), LedgerError> {
        let Some(ledger) = self.ledger.clone() else { return Ok(()) };
        let entry = Entry {
            at_ms: since_1970_ms(SystemTime::now()),
            call: who.call.clone(),
            who: who.name.clone(),
            rank: who.rank.to_string(),
            what: deed.what.to_owned(),
            whom: deed.whom.map(str::to_owned),
            how: deed.how.clone(),
            outcome: outcome.to_owned(),
            why,
        };
        let adding = tokio::task::spawn_blocking(move || ledger.add(entry));
        let (number, hash) = adding.await.unwrap_or_else(|error| Err(LedgerError::gone(&error)))?;
        // Elsewhere, for whoever asks whether the end of the file is the end.
        tracing::info!(call = %who.call, number, hash, "a line in the file of acts");
        Ok(())
    }

    fn remember(&self, who: &Operator, deed: Deed<'_>, refused: Option<String>) {
        let (Operator { name, rank, call }, Deed { what, whom, how, .. }) = (who, deed);
        tracing::info!(who = %name, %rank, %call, what, whom, how, refused, "an operator's act");
        let mut acts = self.acts.lock();
        if acts.len() == MOST {
            acts.pop_front();
        }
        acts.push_back(Act {
            at_ms: since_1970_ms(SystemTime::now()),
            who: name.clone(),
            what: what.to_owned(),
            whom: whom.map(str::to_owned),
            how,
            refused,
            rank: rank.to_string(),
            call: call.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use tokio::time::timeout;

    use super::*;

    fn ann() -> Operator {
        Operator { name: "ann".to_owned(), rank: Rank::Operator, call: "c".to_owned() }
    }

    #[tokio::test]
    async fn the_newest_come_first_and_the_oldest_make_room() {
        let audit = Audit::default();
        for number in 0..=MOST {
            let whom = number.to_string();
            let outcome = async { if number % 2 == 0 { Ok(number) } else { Err(AdminError::NoRoute) } };
            let deed = Deed { what: "drain", whom: Some(&whom), needs: Rank::Operator, how: None };
            assert_eq!(audit.of(&ann(), deed, outcome).await.ok(), (number % 2 == 0).then_some(number));
        }
        let latest = audit.latest();
        assert_eq!((latest.len(), latest[0].whom.as_deref()), (MOST, Some("256")));
        assert!(latest[0].refused.is_none() && latest[1].refused.is_some());
        assert_eq!(latest[MOST - 1].whom.as_deref(), Some("1"));
    }

    #[tokio::test]
    async fn an_act_and_its_record_outlive_whoever_asked_for_it() {
        let audit = Arc::new(Audit::default());
        let (go, goes) = oneshot::channel::<()>();
        let acts = Arc::clone(&audit);
        let act = audit.whole(async move {
            let deed = Deed { what: "drain", whom: None, needs: Rank::Operator, how: None };
            acts.of(&ann(), deed, async { goes.await.map_err(|_| AdminError::NoRoute) }).await
        });
        assert!(timeout(Duration::ZERO, act).await.is_err(), "the caller leaves");
        go.send(()).unwrap();
        let done = async {
            while audit.latest().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(60), done).await.unwrap();
        assert_eq!(audit.latest()[0].refused, None);
    }

    #[tokio::test]
    async fn no_more_acts_than_there_is_room_for_are_under_way() {
        let audit = Audit::default();
        let forever = || timeout(Duration::ZERO, audit.whole(pending::<Result<(), AdminError>>()));
        for _ in 0..UNDER_WAY {
            assert!(forever().await.is_err());
        }
        assert!(matches!(forever().await, Ok(Err(AdminError::Busy))));
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_not_done() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acts");
        let audit = Audit::in_file(Ledger::open(path.clone()).unwrap());
        let deed = |needs| Deed { what: "drain", whom: None, how: None, needs };
        let done = async { Ok::<_, AdminError>(1) };
        assert_eq!(audit.of(&ann(), deed(Rank::Operator), done).await.unwrap(), 1);
        let never = || async { Err::<u32, _>(AdminError::NoRoute).inspect_err(|_| panic!("it was begun")) };
        assert!(matches!(audit.of(&ann(), deed(Rank::Admin), never()).await, Err(AdminError::Rank { .. })));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let outcomes: Vec<_> = lines.map(|line| line["outcome"].as_str().unwrap().to_owned()).collect();
        assert_eq!(outcomes, ["begun", "done", "refused"]);

        // A folder that is gone has no room for another file.
        dir.close().unwrap();
        assert!(matches!(
            audit.of(&ann(), deed(Rank::Operator), never()).await,
            Err(AdminError::Unwritten { .. })
        ));
    }
}
