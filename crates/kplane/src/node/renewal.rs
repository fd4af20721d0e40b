//! When certificates are renewed, as upstream's certificate manager does it (`k8s.io/client-go/util/certificate`; Kubernetes,
//! "Configure Certificate Rotation for the Kubelet").

use std::{collections::BTreeSet, fmt, net::IpAddr, time::Duration};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use kcore::Clock;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::ca::Credentials;

/// The shares of a certificate's life between which it is renewed.
const LIFE_SHARES: (f64, f64) = (0.7, 0.9);
/// The pauses after the first failures; later ones are [`RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(2);
const FIRST_RETRIES: u32 = 4;
/// How much longer than they are the first pauses may be.
const RETRY_JITTER: f64 = 0.1;
const RETRY: Duration = Duration::from_secs(32);
/// How long there is between two certificates at least, whatever they say.
const PAUSE: Duration = Duration::from_secs(1);
/// How often the clock is looked at: what sleeps doesn't count while the machine does, and clocks are set.
const LOOK: Duration = Duration::from_secs(3600);

/// Gives certificates to a node.
#[async_trait]
pub(super) trait Issuer: Send + Sync {
    /// One that is new. Called in turn; when it fails, again after a pause.
    async fn issue(&self) -> Result<Credentials, super::JoinError>;
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) common_name: String,
    /// Its DNS names and addresses.
    pub(super) names: BTreeSet<String>,
    from: Timestamp,
    until: Timestamp,
}

impl Leaf {
    /// Reads the first certificate of a text in PEM.
    pub(super) fn read(pem: &str) -> Option<Self> {
        let blocks = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes());
        let block = blocks.flatten().find(|block| block.label == "CERTIFICATE")?;
        let (_, read) = X509Certificate::from_der(&block.contents).ok()?;
        let common_name = read.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
        let names = read.subject_alternative_name().ok().flatten();
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let validity = read.validity();
        Some(Self {
            common_name,
            names: names.iter().filter_map(name).collect(),
            from: Timestamp::from_second(validity.not_before.timestamp()).ok()?,
            until: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
        })
    }

    pub(super) fn is_valid(&self, now: Timestamp) -> bool {
        now < self.until
    }

    /// Which of the certificates is to be used: the one that was issued last of those that have not ended. An administrator's new one
    /// so comes before what the node had been issued, where upstream goes on with the latter.
    pub(super) fn newest<T>(now: Timestamp, all: impl IntoIterator<Item = (Self, T)>) -> Option<(Self, T)> {
        all.into_iter().filter(|(leaf, _)| leaf.is_valid(now)).max_by_key(|(leaf, _)| leaf.from)
    }

    /// When it is renewed; `random` is in 0..1.
    fn renewal(&self, random: f64) -> Timestamp {
        let (first, last) = LIFE_SHARES;
        let life = self.until.duration_since(self.from).as_secs_f64();
        let share = first + (last - first) * random.clamp(0.0, 1.0);
        let after = SignedDuration::try_from_secs_f64(life * share).unwrap_or(SignedDuration::ZERO);
        self.from.checked_add(after).unwrap_or(self.until)
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let address = match bytes.len() {
                4 => IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?),
                _ => IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?),
            };
            Some(address.to_string())
        }
        _ => None,
    }
}

/// The pause after this many failures in a row, from one on; `random` is in 0..1.
fn retry(failures: u32, random: f64) -> Duration {
    match failures {
        1..=FIRST_RETRIES => (FIRST_RETRY * 2_u32.pow(failures - 1)).mul_f64(1.0 + RETRY_JITTER * random),
        _ => RETRY,
    }
}

/// Waits until the clock says so.
async fn until(clock: &dyn Clock, at: Timestamp) {
    loop {
        let left = at.duration_since(clock.now());
        match Duration::try_from(left) {
            Ok(left) if left > Duration::ZERO => tokio::time::sleep(left.min(LOOK)).await,
            _ => return,
        }
    }
}

/// Renews a certificate again and again, the first time at once if there is none. What is issued is given to `publish`; if that can't use
/// it, another one is asked for.
pub(super) async fn keep<E: fmt::Display>(
    clock: &dyn Clock,
    random: fn() -> f64,
    mut current: Option<Leaf>,
    issuer: &dyn Issuer,
    mut publish: impl FnMut(&Credentials) -> Result<(), E> + Send,
) {
    loop {
        if let Some(leaf) = &current {
            until(clock, leaf.renewal(random())).await;
        }
        let mut failures = 0;
        while let Err(why) = renew(issuer, &mut current, &mut publish).await {
            failures += 1;
            let pause = retry(failures, random());
            tracing::warn!(why, failures, ?pause, "there is no new certificate yet");
            tokio::time::sleep(pause).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn renew<E: fmt::Display>(
    issuer: &dyn Issuer,
    current: &mut Option<Leaf>,
    publish: &mut (impl FnMut(&Credentials) -> Result<(), E> + Send),
) -> Result<(), String> {
    let issued = issuer.issue().await.map_err(|error| chain(&error))?;
    let leaf = Leaf::read(&issued.certificate_pem).ok_or("what was issued is no certificate")?;
    publish(&issued).map_err(|error| error.to_string())?;
    *current = Some(leaf);
    Ok(())
}

/// An error with what is behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use kcore::TokioClock;
    use proptest::prelude::*;
    use time::OffsetDateTime;

    use super::*;
    use crate::node::JoinError;

    const START: i64 = 1_900_000_000;
    const DAY: i64 = 86_400;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn leaf(from: i64, until: i64) -> Leaf {
        let (common_name, names) = ("system:node:n".to_owned(), BTreeSet::new());
        Leaf { common_name, names, from: at(from), until: at(until) }
    }

    fn certificate(from: Timestamp, until: Timestamp) -> Credentials {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["n".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let time = |at: Timestamp| OffsetDateTime::from_unix_timestamp(at.as_second()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n");
        (params.not_before, params.not_after) = (time(from), time(until));
        let made = params.self_signed(&key).unwrap();
        Credentials { certificate_pem: made.pem(), key_pem: key.serialize_pem() }
    }

    #[test]
    fn a_certificate_is_read() {
        let made = certificate(at(START), at(START + DAY));
        let names = BTreeSet::from(["127.0.0.1".to_owned(), "n".to_owned()]);
        // In one file with the key, in any order, too.
        for text in [&made.certificate_pem, &format!("{}{}", made.key_pem, made.certificate_pem)] {
            assert_eq!(Leaf::read(text), Some(Leaf { names: names.clone(), ..leaf(START, START + DAY) }));
        }
        for text in ["", "x", &made.key_pem] {
            assert_eq!(Leaf::read(text), None, "{text}");
        }
    }

    #[test]
    fn the_last_one_issued_that_is_valid_is_used() {
        for (all, expected) in [
            (vec![], None),
            (vec![(0, 10)], None),
            (vec![(0, 200)], Some(0)),
            (vec![(0, 200), (50, 150)], Some(1)),
            (vec![(0, 200), (50, 100)], Some(0)),
            (vec![(50, 150), (0, 200)], Some(0)),
        ] {
            let leaves = all.iter().enumerate().map(|(index, (from, until))| (leaf(*from, *until), index));
            assert_eq!(Leaf::newest(at(100), leaves).map(|(_, index)| index), expected, "{all:?}");
        }
    }

    #[test]
    fn pauses_grow_and_then_stay() {
        let seconds = |failures, random| retry(failures, random).as_secs_f64();
        for (failures, least, most) in
            [(1, 2.0, 2.2), (2, 4.0, 4.4), (4, 16.0, 17.6), (5, 32.0, 32.0), (99, 32.0, 32.0)]
        {
            assert!((seconds(failures, 0.0) - least).abs() < 1e-9, "{failures}");
            assert!((seconds(failures, 1.0) - most).abs() < 1e-9, "{failures}");
        }
    }

    proptest! {
        /// Upstream's `TestSetRotationDeadline`: between 70 and 90 % of its life.
        #[test]
        fn renewal_is_late_and_not_too_late(life in 600_i64..400 * DAY, random in 0.0..1.0_f64) {
            let renewal = leaf(START, START + life).renewal(random).as_second() - START;
            prop_assert!(renewal >= life * 7 / 10 - 1 && renewal <= life * 9 / 10 + 1, "{} of {}", renewal, life);
        }
    }

    /// Fails as often as it is told to, and says when it was asked.
    struct Scripted {
        clock: Arc<dyn Clock>,
        failures: Mutex<u32>,
        asked: Mutex<Vec<i64>>,
        life: SignedDuration,
    }

    #[async_trait]
    impl Issuer for Scripted {
        async fn issue(&self) -> Result<Credentials, JoinError> {
            let now = self.clock.now();
            self.asked.lock().unwrap().push(now.as_second() - START);
            let mut failures = self.failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                return Err(JoinError::Refused { name: "csr".to_owned(), why: "not now".to_owned() });
            }
            Ok(certificate(now, now + self.life))
        }
    }

    async fn run(
        current: Option<Leaf>,
        failures: u32,
        life_seconds: i64,
        for_seconds: u64,
    ) -> (Vec<i64>, usize) {
        let clock: Arc<dyn Clock> = Arc::new(TokioClock::starting_at(at(START)));
        let issuer = Scripted {
            clock: Arc::clone(&clock),
            failures: Mutex::new(failures),
            asked: Mutex::default(),
            life: SignedDuration::from_secs(life_seconds),
        };
        let mut published = 0;
        let publish = |_: &Credentials| {
            published += 1;
            // The first one can't be written.
            if published == 1 && failures == 1 { Err("the disk is full") } else { Ok(()) }
        };
        let kept = keep(&*clock, || 0.5, current, &issuer, publish);
        let ended = tokio::time::timeout(Duration::from_secs(for_seconds), kept).await;
        assert!(ended.is_err());
        let asked = issuer.asked.lock().unwrap().clone();
        (asked, published)
    }

    #[tokio::test(start_paused = true)]
    async fn certificates_are_renewed_in_time() {
        // At once without one, then at eight tenths of the life of each.
        assert_eq!(run(None, 0, 1000, 1700).await, (vec![0, 800, 1600], 3));
        // One that is there is used until its time comes; after a long time, too.
        let year = 365 * DAY;
        let (asked, _) = run(Some(leaf(START, START + year)), 0, year, 400 * 86_400).await;
        assert_eq!(asked, [year * 8 / 10]);
        // One that should have been renewed while nobody was there is at once.
        assert_eq!(run(Some(leaf(START - 900, START + 100)), 0, 1000, 500).await, (vec![0], 1));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_tried_again_with_pauses() {
        let (asked, published) = run(None, 6, 10_000, 1000).await;
        // 2.1, 4.2, 8.4 and 16.8 s, then 32 s each time.
        assert_eq!((asked, published), (vec![0, 2, 6, 14, 31, 63, 95], 1));
        // One that can't be used is no certificate: 2.1 s after a failure, 4.2 s after that one.
        assert_eq!(run(None, 1, 10_000, 1000).await, (vec![0, 2, 6], 2));
    }

    /// Nothing spins on a certificate that ends before it begins.
    #[tokio::test(start_paused = true)]
    async fn certificates_without_a_life_are_not_asked_for_all_the_time() {
        let (asked, _) = run(None, 0, 0, 10).await;
        assert!((10..=11).contains(&asked.len()), "{asked:?}");
    }
}
