//! The services `Cluster` and `Auth`, and gRPC's own health service.

use tonic::Status;

use super::{Face, faults};
use crate::{Revision, proto as pb};

/// The answer of `grpc.health.v1.Health/Check`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct HealthCheckResponse {
    /// 1 is "serving".
    #[prost(int32, tag = "1")]
    status: i32,
}

impl Face {
    pub(super) async fn member_list(&self, _: pb::Empty) -> Result<pb::MemberListResponse, Status> {
        let member = pb::Member {
            id: self.member_id(),
            name: self.settings.name.clone(),
            peer_urls: Vec::new(),
            client_urls: self.settings.client_urls.clone(),
            is_learner: false,
        };
        // It tells nothing of the keys, and so of no revision.
        let header = Some(self.header(Revision::ZERO));
        Ok(pb::MemberListResponse { header, members: vec![member] })
    }

    pub(super) async fn auth_status(&self, _: pb::Empty) -> Result<pb::AuthStatusResponse, Status> {
        Ok(pb::AuthStatusResponse { header: Some(self.header_now()), enabled: false, auth_revision: 1 })
    }

    pub(super) async fn authenticate(
        &self,
        _: pb::AuthenticateRequest,
    ) -> Result<pb::AuthenticateResponse, Status> {
        Err(faults::no_auth())
    }

    pub(super) async fn health(&self, _: pb::Empty) -> Result<HealthCheckResponse, Status> {
        self.store.barrier().await.map_err(|error| faults::of_store(&error))?;
        Ok(HealthCheckResponse { status: 1 })
    }
}
