//! A write before the chain of admission.

use serde_json::{Value, json};

use super::Call;
use crate::{
    admission::{Admission, AdmissionRequest, Bill, Operation, Phase, Rounds},
    error::ApiResult,
};

impl Call<'_> {
    fn admission_request<'b>(
        &'b self,
        operation: Operation,
        name: &'b str,
        old: Option<&'b Value>,
        rounds: Option<&'b Rounds>,
        bill: Option<&'b Bill>,
    ) -> AdmissionRequest<'b> {
        AdmissionRequest {
            operation,
            resource: self.resource,
            subresource: self.subresource,
            namespace: self.namespace,
            name,
            user: self.user,
            old,
            dry_run: self.dry_run,
            given: self.given,
            objects: self.objects,
            notes: self.warnings.map(|warnings| &warnings.notes),
            rounds,
            bill,
        }
    }

    /// The steps that may have something to say.
    fn steps<'b>(
        &'b self,
        request: &'b AdmissionRequest<'_>,
        phase: Phase,
    ) -> impl Iterator<Item = &'b dyn Admission> + Send {
        self.admission.iter().map(|step| &**step).filter(move |step| step.concerns(request, phase))
    }

    /// The changing half of the chain.
    pub(crate) async fn admit(
        &self,
        operation: Operation,
        name: &str,
        object: &mut Value,
        old: Option<&Value>,
    ) -> ApiResult<()> {
        let rounds = Rounds::default();
        let request = self.admission_request(operation, name, old, Some(&rounds), None);
        // Only others may leave what can't be kept.
        let owners = self.foreign_admission.then(|| object["metadata"]["managedFields"].clone());
        loop {
            for step in self.steps(&request, Phase::Admit) {
                step.admit(&request, object).await?;
            }
            if !rounds.begin_another() {
                break;
            }
        }
        if let Some(owners) = owners
            && let Err(why) = kschema::apply::validate_managed_fields(object)
        {
            request.warn(format!(".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating admission controller; please fix your requests: {why}"));
            kschema::fields::keep(
                &mut object["metadata"],
                &json!({"managedFields": owners}),
                "managedFields",
            );
        }
        Ok(())
    }

    /// Shows a connection that is asked for to the steps that want to see it: first to the changing half of the chain, then to
    /// the validating one.
    pub(crate) async fn connect(&self, options: &mut Value) -> ApiResult<()> {
        let rounds = Rounds::default();
        let request = self.admission_request(Operation::Connect, self.name, None, Some(&rounds), None);
        loop {
            for step in self.steps(&request, Phase::Admit) {
                step.admit(&request, options).await?;
            }
            if !rounds.begin_another() {
                break;
            }
        }
        let request = self.admission_request(Operation::Connect, self.name, None, None, None);
        for step in self.steps(&request, Phase::Validate) {
            step.validate(&request, options).await?;
        }
        Ok(())
    }

    /// The validating half of the chain; for deletions the only half.
    pub(crate) async fn validate(
        &self,
        operation: Operation,
        name: &str,
        object: &Value,
        old: Option<&Value>,
        bill: Option<&Bill>,
    ) -> ApiResult<()> {
        let request = self.admission_request(operation, name, old, None, bill);
        for step in self.steps(&request, Phase::Validate) {
            step.validate(&request, object).await?;
        }
        Ok(())
    }
}
