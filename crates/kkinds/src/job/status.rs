//! What a job's status may say, and what it may not take back.

use kschema::error::FieldError;
use serde_json::Value;

use super::{indexes, is_indexed};
use crate::{
    check::{Internal, Look, Path, Report, condition, same_at, texts},
    workload::counts,
};

type Errors = Vec<FieldError>;

/// The old and the new state of a job, and where its status stands.
struct Change<'a> {
    spec: &'a Value,
    new: &'a Value,
    old: &'a Value,
    path: Path<'a>,
}

impl Change<'_> {
    fn is(&self, kind: &str) -> bool {
        condition::is_true(self.new.list("conditions"), kind)
    }

    fn was(&self, kind: &str) -> bool {
        condition::is_true(self.old.list("conditions"), kind)
    }

    fn turned(&self, kind: &str) -> bool {
        self.is(kind) != self.was(kind)
    }

    fn is_finished(&self) -> bool {
        self.is("Complete") || self.is("Failed")
    }

    fn finish_turned(&self) -> bool {
        self.is_finished() != (self.was("Complete") || self.was("Failed"))
    }

    fn changed(&self, key: &str) -> bool {
        !same_at(self.new, self.old, key)
    }

    fn contradiction(&self, why: &str, errors: &mut Errors) {
        errors.invalid_whole(&self.path.field("conditions"), why);
    }
}

/// Checks a change of the status.
pub(super) fn validate(object: &Value, old: &Value, errors: &mut Errors) {
    let change = Change {
        spec: &object["spec"],
        new: &object["status"],
        old: &old["status"],
        path: Path::root("status"),
    };
    counts(change.new, &change.path, &["active", "succeeded", "failed", "ready", "terminating"], errors);
    uncounted(&change, errors);
    conditions(&change, errors);
    completion_time(&change, errors);
    finished(&change, errors);
    index_lists(&change, errors);
    if (change.changed("ready") || change.changed("active"))
        && change.new.int("ready") > change.new.int("active")
    {
        let shown = change.new.int("ready");
        errors.invalid(&change.path.field("ready"), shown, "cannot set more ready pods than active");
    }
    backward(&change, errors);
}

fn uncounted(change: &Change<'_>, errors: &mut Errors) {
    let Some(pods) = change.new.get_some("uncountedTerminatedPods") else {
        return;
    };
    let path = change.path.field("uncountedTerminatedPods");
    let mut seen: Vec<&str> = Vec::new();
    for key in ["succeeded", "failed"] {
        let list = path.field(key);
        for (index, uid) in texts(pods.list(key)).enumerate() {
            if uid.is_empty() {
                errors.invalid(&list.index(index), uid, "must not be empty");
            } else if seen.contains(&uid) {
                errors.duplicate(&list.index(index), uid);
            } else {
                seen.push(uid);
            }
        }
    }
}

fn conditions(change: &Change<'_>, errors: &mut Errors) {
    let is = |kind| change.is(kind);
    let turned = |one, other| change.turned(one) || change.turned(other);
    let (complete, failed) = (is("Complete"), is("Failed"));
    let (target, met) = (is("FailureTarget"), is("SuccessCriteriaMet"));
    let failed_indexes = change.changed("failedIndexes");
    let policy = change.spec.has("successPolicy");
    for (wrong, why) in [
        (
            complete && failed && turned("Complete", "Failed"),
            "cannot set Complete=True and Failed=true conditions",
        ),
        (
            complete && target && turned("Complete", "FailureTarget"),
            "cannot set Complete=True and FailureTarget=true conditions",
        ),
        (
            failed && !target && (change.turned("Failed") || failed_indexes),
            "cannot set Failed=True condition without the FailureTarget=true condition",
        ),
        (
            complete && !met && turned("Complete", "SuccessCriteriaMet"),
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        ),
        (met && failed, "cannot set SuccessCriteriaMet=True and Failed=true conditions"),
        (met && target, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions"),
        (
            policy && !met && complete,
            "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True",
        ),
    ] {
        if wrong {
            change.contradiction(why, errors);
        }
    }
}

fn completion_time(change: &Change<'_>, errors: &mut Errors) {
    let path = change.path.field("completionTime");
    let (completion, start) = (change.new.get_some("completionTime"), change.new.get_some("startTime"));
    if change.turned("Complete") || change.changed("completionTime") {
        match completion {
            Some(time) if !change.is("Complete") => {
                let why = "cannot set completionTime when there is no Complete=True condition";
                errors.invalid(&path, time, why);
            }
            None if change.is("Complete") => {
                errors.required(&path, "completionTime is required for Complete jobs");
            }
            _ => {}
        }
    }
    if (change.changed("startTime") || change.changed("completionTime"))
        && let (Some(completion), Some(start)) = (completion, start)
        && completion.as_str() < start.as_str()
    {
        errors.invalid(&path, completion, "must be equal to or after `startTime`");
    }
}

fn finished(change: &Change<'_>, errors: &mut Errors) {
    if !change.is_finished() {
        return;
    }
    let turned = change.finish_turned();
    for key in ["active", "terminating"] {
        if (turned || change.changed(key)) && change.new.int(key) > 0 {
            let why = format!("{key}>0 is invalid for finished job");
            errors.invalid(&change.path.field(key), change.new.int(key), why);
        }
    }
    let nothing = change.spec.flag("suspend") && change.spec.some_int("completions") == Some(0);
    if (turned || change.changed("startTime")) && !nothing && !change.new.has("startTime") {
        errors.required(&change.path.field("startTime"), "startTime is required for finished job");
    }
    let key = "uncountedTerminatedPods";
    if (turned || change.changed(key))
        && let Some(pods) = change.new.get_some(key)
        && pods.count("failed") + pods.count("succeeded") > 0
    {
        errors.invalid(
            &change.path.field(key),
            Internal("~batch.v1.UncountedTerminatedPods", Some(pods)),
            "must be empty for finished job",
        );
    }
}

fn index_lists(change: &Change<'_>, errors: &mut Errors) {
    let completions = change.spec.some_int("completions");
    let (done, failed) = (change.new.text("completedIndexes"), change.new.some_text("failedIndexes"));
    let (done_changed, failed_changed) =
        (change.changed("completedIndexes"), change.changed("failedIndexes"));
    let field = change.path.field("completedIndexes");
    let limited = change.spec.has("backoffLimitPerIndex");
    if done_changed {
        if let Some(Err(why)) = completions.map(|completions| indexes::count(done, completions)) {
            errors.invalid(&field, done, format_args!("error parsing completedIndexes: {why}"));
        }
        if !done.is_empty() && !is_indexed(change.spec) {
            let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
            errors.invalid(&field, done, why);
        }
    }
    let Some(failed) = failed else {
        return;
    };
    let field = change.path.field("failedIndexes");
    if failed_changed {
        if limited && let Some(Err(why)) = completions.map(|completions| indexes::count(failed, completions))
        {
            errors.invalid(&field, failed, format_args!("error parsing failedIndexes: {why}"));
        }
        if !limited {
            let why = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
            errors.invalid(&field, failed, why);
        }
    }
    if (failed_changed || done_changed)
        && let Some(index) = completions.and_then(|completions| indexes::overlap(done, failed, completions))
    {
        let why = format!("failedIndexes and completedIndexes overlap at index: {index}");
        errors.invalid(&field, failed, why);
    }
}

/// What may not go back.
fn backward(change: &Change<'_>, errors: &mut Errors) {
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if change.was(kind) && !change.is(kind) {
            change.contradiction(&format!("cannot disable the terminal {kind}=True condition"), errors);
        }
    }
    // An indexed job that shrinks loses what the indexes cut off have done.
    let elastic =
        is_indexed(change.spec) && change.spec.some_int("completions") == change.spec.some_int("parallelism");
    for (key, fixed) in [("failed", true), ("succeeded", !elastic)] {
        if fixed && change.new.int(key) < change.old.int(key) {
            let why = format!("cannot decrease the {key} counter");
            errors.invalid(&change.path.field(key), change.new.int(key), why);
        }
    }
    if change.new.has("completionTime") && change.old.has("completionTime") {
        errors.immutable(change.new, change.old, &change.path, "completionTime");
    }
    let resumes =
        change.was("Suspended")
            && change.new.list("conditions").iter().any(|condition| {
                condition.text("type") == "Suspended" && condition.text("status") == "False"
            });
    if change.changed("startTime") && !resumes && change.old.has("startTime") && !change.spec.flag("suspend")
    {
        let why = "field is immutable for unsuspended job once set";
        errors.invalid(&change.path.field("startTime"), change.new.get_some("startTime"), why);
    }
    let (was_met, met) = (change.was("SuccessCriteriaMet"), change.is("SuccessCriteriaMet"));
    if was_met && !met {
        change.contradiction("cannot disable the SuccessCriteriaMet=True condition", errors);
    }
    if change.was("Complete") && !was_met && met {
        let why = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        change.contradiction(why, errors);
    }
}
