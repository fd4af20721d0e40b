//! The service `Maintenance`.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, stream};
use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::{ETCD_VERSION, EtcdServer, Face, digest::Digest, faults, grpc, number};
use crate::{Backup, BackupReader, RestoreError, Snapshot, proto as pb};

/// A snapshot is padded to a multiple of this before its checksum: that is how etcd's tools know that there is one.
const PAGE_BYTES: usize = 512;

/// The padding ends with its own length.
const LENGTH_BYTES: usize = 2;
const HASH_BYTES: usize = 32;

impl EtcdServer {
    /// The back-up in a file that `etcdctl snapshot save` made of a server of this kind, for [`Store::restore`](crate::Store::restore).
    ///
    /// # Errors
    /// [`RestoreError::NotABackup`] for other files, those of a real etcd among them, and [`RestoreError::Damaged`] when the
    /// checksum is not that of the content.
    pub fn read_snapshot(file: &Bytes) -> Result<BackupReader, RestoreError> {
        let (true, Some(length)) =
            (file.len() % PAGE_BYTES == HASH_BYTES, file.len().checked_sub(HASH_BYTES))
        else {
            return Err(RestoreError::NotABackup);
        };
        if Sha256::digest(&file[..length])[..] != file[length..] {
            return Err(RestoreError::Damaged {
                frame: 0,
                reason: "the checksum of the whole file does not match",
            });
        }
        let padding = file[..length].last_chunk().map_or(0, |bytes| usize::from(u16::from_le_bytes(*bytes)));
        let backup = length.checked_sub(padding).ok_or(RestoreError::NotABackup)?;
        Ok(BackupReader::from(file.slice(..backup)))
    }
}

impl Face {
    /// Of the newest state, and that state.
    async fn digest(&self) -> (Digest, Snapshot) {
        let mut digest = self.digest.lock().await;
        // Taken under the lock: never before the one that was followed to last.
        let now = self.store.snapshot();
        digest.follow(&now, self.table);
        (*digest, now)
    }

    pub(super) async fn status(&self, _: pb::Empty) -> Result<pb::StatusResponse, Status> {
        let now = self.newest(true).await.map_err(|error| faults::of_store(&error))?;
        let bytes = self.digest().await.0.bytes;
        Ok(pb::StatusResponse {
            header: Some(self.header(now.revision())),
            version: ETCD_VERSION.to_owned(),
            db_size: number(bytes),
            leader: self.member_id(),
            raft_index: now.revision().0,
            raft_term: 1,
            raft_applied_index: now.revision().0,
            errors: Vec::new(),
            db_size_in_use: number(bytes),
            is_learner: false,
            storage_version: super::CLUSTER_VERSION.to_owned(),
            db_size_quota: 0,
        })
    }

    /// There are no alarms: a full store says so to each write, and takes deletions still.
    pub(super) async fn alarm(&self, _: pb::Empty) -> Result<pb::AlarmResponse, Status> {
        Ok(pb::AlarmResponse { header: Some(self.header_now()), alarms: Vec::new() })
    }

    /// Memory is given back as history goes; there is nothing to do.
    pub(super) async fn defragment(&self, _: pb::Empty) -> Result<pb::HeaderOnly, Status> {
        Ok(pb::HeaderOnly { header: None })
    }

    /// A checksum of all keys as they are now.
    pub(super) async fn hash_now(&self, _: pb::Empty) -> Result<pb::HashKvResponse, Status> {
        self.hash(pb::HashKvRequest::default()).await
    }

    /// A checksum of all keys at a revision, the same for equal contents.
    pub(super) async fn hash(&self, request: pb::HashKvRequest) -> Result<pb::HashKvResponse, Status> {
        let now = self.newest(true).await.map_err(|error| faults::of_store(&error))?;
        let state = self.asked(&now, request.revision)?;
        let (digest, newest) = self.digest().await;
        let hash = digest.before(&newest, &state, self.table).hash;
        Ok(pb::HashKvResponse {
            header: Some(self.header(now.revision())),
            hash,
            compact_revision: number(self.compacted(&now).0),
            hash_revision: number(state.revision().0),
        })
    }

    /// A back-up of the whole store, with a checksum behind it, as etcd's tools expect.
    pub(super) fn snapshot_stream(self: Arc<Self>) -> grpc::Answers<pb::SnapshotResponse> {
        grpc::once_then(async move {
            let backup = self.store.backup().await.map_err(|error| faults::of_store(&error))?;
            let header = self.header(backup.revision());
            Ok(blobs(backup, header))
        })
    }
}

fn blobs(
    backup: Backup,
    header: pb::ResponseHeader,
) -> impl Stream<Item = Result<pb::SnapshotResponse, Status>> {
    let mut made = Some((backup, Sha256::new(), 0));
    stream::iter(std::iter::from_fn(move || {
        let (mut backup, mut hash, mut bytes) = made.take()?;
        let blob = match backup.next() {
            Some(chunk) => {
                hash.update(&chunk);
                bytes += chunk.len();
                made = Some((backup, hash, bytes));
                chunk
            }
            None => {
                let padding = (bytes + LENGTH_BYTES).next_multiple_of(PAGE_BYTES) - bytes;
                let mut last = BytesMut::zeroed(padding - LENGTH_BYTES);
                last.put_u16_le(padding as u16);
                hash.update(&last);
                last.extend_from_slice(&hash.finalize());
                Bytes::from(last)
            }
        };
        let version = ETCD_VERSION.to_owned();
        Some(Ok(pb::SnapshotResponse { header: Some(header), remaining_bytes: 0, blob, version }))
    }))
}
