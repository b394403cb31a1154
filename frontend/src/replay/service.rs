//! What other coordinators ask of this one.

use std::sync::Arc;

use axum::{Router, body::Body, extract::Request, http::Method};
use baton_protocol::{
    Role,
    wire::{
        AnswerPart, KeyedCall,
        replica_server::{Replica, ReplicaServer},
    },
};
use baton_trust::{Listener, Trust};
use futures::{FutureExt, StreamExt, stream::BoxStream};
use tonic::{Status, service::interceptor::InterceptedService, transport::Server};
use tower::Service;

use super::{
    key, name_of,
    replicas::{parts, read_headers},
};
use crate::{door::tenant::Tenant, routes::Room};

/// Marks a call that another coordinator has let in, and sent here to be answered.
#[derive(Clone)]
pub struct Sent(pub Arc<Tenant>);

/// Answers calls that this coordinator keeps.
struct Keeper {
    router: Router,
    room: Arc<Room>,
}

/// Room for headers beside a body.
const HEADER_BYTES: usize = 64 << 10;

/// Serves other coordinators; after `stop`, until the calls that run have ended.
///
/// # Errors
/// When the socket breaks.
pub async fn serve(
    listener: Listener,
    trust: &Trust,
    (router, room): (Router, Arc<Room>),
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let limit = room.desk.config.max_body_bytes + HEADER_BYTES;
    let service = ReplicaServer::new(Keeper { router, room }).max_decoding_message_size(limit);
    let guarded = InterceptedService::new(service, trust.guard(&[Role::Coordinator]));
    Server::builder().add_service(guarded).serve_with_incoming_shutdown(trust.callers(listener), stop).await
}

#[tonic::async_trait]
impl Replica for Keeper {
    type AnswerStream = BoxStream<'static, Result<AnswerPart, Status>>;

    async fn answer(
        &self,
        call: tonic::Request<KeyedCall>,
    ) -> Result<tonic::Response<Self::AnswerStream>, Status> {
        let KeyedCall { tenant, path, headers, body, if_known } = call.into_inner();
        let headers = read_headers(headers);
        let key = key(&headers).ok().flatten().ok_or_else(|| Status::invalid_argument("no key"))?;
        if if_known && !self.room.kept.has(&name_of(&tenant, &key)) {
            return Err(Status::not_found("no such call"));
        }
        let tenant = self.room.door.tenant_named(&tenant);
        let tenant = tenant.ok_or_else(|| Status::failed_precondition("no such tenant here"))?;
        let request = Request::builder().method(Method::POST).uri(path).extension(Sent(tenant));
        let mut request = request.body(Body::from(body)).map_err(|_| Status::invalid_argument("no path"))?;
        *request.headers_mut() = headers;
        let mut router = self.router.clone();
        let answer = async move {
            match router.call(request).await {
                Ok(response) => parts(response),
                Err(never) => match never {},
            }
        };
        Ok(tonic::Response::new(answer.into_stream().flatten().boxed()))
    }
}
