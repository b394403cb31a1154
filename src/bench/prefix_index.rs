//! The coordinator's prefix index: time of a look-up, and memory of a page.
//!
//! Prompts begin with one of a few system prompts, which many nodes hold, and
//! go on with a conversation, which one to three nodes hold, each up to a page
//! of its own. Hashes are random: an index cannot tell.

use std::{sync::Arc, time::Instant};

use anyhow::{Result, ensure};
use baton_coordinator::prefix::{Holder, PrefixIndex, PrefixLimits};
use baton_protocol::{BlockHash, PrefixChanges};
use fastrand::Rng;

use super::process::resident_bytes;
use crate::{args::BenchPrefixIndex, terminal::say};

/// System prompts, and one prompt's share of a chain.
const SYSTEM_PROMPTS: usize = 16;
const SYSTEM_SHARE: usize = 16;
/// Most nodes of a conversation.
const HOLDERS: usize = 3;

/// All that nodes hold.
struct Trace {
    systems: Vec<Vec<BlockHash>>,
    conversations: Vec<Vec<BlockHash>>,
}

/// Prints the figures.
///
/// # Errors
/// When the sizes make no trace.
pub fn run(args: &BenchPrefixIndex) -> Result<()> {
    ensure!(
        args.nodes > 0 && args.chain > SYSTEM_SHARE,
        "there must be nodes, and chains of {SYSTEM_SHARE} pages and more"
    );
    let mut random = Rng::with_seed(2026);
    let trace = Trace::new(args, &mut random);
    let before = resident_bytes("self")?;
    let index = PrefixIndex::new(PrefixLimits { pages: u64::MAX, pages_of_node: u64::MAX });
    let nodes: Vec<_> = (0..args.nodes).map(|_| index.join()).collect();
    let begun = Instant::now();
    trace.fill(&nodes, &mut random);
    let (seconds, bytes) = (begun.elapsed().as_secs_f64(), resident_bytes("self")?.saturating_sub(before));
    let (stats, pages) = (index.stats(), trace.pages());
    say(format_args!(
        "{} nodes, {pages} pages, each on {:.1} nodes, {} sets of nodes; {:.0} changes/s",
        args.nodes,
        stats.pages as f64 / pages as f64,
        stats.sets,
        stats.pages as f64 / seconds
    ));
    say(format_args!("memory: {:.1} bytes a page", bytes as f64 / pages as f64));
    let mut times = look_up(args, &trace, &index, &mut random);
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] as f64 / 1e3;
    say(format_args!(
        "look-up of {} pages: p50 {:.1} us, p99 {:.1} us, p99.9 {:.1} us",
        args.chain,
        at(0.5),
        at(0.99),
        at(0.999)
    ));
    Ok(())
}

/// Nanoseconds of each look-up: half of the prompts go on where nobody has been.
fn look_up(args: &BenchPrefixIndex, trace: &Trace, index: &Arc<PrefixIndex>, random: &mut Rng) -> Vec<u64> {
    let once = |_| {
        let mut chain = trace.prompt(random);
        if random.bool() {
            let known = random.usize(..chain.len());
            chain[known..].fill_with(|| block(random));
        }
        let begun = Instant::now();
        std::hint::black_box(index.held(std::hint::black_box(&chain)));
        u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    };
    (0..args.lookups.max(1)).map(once).collect()
}

fn block(random: &mut Rng) -> BlockHash {
    BlockHash(random.u128(..).to_le_bytes())
}

// === impl Trace ===

impl Trace {
    fn new(args: &BenchPrefixIndex, random: &mut Rng) -> Self {
        let mut chains = |count: usize, len: usize| -> Vec<Vec<_>> {
            (0..count).map(|_| (0..len).map(|_| block(random)).collect()).collect()
        };
        let system = args.chain / SYSTEM_SHARE;
        let conversation = args.chain - system;
        let conversations = args.pages.saturating_sub(SYSTEM_PROMPTS * system).div_ceil(conversation).max(1);
        Self { systems: chains(SYSTEM_PROMPTS, system), conversations: chains(conversations, conversation) }
    }

    fn pages(&self) -> usize {
        self.systems.iter().chain(&self.conversations).map(Vec::len).sum()
    }

    /// Conversation `index` goes on after one of the system prompts.
    fn system(&self, index: usize) -> &[BlockHash] {
        &self.systems[index % self.systems.len()]
    }

    fn fill(&self, nodes: &[Holder], random: &mut Rng) {
        let hold = |node: &Holder, blocks: &[BlockHash]| {
            node.apply(&PrefixChanges { added: blocks.to_vec(), ..PrefixChanges::default() });
        };
        for (index, conversation) in self.conversations.iter().enumerate() {
            for holder in 0..=random.usize(..HOLDERS) {
                let node = &nodes[random.usize(..nodes.len())];
                hold(node, self.system(index));
                let held = if holder == 0 { conversation.len() } else { random.usize(..conversation.len()) };
                hold(node, &conversation[..held]);
            }
        }
    }

    /// The whole prompt of some conversation.
    fn prompt(&self, random: &mut Rng) -> Vec<BlockHash> {
        let index = random.usize(..self.conversations.len());
        [self.system(index), &self.conversations[index]].concat()
    }
}
