//! Probes and lifecycle handlers of a container.

use kschema::error::FieldError;
use serde_json::Value;

use super::spec::Scope;
use crate::check::{Look, Path, Report, form};

type Errors = Vec<FieldError>;

/// The signals that may stop a container on Linux (KEP-4960).
const SIGNALS: [&str; 65] = [
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMAX-1",
    "SIGRTMAX-10",
    "SIGRTMAX-11",
    "SIGRTMAX-12",
    "SIGRTMAX-13",
    "SIGRTMAX-14",
    "SIGRTMAX-2",
    "SIGRTMAX-3",
    "SIGRTMAX-4",
    "SIGRTMAX-5",
    "SIGRTMAX-6",
    "SIGRTMAX-7",
    "SIGRTMAX-8",
    "SIGRTMAX-9",
    "SIGRTMIN",
    "SIGRTMIN+1",
    "SIGRTMIN+10",
    "SIGRTMIN+11",
    "SIGRTMIN+12",
    "SIGRTMIN+13",
    "SIGRTMIN+14",
    "SIGRTMIN+15",
    "SIGRTMIN+2",
    "SIGRTMIN+3",
    "SIGRTMIN+4",
    "SIGRTMIN+5",
    "SIGRTMIN+6",
    "SIGRTMIN+7",
    "SIGRTMIN+8",
    "SIGRTMIN+9",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];
const PROBE_HANDLERS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];
const LIFECYCLE_HANDLERS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "sleep"];

/// Checks the lifecycle and the probes of a container.
pub(crate) fn validate(container: &Value, scope: &Scope<'_>, path: &Path<'_>, errors: &mut Errors) {
    if let Some(lifecycle) = container.get_some("lifecycle") {
        let path = path.field("lifecycle");
        for key in ["postStart", "preStop"] {
            if let Some(hook) = lifecycle.get_some(key) {
                handler(hook, &LIFECYCLE_HANDLERS, scope.grace, &path.field(key), errors);
            }
        }
        if let Some(signal) = lifecycle.some_text("stopSignal") {
            stop_signal(signal, scope.os(), &path.field("stopSignal"), errors);
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_some(key) else {
            continue;
        };
        let path = path.field(key);
        validate_probe(probe, &path, errors);
        if key == "readinessProbe" {
            if let Some(seconds) = probe.some_int("terminationGracePeriodSeconds") {
                let field = path.field("terminationGracePeriodSeconds");
                errors.invalid(&field, seconds, "must not be set for readinessProbes");
            }
        } else if probe.int("successThreshold") != 1 {
            errors.invalid(&path.field("successThreshold"), probe.int("successThreshold"), "must be 1");
        }
    }
}

fn validate_probe(probe: &Value, path: &Path<'_>, errors: &mut Errors) {
    handler(probe, &PROBE_HANDLERS, None, path, errors);
    for key in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        errors.not_negative(probe, path, key);
    }
    let grace = probe.some_int("terminationGracePeriodSeconds");
    if let Some(seconds) = grace.filter(|seconds| *seconds <= 0) {
        errors.invalid(&path.field("terminationGracePeriodSeconds"), seconds, "must be greater than 0");
    }
}

fn handler(holder: &Value, kinds: &[&'static str], grace: Option<i64>, path: &Path<'_>, errors: &mut Errors) {
    let mut found = false;
    for kind in kinds {
        let Some(action) = holder.get_some(kind) else {
            continue;
        };
        let path = path.field(kind);
        if found {
            errors.forbidden(&path, "may not specify more than 1 handler type");
            continue;
        }
        found = true;
        match *kind {
            "exec" if action.count("command") == 0 => errors.required(&path.field("command"), ""),
            "exec" => {}
            "httpGet" => http_get(action, &path, errors),
            "sleep" => {
                let seconds = action.int("seconds");
                if let Some(grace) = grace.filter(|grace| seconds < 0 || seconds > *grace) {
                    let why =
                        format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    errors.invalid(&path, seconds, why);
                }
            }
            _ => port(action.get("port").unwrap_or(&Value::Null), &path.field("port"), errors),
        }
    }
    if !found {
        errors.required(path, "must specify a handler type");
    }
}

fn http_get(action: &Value, path: &Path<'_>, errors: &mut Errors) {
    errors.needs(action, path, "path");
    port(action.get("port").unwrap_or(&Value::Null), &path.field("port"), errors);
    let scheme = action.text("scheme");
    if !["HTTP", "HTTPS"].contains(&scheme) {
        errors.unsupported(&path.field("scheme"), scheme, &["HTTP", "HTTPS"]);
    }
    for header in action.list("httpHeaders") {
        let name = header.text("name");
        errors.faults(&path.field("httpHeaders"), name, form::http_header(name));
    }
}

/// Checks a port's number or name.
pub(crate) fn port(value: &Value, path: &Path<'_>, errors: &mut Errors) {
    match value.as_str() {
        Some(name) => errors.faults(path, name, form::port_name(name)),
        None => errors.port(path, value.as_i64().unwrap_or_default()),
    }
}

fn stop_signal(signal: &str, os: Option<&str>, path: &Path<'_>, errors: &mut Errors) {
    match os {
        None => errors.forbidden(path, "may not be set for containers with empty `spec.os.name`"),
        Some("windows") if !["SIGKILL", "SIGTERM"].contains(&signal) => {
            errors.unsupported(path, signal, &["SIGKILL", "SIGTERM"]);
        }
        Some("linux") if !SIGNALS.contains(&signal) => errors.unsupported(path, signal, &SIGNALS),
        Some(_) => {}
    }
}
