//! Who asked for what, and what came of it.

use std::fmt::Debug;

use crate::{authn::UserInfo, request::RequestInfo};

/// One request that was answered.
#[derive(Clone, Copy, Debug)]
pub struct AuditEvent<'a> {
    /// Who asked; `None` if that could not be found out.
    pub user: Option<&'a UserInfo>,
    /// What was asked for.
    pub request: &'a RequestInfo,
    /// The HTTP status of the answer.
    pub code: u16,
}

/// Is told of every request once its answer is decided; for a watch, when it begins.
///
/// Called on the request path: it must not block and should hand on what it keeps.
pub trait AuditSink: Debug + Send + Sync + 'static {
    /// Takes note of a request.
    fn record(&self, event: &AuditEvent<'_>);
}
