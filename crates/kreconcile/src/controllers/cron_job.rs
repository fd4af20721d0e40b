//! CronJobs: a Job for each time of a schedule (KEP-19, KEP-3140).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use ahash::RandomState;
use async_trait::async_trait;
use jiff::{Timestamp, tz::TimeZone};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kcore::{Clock, Stored, cron::Schedule};
use serde_json::{Value, json};

use crate::{
    cache::Index,
    controller::Controller,
    controllers::{Context, claim::controller_reference, pod_writes::error_message},
    events::{EventRecorder, EventType, Regarding},
    expectations::{EXPECTATION_RECHECK, Expectations},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, DeleteHow, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Trigger},
};

mod decide;
#[cfg(test)]
mod tests;

use decide::{Due, active, due, ended, job_name, note_success, remove_active, surplus};

/// Says for which time of the schedule a job was made (KEP-4026).
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// The controller `cronjob-controller`: makes a Job for each time of a CronJob's schedule, in its time zone, with its
/// policy for runs that overlap, the deadline for starting, and so many ended Jobs kept as it asks for.
///
/// Of times that were missed only the latest is served. A Job's name is made of the time, so there is one only.
pub fn cron_job(context: &Context) -> Controller {
    const NAME: &str = "cronjob-controller";
    let crons = context.informers().of::<CronJob>(Selection::all());
    let jobs = context.informers().of::<Job>(Selection::all());
    jobs.add_index(Index::controller());
    let reconciler = CronJobs {
        resource: ResourceType::of::<CronJob>(),
        job_resource: ResourceType::of::<Job>(),
        crons_written: Expectations::new(crons.lister().clone()),
        jobs_written: Expectations::new(jobs.lister().clone()),
        schedules: Mutex::default(),
        requests: context.requests(NAME),
        recorder: context.recorder(NAME),
        clock: Arc::clone(context.clock()),
        crons: crons.clone(),
        jobs: jobs.clone(),
    };
    Controller::new(NAME, reconciler)
        .on(Trigger::new(&crons, MapTo::Itself))
        .on(Trigger::new(&jobs, MapTo::Controller(ResourceType::of::<CronJob>())))
}

struct CronJobs {
    resource: ResourceType,
    job_resource: ResourceType,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
    crons_written: Expectations,
    jobs_written: Expectations,
    /// The schedule and zone that each CronJob had when it was last looked at.
    schedules: Mutex<HashMap<ObjectKey, KnownSchedule, RandomState>>,
    requests: Requests,
    recorder: EventRecorder,
    clock: Arc<dyn Clock>,
}

/// A schedule and its zone.
type KnownSchedule = (String, Option<String>);

#[async_trait]
impl Reconciler for CronJobs {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.crons.lister().get(&key.namespace, &key.name) else {
            self.crons_written.forget(key);
            self.jobs_written.forget(key);
            self.schedules().remove(key);
            return Ok(Action::Done);
        };
        if !self.crons_written.met(key) || !self.jobs_written.met(key) {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        let cron = stored.typed::<CronJob>()?;
        let spec = &cron.spec;
        if let Some(action) = self.new_schedule(key, &cron, spec) {
            return Ok(action);
        }
        let mut run = Run {
            all: self,
            key,
            stored: &stored,
            spec,
            about: Regarding::of(&stored, &self.resource),
            status: cron.status.clone().unwrap_or_default(),
        };
        let result = run.carry_out(&cron).await;
        let path = self.resource.path(&key.namespace, &key.name);
        let written =
            self.requests.write_status(&path, stored.revision(), cron.status.as_ref(), &run.status).await?;
        self.crons_written.wrote(key, written);
        result
    }
}

impl CronJobs {
    fn schedules(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectKey, KnownSchedule, RandomState>> {
        self.schedules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A schedule that has just been changed counts from its next time on, as upstream's controller looks at it then only:
    /// the times of the past are not made up for.
    fn new_schedule(&self, key: &ObjectKey, cron: &CronJob, spec: &CronJobSpec) -> Option<Action> {
        let now = (spec.schedule.clone(), spec.time_zone.clone());
        let before = self.schedules().insert(key.clone(), now.clone());
        if before.is_none_or(|before| before == now) {
            return None;
        }
        let schedule = decide::schedule(cron).ok()?;
        decide::wait(cron, self.clock.now(), &schedule).map(Action::After)
    }
}

/// One look at a CronJob; the status grows as things are done, so that what was done before a failure is kept.
struct Run<'a> {
    all: &'a CronJobs,
    key: &'a ObjectKey,
    stored: &'a Stored,
    spec: &'a CronJobSpec,
    about: Regarding,
    status: CronJobStatus,
}

impl Run<'_> {
    fn tell(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.all.recorder.record(&self.about, kind, reason, message);
    }

    async fn carry_out(&mut self, cron: &CronJob) -> Result<Action, ReconcileError> {
        let jobs = self.all.jobs.by_index(Index::CONTROLLER, &self.stored.header().uid);
        for job in surplus(cron, &jobs) {
            // One that can't be deleted is tried again with the next change.
            let _told = self.delete(job).await;
        }
        self.follow(&jobs).await?;
        if self.stored.header().deletion.is_some() {
            return Ok(Action::Done);
        }
        let zone = self.spec.time_zone.as_deref().unwrap_or_default();
        let zone = match kcore::cron::zone(zone) {
            Ok(zone) => zone,
            Err(why) => {
                let message = format!("invalid timeZone: {zone:?}: {why}");
                self.tell(EventType::Warning, "UnknownTimeZone", message);
                return Ok(Action::Done);
            }
        };
        if self.spec.suspend == Some(true) {
            return Ok(Action::Done);
        }
        if self.spec.schedule.contains("TZ") {
            let message = format!(
                "CRON_TZ or TZ used in schedule {:?} is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details",
                self.spec.schedule
            );
            self.tell(EventType::Warning, "UnsupportedSchedule", message);
        }
        match decide::schedule(cron) {
            Ok(schedule) => self.keep(cron, &schedule, zone).await,
            Err(why) => {
                let message = format!("unparseable schedule: {:?} : {why}", self.spec.schedule);
                self.tell(EventType::Warning, "UnparseableSchedule", message);
                Ok(Action::Done)
            }
        }
    }

    /// Brings the list of running jobs up to date.
    async fn follow(&mut self, jobs: &[Arc<Job>]) -> Result<(), ReconcileError> {
        let known = |status: &CronJobStatus, uid: Option<&str>| {
            active(status).iter().any(|known| known.uid.as_deref() == uid)
        };
        for job in jobs {
            let (name, uid) = (job.metadata.name.as_deref(), job.metadata.uid.as_deref());
            let (name, uid) = (name.unwrap_or_default(), uid.unwrap_or_default());
            let listed = known(&self.status, Some(uid));
            let Some(how) = ended(job) else {
                if !listed {
                    let message = format!("Saw a job that the controller did not create or forgot: {name}");
                    self.tell(EventType::Warning, "UnexpectedJob", message);
                }
                continue;
            };
            if listed {
                remove_active(&mut self.status, uid);
                let message = format!("Saw completed job: {name}, condition: {how}");
                self.tell(EventType::Normal, "SawCompletedJob", message);
            }
            if how == "Complete" {
                note_success(&mut self.status, job);
            }
        }
        let gone =
            active(&self.status).iter().filter(|known| !jobs.iter().any(|job| job.metadata.uid == known.uid));
        for missing in gone.cloned().collect::<Vec<_>>() {
            let (name, uid) = (missing.name.unwrap_or_default(), missing.uid.unwrap_or_default());
            let path = self.all.job_resource.path(&self.key.namespace, &name);
            match self.all.requests.get::<Written>(&path).await {
                // The informer is behind.
                Ok(job) if job.metadata.uid == uid => {}
                Err(error) if !request::is_not_found(&error) => return Err(error.into()),
                _ => {
                    remove_active(&mut self.status, &uid);
                    self.tell(EventType::Normal, "MissingJob", format!("Active job went missing: {name}"));
                }
            }
        }
        Ok(())
    }

    /// Starts what is due.
    async fn keep(
        &mut self,
        cron: &CronJob,
        schedule: &Schedule,
        zone: TimeZone,
    ) -> Result<Action, ReconcileError> {
        let (at, too_many_missed, next) = match due(cron, self.all.clock.now(), schedule) {
            Due::Nothing(next) => return Ok(Action::After(next)),
            Due::Never => {
                let why = "time difference between two schedules is less than 1 second";
                let message = format!("invalid schedule: {} : {why}", self.spec.schedule);
                self.tell(EventType::Warning, "InvalidSchedule", message);
                return Ok(Action::Done);
            }
            Due::TooLate(at, next) => {
                let at = at.strftime("%a, %d %b %Y %H:%M:%S +0000");
                let message = format!("Missed scheduled time to start a job: {at}");
                self.tell(EventType::Warning, "MissSchedule", message);
                return Ok(Action::After(next));
            }
            Due::Run { at, too_many_missed, next } => (at, too_many_missed, next),
        };
        let after = Ok(Action::After(next));
        if too_many_missed {
            let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.tell(EventType::Warning, "TooManyMissedTimes", message);
        }
        let name = job_name(&self.key.name, at);
        let served = self.status.last_schedule_time.as_ref().is_some_and(|time| time.0 == at);
        if served || active(&self.status).iter().any(|known| known.name.as_ref() == Some(&name)) {
            return after;
        }
        match self.spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active(&self.status).is_empty() => {
                let message =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.tell(EventType::Normal, "JobAlreadyActive", message);
                return after;
            }
            Some("Replace") => self.replace().await?,
            _ => {}
        }
        self.start(&name, at, zone).await?;
        after
    }

    /// Deletes what still runs.
    async fn replace(&mut self) -> Result<(), ReconcileError> {
        for running in active(&self.status).to_vec() {
            let name = running.name.unwrap_or_default();
            let path = self.all.job_resource.path(&self.key.namespace, &name);
            let job = self.all.requests.get::<Job>(&path).await.inspect_err(|error| {
                self.tell(EventType::Warning, "FailedGet", format!("Get job: {}", error_message(error)));
            })?;
            self.delete(&job).await?;
        }
        Ok(())
    }

    async fn delete(&mut self, job: &Job) -> Result<(), ReconcileError> {
        let (name, uid) = (job.metadata.name.clone().unwrap_or_default(), job.metadata.uid.clone());
        let path = self.all.job_resource.path(&self.key.namespace, &name);
        let how = DeleteHow { uid: uid.clone(), propagation: Some("Background"), ..DeleteHow::default() };
        if let Err(error) = self.all.requests.delete(&path, &how).await {
            let message = format!("Deleted job: {}", error_message(&error));
            self.tell(EventType::Warning, "FailedDelete", message);
            return Err(error.into());
        }
        let uid = uid.unwrap_or_default();
        self.all.jobs_written.deleted(self.key, ObjectKey::new(&*self.key.namespace, &*name), &uid);
        remove_active(&mut self.status, &uid);
        self.tell(EventType::Normal, "SuccessfulDelete", format!("Deleted job {name}"));
        Ok(())
    }

    /// Makes the job of this time. One that is there already was made before a failure, or by somebody else, who has to
    /// say so in the status, too.
    async fn start(&mut self, name: &str, at: Timestamp, zone: TimeZone) -> Result<(), ReconcileError> {
        let body = job_body(self.stored, &self.all.resource, name, &at.to_zoned(zone))?;
        let collection = self.all.job_resource.path(&self.key.namespace, "");
        let job = match self.all.requests.create::<Written>(&collection, body).await {
            Ok(job) => {
                self.all.jobs_written.wrote(self.key, job.revision());
                self.tell(EventType::Normal, "SuccessfulCreate", format!("Created job {name}"));
                job
            }
            Err(error) if request::is_already_exists(&error) => {
                let path = self.all.job_resource.path(&self.key.namespace, name);
                let known: Job = self.all.requests.get(&path).await?;
                let mut owners = known.metadata.owner_references.iter().flatten();
                let ours = owners
                    .any(|owner| owner.controller == Some(true) && *owner.uid == *self.stored.header().uid);
                let listed = active(&self.status).iter().any(|job| job.uid == known.metadata.uid);
                if !ours || listed {
                    return Ok(());
                }
                self.all.requests.get(&path).await?
            }
            Err(error) => {
                if !request::is_namespace_terminating(&error) {
                    let message = format!("Error creating job: {}", error_message(&error));
                    self.tell(EventType::Warning, "FailedCreate", message);
                }
                return Err(error.into());
            }
        };
        self.status.active.get_or_insert_default().push(ObjectReference {
            api_version: Some(self.all.job_resource.api_version()),
            kind: Some("Job".to_owned()),
            namespace: Some(self.key.namespace.to_string()),
            name: Some(name.to_owned()),
            uid: Some(job.metadata.uid),
            resource_version: Some(job.metadata.resource_version),
            field_path: None,
        });
        self.status.last_schedule_time = Some(Time(at));
        Ok(())
    }
}

/// The body of the request that makes the job of one time (upstream's `getJobFromTemplate2`).
fn job_body(
    cron: &Stored,
    resource: &ResourceType,
    name: &str,
    at: &jiff::Zoned,
) -> Result<Vec<u8>, serde_json::Error> {
    let value = cron.value()?;
    let template = &value["spec"]["jobTemplate"];
    let mut metadata = json!({
        "name": name,
        "namespace": &*cron.header().namespace,
        "ownerReferences": [controller_reference(resource, cron.header())],
    });
    for key in ["labels", "annotations"] {
        if let Value::Object(known) = &template["metadata"][key] {
            metadata[key] = Value::Object(known.clone());
        }
    }
    let offset = if at.offset().is_zero() { "Z".to_owned() } else { at.strftime("%:z").to_string() };
    metadata["annotations"][SCHEDULED_AT] = format!("{}{offset}", at.strftime("%Y-%m-%dT%H:%M:%S")).into();
    let job =
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"]});
    serde_json::to_vec(&job)
}
