//! The service `Lease`.

use std::{sync::Arc, time::Duration};

use tonic::Status;

use super::{Face, faults, number, range::lease_number};
use crate::{LeaseError, LeaseId, proto as pb};

/// Shorter leases are made as long as this, since etcd's leases must outlive an election.
const TTL_MIN_SECONDS: i64 = 2;

/// Rounded up: what still lives for a part of a second must not look as if it were over.
fn seconds(duration: Duration) -> i64 {
    number(duration.as_secs() + u64::from(duration.subsec_nanos() > 0))
}

fn lease(id: i64) -> Result<LeaseId, Status> {
    LeaseId::new(id.cast_unsigned()).ok_or_else(faults::lease_not_found)
}

impl Face {
    pub(super) async fn lease_grant(
        &self,
        request: pb::LeaseGrantRequest,
    ) -> Result<pb::LeaseGrantResponse, Status> {
        let ttl = request.ttl.max(TTL_MIN_SECONDS);
        let id = LeaseId::new(request.id.cast_unsigned());
        let granted = self.store.grant(Duration::from_secs(ttl.cast_unsigned()), id).await;
        let id = granted.map_err(|error| faults::of_lease(&error))?;
        let header = Some(self.header_now());
        Ok(pb::LeaseGrantResponse { header, id: lease_number(id), ttl, error: String::new() })
    }

    pub(super) async fn lease_revoke(&self, request: pb::LeaseIdRequest) -> Result<pb::HeaderOnly, Status> {
        let revoked = self.store.revoke(lease(request.id)?).await;
        let revision = revoked.map_err(|error| faults::of_lease(&error))?;
        Ok(pb::HeaderOnly { header: Some(self.header(revision)) })
    }

    /// One answer of the stream; a lease that is not there has no time to live.
    pub(super) async fn lease_keep_alive(
        self: Arc<Self>,
        request: Result<pb::LeaseIdRequest, Status>,
    ) -> Result<pb::LeaseKeepAliveResponse, Status> {
        let pb::LeaseIdRequest { id } = request?;
        let ttl = match LeaseId::new(id.cast_unsigned()) {
            Some(lease) => match self.store.keep_alive(lease).await {
                Ok(ttl) => seconds(ttl),
                Err(LeaseError::NotFound(_)) => 0,
                Err(error) => return Err(faults::of_lease(&error)),
            },
            None => 0,
        };
        Ok(pb::LeaseKeepAliveResponse { header: Some(self.header_now()), id, ttl })
    }

    pub(super) async fn lease_time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> Result<pb::LeaseTimeToLiveResponse, Status> {
        let id = LeaseId::new(request.id.cast_unsigned());
        let found = match id {
            Some(id) => self.store.leases(Some(id)).await.map_err(|error| faults::of_lease(&error))?,
            None => Vec::new(),
        };
        let header = Some(self.header_now());
        let Some(info) = found.into_iter().next() else {
            return Ok(pb::LeaseTimeToLiveResponse { header, id: request.id, ttl: -1, ..Default::default() });
        };
        let keys = match request.keys {
            true => {
                info.keys.into_iter().filter(|(table, _)| *table == self.table).map(|(_, key)| key).collect()
            }
            false => Vec::new(),
        };
        let (ttl, granted_ttl) = (seconds(info.remaining), seconds(info.ttl));
        Ok(pb::LeaseTimeToLiveResponse { header, id: request.id, ttl, granted_ttl, keys })
    }

    pub(super) async fn lease_leases(&self, _: pb::Empty) -> Result<pb::LeaseLeasesResponse, Status> {
        let leases = self.store.leases(None).await.map_err(|error| faults::of_lease(&error))?;
        let leases = leases.iter().map(|info| pb::LeaseStatus { id: lease_number(info.id) }).collect();
        Ok(pb::LeaseLeasesResponse { header: Some(self.header_now()), leases })
    }
}
