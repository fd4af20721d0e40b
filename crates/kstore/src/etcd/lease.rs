//! Leases.

use std::{sync::Arc, time::Duration};

use futures::stream;
use tonic::{Code, Status};

use super::{Etcd, EtcdError, header};
use crate::{LeaseError, LeaseId, RemoteError, RemoteLease, Revision, StoreError, proto as pb};

/// etcd counts in seconds, and a lease must not end too early.
fn seconds(ttl: Duration) -> i64 {
    super::signed(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0))
}

fn number(id: LeaseId) -> i64 {
    id.get().cast_signed()
}

fn refused(status: Status, id: Option<LeaseId>, ttl: Duration) -> LeaseError {
    match (status.code(), id) {
        (Code::NotFound, Some(id)) => LeaseError::NotFound(id),
        (Code::FailedPrecondition, Some(id)) if status.message().contains("already exists") => {
            LeaseError::Exists(id)
        }
        (Code::OutOfRange, _) => LeaseError::BadTtl { ttl },
        _ => StoreError::Backend(Arc::new(EtcdError::Refused(status))).into(),
    }
}

fn failed(error: RemoteError) -> LeaseError {
    error.into_store().into()
}

impl Etcd {
    pub(super) async fn lease_grant(
        &self,
        ttl: Duration,
        id: Option<LeaseId>,
    ) -> Result<LeaseId, LeaseError> {
        let request = pb::LeaseGrantRequest { ttl: seconds(ttl), id: id.map_or(0, number) };
        let response: pb::LeaseGrantResponse = self
            .channels
            .call_once("Lease/LeaseGrant", request)
            .await
            .map_err(|status| refused(status, id, ttl))?;
        let none =
            || failed(super::failed(Status::new(Code::Internal, "etcd granted a lease without a number")));
        LeaseId::new(response.id.cast_unsigned()).ok_or_else(none)
    }

    pub(super) async fn lease_keep_alive(&self, id: LeaseId) -> Result<Duration, LeaseError> {
        let request = stream::iter([pb::LeaseIdRequest { id: number(id) }]);
        let opened = self.channels.stream("Lease/LeaseKeepAlive", request).await;
        let mut answers: tonic::Streaming<pb::LeaseKeepAliveResponse> =
            opened.map_err(|status| refused(status, Some(id), Duration::ZERO))?;
        let answer = answers.message().await.map_err(|status| refused(status, Some(id), Duration::ZERO))?;
        match answer.map_or(0, |answer| answer.ttl) {
            ttl if ttl > 0 => Ok(Duration::from_secs(ttl.cast_unsigned())),
            _ => Err(LeaseError::NotFound(id)),
        }
    }

    pub(super) async fn lease_revoke(&self, id: LeaseId) -> Result<Revision, LeaseError> {
        let request = pb::LeaseIdRequest { id: number(id) };
        let response: pb::HeaderOnly = self
            .channels
            .call_once("Lease/LeaseRevoke", request)
            .await
            .map_err(|status| refused(status, Some(id), Duration::ZERO))?;
        Ok(header(response.header))
    }

    pub(super) async fn lease_list(&self, id: Option<LeaseId>) -> Result<Vec<RemoteLease>, LeaseError> {
        let ids = match id {
            Some(id) => vec![number(id)],
            None => {
                let all: pb::LeaseLeasesResponse =
                    self.channels.call("Lease/LeaseLeases", pb::Empty {}).await.map_err(failed)?;
                all.leases.iter().map(|lease| lease.id).collect()
            }
        };
        let mut leases = Vec::with_capacity(ids.len());
        for id in ids {
            let request = pb::LeaseTimeToLiveRequest { id, keys: true };
            let info: pb::LeaseTimeToLiveResponse =
                self.channels.call("Lease/LeaseTimeToLive", request).await.map_err(failed)?;
            // It may have ended since it was listed.
            let (Some(id), Ok(remaining)) = (LeaseId::new(info.id.cast_unsigned()), u64::try_from(info.ttl))
            else {
                continue;
            };
            leases.push(RemoteLease {
                id,
                ttl: Duration::from_secs(info.granted_ttl.cast_unsigned()),
                remaining: Duration::from_secs(remaining),
                keys: info.keys.iter().filter_map(|key| self.keys.split(key)).collect(),
            });
        }
        leases.sort_unstable_by_key(|lease| lease.id);
        Ok(leases)
    }
}
