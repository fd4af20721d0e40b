//! The conditions of an object's status (API conventions, "Typical status properties").

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Sets a condition: replaces the one of the same type, or adds it. Whether anything has changed.
///
/// The time of the last transition stays while the status stays, whatever `condition` says; else it is `now`, in whole seconds, as
/// it is stored (apimachinery's `SetStatusCondition`).
///
/// ```
/// use kreconcile::conditions;
///
/// let (mut all, now) = (Vec::new(), "2030-01-01T00:00:00Z".parse()?);
/// assert!(conditions::set(&mut all, conditions::condition("Ready", true, "Done", "all is well"), now));
/// assert!(!conditions::set(&mut all, conditions::condition("Ready", true, "Done", "all is well"), now));
/// assert!(conditions::is_true(&all, "Ready"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn set(conditions: &mut Vec<Condition>, mut condition: Condition, now: Timestamp) -> bool {
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let Some(known) = conditions.iter_mut().find(|known| known.type_ == condition.type_) else {
        condition.last_transition_time = now;
        conditions.push(condition);
        return true;
    };
    let transition = known.last_transition_time.clone();
    condition.last_transition_time = if known.status == condition.status { transition } else { now };
    let changed = *known != condition;
    *known = condition;
    changed
}

/// A condition, without the time of its transition: [`set`] knows it.
#[must_use]
pub fn condition(kind: &str, holds: bool, reason: &str, message: impl Into<String>) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.into(),
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
        observed_generation: None,
    }
}

/// The condition of a type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether there is a condition of this type that holds; not when it does not or when that is unknown.
#[must_use]
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}

/// Takes a condition off. Whether it was there.
pub fn remove(conditions: &mut Vec<Condition>, kind: &str) -> bool {
    let before = conditions.len();
    conditions.retain(|condition| condition.type_ != kind);
    conditions.len() < before
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases of apimachinery's `TestSetStatusCondition` and `TestRemoveStatusCondition`.
    #[test]
    fn transitions_are_told_from_updates() {
        let (then, now) =
            ("2030-01-01T00:00:00Z".parse().unwrap(), "2030-01-02T00:00:00.5Z".parse().unwrap());
        let mut all = Vec::new();
        assert!(set(&mut all, condition("first", true, "R", "m"), then));
        assert!(set(&mut all, condition("second", true, "R", "m"), then));
        for (given, changed, at, holds) in [
            (condition("first", true, "R", "m"), false, "2030-01-01T00:00:00Z", true),
            (condition("first", true, "R2", "m"), true, "2030-01-01T00:00:00Z", true),
            (condition("first", true, "R2", "m2"), true, "2030-01-01T00:00:00Z", true),
            (condition("first", false, "R2", "m2"), true, "2030-01-02T00:00:00Z", false),
        ] {
            assert_eq!(set(&mut all, given.clone(), now), changed, "{given:?}");
            let first = find(&all, "first").unwrap();
            assert_eq!(
                (first.last_transition_time.0.to_string(), &first.reason),
                (at.to_owned(), &given.reason)
            );
            assert_eq!(is_true(&all, "first"), holds);
        }
        let observed = Condition { observed_generation: Some(2), ..condition("second", true, "R", "m") };
        assert!(set(&mut all, observed, now), "the generation counts, too");
        assert!(remove(&mut all, "first") && !remove(&mut all, "first"));
        assert_eq!((all.len(), is_true(&all, "first")), (1, false));
    }
}
