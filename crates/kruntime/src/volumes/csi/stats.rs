//! How full volumes are.

use jiff::{SignedDuration, Timestamp};

use super::{
    Csi, Published, locked,
    proto::{BYTES, Capability, INODES, VolumeUsage},
};
use crate::{runtime::PodUid, volumes::VolumeStats};

/// How old the figures may be (upstream's `volumeStatsAggPeriod`).
const FRESH_FOR: SignedDuration = SignedDuration::from_secs(60);

impl Csi {
    /// Of the pod's volumes whose drivers know.
    pub(super) async fn stats_of(&self, pod: &PodUid, now: Timestamp) -> Vec<VolumeStats> {
        let made: Vec<(String, Published)> = locked(&self.made)
            .get(pod)
            .into_iter()
            .flatten()
            .map(|(name, one)| (name.clone(), one.clone()))
            .collect();
        let mut all = Vec::new();
        for (name, published) in made {
            let fresh = published.stats.clone().filter(|(at, _)| now.duration_since(*at) < FRESH_FOR);
            if let Some((_, stats)) = fresh {
                all.push(stats);
                continue;
            }
            let Some(stats) = self.ask(&name, &published, now).await else { continue };
            if let Some(known) = locked(&self.made).get_mut(pod).and_then(|all| all.get_mut(&name)) {
                known.stats = Some((now, stats.clone()));
            }
            all.push(stats);
        }
        all
    }

    async fn ask(&self, name: &str, published: &Published, now: Timestamp) -> Option<VolumeStats> {
        let driver = self.driver(&published.driver).ok()?;
        if !driver.capabilities().await.ok()?.has(Capability::Stats) {
            return None;
        }
        match driver.stats(&published.handle, &published.target).await {
            Ok(answer) => Some(figures(&answer.usage, name, published.claim.clone(), now)),
            Err(error) => {
                tracing::debug!(volume = name, %error, "a driver does not say how full a volume is");
                None
            }
        }
    }
}

fn figures(usage: &[VolumeUsage], name: &str, claim: Option<String>, at: Timestamp) -> VolumeStats {
    let of = |unit: i32| {
        let found = usage.iter().rfind(|usage| usage.unit == unit).copied().unwrap_or_default();
        [found.used, found.total, found.available].map(|number| u64::try_from(number).unwrap_or(0))
    };
    let [used_bytes, capacity_bytes, available_bytes] = of(BYTES);
    let [inodes_used, inodes, inodes_free] = of(INODES);
    VolumeStats {
        name: name.to_owned(),
        claim,
        at,
        used_bytes,
        capacity_bytes,
        available_bytes,
        inodes_used,
        inodes,
        inodes_free,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_apart_by_their_unit() {
        let one = |unit, used| VolumeUsage { unit, used, total: 10, available: 10 - used };
        let at = Timestamp::UNIX_EPOCH;
        let stats = figures(&[one(INODES, 3), one(BYTES, 4), one(7, 9)], "v", Some("c".into()), at);
        let shown = (stats.used_bytes, stats.capacity_bytes, stats.available_bytes);
        assert_eq!(shown, (4, 10, 6));
        assert_eq!((stats.inodes_used, stats.inodes, stats.inodes_free), (3, 10, 7));
        // A driver that says nothing of inodes, or nonsense, says nothing.
        let stats = figures(&[one(BYTES, -1)], "v", None, at);
        assert_eq!((stats.used_bytes, stats.inodes), (0, 0));
    }
}
