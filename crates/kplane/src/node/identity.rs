//! Who a node is to the API server, by a client certificate that is renewed while the node runs.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Request;
use jiff::Timestamp;
use kcore::{Clock, SystemClock};
use kube::{Client, Config, client::Body, config::AuthInfo};

use super::{
    JoinError, join,
    pairs::Pairs,
    renewal::{Issuer, Leaf, keep},
};
use crate::ca::Credentials;

/// The name of the node's pairs of client certificate and key, as in upstream's `--cert-dir`.
const PAIRS: &str = "kubelet-client";

/// The node's client, and how its certificate is renewed.
pub(super) struct Identity {
    /// Each request goes by the certificate of its time.
    pub(super) client: Client,
    /// `None`: the node is known by something else than a certificate of its own.
    pub(super) renewal: Option<Renewal>,
}

/// Renews a node's client certificate.
pub(super) struct Renewal {
    name: String,
    config: Config,
    pairs: Pairs,
    current: Leaf,
    client: Client,
    used: Used,
}

/// The client with the certificate that is used now.
type Used = Arc<RwLock<Client>>;

/// The certificate of a kubeconfig, if it has one that can be read.
fn certificate(auth: &AuthInfo) -> Option<Leaf> {
    let pem = match (&auth.client_certificate_data, &auth.client_certificate) {
        (Some(data), _) => String::from_utf8(STANDARD.decode(data).ok()?).ok()?,
        (None, Some(path)) => fs::read_to_string(path).ok()?,
        (None, None) => return None,
    };
    Leaf::read(&pem)
}

/// Whether the kubeconfig of the node that keeps its state in `dir`, or what the node was issued since, still says who it is. If not, it
/// has to [`join`](super::join) again. Of a kubeconfig without a certificate nothing is known: yes.
#[must_use]
pub fn is_joined(config: &Config, dir: &Path) -> bool {
    let issued = Pairs::new(&dir.join("pki"), PAIRS).current();
    is_valid(config, issued, SystemClock.now())
}

fn is_valid(config: &Config, issued: Option<Credentials>, now: Timestamp) -> bool {
    let Some(given) = certificate(&config.auth_info) else { return true };
    let issued = issued.and_then(|pair| Leaf::read(&pair.certificate_pem));
    let issued = issued.filter(|issued| issued.common_name == given.common_name);
    Leaf::newest(now, issued.into_iter().chain([given]).map(|leaf| (leaf, ()))).is_some()
}

/// The same way to the API server, as the holder of this pair.
fn with_pair(config: &Config, pair: &Credentials) -> Config {
    let mut config = config.clone();
    let auth = serde_json::json!({
        "client-certificate-data": STANDARD.encode(&pair.certificate_pem),
        "client-key-data": STANDARD.encode(&pair.key_pem),
    });
    // Made this way since the type of the key is another crate's.
    let auth: AuthInfo = serde_json::from_value(auth).unwrap_or_default();
    (config.auth_info.client_certificate, config.auth_info.client_key) = (None, None);
    config.auth_info.client_certificate_data = auth.client_certificate_data;
    config.auth_info.client_key_data = auth.client_key_data;
    config
}

/// A client that sends each request by the client that is used at that time.
fn rotating(used: &Used, namespace: &str) -> Client {
    let used = Arc::clone(used);
    let service = tower::service_fn(move |request: Request<Body>| {
        let client = used.read().unwrap_or_else(PoisonError::into_inner).clone();
        async move { client.send(request).await }
    });
    Client::new(service, namespace)
}

impl Identity {
    /// Finds out by which certificate the node is known: that of the config, or what it was issued and has kept in `dir`. Only a
    /// certificate of the user `system:node:NAME` is renewed: others are not the node's own.
    pub(super) fn open(
        config: Config,
        dir: &Path,
        name: &str,
        now: Timestamp,
        renews: bool,
    ) -> Result<Self, kube::Error> {
        let user = format!("system:node:{name}");
        let given = certificate(&config.auth_info).filter(|leaf| leaf.common_name == user);
        let Some(given) = given.filter(|_| renews) else {
            return Ok(Self { client: Client::try_from(config)?, renewal: None });
        };
        let pairs = Pairs::new(dir, PAIRS);
        let issued = pairs.current().and_then(|pair| Some((Leaf::read(&pair.certificate_pem)?, pair)));
        let issued = issued.filter(|(leaf, _)| leaf.common_name == user);
        let issued = issued.map(|(leaf, pair)| (leaf, Some(pair)));
        let all = [(given.clone(), None)].into_iter().chain(issued);
        // With one that is over the node can do nothing, but it may be the clock that is wrong.
        let (current, pair) = Leaf::newest(now, all).unwrap_or((given, None));
        let config = pair.map_or_else(|| config.clone(), |pair| with_pair(&config, &pair));
        let namespace = config.default_namespace.clone();
        let used = Arc::new(RwLock::new(Client::try_from(config.clone())?));
        let client = rotating(&used, &namespace);
        let renewal =
            Some(Renewal { name: name.to_owned(), config, pairs, current, client: client.clone(), used });
        Ok(Self { client, renewal })
    }
}

#[async_trait]
impl Issuer for Renewal {
    async fn issue(&self) -> Result<Credentials, JoinError> {
        join::client_certificate(&self.client, &self.name, join::WAIT_MAX).await
    }
}

impl Renewal {
    /// Goes on until it is dropped.
    pub(super) async fn run(self, clock: Arc<dyn Clock>) {
        let publish = |pair: &Credentials| {
            let client = Client::try_from(with_pair(&self.config, pair))?;
            // A certificate that can't be kept is used all the same: there is time until it is missed.
            if let Err(error) = self.pairs.update(clock.now(), pair) {
                tracing::error!(%error, "the node's new client certificate can't be kept");
            }
            // The old client goes, and its connections with it when what was asked for on them ends.
            *self.used.write().unwrap_or_else(PoisonError::into_inner) = client;
            tracing::info!("the node has a new client certificate");
            Ok::<_, kube::Error>(())
        };
        keep(&*clock, rand::random, Some(self.current.clone()), &self, publish).await;
    }
}

/// A node's serving certificate, which the cluster is asked for.
pub(super) struct Serving {
    pub(super) client: Client,
    pub(super) name: String,
    pub(super) address: std::net::IpAddr,
    pairs: Pairs,
}

#[async_trait]
impl Issuer for Serving {
    async fn issue(&self) -> Result<Credentials, JoinError> {
        join::serving_certificate(&self.client, &self.name, self.address, join::WAIT_MAX).await
    }
}

impl Serving {
    pub(super) fn new(client: Client, name: &str, address: std::net::IpAddr, dir: &Path) -> Self {
        Self { client, name: name.to_owned(), address, pairs: Pairs::new(dir, "kubelet-server") }
    }

    /// What was issued to an earlier agent, if it still is for this name and address.
    pub(super) fn current(&self, now: Timestamp) -> Option<(Leaf, Credentials)> {
        let pair = self.pairs.current()?;
        let leaf = Leaf::read(&pair.certificate_pem)?;
        let wanted = [self.name.clone(), self.address.to_string()];
        let fits = wanted.iter().all(|name| leaf.names.contains(name));
        (leaf.is_valid(now) && fits).then_some((leaf, pair))
    }

    /// Asks for one when there is none, and for another one in time; goes on until it is dropped.
    pub(super) async fn run(
        self,
        clock: Arc<dyn Clock>,
        current: Option<Leaf>,
        mut show: impl FnMut(&Credentials) -> Result<(), super::NodeError> + Send,
    ) {
        let publish = |pair: &Credentials| {
            show(pair)?;
            let kept: io::Result<()> = self.pairs.update(clock.now(), pair);
            if let Err(error) = kept {
                tracing::error!(%error, "the node's new serving certificate can't be kept");
            }
            Ok::<_, super::NodeError>(())
        };
        keep(&*clock, rand::random, current, &self, publish).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::SignedDuration;
    use k8s_openapi::api::{
        authentication::v1::SelfSubjectReview, certificates::v1::CertificateSigningRequest,
    };
    use kcore::testing::ManualClock;
    use kube::{
        Api,
        api::PostParams,
        config::{KubeConfigOptions, Kubeconfig},
    };

    use super::*;
    use crate::Cluster;

    const PATIENCE: Duration = Duration::from_secs(120);

    async fn config(kubeconfig: &str) -> Config {
        let file = Kubeconfig::from_yaml(kubeconfig).unwrap();
        Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap()
    }

    async fn who(client: &Client) -> String {
        let review = Api::<SelfSubjectReview>::all(client.clone());
        let answer = review.create(&PostParams::default(), &SelfSubjectReview::default()).await.unwrap();
        answer.status.unwrap().user_info.unwrap().username.unwrap()
    }

    fn later(days: i64) -> Arc<ManualClock> {
        Arc::new(ManualClock::new(SystemClock.now() + SignedDuration::from_hours(24 * days)))
    }

    async fn cluster() -> Cluster {
        let cluster = Cluster::builder().nodes(0).start().await.unwrap();
        cluster.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
        cluster
    }

    /// The controllers approve and sign what the node asks for by itself.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_renews_its_certificate_and_goes_by_it() {
        let cluster = cluster().await;
        let dir = tempfile::tempdir().unwrap();
        let given = config(&cluster.node_kubeconfig("away").unwrap()).await;
        let open = |name: &str, now, renews| Identity::open(given.clone(), dir.path(), name, now, renews);
        let (now, clock) = (SystemClock.now(), later(340));
        assert!(open("away", now, false).unwrap().renewal.is_none(), "it was told not to");
        assert!(
            open("other", now, true).unwrap().renewal.is_none(),
            "another node's certificate is not its own"
        );

        let Identity { client, renewal } = open("away", now, true).unwrap();
        let renewal = renewal.unwrap();
        let before = renewal.current.clone();
        let used = Arc::clone(&renewal.used);
        let pairs = renewal.pairs.clone();
        assert!(pairs.current().is_none());
        let renewing = tokio::spawn(renewal.run(clock));
        let renewed = async {
            let mut every = tokio::time::interval(Duration::from_millis(50));
            loop {
                every.tick().await;
                if let Some(pair) = pairs.current() {
                    return pair;
                }
            }
        };
        let pair = tokio::time::timeout(PATIENCE, renewed).await.unwrap();
        renewing.abort();
        let leaf = Leaf::read(&pair.certificate_pem).unwrap();
        assert_eq!(leaf.common_name, "system:node:away");
        assert_ne!(leaf, before);
        let requests: Api<CertificateSigningRequest> = Api::all(cluster.client());
        let all = requests.list(&kube::api::ListParams::default()).await.unwrap();
        for request in &all.items {
            assert_eq!(request.spec.signer_name, "kubernetes.io/kube-apiserver-client-kubelet");
            assert_eq!(request.spec.username.as_deref(), Some("system:node:away"));
        }
        assert_eq!(who(&client).await, "system:node:away");
        let in_use = used.read().unwrap().clone();
        assert_eq!(who(&in_use).await, "system:node:away");

        // The next agent goes on with it, unless it was given one that is newer.
        let current = |given: &Config| {
            let opened = Identity::open(given.clone(), dir.path(), "away", now, true).unwrap();
            opened.renewal.unwrap().config.auth_info.client_certificate_data
        };
        let data = STANDARD.encode(&pair.certificate_pem);
        let newer = Leaf::read(&pair.certificate_pem).unwrap();
        let found = current(&given);
        let given_leaf = certificate(&given.auth_info).unwrap();
        let expected = Leaf::newest(now, [(given_leaf, false), (newer, true)]).unwrap().1;
        assert_eq!(found == Some(data), expected);
        // A client that has nothing but the pair is the node.
        let alone = with_pair(&given, &pair);
        assert_eq!(who(&Client::try_from(alone).unwrap()).await, "system:node:away");
        cluster.shutdown().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn requests_go_by_the_certificate_of_their_time() {
        let cluster = cluster().await;
        let client = async |name: &str| {
            let config = config(&cluster.node_kubeconfig(name).unwrap()).await;
            Client::try_from(config).unwrap()
        };
        let used = Arc::new(RwLock::new(client("one").await));
        let rotating = rotating(&used, "default");
        assert_eq!(who(&rotating).await, "system:node:one");
        *used.write().unwrap() = client("two").await;
        assert_eq!(who(&rotating).await, "system:node:two");
        cluster.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn a_node_joins_again_when_all_its_certificates_have_ended() {
        let pair = |name: &str, from_days: i64| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::default();
            let from = time::OffsetDateTime::UNIX_EPOCH + time::Duration::days(from_days);
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            (params.not_before, params.not_after) = (from, from + time::Duration::days(10));
            let made = params.self_signed(&key).unwrap();
            Credentials { certificate_pem: made.pem(), key_pem: key.serialize_pem() }
        };
        let plain = Config::new("https://127.0.0.1:1".parse().unwrap());
        let now = |day: i64| Timestamp::from_second(day * 86_400).unwrap();
        for (day, given, issued, expected) in [
            (5, None, None, true),
            (50, None, Some(("n", 0)), true),
            (5, Some(0), None, true),
            (10, Some(0), None, false),
            (15, Some(0), Some(("n", 7)), true),
            (17, Some(0), Some(("n", 7)), false),
            (15, Some(0), Some(("other", 7)), false),
        ] {
            let config = given.map_or_else(|| plain.clone(), |from| with_pair(&plain, &pair("n", from)));
            let issued = issued.map(|(name, from)| pair(name, from));
            assert_eq!(is_valid(&config, issued, now(day)), expected, "{day} {given:?}");
        }
    }

    #[tokio::test]
    async fn a_serving_certificate_is_used_again_if_it_fits() {
        let dir = tempfile::tempdir().unwrap();
        let plain = Config::new("https://127.0.0.1:1".parse().unwrap());
        let client = Client::try_from(plain).unwrap();
        let serving =
            |name: &str, address: [u8; 4]| Serving::new(client.clone(), name, address.into(), dir.path());
        let now = SystemClock.now();
        let here = serving("n", [127, 0, 0, 1]);
        assert!(here.current(now).is_none());
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["n".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n");
        params.not_after = time::OffsetDateTime::from_unix_timestamp(now.as_second() + 1000).unwrap();
        let made = params.self_signed(&key).unwrap();
        let pair = Credentials { certificate_pem: made.pem(), key_pem: key.serialize_pem() };
        here.pairs.update(now, &pair).unwrap();
        let after = now + SignedDuration::from_secs(1001);
        assert!(here.current(now).is_some());
        assert!(here.current(after).is_none(), "it has ended");
        assert!(serving("n", [127, 0, 0, 2]).current(now).is_none(), "the node is elsewhere");
        assert!(serving("m", [127, 0, 0, 1]).current(now).is_none());
    }
}
