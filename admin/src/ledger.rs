//! The file of operators' acts: only ever appended to, every line on the disk before anybody is
//! answered. Each line has the hash of the one before, so that one that was changed, moved or taken
//! away from between others is seen; that the last ones are missing shows by a hash kept elsewhere.
//!
//! A line is an object of JSON that ends with `,"hash":"…"}`: SHA-256, in hexadecimal digits, of the
//! bytes before that.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufRead, BufReader, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The file, open.
#[derive(Debug)]
pub struct Ledger(Mutex<State>);

#[derive(Debug)]
struct State {
    path: PathBuf,
    file: File,
    chain: Chain,
    /// What is wrong with it. Nothing is added to such a file; another in its place is begun anew.
    fault: Option<LedgerError>,
}

/// Lines that belong together, from the first to the last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// How many there are.
    pub lines: u64,
    /// The number of the last one, counted from 1 over files that follow each other.
    pub number: u64,
    /// The hash that stands in the first one as that of the line before; empty: it is the very first.
    pub after: String,
    /// The hash of the last one.
    pub hash: String,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// Of the call, the same before and after.
    pub(crate) call: String,
    pub(crate) who: String,
    pub(crate) rank: String,
    pub(crate) what: String,
    pub(crate) whom: Option<String>,
    pub(crate) how: Option<String>,
    /// `begun`, and then `done` or `refused`.
    pub(crate) outcome: String,
    pub(crate) why: Option<String>,
}

/// The same with its place; the hash comes behind.
#[derive(Serialize, Deserialize)]
struct Line {
    number: u64,
    #[serde(flatten)]
    entry: Entry,
    before: String,
}

/// Why a file is not one that can be trusted, or added to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The system refuses.
    #[error("{path}: {reason}")]
    Io {
        /// The file.
        path: String,
        /// What it says.
        reason: String,
    },
    /// A line is not what was written, or not where.
    #[error("{path}, line {line}: {problem}")]
    Broken {
        /// The file.
        path: String,
        /// Counted from 1.
        line: u64,
        /// In words.
        problem: &'static str,
    },
    /// Another process adds to it.
    #[error("{path}: another process writes this file")]
    Taken {
        /// The file.
        path: String,
    },
}

const HASH: &str = ",\"hash\":\"";
/// Behind the hash.
const END: &str = "\"}";

// === impl Ledger ===

impl Ledger {
    /// Opens the file, or makes it. One whose lines are not whole is opened and not added to.
    ///
    /// # Errors
    /// When it cannot be opened, or another process has it.
    pub fn open(path: PathBuf) -> Result<Self, LedgerError> {
        Ok(Self(Mutex::new(State::open(path, &Chain::default())?)))
    }

    /// Why nothing can be added.
    pub fn fault(&self) -> Option<LedgerError> {
        self.0.lock().fault.clone()
    }

    /// Adds a line, which is on the disk when this returns: its number and hash.
    ///
    /// # Errors
    /// When it is not; then there is nothing of it in the file.
    pub(crate) fn add(&self, entry: Entry) -> Result<(u64, String), LedgerError> {
        let mut state = self.0.lock();
        if state.was_moved() {
            // Rotated: what comes next goes on where the other file ended.
            *state = State::open(state.path.clone(), &state.chain)?;
        }
        if let Some(fault) = &state.fault {
            return Err(fault.clone());
        }
        state.add(entry)?;
        Ok((state.chain.number, state.chain.hash.clone()))
    }
}

// === impl State ===

impl State {
    /// A file that is empty goes on from `before`.
    fn open(path: PathBuf, before: &Chain) -> Result<Self, LedgerError> {
        let is_new = !path.exists();
        let mut options = OpenOptions::new();
        let opened = options.read(true).append(true).create(true).mode(0o600).open(&path);
        let file = opened.map_err(|error| LedgerError::io(&path, &error))?;
        file.try_lock().map_err(|refused| match refused {
            TryLockError::WouldBlock => LedgerError::Taken { path: path.display().to_string() },
            TryLockError::Error(error) => LedgerError::io(&path, &error),
        })?;
        if is_new {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let synced = File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all());
            synced.map_err(|error| LedgerError::io(&path, &error))?;
        }
        let (chain, fault) = match Chain::of(&path) {
            Ok(Chain { lines: 0, .. }) => (Chain { lines: 0, ..before.clone() }, None),
            Ok(chain) => (chain, None),
            Err(fault) => (before.clone(), Some(fault)),
        };
        Ok(Self { path, file, chain, fault })
    }

    /// Whether the file of that name is not this one any more.
    fn was_moved(&self) -> bool {
        match (self.file.metadata(), fs::metadata(&self.path)) {
            (Ok(own), Ok(there)) => (own.dev(), own.ino()) != (there.dev(), there.ino()),
            _ => true,
        }
    }

    fn add(&mut self, entry: Entry) -> Result<(), LedgerError> {
        let refused = |error: &io::Error| LedgerError::io(&self.path, error);
        let (line, hash) = Line::written(entry, &self.chain).map_err(|error| refused(&error))?;
        let length = self.file.metadata().map_err(|error| refused(&error))?.len();
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            let failed = refused(&error);
            // A part of a line would look like harm. Where it cannot be taken back, it is a fault that stays.
            if self.file.set_len(length).and_then(|()| self.file.sync_data()).is_err() {
                self.fault = Some(failed.clone());
            }
            return Err(failed);
        }
        self.chain.grow(hash);
        Ok(())
    }
}

// === impl Line ===

impl Line {
    /// The text of the next line of a chain, and its hash.
    fn written(entry: Entry, chain: &Chain) -> io::Result<(String, String)> {
        let line = Self { number: chain.number + 1, entry, before: chain.hash.clone() };
        let text = serde_json::to_string(&line)?;
        let open = text.strip_suffix('}').unwrap_or(&text);
        let hash = hash_of(open);
        Ok((format!("{open}{HASH}{hash}{END}\n"), hash))
    }

    /// What a line of a file says, and its hash, if that is right.
    fn read(text: &str) -> Result<(Self, String), &'static str> {
        let whole = text.strip_suffix('\n').ok_or("it is not whole")?;
        let parts = whole.strip_suffix(END).and_then(|rest| rest.rsplit_once(HASH));
        let (open, hash) = parts.ok_or("it has no hash at its end")?;
        if hash_of(open) != hash {
            return Err("it was changed: its hash is another");
        }
        let line = serde_json::from_str(&format!("{open}}}")).map_err(|_| "it is not an act")?;
        Ok((line, hash.to_owned()))
    }
}

// === impl Chain ===

impl Chain {
    /// Reads a file and checks every line.
    ///
    /// # Errors
    /// When it cannot be read, or a line was changed, moved, or taken away from between others.
    pub fn of(path: &Path) -> Result<Self, LedgerError> {
        let file = File::open(path).map_err(|error| LedgerError::io(path, &error))?;
        let (mut chain, mut reader, mut text) = (Self::default(), BufReader::new(file), String::new());
        while reader.read_line(&mut text).map_err(|error| LedgerError::io(path, &error))? > 0 {
            let line = chain.lines + 1;
            let broken = |problem| LedgerError::Broken { path: path.display().to_string(), line, problem };
            chain.follow(&text).map_err(broken)?;
            text.clear();
        }
        Ok(chain)
    }

    /// Whether this file begins where that one ended.
    pub fn follows(&self, before: &Self) -> bool {
        self.after == before.hash && self.number == before.number + self.lines
    }

    fn follow(&mut self, text: &str) -> Result<(), &'static str> {
        let (line, hash) = Line::read(text)?;
        if self.lines == 0 {
            // A file may go on from another, whose lines have other numbers.
            (self.hash, self.number) = (line.before.clone(), line.number.saturating_sub(1));
        }
        if line.before != self.hash || line.number != self.number + 1 {
            return Err("it does not follow the line before: what was between them is gone");
        }
        if line.before.is_empty() != (line.number == 1) {
            return Err("it says that it is the first, and is not");
        }
        self.grow(hash);
        Ok(())
    }

    fn grow(&mut self, hash: String) {
        let before = std::mem::replace(&mut self.hash, hash);
        if self.lines == 0 {
            self.after = before;
        }
        self.lines += 1;
        self.number += 1;
    }
}

impl LedgerError {
    /// The thread that was to write ended.
    pub(crate) fn gone(error: &tokio::task::JoinError) -> Self {
        Self::Io { path: "the file of acts".to_owned(), reason: error.to_string() }
    }

    fn io(path: &Path, error: &io::Error) -> Self {
        Self::Io { path: path.display().to_string(), reason: error.to_string() }
    }
}

fn hash_of(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Harm = fn(&mut Vec<String>);

    fn entry(what: &str) -> Entry {
        let said = |word: &str| word.to_owned();
        Entry {
            at_ms: 1,
            call: said("c"),
            who: said("ann"),
            rank: said("admin"),
            what: said(what),
            whom: Some(said("},\"hash\":\"")),
            how: None,
            outcome: said("done"),
            why: None,
        }
    }

    fn file_of(acts: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acts");
        let ledger = Ledger::open(path.clone()).unwrap();
        (0..acts).for_each(|act| ledger.add(entry(&act.to_string())).map(drop).unwrap());
        (dir, path)
    }

    fn change(path: &Path, change: impl Fn(&mut Vec<String>)) {
        let text = fs::read_to_string(path).unwrap();
        let mut lines: Vec<_> = text.split_inclusive('\n').map(str::to_owned).collect();
        change(&mut lines);
        fs::write(path, lines.concat()).unwrap();
    }

    #[test]
    fn a_chain_goes_on_after_a_restart() {
        let (_dir, path) = file_of(3);
        let before = Chain::of(&path).unwrap();
        assert_eq!((before.lines, before.number, before.after.as_str()), (3, 3, ""));
        let (number, hash) = Ledger::open(path.clone()).unwrap().add(entry("more")).unwrap();
        let now = Chain::of(&path).unwrap();
        assert_eq!((now.lines, now.number, &now.hash), (4, number, &hash));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn every_change_of_a_line_is_seen_and_nothing_is_added_to_that() {
        let cases: [(&str, u64, Harm); 6] = [
            ("taken away", 2, |lines| drop(lines.remove(1))),
            ("the first taken away, and said to be", 1, |lines| {
                lines.remove(0);
                lines[0] = lines[0].replacen("\"number\":2", "\"number\":1", 1);
            }),
            ("another order", 2, |lines| lines.swap(1, 2)),
            ("another name", 3, |lines| lines[2] = lines[2].replacen("ann", "bob", 1)),
            ("twice", 3, |lines| lines.insert(1, lines[1].clone())),
            ("torn", 4, |lines| lines[3].truncate(20)),
        ];
        for (name, line, harm) in cases {
            let (_dir, path) = file_of(4);
            change(&path, harm);
            let seen = Chain::of(&path).unwrap_err();
            assert!(matches!(seen, LedgerError::Broken { line: at, .. } if at == line), "{name}: {seen}");
            let ledger = Ledger::open(path.clone()).unwrap();
            assert_eq!(ledger.add(entry("more")), Err(seen.clone()), "{name}");
            assert_eq!(ledger.fault(), Some(seen));
            // Moved away, it is no hindrance.
            fs::rename(&path, path.with_extension("old")).unwrap();
            ledger.add(entry("more")).unwrap();
            assert_eq!(Chain::of(&path).unwrap().lines, 1);
        }
    }

    #[test]
    fn the_end_taken_away_shows_by_the_last_hash() {
        let (_dir, path) = file_of(4);
        let whole = Chain::of(&path).unwrap();
        change(&path, |lines| lines.truncate(2));
        assert_ne!(Chain::of(&path).unwrap().hash, whole.hash);
    }

    #[test]
    fn rotated_files_follow_each_other() {
        let (_dir, path) = file_of(2);
        let ledger = Ledger::open(path.clone()).unwrap();
        let old = path.with_extension("1");
        fs::rename(&path, &old).unwrap();
        ledger.add(entry("moved")).unwrap();
        let (first, second) = (Chain::of(&old).unwrap(), Chain::of(&path).unwrap());
        assert!(second.follows(&first) && !first.follows(&second));
        assert_eq!((second.lines, second.number), (1, 3));
        // Copied and emptied in its place.
        let copy = path.with_extension("2");
        fs::copy(&path, &copy).unwrap();
        File::create(&path).unwrap();
        ledger.add(entry("emptied")).unwrap();
        assert!(Chain::of(&path).unwrap().follows(&second));
        assert!(!Chain::of(&path).unwrap().follows(&first));
    }

    #[test]
    fn two_processes_do_not_share_a_file() {
        let (_dir, path) = file_of(1);
        let _held = Ledger::open(path.clone()).unwrap();
        assert!(matches!(Ledger::open(path), Err(LedgerError::Taken { .. })));
    }

    #[test]
    fn what_a_full_disk_refuses_leaves_nothing() {
        // Always full.
        let file = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let (chain, path) = (Chain::default(), PathBuf::from("/dev/full"));
        let mut state = State { path, file, chain: chain.clone(), fault: None };
        assert!(matches!(state.add(entry("lost")), Err(LedgerError::Io { .. })));
        assert_eq!(state.chain, chain);
    }
}
