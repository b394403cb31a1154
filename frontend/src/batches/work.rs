//! A batch from its first line to its end.

use std::{
    convert::Infallible,
    fs::File,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, pin_mut, stream};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    journal::{self, Journal, Outcome, Unanswered},
    line::{self, Called},
    lines::{self, Line},
    places::Place,
    words::{Batch, Counts, Fault, Faults, KeptBatch, Status},
};
use crate::{
    error::ApiError,
    files::{OUTPUT, StoredFile, blocking},
    reply::unix_seconds,
    routes::Room,
    shelf::Shelved,
};

/// A batch that is worked on.
struct Work {
    room: Arc<Room>,
    tenant: String,
    id: String,
    kept: KeptBatch,
    given_up: CancellationToken,
    /// Bytes of answers.
    written: AtomicU64,
}

/// Before a call that could not be taken is made again; twice as long each time.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Between two looks at whether the cluster serves.
const READY_INTERVAL: Duration = Duration::from_millis(100);

/// Between two looks for files and batches that are too old.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Works on all batches that are not finished and on those that come.
pub async fn work_on_all(room: &Arc<Room>) -> Infallible {
    let mut works = JoinSet::new();
    let mut begun = Vec::new();
    loop {
        room.shelves.sweep();
        let unfinished = room.shelves.batches.unfinished();
        begun.retain(|id| unfinished.iter().any(|kept| kept.id == *id));
        for kept in unfinished {
            if !begun.contains(&kept.id) {
                begun.push(kept.id.clone());
                works.spawn(Work::of(room, kept).run());
            }
        }
        tokio::select! {
            () = room.shelves.batches.news.notified() => {}
            () = sleep(SWEEP_INTERVAL) => {}
            Some(_) = works.join_next() => {}
        }
    }
}

// === impl Work ===

impl Work {
    fn of(room: &Arc<Room>, kept: Shelved<KeptBatch>) -> Self {
        let Shelved { id, tenant, record, .. } = kept;
        let given_up = room.shelves.batches.token(&id);
        if record.batch.cancelling_at.is_some() {
            given_up.cancel();
        }
        let (room, kept) = (Arc::clone(room), KeptBatch::clone(&record));
        Self { room, tenant, id, kept, given_up, written: AtomicU64::new(0) }
    }

    async fn run(self) {
        if let Err(error) = self.work().await {
            warn!(batch = self.id, %error, "a batch failed");
            self.fail(vec![Fault::of(&error, None)]).await;
        }
        self.room.shelves.batches.forget_token(&self.id);
    }

    async fn work(&self) -> Result<(), ApiError> {
        let files = &self.room.shelves.files;
        let (input, endpoint) = (files.content(&self.kept.batch.input_file_id), self.kept.batch.endpoint);
        let config = self.room.desk.config.clone();
        let path = input.clone();
        let lines = match blocking(move || lines::read(&path, endpoint, &config)).await? {
            Ok(lines) => lines,
            Err(faults) => {
                self.fail(faults).await;
                return Ok(());
            }
        };
        let (output, errors) = (files.content(&self.kept.output), files.content(&self.kept.errors));
        let (input, mut journal) =
            blocking(move || Ok((File::open(input)?, Journal::open(&output, &errors)?))).await?;
        self.written.store(journal.bytes, Ordering::Relaxed);
        self.begin(lines.len(), &journal).await;
        let left: Vec<Line> =
            lines.into_iter().filter(|line| !journal.done.contains(&line.custom_id)).collect();
        let status = self.answer(&left, &input, &mut journal).await?;
        self.finish(status).await
    }

    async fn begin(&self, total: usize, journal: &Journal) {
        let (counts, usage) = (Counts { total, ..journal.counts }, journal.usage);
        self.change(move |batch, now| {
            if batch.status == Status::Validating {
                batch.status = Status::InProgress;
            }
            batch.in_progress_at.get_or_insert(now);
            (batch.request_counts, batch.usage) = (counts, usage);
        })
        .await;
    }

    /// Answers lines until none are left, or the batch is given up or its time over.
    async fn answer(&self, left: &[Line], input: &File, journal: &mut Journal) -> Result<Status, ApiError> {
        let limit = self.room.desk.config.batches.max_running;
        let stopped = OnceLock::new();
        let running = stream::iter(left.to_vec())
            .map(|line| self.line(line, input))
            .buffer_unordered(limit)
            .take_until(async { stopped.set(self.stopped().await) });
        pin_mut!(running);
        while let Some(outcome) = running.next().await {
            self.write(journal, outcome?).await?;
        }
        let Some(&(status, why)) = stopped.get() else { return Ok(Status::Completed) };
        for Line { custom_id, .. } in left {
            if !journal.done.contains(custom_id) {
                self.write(journal, Outcome { custom_id: custom_id.clone(), answer: Err(why) }).await?;
            }
        }
        Ok(status)
    }

    /// A place for one more line, when the cluster serves.
    async fn place(&self) -> Place<'_> {
        while self.room.desk.dispatch.ready().is_err() {
            sleep(READY_INTERVAL).await;
        }
        let others = || usize::try_from(self.room.metrics.answering()).unwrap_or(0);
        self.room.shelves.batches.places.take(others).await
    }

    /// Ready when no more lines are to be answered.
    async fn stopped(&self) -> (Status, Unanswered) {
        let left = Duration::from_secs(self.kept.batch.expires_at.saturating_sub(unix_seconds()));
        tokio::select! {
            () = self.given_up.cancelled() => (Status::Cancelled, Unanswered::Cancelled),
            () = sleep(left) => (Status::Expired, Unanswered::Expired),
        }
    }

    /// Calls until there is an answer, or a refusal that stays. What the tenant may ask in a
    /// minute is waited for, as is a cluster that cannot serve now; nobody's place is kept meanwhile.
    async fn line(&self, line: Line, input: &File) -> Result<Outcome, ApiError> {
        let mut wait = FIRST_WAIT;
        loop {
            let place = self.place().await;
            let written = self.written.load(Ordering::Relaxed);
            if self.room.shelves.files.check_room(&self.tenant, written).is_err() {
                return Ok(Outcome { custom_id: line.custom_id, answer: Err(Unanswered::Full) });
            }
            // Lines are at most as long as bodies, and just read: they are in the system's memory.
            let body = line.body(input).map_err(|error| ApiError::internal(error.to_string()))?;
            match line::answer(&self.room, &self.tenant, self.kept.batch.endpoint, body).await? {
                Called::Answered(answered) => {
                    return Ok(Outcome { custom_id: line.custom_id, answer: Ok(answered) });
                }
                Called::Later(asked) => {
                    drop(place);
                    sleep(asked.map_or(wait, |asked| asked.max(wait))).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }

    async fn write(&self, journal: &mut Journal, outcome: Outcome) -> Result<(), ApiError> {
        let noted = journal.note(&outcome).map_err(|_| ApiError::internal("an answer is no JSON"))?;
        blocking(move || journal::append(noted)).await?;
        journal.done.insert(outcome.custom_id);
        self.written.store(journal.bytes, Ordering::Relaxed);
        let (counts, usage) = (journal.counts, journal.usage);
        self.room.shelves.batches.note(&self.id, |batch| {
            let total = batch.request_counts.total;
            (batch.request_counts, batch.usage) = (Counts { total, ..counts }, usage);
        });
        Ok(())
    }

    /// The files of answers become the tenant's.
    async fn finish(&self, status: Status) -> Result<(), ApiError> {
        self.change(move |batch, now| {
            batch.status = Status::Finalizing;
            batch.finalizing_at = Some(now);
        })
        .await;
        let output = self.file(&self.kept.output, "output").await?;
        let errors = self.file(&self.kept.errors, "errors").await?;
        self.change(move |batch, now| {
            batch.status = status;
            (batch.output_file_id, batch.error_file_id) = (output, errors);
            *batch.time_of(status) = Some(now);
        })
        .await;
        info!(batch = self.id, ?status, "a batch is finished");
        Ok(())
    }

    async fn file(&self, id: &str, what: &str) -> Result<Option<String>, ApiError> {
        let files = &self.room.shelves.files;
        let path = files.content(id);
        let Some(bytes) = blocking(move || journal::close(path)).await? else { return Ok(None) };
        let created = unix_seconds();
        let file = StoredFile {
            filename: format!("{}_{what}.jsonl", self.id),
            purpose: OUTPUT.to_owned(),
            bytes,
            created,
            expires: created.saturating_add(self.kept.output_seconds),
        };
        files.add(&self.tenant, id, file).await;
        Ok(Some(id.to_owned()))
    }

    async fn fail(&self, faults: Vec<Fault>) {
        self.change(move |batch, now| {
            batch.status = Status::Failed;
            batch.failed_at = Some(now);
            batch.errors = Some(Faults::of(faults));
        })
        .await;
    }

    /// Changes the batch, now.
    async fn change(&self, change: impl FnOnce(&mut Batch, u64)) {
        self.room.shelves.batches.change(&self.id, |batch| change(batch, unix_seconds())).await;
    }
}
