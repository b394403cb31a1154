//! What a node does for others: which new work it takes, and who it says it is.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use baton_decode_node::DecodeNode;
use baton_prefill_node::PrefillNode;
use baton_protocol::{Intake, NodeInfo, NodeState, Role};
use baton_registry::{Registration, Registry, node_service::RolesError};
use baton_trust::Trust;
use parking_lot::Mutex;

/// Both kinds of work of one node. Which of them is taken follows from its roles and its state.
pub struct Work {
    pub prefill: Arc<PrefillNode>,
    pub decode: DecodeNode,
    trust: Trust,
    standing: Mutex<Standing>,
    /// From the node's start to its leaving.
    registration: Mutex<Option<Registration>>,
}

struct Standing {
    /// But for `state`, which follows from the one below.
    info: NodeInfo,
    state: WorkState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WorkState {
    Open,
    /// Told to finish what it has.
    Drained,
    /// The same, and there is no way back.
    Leaving,
}

// === impl Work ===

impl Work {
    /// Takes the work of the roles in `info`, whose epoch they have.
    pub fn new(info: NodeInfo, (prefill, decode): (Arc<PrefillNode>, DecodeNode), trust: Trust) -> Self {
        let standing = Standing { info, state: WorkState::Open };
        let work =
            Self { prefill, decode, trust, standing: Mutex::new(standing), registration: Mutex::default() };
        work.apply(&work.standing.lock());
        work
    }

    /// Who it is now.
    pub fn info(&self) -> NodeInfo {
        self.standing.lock().info()
    }

    /// Announces the node from now until it leaves.
    pub fn announce(&self, registry: &dyn Registry) {
        // Roles that change meanwhile are announced by whoever changed them, after this.
        let mut registration = self.registration.lock();
        *registration = Some(registry.register(self.info()));
    }

    /// Takes no more, or takes it again. False when it is leaving.
    pub fn drain(&self, drain: bool) -> bool {
        {
            let mut standing = self.standing.lock();
            if standing.state == WorkState::Leaving {
                return false;
            }
            standing.state = if drain { WorkState::Drained } else { WorkState::Open };
            self.apply(&standing);
        }
        self.announce_again();
        true
    }

    /// Takes new work of these roles alone, as the next epoch. What it has of
    /// others goes on to its end, and cached pages stay.
    ///
    /// # Errors
    /// When its roles are not of `epoch`, it is leaving, or it cannot have these roles.
    pub fn set_roles(&self, epoch: u64, roles: BTreeSet<Role>) -> Result<(), RolesError> {
        if roles.is_empty() || roles.contains(&Role::Coordinator) {
            return Err(RolesError::NoWork);
        }
        if let Some(role) = roles.iter().find(|role| !self.trust.allows(**role)) {
            return Err(RolesError::Uncertified { role: *role });
        }
        {
            let mut standing = self.standing.lock();
            if standing.state == WorkState::Leaving {
                return Err(RolesError::Leaving);
            }
            if standing.info.epoch != epoch {
                return Err(RolesError::Stale { based_on: epoch, now: standing.info.epoch });
            }
            if standing.info.roles == roles {
                return Ok(());
            }
            standing.info.roles = roles;
            standing.info.epoch += 1;
            self.apply(&standing);
        }
        self.announce_again();
        Ok(())
    }

    /// Sequences of a role that it no longer has.
    pub fn left_over(&self) -> usize {
        let roles = self.standing.lock().info.roles.clone();
        let prompts = if roles.contains(&Role::Prefill) { 0 } else { self.prefill.prompts() };
        let attempts = if roles.contains(&Role::Decode) { 0 } else { self.decode.attempts() };
        prompts + attempts
    }

    /// Takes no more, for good, and takes the node's entry back, waiting for that at most `limit`.
    pub async fn leave(&self, limit: Duration) {
        {
            let mut standing = self.standing.lock();
            standing.state = WorkState::Leaving;
            self.apply(&standing);
        }
        let registration = self.registration.lock().take();
        if let Some(registration) = registration {
            registration.withdraw(limit).await;
        }
    }

    /// Of two at once the later one announces what both made of it.
    fn announce_again(&self) {
        if let Some(registration) = &*self.registration.lock() {
            registration.update(self.info());
        }
    }

    fn apply(&self, standing: &Standing) {
        self.prefill.set_intake(standing.intake(Role::Prefill));
        self.decode.set_intake(standing.intake(Role::Decode));
    }
}

// === impl Standing ===

impl Standing {
    fn info(&self) -> NodeInfo {
        let state = if self.state == WorkState::Open { NodeState::Ready } else { NodeState::Draining };
        NodeInfo { state, ..self.info.clone() }
    }

    fn intake(&self, role: Role) -> Intake {
        match self.state {
            WorkState::Drained | WorkState::Leaving => Intake::Closed,
            WorkState::Open if self.info.roles.contains(&role) => Intake::Open,
            WorkState::Open => Intake::Moved,
        }
    }
}
