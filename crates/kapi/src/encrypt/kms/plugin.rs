//! Calls to a plug-in: the service `v2.KeyManagementService` (`kms/apis/v2/api.proto`).

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::{
    Code, Request,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{KmsConfig, envelope::EncryptedObject};

/// How large an answer may be, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Why a plug-in gave no answer.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    /// Whether it can't be reached, so that asking for something else is of no use.
    pub(super) unreachable: bool,
    pub(super) why: String,
}

/// How a plug-in is.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Health {
    #[prost(string, tag = "1")]
    pub(super) version: String,
    #[prost(string, tag = "2")]
    pub(super) healthz: String,
    #[prost(string, tag = "3")]
    pub(super) key_id: String,
}

/// What a plug-in has encrypted.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Encrypted {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) ciphertext: Bytes,
    #[prost(string, tag = "2")]
    pub(super) key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub(super) annotations: BTreeMap<String, Bytes>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
struct EncryptRequest {
    #[prost(bytes = "bytes", tag = "1")]
    plaintext: Bytes,
    #[prost(string, tag = "2")]
    uid: String,
}

#[derive(Clone, PartialEq, Message)]
struct DecryptRequest {
    #[prost(bytes = "bytes", tag = "1")]
    ciphertext: Bytes,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "4")]
    annotations: BTreeMap<String, Bytes>,
}

#[derive(Clone, PartialEq, Message)]
struct Decrypted {
    #[prost(bytes = "bytes", tag = "1")]
    plaintext: Bytes,
}

/// What a key management service does. Asked by one task; each call ends by itself.
#[async_trait]
pub(super) trait KeyService: Send {
    /// How it is, and what its present key is called.
    async fn status(&self) -> Result<Health, Failed>;
    /// Encrypts a seed with its present key.
    async fn encrypt(&self, seed: &[u8]) -> Result<Encrypted, Failed>;
    /// Decrypts the seed, or key, of an object.
    async fn decrypt(&self, object: &EncryptedObject) -> Result<Bytes, Failed>;
}

/// A plug-in behind a Unix socket.
pub(super) struct Plugin {
    channel: Channel,
    timeout: Duration,
}

impl Plugin {
    /// A plug-in that is connected to when it is asked first. Within a runtime.
    pub(super) fn new(config: &KmsConfig) -> Self {
        let socket: PathBuf = config.socket.clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The address is not used but as the authority, which upstream gives like this.
        let endpoint = Endpoint::from_static("http://localhost");
        Self { channel: endpoint.connect_with_connector_lazy(connector), timeout: config.timeout }
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Failed>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let call = async {
            let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
            let reached = grpc.ready().await;
            reached.map_err(|why| Failed { unreachable: true, why: told(&why) })?;
            let path = PathAndQuery::from_static(method);
            let answer = grpc.unary(Request::new(request), path, ProstCodec::default()).await;
            answer.map(tonic::Response::into_inner).map_err(|status| Failed {
                unreachable: status.code() == Code::Unavailable,
                why: format!("rpc error: code = {:?} desc = {}", status.code(), status.message()),
            })
        };
        tokio::time::timeout(self.timeout, call).await.unwrap_or_else(|_| {
            let why = "rpc error: code = DeadlineExceeded desc = context deadline exceeded";
            Err(Failed { unreachable: true, why: why.to_owned() })
        })
    }
}

/// An error with what caused it.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[async_trait]
impl KeyService for Plugin {
    async fn status(&self) -> Result<Health, Failed> {
        self.call("/v2.KeyManagementService/Status", StatusRequest {}).await
    }

    async fn encrypt(&self, seed: &[u8]) -> Result<Encrypted, Failed> {
        let plaintext = Bytes::copy_from_slice(seed);
        let uid = uuid::Uuid::new_v4().to_string();
        self.call("/v2.KeyManagementService/Encrypt", EncryptRequest { plaintext, uid }).await
    }

    async fn decrypt(&self, object: &EncryptedObject) -> Result<Bytes, Failed> {
        let request = DecryptRequest {
            ciphertext: object.source.clone(),
            uid: uuid::Uuid::new_v4().to_string(),
            key_id: object.key_id.clone(),
            annotations: object.annotations.clone(),
        };
        let answer: Decrypted = self.call("/v2.KeyManagementService/Decrypt", request).await?;
        Ok(answer.plaintext)
    }
}
