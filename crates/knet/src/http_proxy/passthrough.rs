//! TLS that is not ended here: connections go to a backend by the name that the client asks for, and stay sealed.

use std::{io, sync::Arc};

use rustls::server::Acceptor;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::TcpStream,
    time::timeout,
};

use super::{
    HANDSHAKE_MAX, HELLO_BYTES_MAX, TRIES_MAX,
    balance::{pick_backend, pick_endpoint},
    listen::Shared,
    rule::{Action, Rule},
};

/// Carries a connection that came to `port`, from its first byte to its end.
pub(super) async fn carry(shared: &Shared, port: u16, mut client: TcpStream) -> io::Result<()> {
    let (name, hello) = timeout(HANDSHAKE_MAX, read_hello(&mut client)).await??;
    let rule = {
        let table = shared.table.borrow();
        table.ports.get(&port).and_then(|port| port.select_passthrough(&name)).cloned()
    };
    let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("nobody serves {name:?}"));
    let mut backend = connect(shared, &rule.ok_or_else(unknown)?).await?;
    backend.write_all(&hello).await?;
    copy_bidirectional(&mut client, &mut backend).await?;
    Ok(())
}

/// Reads until the client has said whom it asks for. The name, in lower case and empty when there is none, and all that was read.
async fn read_hello(client: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut acceptor = Acceptor::default();
    let mut hello = Vec::new();
    while hello.len() < HELLO_BYTES_MAX {
        let before = hello.len();
        if client.read_buf(&mut hello).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut new = &hello[before..];
        while !new.is_empty() {
            acceptor.read_tls(&mut new)?;
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().unwrap_or_default().to_ascii_lowercase();
                    return Ok((name, hello));
                }
                Ok(None) => {}
                Err((error, _)) => return Err(io::Error::other(error)),
            }
        }
    }
    Err(io::Error::other("the client says more than it may before it says whom it asks for"))
}

/// A connection to one of the rule's endpoints.
async fn connect(shared: &Shared, rule: &Arc<Rule>) -> io::Result<TcpStream> {
    let Action::Forward(backends) = &rule.action else { return Err(io::ErrorKind::Unsupported.into()) };
    let backend = pick_backend(backends, rand::random());
    let endpoints = backend.and_then(|backend| backend.endpoints.as_deref()).unwrap_or_default();
    let mut tried = Vec::new();
    let mut error = io::Error::new(io::ErrorKind::NotFound, "there is no endpoint");
    for _ in 0..TRIES_MAX {
        let Some(endpoint) = pick_endpoint(endpoints, &tried, |_| 0, rand::random()) else { break };
        match shared.pool.connect(endpoint).await {
            Ok(stream) => return Ok(stream),
            Err(why) => error = why,
        }
        tried.push(endpoint);
    }
    Err(error)
}
