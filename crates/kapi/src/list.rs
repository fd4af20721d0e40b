//! Lists: which revision they show, and how they are cut into pages.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use kcore::{Status, Stored, status::StatusMeta};
use kstore::{Entry, ReadError, Revision, Snapshot};
use serde::{Deserialize, Serialize};

use crate::{
    error::{ApiError, ApiResult},
    objects::{Objects, Scope, readable, stored},
    registry::Resource,
    request::{ListOptions, RevisionMatch},
};

/// A page of a list: a revision and the objects that it selects, read from the snapshot as they are asked for.
pub(crate) struct Page {
    /// The revision that the list shows.
    pub(crate) revision: u64,
    /// The token for the next page; known when the page has been read.
    pub(crate) continue_: String,
    /// How many objects follow this page, if that can be told.
    pub(crate) remaining: Option<usize>,
    /// The objects.
    pub(crate) items: Vec<Arc<Stored>>,
    /// How many objects have been looked at.
    pub(crate) evaluated: usize,
}

/// Where a list goes on: the revision it shows and the last key that was given out.
#[derive(Debug, Deserialize, Serialize)]
struct Token {
    v: String,
    rv: u64,
    start: String,
}

impl Token {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn decode(text: &str) -> ApiResult<Self> {
        let wrong = |why: &str| {
            Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
        };
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|error| {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                _ => text.len(),
            };
            wrong(&format!("illegal base64 data at input byte {at}"))
        })?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|error| wrong(&unread(&bytes, &error)))?;
        if token.v != "meta.k8s.io/v1" {
            return Err(wrong(&format!("server does not recognize this encoded version {}", token.v)).into());
        }
        if token.rv == 0 {
            let why = "incorrect encoded start resourceVersion (version meta.k8s.io/v1)";
            return Err(wrong(why).into());
        }
        if token.start.is_empty() {
            return Err(wrong("encoded start key empty (version meta.k8s.io/v1)").into());
        }
        Ok(token)
    }
}

/// Why bytes are no token, in Go's words where it is their first one.
fn unread(bytes: &[u8], error: &serde_json::Error) -> String {
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => "unexpected end of JSON input".to_owned(),
        Some(byte) if !byte.is_ascii_alphanumeric() && !b"{[\"-".contains(byte) => {
            let shown = if byte.is_ascii_graphic() {
                char::from(*byte).to_string()
            } else {
                format!("\\x{byte:02x}")
            };
            format!("invalid character '{shown}' looking for beginning of value")
        }
        Some(_) => error.to_string(),
    }
}

/// Lists the objects of a resource.
///
/// The rules for the revision are those of the API concepts, "Resource versions": none is the most recent, 0 any, with
/// `NotOlderThan` (or nothing) at least that one, with `Exact` (or nothing and a limit) just that one. All but the last are the
/// most recent here, because the store is its own cache. With 0 a limit has no effect, as upstream's cache gives no pages.
pub(crate) async fn list(
    objects: &Objects,
    resource: &Resource,
    namespace: &str,
    options: &ListOptions,
) -> ApiResult<Page> {
    let scope = Scope::new(resource, namespace, &options.fields);
    let (snapshot, start) = view(objects, resource, options).await?;
    let limit = if options.revision == Some(0) && options.continue_.is_none() && is_cached(resource) {
        0
    } else {
        options.limit
    };
    let selects_all = options.labels.is_empty() && options.fields.is_empty();
    let mut items = Vec::new();
    let (mut more, mut evaluated) = (false, 0);
    for entry in scope.entries(&snapshot, resource, start.as_deref()) {
        evaluated += 1;
        if let Some(seal) = &resource.def.seal {
            seal.settle(&entry).await;
        }
        let object = stored(&resource.def, &entry);
        let header = object.header();
        if !scope.admits(header) || !options.labels.matches(&header.labels) || !options.fields.matches(header)
        {
            continue;
        }
        if limit > 0 && items.len() == limit {
            more = true;
            break;
        }
        readable(&object)?;
        items.push(object);
    }
    let last = items.last().filter(|_| more).map(|object| {
        let header = object.header();
        String::from_utf8_lossy(&resource.key(&header.namespace, &header.name)).into_owned()
    });
    let remaining =
        last.as_ref().filter(|_| selects_all).map(|last| count_after(&scope, &snapshot, resource, last));
    let revision = snapshot.revision().get();
    let continue_ = last.map(|start| Token { v: "meta.k8s.io/v1".to_owned(), rv: revision, start }.encode());
    Ok(Page { revision, continue_: continue_.unwrap_or_default(), remaining, items, evaluated })
}

/// Whether upstream has a watch cache for a resource: for all but events.
fn is_cached(resource: &Resource) -> bool {
    let def = &resource.def;
    def.plural != "events" || !matches!(def.group.as_str(), "" | "events.k8s.io")
}

fn count_after(scope: &Scope, snapshot: &Snapshot, resource: &Resource, last: &str) -> usize {
    let range = match scope {
        Scope::Namespace(namespace) => kstore::Range::prefix(Bytes::from(format!("{namespace}/"))),
        _ => kstore::Range::all(),
    };
    snapshot.count(resource.table, range.after(last))
}

/// The snapshot that a list shows and the key after which it begins.
async fn view(
    objects: &Objects,
    resource: &Resource,
    options: &ListOptions,
) -> ApiResult<(Snapshot, Option<Vec<u8>>)> {
    let store = objects.store();
    if let Some(text) = &options.continue_ {
        let token = Token::decode(text)?;
        if options.revision.is_some_and(|revision| revision != 0) {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            )
            .into());
        }
        let snapshot = at(&store.snapshot(), resource, token.rv).map_err(|error| match error {
            ReadError::Compacted { .. } => expired_token(&token, store.snapshot().revision()),
            other => read_error(&other),
        })?;
        return Ok((snapshot, Some(token.start.into_bytes())));
    }
    let wanted = options.revision.unwrap_or(0);
    let is_exact = match options.revision_match {
        Some(how) => how == RevisionMatch::Exact,
        None => options.limit > 0 && wanted > 0,
    };
    if is_exact {
        let snapshot = at(&store.snapshot(), resource, wanted).map_err(|error| read_error(&error))?;
        return Ok((snapshot, None));
    }
    if options.revision.is_none() {
        store.barrier().await.map_err(Status::internal)?;
    }
    let snapshot = as_new_as(&**store, wanted).await?;
    if wanted > snapshot.revision().get() {
        return Err(too_large_revision(wanted, snapshot.revision().get()));
    }
    Ok((snapshot, None))
}

/// What is published, and what was answered elsewhere too if that is what `wanted` is of.
pub(crate) async fn as_new_as(store: &dyn kstore::Store, wanted: u64) -> ApiResult<Snapshot> {
    let snapshot = store.snapshot();
    if wanted <= snapshot.revision().get() {
        return Ok(snapshot);
    }
    store.barrier().await.map_err(Status::internal)?;
    Ok(store.snapshot())
}

fn at(snapshot: &Snapshot, resource: &Resource, revision: u64) -> Result<Snapshot, ReadError> {
    if snapshot.revision().get() == revision {
        return Ok(snapshot.clone());
    }
    snapshot.at_table(resource.table, Revision::from(revision))
}

/// 410 with a token that goes on at the present revision (API concepts, "Retrieving large results sets in chunks").
fn expired_token(token: &Token, now: Revision) -> ApiError {
    let next = Token { v: token.v.clone(), rv: now.get(), start: token.start.clone() };
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    status.metadata = StatusMeta { continue_: next.encode() };
    status.into()
}

/// A read of a revision that is gone or not there yet.
pub(crate) fn read_error(error: &ReadError) -> ApiError {
    match error {
        ReadError::Compacted { asked, floor } => Status::expired(format!(
            "The resourceVersion for the provided list is too old: {asked} ({floor})"
        ))
        .into(),
        ReadError::Future { asked, published } => too_large_revision(asked.get(), published.get()),
        other => Status::internal(other).into(),
    }
}

/// 504: the revision has not been reached (`storage.NewTooLargeResourceVersionError`).
pub(crate) fn too_large_revision(wanted: u64, current: u64) -> ApiError {
    let mut status = Status::failure(
        504,
        "Timeout",
        format!("Timeout: Too large resource version: {wanted}, current: {current}"),
    );
    status.details = Some(kcore::status::StatusDetails {
        causes: vec![kcore::status::StatusCause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        }],
        retry_after_seconds: 1,
        ..kcore::status::StatusDetails::default()
    });
    status.into()
}

/// The entries of one page as they were stored; for deleting a collection.
pub(crate) fn entries(
    objects: &Objects,
    resource: &Resource,
    namespace: &str,
    options: &ListOptions,
) -> Vec<Arc<Entry>> {
    let scope = Scope::new(resource, namespace, &options.fields);
    let snapshot = objects.snapshot();
    let all = scope.entries(&snapshot, resource, None);
    all.filter(|entry| {
        let object = stored(&resource.def, entry);
        let header = object.header();
        scope.admits(header) && options.labels.matches(&header.labels) && options.fields.matches(header)
    })
    .collect()
}
