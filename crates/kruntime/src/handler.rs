//! Asking a container something: by a command, by HTTP, by a connection, or by gRPC's health protocol. Probes and
//! lifecycle hooks are made of it.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Container, ExecAction, LifecycleHandler, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::{
    agent::PodEntry,
    runtime::{ExecRequest, RuntimeError},
};

mod grpc;
mod http_get;

pub(crate) use grpc::grpc;
pub(crate) use http_get::http_get;

/// So much of an answer is kept for messages.
pub(crate) const ANSWER_BYTES_MAX: usize = 10 * 1024;

/// Why a handler failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandlerError {
    #[error("{0}")]
    Runtime(#[from] RuntimeError),
    #[error("dial tcp {address}: {source}")]
    Dial { address: SocketAddr, source: std::io::Error },
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
    #[error("command exited with {code}: {output}")]
    Exit { code: i32, output: String },
    #[error("tls: {0}")]
    Tls(std::io::Error),
    #[error("HTTP probe failed with statuscode: {0}")]
    Status(u16),
    #[error("{0}")]
    Bad(String),
}

/// Runs a lifecycle hook to its end.
pub(crate) async fn run_hook(
    entry: &PodEntry,
    container: &Container,
    hook: &LifecycleHandler,
) -> Result<(), HandlerError> {
    if let Some(action) = &hook.exec {
        exec(entry, container, action).await
    } else if let Some(action) = &hook.http_get {
        http_get(entry, container, action).await.map(drop)
    } else if let Some(action) = &hook.tcp_socket {
        tcp_socket(entry, container, action).await
    } else if let Some(action) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(action.seconds.max(0).unsigned_abs())).await;
        Ok(())
    } else {
        Err(HandlerError::Bad("the hook has no action".to_owned()))
    }
}

/// A command succeeds when it exits with 0.
pub(crate) async fn exec(
    entry: &PodEntry,
    container: &Container,
    action: &ExecAction,
) -> Result<(), HandlerError> {
    let request =
        ExecRequest { command: action.command.clone().unwrap_or_default(), ..ExecRequest::default() };
    let session = entry.node.config.runtime.exec(&entry.uid, &container.name, request).await?;
    let read = |reader: Option<crate::runtime::Reader>| async move {
        let mut text = Vec::new();
        if let Some(reader) = reader {
            let mut limited = reader.take(ANSWER_BYTES_MAX as u64);
            let _ = limited.read_to_end(&mut text).await;
            // The rest is read too, or the program would wait for a reader.
            let _ = tokio::io::copy(&mut limited.into_inner(), &mut tokio::io::sink()).await;
        }
        text
    };
    let (mut output, errors, code) = tokio::join!(read(session.stdout), read(session.stderr), session.exit);
    match code? {
        0 => Ok(()),
        code => {
            output.extend(errors);
            Err(HandlerError::Exit { code, output: String::from_utf8_lossy(&output).into_owned() })
        }
    }
}

/// The number of a port that may be given by name.
fn port(container: &Container, port: &IntOrString) -> Result<u16, HandlerError> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            let named = ports.filter(|port| port.name.as_ref() == Some(name)).map(|port| port.container_port);
            named.chain(name.parse()).next()
        }
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number > 0)
        .ok_or_else(|| HandlerError::Bad(format!("invalid port {port:?}")))
}

fn pod_address(entry: &PodEntry) -> Result<IpAddr, HandlerError> {
    let addresses = entry.node.config.runtime.observe(&entry.uid).addresses.unwrap_or_default();
    addresses.first().copied().ok_or_else(|| HandlerError::Bad("the pod has no address".to_owned()))
}

async fn dial(entry: &PodEntry, host: Option<&str>, port: u16) -> Result<TcpStream, HandlerError> {
    let runtime = &entry.node.config.runtime;
    let Some(host) = host.filter(|host| !host.is_empty()) else {
        let address = SocketAddr::new(pod_address(entry)?, port);
        let connected = runtime.connect(&entry.uid, address, false).await;
        return connected.map_err(|source| HandlerError::Dial { address, source });
    };
    let found = tokio::net::lookup_host((host, port)).await;
    let first = found.ok().and_then(|mut found| found.next());
    let address = first.ok_or_else(|| HandlerError::Bad(format!("host {host:?} is not known")))?;
    let connected = TcpStream::connect(runtime.dial_address(address)).await;
    connected.map_err(|source| HandlerError::Dial { address, source })
}

/// A connection that is accepted is a success.
pub(crate) async fn tcp_socket(
    entry: &PodEntry,
    container: &Container,
    action: &TCPSocketAction,
) -> Result<(), HandlerError> {
    dial(entry, action.host.as_deref(), port(container, &action.port)?).await.map(drop)
}
