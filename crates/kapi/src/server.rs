//! The API server as a [`tower::Service`].

mod answer;
mod service;

use std::{collections::HashSet, fmt, future::Future, sync::Arc, time::Duration};

use kcore::{Clock, TokioClock};
use kstore::{MemoryStore, Store, StoreError};
use tokio::sync::watch;

pub use self::answer::SLOW_REQUEST;
pub(crate) use self::answer::lasts;
pub use self::service::AsUser;
use crate::{
    admission::{self, Admission, Registered},
    aggregate::Aggregation,
    audit::{Audit, AuditPolicy, AuditSink},
    authn::{
        AUTHENTICATED, Anonymous, AuthenticationConfig, Authenticator, BootstrapTokens, ClientCertificates,
        FrontProxy, Identity, OidcTokens, ServiceAccountIssuer, ServiceAccountTokens, UNAUTHENTICATED,
        UserInfo, jwt::KeyError,
    },
    authz::{
        self, AuthorizationConfig, AuthorizationMode, Authorizer, Chain, Masters, Rbac,
        escalation::NoEscalation,
    },
    custom::{self, Customs},
    encrypt::Encryption,
    error::ApiResult,
    fairness::Fairness,
    http as transport,
    kinds::{ServiceAddresses, Strategies},
    metrics::Metrics,
    node::NodeDialer,
    objects::Objects,
    outbound::{Outbound, ProxyCredentials, ServiceDialer},
    registry::{Registry, Resource, ResourceDef, builtin},
    schema,
    usage::{self, UsageSource},
};

/// How long a request may take that is no watch and no stream (`--request-timeout`).
pub const REQUEST_MAX: Duration = Duration::from_secs(60);
/// The largest body that is read, in bytes (`MaxRequestBodyBytes`).
pub const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// The API server: cheap to clone, every clone is the same server.
///
/// A request passes, in this order: panic guard, request info, audit, authentication, impersonation, fairness, authorization,
/// and then the verb:
/// decoding, defaults, mutating admission, validation, validating admission, commit.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use kapi::{ApiServer, authn::{Identity, UserInfo}};
/// use tower::ServiceExt as _;
///
/// let server = ApiServer::builder().build()?;
/// let admin = std::sync::Arc::new(UserInfo::new("admin", ["system:masters"]));
/// let request = http::Request::get("/api/v1/namespaces").extension(Identity(admin)).body(http_body_util::Empty::<bytes::Bytes>::new())?;
/// assert_eq!(server.oneshot(request).await?.status(), 200);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ApiServer(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) objects: Arc<Objects>,
    pub(crate) issuer: Arc<ServiceAccountIssuer>,
    pub(crate) admission: Vec<Arc<dyn Admission>>,
    pub(crate) foreign_admission: bool,
    pub(crate) registered: Arc<Registered>,
    pub(crate) authenticators: Vec<Arc<dyn Authenticator>>,
    pub(crate) authorizers: Chain,
    pub(crate) audit: Option<Arc<Audit>>,
    pub(crate) nodes: Option<Arc<dyn NodeDialer>>,
    pub(crate) anonymous: Anonymous,
    pub(crate) fairness: Fairness,
    pub(crate) addresses: ServiceAddresses,
    pub(crate) documents: transport::Documents,
    pub(crate) customs: Customs,
    pub(crate) aggregation: Aggregation,
    pub(crate) metrics: Metrics,
    /// Whether the server is about to end.
    pub(crate) draining: watch::Sender<bool>,
}

/// Builds an [`ApiServer`]. Every part has a default.
///
/// | part | default |
/// |---|---|
/// | store | [`MemoryStore`] |
/// | clock | [`TokioClock`] |
/// | authenticators | client certificates, tokens of service accounts, then what is added |
/// | service accounts' issuer | [`ServiceAccountIssuer::generate`] |
/// | authorizers | [`Masters`], then what is added, then those of the modes: nodes ([`authz::Node`]), roles ([`Rbac`]) |
/// | admission | [`admission::defaults`], then what is added |
/// | encryption | none, which costs nothing |
/// | audit | none, which costs nothing |
/// | anonymous callers | allowed, to read health and version; not with `AlwaysAllow` |
/// | service addresses | 10.96.0.0/12, ports 30000-32767 |
/// | nodes | unreachable: logs and exec answer 503 |
/// | services | by their cluster IPs |
/// | what pods and nodes use | not known: `metrics.k8s.io` is not served |
#[must_use = "a builder does nothing until `build` is called"]
pub struct ApiServerBuilder {
    store: Option<Arc<dyn Store>>,
    clock: Option<Arc<dyn Clock>>,
    admission: Vec<Arc<dyn Admission>>,
    without_admission: HashSet<String>,
    front_proxy: Option<FrontProxy>,
    issuer: Option<ServiceAccountIssuer>,
    authenticators: Vec<Arc<dyn Authenticator>>,
    authorizers: Vec<Arc<dyn Authorizer>>,
    modes: Vec<authz::Way>,
    audit: Option<Arc<Audit>>,
    nodes: Option<Arc<dyn NodeDialer>>,
    anonymous: Anonymous,
    bootstrap_tokens: bool,
    tokens: AuthenticationConfig,
    encryption: Option<Encryption>,
    addresses: ServiceAddresses,
    kinds: Vec<ResourceDef>,
    outbound: Outbound,
    usage: Option<Arc<dyn UsageSource>>,
}

/// Why a server could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The store can't be used.
    #[error("the store can't be used")]
    Store(#[from] StoreError),
    /// No key could be made for the tokens of service accounts.
    #[error("no key for the tokens of service accounts")]
    Key(#[from] KeyError),
    /// The kinds of the resource metrics API can't be served.
    #[error(transparent)]
    Kind(#[from] custom::KindError),
    /// An OpenID Connect provider has the name of the server's own issuer.
    #[error("the issuer {url:?} is that of the server's own service accounts")]
    Issuer {
        /// The URL of both.
        url: String,
    },
    /// An admission step that is to be taken out is not there.
    #[error("there is no admission step {name:?}; there are {names}")]
    UnknownAdmission {
        /// The name that was given.
        name: String,
        /// The names that there are.
        names: String,
    },
}

impl ApiServer {
    /// Starts a builder.
    pub fn builder() -> ApiServerBuilder {
        ApiServerBuilder {
            store: None,
            clock: None,
            admission: Vec::new(),
            without_admission: HashSet::new(),
            front_proxy: None,
            issuer: None,
            authenticators: Vec::new(),
            authorizers: Vec::new(),
            modes: AuthorizationMode::DEFAULT.iter().copied().map(authz::Way::BuiltIn).collect(),
            audit: None,
            nodes: None,
            anonymous: Anonymous { enabled: true, paths: Vec::new() },
            bootstrap_tokens: false,
            tokens: AuthenticationConfig::default(),
            encryption: None,
            addresses: ServiceAddresses::default(),
            kinds: Vec::new(),
            outbound: Outbound::default(),
            usage: None,
        }
    }

    /// The server as this user sees it: requests need no credentials. For clients and components in the same process. Who is
    /// not in `system:unauthenticated` is in `system:authenticated`.
    #[must_use]
    pub fn as_user(&self, mut user: UserInfo) -> AsUser {
        if !user.is_in(AUTHENTICATED) && !user.is_in(UNAUTHENTICATED) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        AsUser::new(self.clone(), Identity(Arc::new(user)))
    }

    /// Creates what a fresh cluster has (see [`bootstrap`](crate::bootstrap)); what is there already stays as it is.
    ///
    /// # Errors
    /// When something can't be created.
    pub async fn bootstrap(&self) -> ApiResult<()> {
        crate::bootstrap::run(&self.0).await
    }

    /// Begins the end of the server: `/readyz` says that it is not ready, and watches end cleanly, so that their clients go on
    /// elsewhere from where they are. Requests are still answered. Nothing happens when it is called again.
    pub fn drain(&self) {
        self.0.draining.send_replace(true);
    }

    /// Has the audit's sink hand on what waits there ([`AuditSink::flush`]); at the end, when
    /// nobody asks any more.
    pub async fn flush_audit(&self) {
        if let Some(audit) = &self.0.audit {
            audit.sink.flush().await;
        }
    }

    /// Waits until [`drain`](Self::drain) has been called.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub async fn drained(&self) {
        self.0.drained().await;
    }

    /// The server's objects, for code that runs beside it and must not go through requests, such as its own tests.
    #[must_use]
    pub fn objects(&self) -> &Objects {
        &self.0.objects
    }

    /// The same, shared: for an authorizer of one's own that decides by them, or [`Rbac`] asked without a request.
    #[must_use]
    pub fn shared_objects(&self) -> Arc<Objects> {
        Arc::clone(&self.0.objects)
    }
}

impl ApiServerBuilder {
    /// Keeps the objects here.
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// Takes the time from here.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Adds a step to the end of the admission chain.
    pub fn admission(mut self, step: Arc<dyn Admission>) -> Self {
        self.admission.push(step);
        self
    }

    /// Takes a default step out of the admission chain, by its name.
    pub fn without_admission(mut self, name: impl Into<String>) -> Self {
        self.without_admission.insert(name.into());
        self
    }

    /// Adds a way to find out who asks.
    pub fn authenticator(mut self, authenticator: Arc<dyn Authenticator>) -> Self {
        self.authenticators.push(authenticator);
        self
    }

    /// Believes an API server that shows a client certificate of one of these names about who the caller is: this server is an
    /// aggregated one, behind that.
    pub fn front_proxy<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.front_proxy = Some(FrontProxy::new(names));
        self
    }

    /// Makes and believes tokens of service accounts with these keys and names.
    pub fn service_accounts(mut self, issuer: ServiceAccountIssuer) -> Self {
        self.issuer = Some(issuer);
        self
    }

    /// Adds a way to decide who may do what. It is asked after [`Masters`] and before those of the
    /// [modes](Self::authorization), so it can allow more and can deny.
    pub fn authorizer(mut self, authorizer: Arc<dyn Authorizer>) -> Self {
        self.authorizers.push(authorizer);
        self
    }

    /// Decides in these built-in ways and in no other, in this order (`--authorization-mode`). Default:
    /// [`AuthorizationMode::DEFAULT`].
    pub fn authorization(mut self, modes: impl IntoIterator<Item = AuthorizationMode>) -> Self {
        self.modes = modes.into_iter().map(authz::Way::BuiltIn).collect();
        self
    }

    /// Decides in the ways that this configuration names and in no other, in their order (`--authorization-config`).
    pub fn authorization_config(mut self, config: AuthorizationConfig) -> Self {
        self.modes = config.0;
        self
    }

    /// Tells of the requests that the policy picks to this sink; a `Vec` of sinks is one, too.
    pub fn audit(mut self, policy: AuditPolicy, sink: Arc<dyn AuditSink>) -> Self {
        self.audit = Some(Arc::new(Audit { policy, sink }));
        self
    }

    /// Reaches the nodes' agents this way, for logs and exec.
    pub fn nodes(mut self, dialer: Arc<dyn NodeDialer>) -> Self {
        self.nodes = Some(dialer);
        self
    }

    /// Reaches the services that the server itself calls this way: conversion webhooks and aggregated API servers.
    pub fn services(mut self, dialer: Arc<dyn ServiceDialer>) -> Self {
        self.outbound.dialer = dialer;
        self
    }

    /// Shows this certificate to aggregated API servers, which then believe who the server says the caller is.
    pub fn proxy_credentials(mut self, credentials: ProxyCredentials) -> Self {
        self.outbound.credentials = Some(credentials);
        self
    }

    /// Whether the tokens of secrets of the type `bootstrap.kubernetes.io/token` in `kube-system` are believed, by which nodes join
    /// (`--enable-bootstrap-token-auth`). Default: no, as upstream.
    pub fn bootstrap_tokens(mut self, believed: bool) -> Self {
        self.bootstrap_tokens = believed;
        self
    }

    /// Whether callers who don't say who they are are let in as `system:anonymous`. Never with
    /// [`AlwaysAllow`](AuthorizationMode::AlwaysAllow) among the modes, as upstream.
    pub fn anonymous(mut self, allowed: bool) -> Self {
        self.anonymous = Anonymous { enabled: allowed, paths: Vec::new() };
        self
    }

    /// Believes the tokens of these OpenID Connect providers, and lets in who does not say who they are as the configuration
    /// says, if it does (`--authentication-config`).
    pub fn authentication(mut self, config: AuthenticationConfig) -> Self {
        if let Some(anonymous) = &config.anonymous {
            self.anonymous = anonymous.clone();
        }
        self.tokens = config;
        self
    }

    /// Stores the objects of some kinds encrypted (`--encryption-provider-config`).
    pub fn encryption(mut self, encryption: Encryption) -> Self {
        self.encryption = Some(encryption);
        self
    }

    /// The addresses and ports that services get.
    pub fn service_addresses(mut self, addresses: ServiceAddresses) -> Self {
        self.addresses = addresses;
        self
    }

    /// Serves a further kind.
    pub fn kind(mut self, def: ResourceDef) -> Self {
        self.kinds.push(def);
        self
    }

    /// Serves the resource metrics API (`metrics.k8s.io`) from here, so that `kubectl top` and autoscalers know what is used.
    pub fn usage(mut self, source: Arc<dyn UsageSource>) -> Self {
        self.usage = Some(source);
        self
    }

    /// Opens the store's tables and makes the server.
    ///
    /// # Errors
    /// When the store can't open a table, an admission step that is to be taken out is not there, or no key can be made.
    pub fn build(self) -> Result<ApiServer, BuildError> {
        let catalog = schema::builtin::catalog();
        let registry = Arc::new(Registry::new(Arc::clone(&catalog)));
        let clock = self.clock.unwrap_or_else(|| Arc::new(TokioClock::new()));
        let strategies =
            Strategies { addresses: Arc::new(self.addresses.clone()), clock: Arc::clone(&clock) };
        let mut defs = builtin::resources(&catalog, &strategies);
        defs.extend(self.kinds);
        if let Some(source) = &self.usage {
            defs.extend(usage::kinds(source)?);
        }
        let store = self.store.unwrap_or_else(|| Arc::new(MemoryStore::new()));
        let mut objects = Objects::encrypted(store, registry, Arc::clone(&clock), defs, self.encryption)?;
        objects.set_outbound(self.outbound);
        let objects = Arc::new(objects);
        let issuer = match self.issuer {
            Some(issuer) => issuer,
            None => ServiceAccountIssuer::generate()?,
        };
        let issuer = Arc::new(issuer.complete());
        let mut authenticators: Vec<Arc<dyn Authenticator>> = Vec::new();
        authenticators.extend(self.front_proxy.map(|proxy| Arc::new(proxy) as Arc<dyn Authenticator>));
        authenticators.push(Arc::new(ClientCertificates));
        authenticators.push(Arc::new(ServiceAccountTokens::new(Arc::clone(&issuer), Arc::clone(&objects))));
        if self.bootstrap_tokens {
            authenticators.push(Arc::new(BootstrapTokens::new(Arc::clone(&objects))));
        }
        if let Some(both) = self.tokens.issuers().find(|url| issuer.issuers().iter().any(|own| own == url)) {
            return Err(BuildError::Issuer { url: both.to_owned() });
        }
        let providers = self.tokens.providers.into_iter();
        authenticators.extend(
            providers.map(|one| Arc::new(OidcTokens::new(one, Arc::clone(&clock))) as Arc<dyn Authenticator>),
        );
        authenticators.extend(self.authenticators);
        let mut anonymous = self.anonymous;
        // Upstream's `BuiltInAuthenticationOptions.ApplyAuthorization`.
        let allows_all =
            |way: &authz::Way| matches!(way, authz::Way::BuiltIn(AuthorizationMode::AlwaysAllow));
        if anonymous.enabled && self.modes.iter().any(allows_all) {
            tracing::warn!(
                "nobody may be anonymous where everybody may do everything: anonymous callers are refused"
            );
            anonymous.enabled = false;
        }
        let rbac = Arc::new(Rbac::new(Arc::clone(&objects)));
        let mut authorizers: Vec<Arc<dyn Authorizer>> = vec![Arc::new(Masters)];
        authorizers.extend(self.authorizers);
        authorizers.extend(self.modes.into_iter().map(|way| authz::of_way(way, &objects, &rbac)));
        let authorizers = Chain::new(authorizers);
        let escalation = NoEscalation { authorizers: authorizers.clone(), rbac };
        let registered = Arc::new(Registered::new(&objects));
        let foreign_admission = !self.admission.is_empty();
        let late = admission::registered(&registered, &authorizers);
        let steps = chain(&self.without_admission, self.admission, late)?;
        Ok(ApiServer(Arc::new(Inner {
            customs: Customs::new(&objects),
            aggregation: Aggregation::new(&objects),
            metrics: Metrics::default(),
            draining: watch::Sender::new(false),
            fairness: Fairness::new(&objects),
            objects,
            foreign_admission,
            admission: steps.into_iter().chain([Arc::new(escalation) as _]).collect(),
            registered,
            issuer,
            authenticators,
            authorizers,
            audit: self.audit,
            nodes: self.nodes,
            anonymous,
            addresses: self.addresses,
            documents: transport::Documents::default(),
        })))
    }
}

/// The steps of admission: the defaults but for those taken out, with those that were added before what asks the cluster.
fn chain(
    without: &HashSet<String>,
    added: Vec<Arc<dyn Admission>>,
    late: Vec<Arc<dyn Admission>>,
) -> Result<Vec<Arc<dyn Admission>>, BuildError> {
    let early = admission::defaults();
    let is_there = |name: &String| early.iter().chain(&late).any(|step| step.name() == *name);
    if let Some(name) = without.iter().find(|name| !is_there(name)) {
        // Two steps may have one name.
        let mut seen = HashSet::new();
        let names = early.iter().chain(&late).map(|step| step.name()).filter(|name| seen.insert(*name));
        let names: Vec<&str> = names.collect();
        return Err(BuildError::UnknownAdmission { name: name.clone(), names: names.join(", ") });
    }
    let stays = |step: &Arc<dyn Admission>| !without.contains(step.name());
    Ok(early.into_iter().filter(stays).chain(added).chain(late.into_iter().filter(stays)).collect())
}

impl Inner {
    /// Whether others than the server's own steps may look at, or change, objects of this resource.
    pub(crate) fn is_foreign(&self, resource: &Resource) -> bool {
        self.foreign_admission || self.registered.concerns(&self.objects, resource)
    }

    /// Waits until the server is about to end.
    pub(crate) fn drained(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut draining = self.draining.subscribe();
        async move {
            // The sender lives as long as the server: an error means that it is gone already.
            let _ = draining.wait_for(|draining| *draining).await;
        }
    }
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer").field("objects", &self.0.objects).finish_non_exhaustive()
    }
}
