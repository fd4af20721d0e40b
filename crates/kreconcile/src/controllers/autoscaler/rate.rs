//! How fast the number of replicas may change (KEP-853; upstream's `normalizeDesiredReplicas...`).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// How far back the highest recommendation counts when there are to be fewer replicas
/// (`--horizontal-pod-autoscaler-downscale-stabilization`).
pub(super) const DOWNSCALE_WINDOW: Duration = Duration::from_secs(300);
/// How many recommendations and changes are remembered of one autoscaler, each: more than there are in the longest window.
pub(super) const REMEMBERED_MAX: usize = 1024;
/// The longest window that the API allows.
const WINDOW_MAX: Duration = Duration::from_secs(3600);

/// What one autoscaler has recommended and done lately.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    recommendations: Vec<(Timestamp, i32)>,
    ups: Vec<(Timestamp, i32)>,
    downs: Vec<(Timestamp, i32)>,
}

fn push(list: &mut Vec<(Timestamp, i32)>, now: Timestamp, value: i32) {
    list.retain(|(at, _)| is_within(*at, now, WINDOW_MAX));
    if list.len() >= REMEMBERED_MAX {
        list.remove(0);
    }
    list.push((now, value));
}

fn is_within(at: Timestamp, now: Timestamp, window: Duration) -> bool {
    now.checked_sub(window).is_ok_and(|cutoff| at > cutoff)
}

impl History {
    /// The first look at a target counts as a recommendation of what there is.
    pub(super) fn begin(&mut self, now: Timestamp, current: i32) {
        if self.recommendations.is_empty() {
            self.recommendations.push((now, current));
        }
    }

    /// The number of replicas has been changed.
    pub(super) fn scaled(&mut self, now: Timestamp, from: i32, to: i32) {
        if to > from {
            push(&mut self.ups, now, to.saturating_sub(from));
        } else {
            push(&mut self.downs, now, from.saturating_sub(to));
        }
    }

    /// What was added and taken away within a period.
    fn changes(&self, now: Timestamp, period: Duration) -> (i32, i32) {
        let sum = |list: &[(Timestamp, i32)]| {
            let recent = list.iter().filter(|(at, _)| is_within(*at, now, period));
            recent.fold(0_i32, |sum, (_, change)| sum.saturating_add(*change))
        };
        (sum(&self.ups), sum(&self.downs))
    }
}

/// The limits of an autoscaler and where it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) min: i32,
    pub(super) max: i32,
    pub(super) current: i32,
}

/// A condition's reason and message.
pub(super) type Said = (&'static str, &'static str);

/// What comes of a recommendation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Normalized {
    pub(super) replicas: i32,
    /// The condition AbleToScale.
    pub(super) able: Said,
    /// The condition ScalingLimited, and whether it holds.
    pub(super) limited: (bool, Said),
}

const READY: Said = ("ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: Said = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_STABILIZED: Said = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const UP_LIMIT: Said =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: Said =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const TOO_MANY: Said =
    ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: Said = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const WITHIN: Said = ("DesiredWithinRange", "the desired count is within the acceptable range");

/// Brings a recommendation into its limits, and remembers it.
pub(super) fn normalize(
    history: &mut History,
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    bounds: Bounds,
    wanted: i32,
    now: Timestamp,
) -> Normalized {
    let rules = behavior.map(|behavior| (behavior.scale_up.as_ref(), behavior.scale_down.as_ref()));
    let (stable, why) = match rules {
        None => {
            let recent = history.recommendations.iter();
            let highest =
                recent.filter(|(at, _)| is_within(*at, now, DOWNSCALE_WINDOW)).map(|(_, value)| *value);
            (highest.fold(wanted, i32::max), DOWN_STABILIZED)
        }
        Some((up, down)) => stabilize(history, up, down, bounds.current, wanted, now),
    };
    push(&mut history.recommendations, now, wanted);
    let (replicas, limit) = match rules {
        None => within_default_rate(bounds, stable),
        Some((up, down)) => within_rate(history, up, down, bounds, stable, now),
    };
    Normalized {
        replicas,
        able: if stable == wanted { READY } else { why },
        limited: (replicas != stable, limit),
    }
}

/// The lowest of the recent recommendations for more, the highest for fewer; each with a window of its own.
fn stabilize(
    history: &History,
    up: Option<&HPAScalingRules>,
    down: Option<&HPAScalingRules>,
    current: i32,
    wanted: i32,
    now: Timestamp,
) -> (i32, Said) {
    let window = |rules: Option<&HPAScalingRules>, default: Duration| {
        let seconds = rules.and_then(|rules| rules.stabilization_window_seconds);
        seconds.map_or(default, |seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    };
    let (up, down) = (window(up, Duration::ZERO), window(down, DOWNSCALE_WINDOW));
    let within = |window: Duration| {
        let all = history.recommendations.iter();
        all.filter(move |(at, _)| is_within(*at, now, window)).map(|(_, value)| *value)
    };
    let (lowest, highest) = (within(up).fold(wanted, i32::min), within(down).fold(wanted, i32::max));
    let why = if wanted >= current { UP_STABILIZED } else { DOWN_STABILIZED };
    (current.max(lowest).min(highest), why)
}

/// Without rules: to no more than twice as many at a time, or four.
fn within_default_rate(bounds: Bounds, wanted: i32) -> (i32, Said) {
    let rate = bounds.current.saturating_mul(2).max(4);
    let (most, why) = if bounds.max > rate { (rate, UP_LIMIT) } else { (bounds.max, TOO_MANY) };
    if wanted < bounds.min {
        (bounds.min, TOO_FEW)
    } else if wanted > most {
        (most, why)
    } else {
        (wanted, WITHIN)
    }
}

fn within_rate(
    history: &History,
    up: Option<&HPAScalingRules>,
    down: Option<&HPAScalingRules>,
    bounds: Bounds,
    wanted: i32,
    now: Timestamp,
) -> (i32, Said) {
    if wanted > bounds.current {
        let rate = limit(history, up, bounds.current, true, now).max(bounds.current);
        let (most, why) = if bounds.max > rate { (rate, UP_LIMIT) } else { (bounds.max, TOO_MANY) };
        if wanted > most {
            return (most, why);
        }
    } else if wanted < bounds.current {
        let rate = limit(history, down, bounds.current, false, now).min(bounds.current);
        let (least, why) = if bounds.min < rate { (rate, DOWN_LIMIT) } else { (bounds.min, TOO_FEW) };
        if wanted < least {
            return (least, why);
        }
    }
    (wanted, WITHIN)
}

/// The furthest that the policies allow to go, of what there was at the begin of their periods.
fn limit(history: &History, rules: Option<&HPAScalingRules>, current: i32, up: bool, now: Timestamp) -> i32 {
    let unlimited = if up { i32::MAX } else { i32::MIN };
    let Some(rules) = rules else { return unlimited };
    let select = rules.select_policy.as_deref().unwrap_or("Max");
    if select == "Disabled" {
        return current;
    }
    let limits = rules.policies.iter().flatten().map(|policy| {
        let period = Duration::from_secs(u64::try_from(policy.period_seconds).unwrap_or(0));
        let (added, taken) = history.changes(now, period);
        let start = current.saturating_sub(added).saturating_add(taken);
        match (&*policy.type_, up) {
            ("Percent", true) => percent(start, policy.value, true),
            ("Percent", false) => percent(start, policy.value, false),
            (_, true) => start.saturating_add(policy.value),
            (_, false) => start.saturating_sub(policy.value),
        }
    });
    // For more the smallest change is the lowest limit, for fewer the highest.
    let limit = if (select == "Min") == up { limits.min() } else { limits.max() };
    limit.unwrap_or(unlimited)
}

/// So many percent more, rounded up; or fewer, rounded towards none.
#[allow(clippy::cast_possible_truncation, reason = "a cast saturates")]
fn percent(start: i32, percent: i32, up: bool) -> i32 {
    let (start, share) = (f64::from(start), f64::from(percent) / 100.0);
    if up { (start * (1.0 + share)).ceil() as i32 } else { (start * (1.0 - share)) as i32 }
}
