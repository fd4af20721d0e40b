//! An HTTP proxy that balances each request by itself, straight to endpoints.
//!
//! It knows nothing of Kubernetes: a [`RouteTable`] says what each port does, and is replaced as a whole while requests run.
//! [`RouteTable::select`] and the filters are pure functions; [`HttpProxy`] does the I/O. What is taken in and handed on:
//! HTTP/1.1 and HTTP/2 (by ALPN, or in the clear by prior knowledge), upgrades such as WebSocket (of HTTP/1.1), trailers, and
//! bodies of any length, none of which is buffered, but short ones that a rule may want to be sent again.
//!
//! Paths are brought into one form before they are compared and handed on (RFC 3986, section 6.2.2): without dot segments and empty
//! elements, with nothing encoded that needs not be.
//!
//! A request is tried on another endpoint when nothing of it was sent, or when it is idempotent and has no body (RFC 9110,
//! section 9.2.2), and besides as its rule says ([`Retry`]). An endpoint that is no longer in the table gets no new request; those that run on it end by themselves.
//!
//! | answer | when |
//! |---|---|
//! | 400 | no host, or several; a path that leads above its root, whose encodings are not valid, or which is for another rule when its encoded slashes are decoded |
//! | 404 | no rule |
//! | 408 | the body comes too slowly: nothing for [`BODY_PAUSE_MAX`], or less than [`BODY_RATE_MIN`] |
//! | 414 | the target is longer than [`URI_BYTES_MAX`] |
//! | 421 | another listener is for the host than for the name that the connection was made for (RFC 9110, section 15.5.20) |
//! | 431 | the head is longer than [`HEAD_BYTES_MAX`] or has more than [`HEADERS_MAX`] headers |
//! | 500 | the rule's backend is not valid |
//! | 502 | the backend failed |
//! | 503 | the backend has no endpoints, or too many connections are upgraded |
//! | 504 | a time-out of the rule has passed |
//!
//! Clients of gRPC are told of these errors as gRPC has it: by `grpc-status` in a head with the status 200.
//!
//! ```no_run
//! # async fn example(table: knet::http_proxy::RouteTable) -> std::io::Result<()> {
//! use knet::http_proxy::{HttpProxy, ProxyOptions};
//! let proxy = HttpProxy::new(ProxyOptions::default());
//! proxy.set_table(table);
//! proxy.serve(80, tokio::net::TcpListener::bind("127.0.0.1:8080").await?)?;
//! # Ok(()) }
//! ```

mod backend_tls;
mod balance;
mod body;
mod filter;
mod forward;
mod headers;
mod hosts;
mod listen;
mod metrics;
mod mirror;
mod pace;
mod passthrough;
mod path;
mod pool;
mod rule;
mod table;
mod tls;
mod trying;
mod upgrade;

use std::time::Duration;

pub use self::{
    backend_tls::{Authorities, BackendTls, BackendTlsError, SubjectName},
    filter::{Filter, HeaderChange, Mirror, PathChange, Redirect, Rewrite},
    hosts::{HostName, Hosts},
    listen::{HttpProxy, ProxyOptions},
    metrics::SERIES_MAX,
    rule::{
        Action, Backend, BackendProtocol, Backends, HeaderMatch, Match, PathMatch, QueryMatch, Retry, Rule,
        Timeouts,
    },
    table::{Asked, PortRoutes, RouteTable},
    tls::{Certificate, CertificateError},
};

/// How many connections of clients a proxy has at a time; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 16 * 1024;
/// How many connections may be upgraded at a time; more are answered with 503.
pub const TUNNELS_MAX: usize = 16 * 1024;
/// How many mirrored requests run at a time; there is no copy of more.
pub const MIRRORS_MAX: usize = 1024;
/// How far a mirror may be behind its request, in frames of the body.
pub const MIRROR_FRAMES_MAX: usize = 64;
/// How long a mirrored request may take.
pub const MIRROR_WAIT_MAX: Duration = Duration::from_secs(60);
/// The longest head of a request or of a backend's answer, in bytes.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// How many headers a message may have.
pub const HEADERS_MAX: usize = 100;
/// The longest target of a request, in bytes.
pub const URI_BYTES_MAX: usize = 8 * 1024;
/// How many requests a client may run at a time on one connection of HTTP/2.
pub const STREAMS_MAX: u32 = 256;
/// How many bytes a client may send before it has said whom it asks for, where TLS is passed on.
pub const HELLO_BYTES_MAX: usize = 32 * 1024;
/// How long a TLS handshake may take.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long a connection may be there without a request.
pub const FIRST_REQUEST_MAX: Duration = Duration::from_secs(30);
/// How long a client may take from the end of one request to the end of the next one's head.
pub const IDLE_CLIENT_MAX: Duration = Duration::from_secs(90);
/// How long a client may pause within the body of a request, unless it is a stream of gRPC.
pub const BODY_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How many bytes a second a body has to bring, on average over the time that the client was waited for, after [`BODY_GRACE`].
pub const BODY_RATE_MIN: u64 = 240;
/// How long a body may be slower than that.
pub const BODY_GRACE: Duration = Duration::from_secs(30);
/// How long connecting to an endpoint may take before another one is tried.
pub const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How often a request is tried in all.
pub const TRIES_MAX: usize = 4;
/// How often a rule may have a request sent again (see [`Retry`]).
pub const RETRIES_MAX: u32 = 10;
/// How often it is sent again when the rule does not say.
pub const RETRIES_DEFAULT: u32 = 1;
/// How long it waits before, when the rule does not say.
pub const RETRY_BACKOFF_DEFAULT: Duration = Duration::from_millis(25);
/// The longest wait that doubling leads to; a rule may ask for more.
pub const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(10);
/// The longest body that is kept so that it can be sent again; requests with more, or of unknown length, are sent once.
pub const RETRY_BODY_BYTES_MAX: u64 = 64 * 1024;
/// How long a request whose endpoints all refuse waits for others to appear, once.
pub const ENDPOINTS_WAIT_MAX: Duration = Duration::from_secs(2);
/// How many connections to one endpoint are kept while nobody uses them.
pub const IDLE_MAX_PER_ENDPOINT: usize = 64;
/// How long a connection is kept that nobody uses.
pub const IDLE_BACKEND_MAX: Duration = Duration::from_secs(60);
