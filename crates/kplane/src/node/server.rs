//! The socket of a node's agent.

use std::{io, sync::Arc};

use http::Request;
use kapi::authn::{Authenticator as _, ClientCertificates, PeerCertificates};
use kruntime::{
    NodeAgent,
    serve::{
        access::{Caller, Guard, Reviews},
        kubelet_service,
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;

use crate::serve::{ACCEPT_RETRY, CONNECTIONS_MAX, HANDSHAKE_TIMEOUT, Tasks};

/// Accepts TLS connections and answers on them who is known and allowed, until the node ends.
pub(super) async fn listen(
    agent: NodeAgent,
    node: Arc<str>,
    listener: TcpListener,
    configs: watch::Receiver<Arc<rustls::ServerConfig>>,
    reviews: Arc<Reviews>,
    tasks: Tasks,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        // Each connection has the certificate of the time when it was made.
        let acceptor = TlsAcceptor::from(Arc::clone(&configs.borrow()));
        let (service, reviews) = (kubelet_service(&agent, Arc::clone(&node)), Arc::clone(&reviews));
        tasks.spawn_connection(async move {
            let _permit = permit;
            let served = async {
                let (stream, caller) = accept(acceptor, stream).await?;
                service.guarded(Guard::new(reviews, caller)).serve(stream).await.map_err(io::Error::other)
            };
            if let Err(error) = served.await {
                tracing::debug!(%peer, %error, "a connection ended");
            }
        });
    }
}

type Stream = tokio_rustls::server::TlsStream<TcpStream>;

/// The connection, and who its certificate says is there, if it has one.
async fn accept(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<(Stream, Option<Caller>)> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let Some(chain) = stream.get_ref().1.peer_certificates() else { return Ok((stream, None)) };
    let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.extensions.insert(PeerCertificates(Arc::new(chain)));
    let user = ClientCertificates.authenticate(&parts).await;
    let user = user.map_err(|_| io::Error::other("the client's certificate can't be read"))?;
    Ok((stream, user.map(|known| Caller::of_certificate(known.user.name.clone(), known.user.groups.clone()))))
}
