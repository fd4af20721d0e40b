use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use serde_json::{Value, json};

use super::decide::{self, Due, job_name, surplus};

fn cron(spec: Value, last: Option<&str>) -> CronJob {
    let mut object = json!({
        "metadata": {"name": "c", "creationTimestamp": "2030-01-01T00:00:00Z"},
        "spec": {"schedule": "0 * * * *", "jobTemplate": {}},
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    if let Some(last) = last {
        object["status"]["lastScheduleTime"] = last.into();
    }
    serde_json::from_value(object).unwrap()
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The rules of upstream's `mostRecentScheduleTime`, `nextScheduleTimeDuration` and `syncCronJob`.
#[test]
fn what_is_due_is_the_latest_missed_time() {
    let run = |at, too_many_missed, next| Due::Run {
        at: time(at),
        too_many_missed,
        next: Duration::from_millis(next),
    };
    let nothing = |next| Due::Nothing(Duration::from_millis(next));
    let hour = 3_600_000;
    let cases = [
        // Before the first time, from the creation on.
        (json!({}), None, "2030-01-01T00:30:00Z", nothing(hour / 2 + 100)),
        (json!({}), None, "2030-01-01T01:00:00Z", run("2030-01-01T01:00:00Z", false, hour + 100)),
        (json!({}), Some("2030-01-01T01:00:00Z"), "2030-01-01T01:00:01Z", nothing(hour - 1000 + 100)),
        // Of several that were missed, the latest; the next look is at the time after it.
        (json!({}), None, "2030-01-01T05:10:00Z", run("2030-01-01T05:00:00Z", false, 50 * 60_000 + 100)),
        (json!({}), None, "2030-01-05T04:10:00Z", run("2030-01-05T04:00:00Z", false, 50 * 60_000 + 100)),
        (json!({}), None, "2030-01-05T05:10:00Z", run("2030-01-05T05:00:00Z", true, 50 * 60_000 + 100)),
        // With a deadline only what it leaves counts.
        (json!({"startingDeadlineSeconds": 60}), None, "2030-01-09T05:10:00Z", nothing(50 * 60_000 + 100)),
        (
            json!({"startingDeadlineSeconds": 900}),
            None,
            "2030-01-09T05:10:00Z",
            run("2030-01-09T05:00:00Z", false, 50 * 60_000 + 100),
        ),
        (json!({"schedule": "59 23 31 2 *"}), None, "2030-01-01T05:10:00Z", Due::Never),
        // An irregular schedule.
        (
            json!({"schedule": "30 6-16/4 * * 1-5"}),
            Some("2030-01-04T14:30:00Z"),
            "2030-01-08T11:00:00Z",
            run("2030-01-08T10:30:00Z", false, 3 * hour + hour / 2 + 100),
        ),
        (
            json!({"timeZone": "Asia/Kolkata"}),
            None,
            "2030-01-01T00:30:00Z",
            run("2030-01-01T00:30:00Z", false, hour + 100),
        ),
    ];
    for (spec, last, now, expected) in cases {
        let cron = cron(spec, last);
        let schedule = decide::schedule(&cron).unwrap();
        assert_eq!(decide::due(&cron, time(now), &schedule), expected, "{cron:?} at {now}");
    }
}

#[test]
fn a_run_has_one_name() {
    assert_eq!(job_name("c", time("2030-01-01T00:30:00Z")), "c-31557630");
    assert_eq!(job_name("c", time("2030-01-01T00:30:59Z")), "c-31557630");
}

#[test]
fn the_oldest_of_too_many_ended_jobs_go() {
    let job = |name: &str, how: &str, start: Option<&str>| {
        let condition = json!({"type": how, "status": "True"});
        let mut job = json!({"metadata": {"name": name}, "status": {"conditions": [condition]}});
        if let Some(start) = start {
            job["status"]["startTime"] = format!("2030-01-01T00:0{start}:00Z").into();
        }
        Arc::new(serde_json::from_value::<Job>(job).unwrap())
    };
    let jobs = [
        job("c3", "Complete", Some("3")),
        job("c1", "Complete", Some("1")),
        job("c2", "Complete", Some("2")),
        job("runs", "Suspended", Some("1")),
        job("f0", "Failed", None),
        job("f2", "Failed", Some("2")),
        job("f1", "Failed", Some("2")),
    ];
    let cases = [
        (json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1}), vec!["c1", "c2", "f1", "f2"]),
        (json!({"successfulJobsHistoryLimit": 0}), vec!["c1", "c2", "c3"]),
        (json!({"failedJobsHistoryLimit": 2}), vec!["f1"]),
        (json!({}), vec![]),
    ];
    for (spec, expected) in cases {
        let cron = cron(spec, None);
        let names: Vec<&str> =
            surplus(&cron, &jobs).iter().map(|job| job.metadata.name.as_deref().unwrap()).collect();
        assert_eq!(names, expected, "{cron:?}");
    }
}
