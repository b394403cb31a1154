//! Lets callers of some roles through to a gRPC service.

use baton_protocol::Role;
use tonic::{Request, Status, service::Interceptor};

use crate::{Gate, Trust, callers::CallerInfo, roles};

/// Checks each call's bearer; without certificates, that it comes from this machine.
#[derive(Clone, Debug)]
pub struct Guard {
    trust: Trust,
    roles: &'static [Role],
}

// === impl Guard ===

impl Guard {
    pub(crate) fn new(trust: Trust, roles: &'static [Role]) -> Self {
        Self { trust, roles }
    }

    fn allows(&self, request: &Request<()>) -> bool {
        let caller = request.extensions().get::<CallerInfo>();
        match self.trust.cluster() {
            Some(cluster) => {
                let bearer = caller.and_then(|caller| caller.chain.as_deref()?.first());
                bearer.is_some_and(|certificate| {
                    self.roles.iter().any(|role| roles::of(certificate, cluster).contains(role))
                })
            }
            // No address: not over a socket at all.
            None => caller
                .and_then(|caller| caller.addr)
                .is_none_or(|addr| Gate::NoCertificates.check(addr).is_ok()),
        }
    }
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        if self.allows(&request) {
            return Ok(request);
        }
        let from = request.extensions().get::<CallerInfo>().and_then(|caller| caller.addr);
        let wanted = self.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(" or a ");
        tracing::warn!(?from, wanted, "caller refused by its certificate");
        Err(Status::permission_denied(format!("only a {wanted} may ask this")))
    }
}
