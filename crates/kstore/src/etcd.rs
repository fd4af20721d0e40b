//! The engine over a real etcd, behind the feature `etcd`.
//!
//! A key `k` of the table `t` is the etcd key `{prefix}/t/k`; a `/` or `%` in the name of a table is written `%2F` or `%25`.
//! Revisions, versions and leases are etcd's own.

mod channel;
mod keys;
mod lease;
mod load;
mod txn;
mod watch;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tonic::{Code, Status};

pub(crate) use self::channel::Channels;
use self::keys::Keys;
use crate::{
    CommitError, LeaseError, LeaseId, Remote, RemoteChange, RemoteError, RemoteLease, RemoteLoad,
    RemoteOutcome, RemoteTxn, Replica, Revision, StoreError, proto as pb,
};

pub use channel::EtcdError;

/// A store over a real etcd cluster: [`Replica`] of an [`Etcd`].
///
/// Any etcd from 3.4 on will do. Several stores, in one process or many, may be over one cluster: each sees every commit of
/// the others, in order.
///
/// ```no_run
/// use kstore::{EtcdStore, Store, TableSpec, Txn};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = EtcdStore::connect(["http://10.0.0.1:2379", "http://10.0.0.2:2379"]).await?;
/// let pods = store.open_table(TableSpec::new("pods"))?;
/// store.commit(Txn::create(pods, "default/web", "...")).await?;
/// # Ok(()) }
/// ```
pub type EtcdStore = Replica<Etcd>;

/// Under which keys a store has its own.
pub const PREFIX_DEFAULT: &str = "/kplane";
/// How long one call may take, watches apart.
pub const CALL_TIME_DEFAULT: Duration = Duration::from_secs(10);
/// No message is larger: what gRPC can say.
const MESSAGE_BYTES_MAX: usize = i32::MAX as usize;

/// How a connection to etcd is made.
///
/// | setting | default |
/// |---|---|
/// | `prefix` | [`PREFIX_DEFAULT`] |
/// | `call_time` | [`CALL_TIME_DEFAULT`] |
/// | `tls` | none; needed for `https` |
/// | `user` | none |
#[derive(Clone, Debug)]
pub struct EtcdBuilder {
    endpoints: Vec<String>,
    prefix: String,
    call_time: Duration,
    tls: Option<EtcdTls>,
    user: Option<(String, Password)>,
}

/// Who is believed, and who one is.
#[derive(Clone, Default)]
pub struct EtcdTls {
    /// The authority's certificates, PEM.
    pub ca_pem: String,
    /// One's own certificate and its key, PEM.
    pub identity_pem: Option<(String, String)>,
    /// The name that the server's certificate must have, if it is not that of the endpoint.
    pub server_name: Option<String>,
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdTls").field("identity", &self.identity_pem.is_some()).finish_non_exhaustive()
    }
}

/// A password, which is not shown.
#[derive(Clone)]
struct Password(String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// An etcd cluster, as a database that a replica can follow.
pub struct Etcd {
    channels: Channels,
    keys: Keys,
    /// Whether its announcements of progress can be relied on.
    tells_progress: bool,
    /// Asks on the stream that is followed.
    ask: std::sync::Mutex<Option<mpsc::Sender<pb::WatchRequest>>>,
}

impl EtcdBuilder {
    /// Under which keys the store has its own; no `/` at the end.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long one call may take.
    #[must_use]
    pub fn call_time(mut self, call_time: Duration) -> Self {
        self.call_time = call_time;
        self
    }

    /// Speaks TLS.
    #[must_use]
    pub fn tls(mut self, tls: EtcdTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Logs in with a password.
    #[must_use]
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some((name.into(), Password(password.into())));
        self
    }

    /// Connects, loads what is there, and follows it.
    ///
    /// # Errors
    /// [`StoreError::Backend`] with an [`EtcdError`] in it when the endpoints can't be used.
    pub async fn connect(self) -> Result<EtcdStore, StoreError> {
        Replica::new(self.etcd().await.map_err(RemoteError::into_store)?).await
    }

    /// The connection alone.
    ///
    /// # Errors
    /// When the endpoints can't be used.
    pub async fn etcd(self) -> Result<Etcd, RemoteError> {
        let user = self.user.map(|(name, Password(password))| (name, password));
        let channels = Channels::new(&self.endpoints, self.tls.as_ref(), user, self.call_time)?;
        let status: pb::StatusResponse = channels.call("Maintenance/Status", pb::Empty {}).await?;
        let tells_progress = tells_progress(&status.version);
        Ok(Etcd { channels, keys: Keys::new(&self.prefix), tells_progress, ask: std::sync::Mutex::default() })
    }
}

impl EtcdStore {
    /// Connects with the defaults of [`EtcdBuilder`].
    ///
    /// # Errors
    /// As of [`EtcdBuilder::connect`].
    pub async fn connect<S: Into<String>>(
        endpoints: impl IntoIterator<Item = S>,
    ) -> Result<Self, StoreError> {
        Self::builder(endpoints).connect().await
    }

    /// Sets what is not to be the default. Endpoints are URLs; each is tried when the one before fails.
    pub fn builder<S: Into<String>>(endpoints: impl IntoIterator<Item = S>) -> EtcdBuilder {
        EtcdBuilder {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            prefix: PREFIX_DEFAULT.to_owned(),
            call_time: CALL_TIME_DEFAULT,
            tls: None,
            user: None,
        }
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd")
            .field("channels", &self.channels)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

/// From which versions on an announcement of progress means that everything before it was told: 3.4.31 and 3.5.13, as
/// upstream's check of etcd's features has it. (etcd issue 15220.)
fn tells_progress(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let (major, minor, patch) =
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match (major, minor) {
        (3, 4) => patch >= 31,
        (3, 5) => patch >= 13,
        other => other >= (3, 6),
    }
}

fn failed(status: Status) -> RemoteError {
    if status.code() == Code::OutOfRange && status.message().contains("compacted") {
        return RemoteError::Compacted;
    }
    RemoteError::Failed(Arc::new(EtcdError::Refused(status)))
}

fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or_default())
}

fn header(header: Option<pb::ResponseHeader>) -> Revision {
    header.map_or(Revision::ZERO, |header| revision(header.revision))
}

#[async_trait]
impl Remote for Etcd {
    async fn load(&self) -> Result<RemoteLoad, RemoteError> {
        self.load_all().await
    }

    async fn changes(
        &self,
        after: Revision,
    ) -> Result<BoxStream<'static, Result<RemoteChange, RemoteError>>, RemoteError> {
        self.follow(after).await
    }

    async fn commit(&self, txn: RemoteTxn<'_>) -> Result<RemoteOutcome, CommitError> {
        self.commit_txn(txn).await
    }

    async fn barrier(&self) -> Result<Revision, RemoteError> {
        // A read that has to be the newest, of a key that is not there.
        let request = pb::RangeRequest { key: self.keys.sync(), count_only: true, ..Default::default() };
        let response: pb::RangeResponse = self.channels.call("KV/Range", request).await?;
        Ok(header(response.header))
    }

    async fn ask_progress(&self, _: Revision) -> Result<(), RemoteError> {
        if !self.tells_progress {
            // Something that is seen in its order by everybody who follows.
            let request = pb::PutRequest { key: self.keys.sync(), value: Bytes::new(), ..Default::default() };
            let _: pb::PutResponse = self.channels.call("KV/Put", request).await?;
            return Ok(());
        }
        let ask = self.ask.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some(ask) = ask {
            let request = pb::WatchRequest { request_union: Some(pb::WatchUnion::Progress(pb::Empty {})) };
            // When the stream has just ended, the next one begins with an announcement anyway.
            let _ = ask.send(request).await;
        }
        Ok(())
    }

    async fn compact(&self, floor: Revision) -> Result<(), RemoteError> {
        if floor == Revision::ZERO {
            return Ok(());
        }
        let request = pb::CompactionRequest { revision: signed(floor.0), physical: false };
        match self.channels.call::<_, pb::HeaderOnly>("KV/Compact", request).await {
            Ok(_) | Err(RemoteError::Compacted) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn grant(&self, ttl: Duration, id: Option<LeaseId>) -> Result<LeaseId, LeaseError> {
        self.lease_grant(ttl, id).await
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Duration, LeaseError> {
        self.lease_keep_alive(id).await
    }

    async fn revoke(&self, id: LeaseId) -> Result<Revision, LeaseError> {
        self.lease_revoke(id).await
    }

    async fn leases(&self, id: Option<LeaseId>) -> Result<Vec<RemoteLease>, LeaseError> {
        self.lease_list(id).await
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_announce_too_much() {
        let cases = [
            ("3.4.23", false),
            ("3.4.31", true),
            ("3.5.12", false),
            ("3.5.13", true),
            ("3.6.0", true),
            ("3.6.0-rc.1", true),
            ("4.0.0", true),
            ("", false),
        ];
        for (version, wanted) in cases {
            assert_eq!(tells_progress(version), wanted, "{version:?}");
        }
    }
}
