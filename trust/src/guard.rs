//! Lets callers of one role through to a gRPC service.

use baton_protocol::Role;
use tonic::{Request, Status, service::Interceptor};

use crate::{Gate, Trust, roles};

/// Checks each call's bearer; without certificates, that it comes from this machine.
#[derive(Clone, Debug)]
pub struct Guard {
    trust: Trust,
    role: Role,
}

// === impl Guard ===

impl Guard {
    pub(crate) fn new(trust: Trust, role: Role) -> Self {
        Self { trust, role }
    }

    fn allows(&self, request: &Request<()>) -> bool {
        match self.trust.cluster() {
            Some(cluster) => {
                let shown = request.peer_certs();
                let bearer = shown.as_deref().and_then(|chain| chain.first());
                bearer.is_some_and(|certificate| roles::of(certificate, cluster).contains(&self.role))
            }
            // No address: not over a socket at all.
            None => request.remote_addr().is_none_or(|addr| Gate::NoCertificates.check(addr).is_ok()),
        }
    }
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        if self.allows(&request) {
            return Ok(request);
        }
        tracing::warn!(from = ?request.remote_addr(), wanted = %self.role, "caller refused by its certificate");
        Err(Status::permission_denied(format!("only a {} may ask this", self.role)))
    }
}
