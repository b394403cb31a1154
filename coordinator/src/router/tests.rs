use std::time::Duration;

use baton_protocol::{PrefixChanges, Role};
use proptest::prelude::*;

use super::*;
use crate::{
    PolicyName,
    prefix::PrefixLimits,
    tests::{node_info, request},
};

const BUDGETS: Budgets = Budgets { ttft: Duration::from_secs(1), itl: Duration::from_millis(50) };

struct Stub {
    info: Arc<NodeInfo>,
    load: Load,
    holder: Holder,
}

impl Seen for Stub {
    fn info(&self) -> Arc<NodeInfo> {
        Arc::clone(&self.info)
    }

    fn load(&self) -> Load {
        self.load
    }

    fn sent(&self, _now: Instant) -> Sent {
        Sent::default()
    }

    fn roads(&self) -> Arc<[KvPath]> {
        [].into()
    }

    fn prefixes(&self) -> &Holder {
        &self.holder
    }
}

fn pool(index: &Arc<PrefixIndex>, role: Role, count: usize) -> Pool<Stub> {
    let node = |at: usize| Stub {
        info: Arc::new(node_info(&format!("{role}-{at}"), &[role])),
        load: Load::default(),
        holder: index.join(),
    };
    Pool::new((0..count).map(node).collect())
}

fn index() -> Arc<PrefixIndex> {
    PrefixIndex::new(PrefixLimits { pages: 1000, pages_of_node: 1000 })
}

fn router(policy: PolicyName) -> Router {
    Router::new(&CoordinatorConfig { policy, ..CoordinatorConfig::default() })
}

fn gladly(_node: &Stub) -> Option<u8> {
    Some(0)
}

fn choose(router: &Router, request: &Request, index: &PrefixIndex, pools: [&Pool<Stub>; 2]) -> Choice {
    let wanted = Wanted { request, budgets: &BUDGETS, now: Instant::now() };
    router.choose(&wanted, index, (pools[0], &gladly), (pools[1], &gladly)).unwrap()
}

proptest! {
    #[test]
    fn each_of_many_has_its_turn_once(count in 1usize..400) {
        let (index, router) = (index(), router(PolicyName::RoundRobin));
        let (decode, prefill) = (pool(&index, Role::Decode, count), pool(&index, Role::Prefill, 1));
        let mut turns = vec![0; count];
        for _ in 0..count {
            turns[choose(&router, &request(1), &index, [&decode, &prefill]).decode] += 1;
        }
        prop_assert_eq!(turns, vec![1; count]);
    }

    #[test]
    fn the_shortlist_is_of_those_that_take_the_work(
        takes in prop::collection::vec(prop::option::of(0u8..3), 1..300), turn: u64,
    ) {
        let index = index();
        let pool = pool(&index, Role::Decode, takes.len());
        let at = |node: &Stub| node.info.id.0.rsplit('-').next().unwrap().parse::<usize>().unwrap();
        let list = pool.shortlist(turn, &|node| takes[at(node)], None);
        let least = takes.iter().flatten().min();
        let able = takes.iter().filter(|one| one.is_some() && one.as_ref() == least).count();
        prop_assert_eq!(list.len(), able.min(LOOKED_AT));
        prop_assert!(list.iter().all(|&one| takes[one].as_ref() == least));
        let mut once = list.clone();
        once.sort_unstable();
        once.dedup();
        prop_assert_eq!(once.len(), list.len());
    }
}

#[test]
fn who_holds_the_prompt_is_looked_at_among_thousands() {
    let (index, router) = (index(), router(PolicyName::PrefixAware));
    let (decode, prefill) = (pool(&index, Role::Decode, 2000), pool(&index, Role::Prefill, 1000));
    let long = Request { tokens: (0..160).collect(), ..request(1) };
    let added = chain(&long.tenant, 16, &long.tokens);
    prefill.nodes()[777].holder.apply(&PrefixChanges { added, ..PrefixChanges::default() });
    for _ in 0..100 {
        let choice = choose(&router, &long, &index, [&decode, &prefill]);
        assert_eq!((choice.prefill[0], choice.prefill_tokens), (777, 0));
    }
}
