//! OpenAPI documents.

use std::sync::Arc;

use http::{HeaderMap, Response};
use kcore::Status;

use crate::{body::Body, error::ApiResult, server::Inner};

/// Answers `/openapi/v2` and `/openapi/v3`.
pub(super) fn serve(_server: &Arc<Inner>, _rest: &[&str], _headers: &HeaderMap) -> ApiResult<Response<Body>> {
    Err(Status::no_such_path().into())
}
