//! Jobs (KEP-19, and those that have added to it: 2214 indexes, 3329 failures, 3850 limits for each index, 3939 replacements,
//! 3998 successes, 4368 other controllers).

pub(crate) mod indexes;
pub(crate) mod policies;
pub(crate) mod status;

use kschema::{
    error::FieldError,
    fields::{child, items_mut, keep, set_default},
    strategy::Strategy,
};
use serde_json::{Value, json};

use crate::{
    check::{Internal, Look, Path, Report, condition, domain, form, labels, same, same_at},
    pod::template,
    workload::{counts, name_warning, selects_template},
};

type Errors = Vec<FieldError>;

/// The strategy of `jobs`.
#[derive(Debug)]
pub(crate) struct Jobs;

const PARALLELISM_MAX: i64 = 100_000;
const FAILED_INDEXES_MAX: i64 = 100_000;
/// Above so many completions, other limits are lower.
const COMPLETIONS_HIGH: i64 = 100_000;
const HIGH_MAX: i64 = 10_000;
const MANAGER_BYTES_MAX: usize = 63;

/// The labels that tell a job's pods, by the name and by the uid of the job: first those that came first.
const NAME_LABELS: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];
const UID_LABELS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];

/// Whether each completion has an index.
pub(crate) fn is_indexed(spec: &Value) -> bool {
    spec.text("completionMode") == "Indexed"
}

/// Fills in what a job's specification has wherever it stands.
pub(crate) fn default_spec(spec: &mut Value) {
    if let Some(found) = spec.get_mut("template") {
        template::default(found);
    }
    if let Some(policy) = spec.get_mut("podFailurePolicy") {
        for rule in items_mut(policy, "rules") {
            items_mut(rule, "onPodConditions").for_each(|pattern| set_default(pattern, "status", "True"));
        }
    }
}

fn indexed(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (completions, parallelism) = (spec.some_int("completions"), spec.some_int("parallelism"));
    let failed = spec.some_int("maxFailedIndexes");
    let at_most = |limit: i64| format!("must be less than or equal to {limit}");
    if completions.is_none() {
        errors.required(&path.field("completions"), "when completion mode is Indexed");
    }
    if let Some(shown) = parallelism.filter(|count| *count > PARALLELISM_MAX) {
        let why = format!("{} when completion mode is Indexed", at_most(PARALLELISM_MAX));
        errors.invalid(&path.field("parallelism"), shown, why);
    }
    let field = path.field("maxFailedIndexes");
    if let (Some(failed), Some(completions)) = (failed, completions)
        && failed > completions
    {
        errors.invalid(&field, failed, "must be less than or equal to completions");
    }
    if let Some(shown) = failed.filter(|count| *count > FAILED_INDEXES_MAX) {
        errors.invalid(&field, shown, at_most(FAILED_INDEXES_MAX));
    }
    if completions.is_some_and(|count| count > COMPLETIONS_HIGH) && spec.has("backoffLimitPerIndex") {
        let why = format!(
            "{} when completions are above {COMPLETIONS_HIGH} and used with backoff limit per index",
            at_most(HIGH_MAX)
        );
        if failed.is_none() {
            let why = format!("must be specified when completions is above {COMPLETIONS_HIGH}");
            errors.required(&field, &why);
        }
        if let Some(shown) = parallelism.filter(|count| *count > HIGH_MAX) {
            errors.invalid(&path.field("parallelism"), shown, &why);
        }
        if let Some(shown) = failed.filter(|count| *count > HIGH_MAX) {
            errors.invalid(&field, shown, &why);
        }
    }
}

/// Checks how a job runs, but not what it selects. `old`: the template that it has now.
pub(crate) fn validate_runs(spec: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut Errors) {
    const COUNTS: [&str; 7] = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    counts(spec, path, &COUNTS, errors);
    if spec.has("maxFailedIndexes") && !spec.has("backoffLimitPerIndex") {
        errors.required(&path.field("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if let Some(manager) = spec.some_text("managedBy") {
        domain::prefixed_path(manager, &path.field("managedBy"), errors);
        if manager.len() > MANAGER_BYTES_MAX {
            errors.too_long(&path.field("managedBy"), MANAGER_BYTES_MAX);
        }
    }
    errors.optional_one_of(spec, path, "completionMode", &["NonIndexed", "Indexed"]);
    match spec.some_text("completionMode") {
        Some("Indexed") => indexed(spec, path, errors),
        None | Some("NonIndexed") => {
            for key in ["backoffLimitPerIndex", "maxFailedIndexes"] {
                if let Some(shown) = spec.some_int(key) {
                    errors.invalid(&path.field(key), shown, "requires indexed completion mode");
                }
            }
        }
        Some(_) => {}
    }
    policies::validate(spec, path, errors);
    template::validate(&spec["template"], old, &path.field("template"), errors);
    let policy = spec["template"]["spec"].text("restartPolicy");
    let field = path.field("template.spec.restartPolicy");
    match policy {
        "Always" | "" => errors.required(&field, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec.has("podFailurePolicy") => {
            let why = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.invalid(&field, policy, why);
        }
        "OnFailure" | "Never" => {}
        _ => errors.unsupported(&field, policy, &["OnFailure", "Never"]),
    }
}

/// Warns of what a job's specification may lead to.
pub(crate) fn warnings(spec: &Value, old: Option<&Value>, path: &Path<'_>, out: &mut Vec<String>) {
    if is_indexed(spec) && spec.int("completions") > COMPLETIONS_HIGH && spec.int("parallelism") > HIGH_MAX {
        out.push(format!("{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"));
    }
    let was = old.map(|old| &old["template"]);
    template::warnings(&spec["template"], was, &path.field("template"), out);
}

/// Checks that the selector is the job's own, unless the caller manages it.
fn generated(object: &Value, prefixed: bool, errors: &mut Errors) {
    let (meta, spec) = (&object["metadata"], &object["spec"]);
    let Some(selector) = spec.get_some("selector").filter(|_| !spec.flag("manualSelector")) else {
        return;
    };
    errors.needs(meta, &Path::root("metadata"), "uid");
    let path = Path::root("spec.template.metadata.labels");
    let found = spec["template"]["metadata"].get_some("labels");
    let mut expected = serde_json::Map::new();
    for index in 0..=usize::from(prefixed) {
        for (label, key) in [(UID_LABELS[index], "uid"), (NAME_LABELS[index], "name")] {
            let value = meta.text(key);
            expected.insert(label.to_owned(), value.into());
            let why = format!("must be '{value}'");
            match found.and_then(|labels| labels.some_text(label)) {
                None => errors.required(&path.key(label), &why),
                Some(set) if set != value => errors.invalid(&path.key(label), found, why),
                Some(_) => {}
            }
        }
    }
    if !labels::selects(selector, &expected.into()) {
        errors.invalid(
            &Path::root("spec.selector"),
            Internal("^LabelSelector", Some(selector)),
            "`selector` not auto-generated",
        );
    }
}

fn validate(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let labelled = |old: &Value| {
        let found = old["spec"]["template"]["metadata"].get_some("labels");
        found.is_some_and(|found| found.get(NAME_LABELS[1]).is_some() && found.get(UID_LABELS[1]).is_some())
    };
    generated(object, old.is_none_or(labelled), errors);
    validate_runs(spec, old.map(|old| &old["spec"]["template"]), &path, errors);
    let selector = spec.get_some("selector");
    if selector.is_none() {
        errors.required(&path.field("selector"), "");
    } else {
        let lax = old.is_some_and(|old| labels::is_faulty(old["spec"].get_some("selector")));
        labels::selector(selector, &path.field("selector"), lax, errors);
    }
    selects_template(spec, &path, errors);
    if is_indexed(spec) && spec.int("completions") > 0 {
        let name = object["metadata"].text("name");
        let last = format!("{name}-{}", spec.int("completions") - 1);
        if !form::dns_label(&last).is_empty() {
            let why = format!("will not able to create pod with invalid DNS label: {last}");
            errors.invalid(&Path::root("metadata.name"), name, why);
        }
    }
}

/// Whether the template may still change: the job waits, and no pod has been made of the template.
fn is_waiting(old: &Value) -> bool {
    let status = &old["status"];
    let idle = !status.has("startTime") || condition::is_true(status.list("conditions"), "Suspended");
    old["spec"].flag("suspend") && idle && status.int("active") == 0
}

/// Takes over what decides where pods go (KEP-2926).
fn take_placement(template: &mut Value, new: &Value) {
    let meta = child(template, "metadata");
    keep(meta, &new["metadata"], "annotations");
    keep(meta, &new["metadata"], "labels");
    let (spec, new) = (child(template, "spec"), &new["spec"]);
    for key in ["nodeSelector", "tolerations", "schedulingGates"] {
        keep(spec, new, key);
    }
    let node = new.get("affinity").and_then(|affinity| affinity.get_some("nodeAffinity"));
    if node.is_some() || spec.has("affinity") {
        let affinity = child(spec, "affinity");
        affinity["nodeAffinity"] = node.cloned().unwrap_or(Value::Null);
        if node.is_none() && !new.has("affinity") && same(affinity, &Value::Null) {
            spec["affinity"] = Value::Null;
        }
    }
}

fn template_change(object: &Value, old: &Value, errors: &mut Errors) {
    let (new, was) = (&object["spec"]["template"], &old["spec"]["template"]);
    if same(new, was) {
        return;
    }
    let mut was = was.clone();
    let waiting = is_waiting(old);
    if waiting {
        take_placement(&mut was, new);
    }
    let path = Path::root("spec");
    if !waiting {
        if !same(new, &was) {
            errors.invalid(
                &path.field("template"),
                Internal("~core.v1.PodTemplateSpec", Some(new)),
                "field is immutable",
            );
        }
        return;
    }
    for list in ["containers", "initContainers"] {
        if new["spec"].count(list) != was["spec"].count(list) {
            continue;
        }
        for (container, new) in items_mut(&mut was["spec"], list).zip(new["spec"].list(list)) {
            if container.text("name") == new.text("name") {
                keep(container, new, "resources");
            }
        }
    }
    if !same_at(new, &was, "spec") {
        errors.invalid(
            &path.field("template.spec"),
            Internal("~core.v1.PodSpec", new.get("spec")),
            "field is immutable",
        );
    }
}

impl Strategy for Jobs {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_spec(spec);
        if !spec.has("completions") && !spec.has("parallelism") {
            set_default(spec, "completions", 1);
        }
        set_default(spec, "parallelism", 1);
        let limit = if spec.has("backoffLimitPerIndex") { i32::MAX } else { 6 };
        set_default(spec, "backoffLimit", limit);
        let replacement = if spec.has("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
        set_default(spec, "podReplacementPolicy", replacement);
        set_default(spec, "completionMode", "NonIndexed");
        set_default(spec, "suspend", false);
        set_default(spec, "manualSelector", false);
        let labels = spec.pointer("/template/metadata/labels").filter(|labels| labels.is_object()).cloned();
        let meta = child(object, "metadata");
        if let Some(labels) = labels.filter(|_| meta.count("labels") == 0) {
            meta["labels"] = labels;
        }
    }

    /// A job selects its pods by its own uid, unless the caller manages the selector.
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
        let meta = &object["metadata"];
        let (uid, name) = (meta["uid"].clone(), meta["name"].clone());
        let spec = child(object, "spec");
        if spec.flag("manualSelector") {
            return;
        }
        let labels = child(child(child(spec, "template"), "metadata"), "labels");
        NAME_LABELS.iter().for_each(|label| set_default(labels, label, name.clone()));
        UID_LABELS.iter().for_each(|label| set_default(labels, label, uid.clone()));
        set_default(child(child(spec, "selector"), "matchLabels"), UID_LABELS[1], uid);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate(object, None, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate(object, Some(old), errors);
        let (spec, was, path) = (&object["spec"], &old["spec"], Path::root("spec"));
        if !is_indexed(spec) {
            errors.immutable(spec, was, &path, "completions");
        } else if let Some(completions) = spec.some_int("completions")
            && was.some_int("completions") != Some(completions)
            && completions != spec.int("parallelism")
        {
            let why = "can only be modified in tandem with spec.parallelism";
            errors.invalid(&path.field("completions"), completions, why);
        }
        errors.immutable_of(spec, was, &path, "selector", "^LabelSelector");
        template_change(object, old, errors);
        for key in
            ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
        {
            errors.immutable(spec, was, &path, key);
        }
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        status::validate(object, old, errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if old.is_none() {
            name_warning(object, "Pod names and hostnames", &mut out);
        }
        if !old.is_some_and(|old| same_at(object, old, "spec")) {
            warnings(&object["spec"], old.map(|old| &old["spec"]), &Path::root("spec"), &mut out);
        }
        out
    }
}
