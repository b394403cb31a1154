//! The same over gRPC.

use baton_coordinator::Coordinator;
use tonic::{Code, Request as Call, Response, Status};

use crate::{
    error::AdminError,
    operations,
    views::{
        AdviceByModel, Cluster, DrainNodeRequest, Flushed, Incidents, Limits, Node, NodeName, Nodes, Nothing,
        PrefixIndex, Queues, RequestId, Requests, Roads, SetRolesRequest,
        admin_server::{Admin, AdminServer},
    },
};

/// The service over a coordinator.
struct Service(Coordinator);

type Answer<T> = Result<Response<T>, Status>;

/// All operations over a coordinator, to be served on loopback: there are no keys.
pub fn service(coordinator: Coordinator) -> AdminServer<impl Admin> {
    AdminServer::new(Service(coordinator))
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
        let DrainNodeRequest { id, how } = call.into_inner();
        Ok(Response::new(operations::drain(&self.0, id, how.unwrap_or_default().force).await?))
    }

    async fn undrain_node(&self, call: Call<NodeName>) -> Answer<Node> {
        Ok(Response::new(operations::undrain(&self.0, call.into_inner().id).await?))
    }

    async fn set_roles(&self, call: Call<SetRolesRequest>) -> Answer<Node> {
        let SetRolesRequest { id, roles } = call.into_inner();
        Ok(Response::new(operations::set_roles(&self.0, id, roles.unwrap_or_default()).await?))
    }

    async fn list_requests(&self, _: Call<Nothing>) -> Answer<Requests> {
        Ok(Response::new(Requests { requests: operations::requests(&self.0) }))
    }

    async fn cancel_request(&self, call: Call<RequestId>) -> Answer<Requests> {
        Ok(Response::new(Requests { requests: operations::cancel(&self.0, call.into_inner().id)? }))
    }

    async fn list_queues(&self, _: Call<Nothing>) -> Answer<Queues> {
        Ok(Response::new(Queues { queues: operations::queues(&self.0) }))
    }

    async fn get_limits(&self, _: Call<Nothing>) -> Answer<Limits> {
        Ok(Response::new(operations::limits(&self.0)))
    }

    async fn set_limits(&self, call: Call<Limits>) -> Answer<Limits> {
        Ok(Response::new(operations::set_limits(&self.0, call.into_inner())?))
    }

    async fn get_prefix_index(&self, _: Call<Nothing>) -> Answer<PrefixIndex> {
        Ok(Response::new(operations::prefix_index(&self.0)))
    }

    async fn flush(&self, _: Call<Nothing>) -> Answer<Flushed> {
        Ok(Response::new(operations::flush(&self.0).await?))
    }

    async fn list_advice(&self, _: Call<Nothing>) -> Answer<AdviceByModel> {
        Ok(Response::new(AdviceByModel { models: operations::advice(&self.0) }))
    }

    async fn list_roads(&self, _: Call<Nothing>) -> Answer<Roads> {
        Ok(Response::new(Roads { roads: operations::roads(&self.0) }))
    }

    async fn list_incidents(&self, _: Call<Nothing>) -> Answer<Incidents> {
        Ok(Response::new(Incidents { incidents: operations::incidents(&self.0) }))
    }
}

impl From<AdminError> for Status {
    fn from(error: AdminError) -> Self {
        let code = match error.status().as_u16() {
            400 => Code::InvalidArgument,
            403 => Code::PermissionDenied,
            404 => Code::NotFound,
            409 if error.is_stale() => Code::Aborted,
            409 => Code::FailedPrecondition,
            502 => Code::Unavailable,
            _ => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}
