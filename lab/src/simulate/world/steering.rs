//! What the coordinator does about nodes: those that are slow get no new work, and where roles do
//! not fit what is asked for, the balancer changes one.

use std::rc::Rc;

use baton_coordinator::{BalancerMode, Outliers};
use baton_protocol::Role;

use super::{World, callers::MODEL};
use crate::simulate::{Done, Steered, node::Shown};

impl World<'_> {
    /// Looks at the nodes when it is time, at reports: nothing new is known between them.
    pub(super) fn steer(&mut self) {
        let (balances, compares) = self.next_looks;
        if self.now >= compares {
            self.next_looks.1 = self.now + Outliers::INTERVAL.as_secs_f64();
            self.take_out();
        }
        if self.now >= balances && self.config.balancer != BalancerMode::Off {
            self.next_looks.0 = self.now + self.config.balancing.interval().as_secs_f64();
            self.balance();
        }
    }

    fn take_out(&mut self) {
        let now = self.instant();
        for role in [Role::Prefill, Role::Decode] {
            let nodes = self.ready(role);
            for node in self.outliers.look(role, &nodes, now) {
                self.note(node.0, Steered::Out);
            }
        }
    }

    fn balance(&mut self) {
        let now = self.instant();
        let (prefill, mut decode) = (self.ready(Role::Prefill), self.ready(Role::Decode));
        // As the coordinator has it: who is out is neither counted nor moved.
        decode.retain(|node| !self.outliers.is_out(Role::Decode, &node.info.borrow().id, now));
        let demand = self.demands.of(MODEL, now);
        let changes = (self.config.balancer == BalancerMode::On, now);
        let look =
            self.looks.look(demand, [prefill.as_slice(), decode.as_slice()], &self.config.balancing, changes);
        for (node, role) in look.changes {
            self.note(node.info.borrow().id.0.clone(), Steered::Role(role));
            self.set_role(node.number, role);
        }
    }

    /// A node has this role alone from now on, and finishes what it has of others.
    pub(super) fn set_role(&mut self, node: usize, role: Role) {
        self.nodes[node].take_role(role);
        self.set_pools();
    }

    /// Notes how many nodes have which role, if that is news.
    pub(super) fn note_roles(&mut self) {
        let count = |role| self.nodes.iter().filter(|node| node.shown.takes(role)).count();
        let roles = [Role::Prefill, Role::Decode].map(count);
        if self.roles.last().is_none_or(|(_, before)| *before != roles) {
            self.roles.push((self.now, roles));
        }
    }

    /// Nodes that take this work.
    fn ready(&self, role: Role) -> Vec<Rc<Shown>> {
        let [prefill, decode] = &self.pools;
        let pool = if role == Role::Prefill { prefill } else { decode };
        pool.nodes().iter().filter(|node| node.takes(role)).cloned().collect()
    }

    fn note(&mut self, node: String, what: Steered) {
        self.done.push(Done { at_ms: (1e3 * self.now) as u64, node, what });
    }
}
