//! Cron jobs (KEP-19, KEP-3140).

use kcore::cron::{self, Schedule};
use kschema::{error::FieldError, strategy::Strategy};
use serde_json::{Value, json};

use crate::{
    check::{Internal, Look, Path, Report, same_at},
    job,
    workload::name_warning,
};

type Errors = Vec<FieldError>;

/// The strategy of `cronjobs`.
#[derive(Debug)]
pub(crate) struct CronJobs;

/// Jobs' names add eleven bytes to that of the cron job.
const NAME_BYTES_MAX: usize = 52;

fn validate_schedule(spec: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut Errors) {
    let schedule = spec.text("schedule");
    if schedule.is_empty() {
        errors.required(path, "");
        return;
    }
    if let Err(why) = schedule.parse::<Schedule>() {
        errors.invalid(path, schedule, why);
    }
    if !schedule.contains("TZ") {
        return;
    }
    if !old.is_some_and(|old| old.text("schedule").contains("TZ")) {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.invalid(path, schedule, why);
    } else if spec.has("timeZone") {
        errors.invalid(path, schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule");
    }
}

/// Checks a time zone: the form of its name, and that it is known.
fn validate_zone(name: &str, path: &Path<'_>, errors: &mut Errors) {
    const PART_BYTES_MAX: usize = 14;
    if name.is_empty() {
        errors.invalid(path, name, "timeZone must be nil or non-empty string");
        return;
    }
    let fits = |part: &str| {
        !matches!(part, "." | ".." | "")
            && part.len() <= PART_BYTES_MAX
            && !part.starts_with('-')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_+".contains(&byte))
    };
    if !name.split('/').all(fits) {
        errors.invalid(path, name, format_args!("unknown time zone {name}"));
        return;
    }
    if name.eq_ignore_ascii_case("Local") {
        let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.invalid(path, name, why);
    }
    if let Err(why) = cron::zone(name) {
        errors.invalid(path, name, why);
    }
}

fn validate(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let old = old.map(|old| &old["spec"]);
    validate_schedule(spec, old, &path.field("schedule"), errors);
    errors.not_negative(spec, &path, "startingDeadlineSeconds");
    if let Some(zone) = spec.some_text("timeZone")
        && old.is_none_or(|old| old.some_text("timeZone") != Some(zone))
    {
        validate_zone(zone, &path.field("timeZone"), errors);
    }
    let policies = ["Allow", "Forbid", "Replace"];
    errors.one_of(&path.field("concurrencyPolicy"), spec.text("concurrencyPolicy"), &policies);
    let (field, job) = (path.field("jobTemplate.spec"), &spec["jobTemplate"]["spec"]);
    let was = old.map(|old| &old["jobTemplate"]["spec"]["template"]);
    job::validate_runs(job, was, &field, errors);
    if let Some(selector) = job.get_some("selector") {
        errors.invalid(
            &field.field("selector"),
            Internal("^LabelSelector", Some(selector)),
            "`selector` will be auto-generated",
        );
    }
    if job.flag("manualSelector") {
        errors.unsupported_choice(&field.field("manualSelector"), &json!(true), &["nil", "false"]);
    }
    errors.not_negative(spec, &path, "successfulJobsHistoryLimit");
    errors.not_negative(spec, &path, "failedJobsHistoryLimit");
}

impl Strategy for CronJobs {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.pointer_mut("/spec/jobTemplate/spec") {
            job::default_spec(spec);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        validate(object, None, errors);
        let name = object["metadata"].text("name");
        if name.len() > NAME_BYTES_MAX {
            let why = format!("must be no more than {NAME_BYTES_MAX} characters");
            errors.invalid(&Path::root("metadata.name"), name, why);
        }
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate(object, Some(old), errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if old.is_none() {
            name_warning(object, "Pod names and hostnames", &mut out);
        }
        let of_job =
            |object| -> &Value { Value::pointer(object, "/spec/jobTemplate/spec").unwrap_or(&Value::Null) };
        if !old.is_some_and(|old| same_at(object, old, "spec")) {
            let path = Path::root("spec.jobTemplate.spec");
            job::warnings(of_job(object), old.map(of_job), &path, &mut out);
        }
        if old.is_some() && object["spec"].text("schedule").contains("TZ") {
            out.push("cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details".to_owned());
        }
        out
    }
}
