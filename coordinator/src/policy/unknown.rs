//! Nodes that have said nothing of their steps yet are taken for usual ones.

use baton_protocol::{StepCost, StepModel};

use super::Candidate;

/// Gives each node that knows a part of its steps' costs not yet the mean of those of its pool that
/// do, or, where there are none, of the other pool: nodes of one model are mostly of one kind.
pub fn suppose(decode: &mut [Candidate], prefill: &mut [Candidate]) {
    let is_known = |node: &Candidate| {
        let StepModel { prefill, decode } = node.load.steps;
        prefill.is_some() && decode.is_some()
    };
    if decode.iter().chain(&*prefill).all(is_known) {
        return;
    }
    let (here, there) = (usual(decode), usual(prefill));
    for (nodes, own, other) in [(decode, here, there), (prefill, there, here)] {
        for StepModel { prefill, decode } in nodes.iter_mut().map(|node| &mut node.load.steps) {
            *prefill = prefill.or(own.prefill).or(other.prefill);
            *decode = decode.or(own.decode).or(other.decode);
        }
    }
}

fn usual(nodes: &[Candidate]) -> StepModel {
    StepModel {
        prefill: mean(nodes.iter().filter_map(|node| node.load.steps.prefill)),
        decode: mean(nodes.iter().filter_map(|node| node.load.steps.decode)),
    }
}

fn mean(costs: impl Iterator<Item = StepCost>) -> Option<StepCost> {
    let add = |(sum, count): (StepCost, f64), cost: StepCost| {
        let sum = StepCost {
            base: sum.base + cost.base,
            unit: sum.unit + cost.unit,
            context: sum.context + cost.context,
        };
        (sum, count + 1.0)
    };
    let (StepCost { base, unit, context }, count) = costs.fold((StepCost::default(), 0.0), add);
    (count > 0.0).then(|| StepCost { base: base / count, unit: unit / count, context: context / count })
}

#[cfg(test)]
mod tests {
    use baton_protocol::Role;

    use super::*;
    use crate::{Load, tests::node_info};

    fn candidate(role: Role, steps: StepModel) -> Candidate {
        Candidate {
            info: node_info("n", &[role]).into(),
            load: Load { steps, ..Load::default() },
            sent: crate::Sent::default(),
            cached_tokens: 0,
            roads: [].into(),
        }
    }

    fn cost(unit: f64) -> Option<StepCost> {
        Some(StepCost { base: 0.0, unit, context: 0.0 })
    }

    #[test]
    fn a_node_is_taken_for_those_beside_it_before_those_of_the_other_pool() {
        let none = StepModel::default();
        let knows = |prefill, decode| StepModel { prefill, decode };
        let mut decode = [candidate(Role::Decode, none), candidate(Role::Decode, knows(None, cost(2.0)))];
        let of = [none, knows(cost(3.0), None), knows(cost(5.0), cost(9.0))];
        let mut prefill = of.map(|steps| candidate(Role::Prefill, steps));
        suppose(&mut decode, &mut prefill);
        let told = |nodes: &[Candidate]| nodes.iter().map(|node| node.load.steps).collect::<Vec<_>>();
        assert_eq!(told(&decode), [knows(cost(4.0), cost(2.0)); 2]);
        let first = [knows(cost(4.0), cost(9.0)), knows(cost(3.0), cost(9.0)), knows(cost(5.0), cost(9.0))];
        assert_eq!(told(&prefill), first);
    }

    #[test]
    fn where_nobody_knows_nothing_is_supposed() {
        let mut nodes = [candidate(Role::Decode, StepModel::default())];
        suppose(&mut nodes, &mut []);
        assert_eq!(nodes[0].load.steps, StepModel::default());
    }
}
