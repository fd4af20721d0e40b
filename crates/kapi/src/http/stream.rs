//! Lists that are made while they are sent.

use bytes::Bytes;
use http::{Response, StatusCode};

use super::bytes_response;
use crate::body::Body;

/// Lists that are longer than this are sent in chunks of about this size.
const CHUNK_BYTES: usize = 128 * 1024;

/// A list in chunks: each is made from the shared items when the one before has been taken, so that a large list costs no
/// second copy of itself. `write` is told whether an item is the first.
pub(super) fn chunked<I: Send + 'static>(
    head: Vec<u8>,
    items: Vec<I>,
    tail: Vec<u8>,
    write: impl Fn(&I, bool, &mut Vec<u8>) + Send + 'static,
) -> Response<Body> {
    let mut items = items.into_iter();
    let mut is_first = true;
    let mut chunk = move |mut out: Vec<u8>| -> (Vec<u8>, bool) {
        for item in items.by_ref() {
            write(&item, std::mem::take(&mut is_first), &mut out);
            if out.len() >= CHUNK_BYTES {
                return (out, true);
            }
        }
        out.extend_from_slice(&tail);
        (out, false)
    };
    let (out, more) = chunk(head);
    if !more {
        return bytes_response(StatusCode::OK, out);
    }
    let rest = futures::stream::unfold(Some(chunk), |chunk| async move {
        let mut chunk = chunk?;
        let (out, more) = chunk(Vec::with_capacity(CHUNK_BYTES + 4096));
        Some((Bytes::from(out), more.then_some(chunk)))
    });
    let chunks = futures::StreamExt::chain(futures::stream::once(std::future::ready(Bytes::from(out))), rest);
    let (parts, _) = bytes_response(StatusCode::OK, Bytes::new()).into_parts();
    Response::from_parts(parts, Body::stream(chunks))
}
