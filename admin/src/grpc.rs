//! The same over gRPC.

use tonic::{
    Code, Request as Call, Response, Status,
    service::{Interceptor, interceptor::InterceptedService},
};

use crate::{
    desk::{Desk, Operator},
    error::AdminError,
    operations,
    views::{
        Acts, AdviceByModel, Cluster, DrainNodeRequest, Flushed, Handoffs, Incidents, Limits, Node, NodeName,
        Nodes, Nothing, Pace, PrefixIndex, Queues, RequestId, Requests, Roads, SetRolesRequest,
        admin_server::{Admin, AdminServer},
    },
};

/// The service over a desk.
struct Service(Desk);

type Answer<T> = Result<Response<T>, Status>;

/// All operations over a desk, to be served on loopback.
pub fn service(desk: Desk) -> InterceptedService<AdminServer<impl Admin>, impl Interceptor + Clone> {
    let asking = desk.clone();
    let guard = move |mut call: Call<()>| {
        let said = |name: &str| call.metadata().get(name).and_then(|said| said.to_str().ok());
        let operator = asking.operator(said("authorization"), said("x-request-id"))?;
        call.extensions_mut().insert(operator);
        Ok(call)
    };
    AdminServer::with_interceptor(Service(desk), guard)
}

/// Who calls, and what they say. Nobody comes past the guard unknown.
fn told<T>(mut call: Call<T>) -> Result<(Operator, T), Status> {
    let operator = call.extensions_mut().remove().ok_or(AdminError::NoKey)?;
    Ok((operator, call.into_inner()))
}

// === impl Service ===

#[tonic::async_trait]
impl Admin for Service {
    async fn get_cluster(&self, _: Call<Nothing>) -> Answer<Cluster> {
        Ok(Response::new(operations::cluster(&self.0)))
    }

    async fn list_nodes(&self, _: Call<Nothing>) -> Answer<Nodes> {
        Ok(Response::new(Nodes { nodes: operations::nodes(&self.0) }))
    }

    async fn get_node(&self, call: Call<NodeName>) -> Answer<Node> {
        Ok(Response::new(operations::node(&self.0, call.into_inner().id)?))
    }

    async fn drain_node(&self, call: Call<DrainNodeRequest>) -> Answer<Node> {
        let (who, DrainNodeRequest { id, how }) = told(call)?;
        Ok(Response::new(operations::drain(self.0.clone(), who, id, how.unwrap_or_default().force).await?))
    }

    async fn undrain_node(&self, call: Call<NodeName>) -> Answer<Node> {
        let (who, NodeName { id }) = told(call)?;
        Ok(Response::new(operations::undrain(self.0.clone(), who, id).await?))
    }

    async fn set_roles(&self, call: Call<SetRolesRequest>) -> Answer<Node> {
        let (who, SetRolesRequest { id, roles }) = told(call)?;
        Ok(Response::new(operations::set_roles(self.0.clone(), who, id, roles.unwrap_or_default()).await?))
    }

    async fn list_requests(&self, _: Call<Nothing>) -> Answer<Requests> {
        Ok(Response::new(Requests { requests: operations::requests(&self.0) }))
    }

    async fn cancel_request(&self, call: Call<RequestId>) -> Answer<Requests> {
        let (who, RequestId { id }) = told(call)?;
        Ok(Response::new(Requests { requests: operations::cancel(self.0.clone(), who, id).await? }))
    }

    async fn list_queues(&self, _: Call<Nothing>) -> Answer<Queues> {
        Ok(Response::new(Queues { queues: operations::queues(&self.0) }))
    }

    async fn get_limits(&self, _: Call<Nothing>) -> Answer<Limits> {
        Ok(Response::new(operations::limits(&self.0)))
    }

    async fn set_limits(&self, call: Call<Limits>) -> Answer<Limits> {
        let (who, wanted) = told(call)?;
        Ok(Response::new(operations::set_limits(self.0.clone(), who, wanted).await?))
    }

    async fn get_prefix_index(&self, _: Call<Nothing>) -> Answer<PrefixIndex> {
        Ok(Response::new(operations::prefix_index(&self.0)))
    }

    async fn flush(&self, call: Call<Nothing>) -> Answer<Flushed> {
        let (who, Nothing {}) = told(call)?;
        Ok(Response::new(operations::flush(self.0.clone(), who).await?))
    }

    async fn list_advice(&self, _: Call<Nothing>) -> Answer<AdviceByModel> {
        Ok(Response::new(AdviceByModel { models: operations::advice(&self.0) }))
    }

    async fn list_roads(&self, _: Call<Nothing>) -> Answer<Roads> {
        Ok(Response::new(Roads { roads: operations::roads(&self.0) }))
    }

    async fn list_handoffs(&self, _: Call<Nothing>) -> Answer<Handoffs> {
        Ok(Response::new(Handoffs { handoffs: operations::handoffs(&self.0) }))
    }

    async fn list_incidents(&self, _: Call<Nothing>) -> Answer<Incidents> {
        Ok(Response::new(Incidents { incidents: operations::incidents(&self.0) }))
    }

    async fn get_pace(&self, _: Call<Nothing>) -> Answer<Pace> {
        Ok(Response::new(operations::pace(&self.0)))
    }

    async fn list_acts(&self, _: Call<Nothing>) -> Answer<Acts> {
        Ok(Response::new(Acts { acts: operations::acts(&self.0) }))
    }
}

impl From<AdminError> for Status {
    fn from(error: AdminError) -> Self {
        let code = match error.status().as_u16() {
            400 => Code::InvalidArgument,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 => Code::NotFound,
            409 if error.is_stale() => Code::Aborted,
            409 => Code::FailedPrecondition,
            502 | 503 => Code::Unavailable,
            _ => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}
