//! Compressed answers, for callers that take them (KEP-156, "API server response compression").

use std::io::Write as _;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures::StreamExt as _;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body_util::BodyExt as _;

use crate::{body::Body, request::RequestInfo};

/// Smaller answers are sent as they are: compressing costs more than it saves (upstream's `defaultGzipThresholdBytes`).
pub(crate) const COMPRESSED_BYTES_MIN: u64 = 128 * 1024;

/// Compresses an answer to `get` or `list` if the caller takes gzip and it is large. Fastest level, as upstream chose after
/// measuring.
pub(crate) fn compress(info: &RequestInfo, headers: &HeaderMap, response: Response<Body>) -> Response<Body> {
    let reads = matches!(info.verb.as_str(), "get" | "list") && info.subresource.is_empty();
    let size = http_body::Body::size_hint(response.body());
    // A list in chunks has no size that is known, and is large.
    let large = size.exact().is_none_or(|exact| exact >= COMPRESSED_BYTES_MIN);
    let encoded = response.headers().contains_key(header::CONTENT_ENCODING);
    if !reads || !large || encoded || !response.status().is_success() || !takes_gzip(headers) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    parts.headers.remove(header::CONTENT_LENGTH);
    let encoder = GzEncoder::new(Vec::new(), Compression::new(1));
    let chunks = body.into_data_stream();
    let compressed = futures::stream::unfold(Some((chunks, encoder)), |state| async move {
        let (mut chunks, mut encoder) = state?;
        // Writing into a `Vec` cannot fail, and neither can the body.
        while let Some(Ok(chunk)) = chunks.next().await {
            let _ = encoder.write_all(&chunk);
            if !encoder.get_ref().is_empty() {
                let out = std::mem::take(encoder.get_mut());
                return Some((Bytes::from(out), Some((chunks, encoder))));
            }
        }
        Some((Bytes::from(encoder.finish().unwrap_or_default()), None))
    });
    Response::from_parts(parts, Body::stream(compressed))
}

/// Whether `Accept-Encoding` names gzip and does not refuse it with `q=0`.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        parts.next() == Some("gzip") && !parts.any(|part| part == "q=0" || part == "q=0.0")
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    async fn answer(accept: &'static str, verb: &str, bytes: usize) -> (bool, usize) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(accept));
        let info = RequestInfo { verb: verb.to_owned(), ..RequestInfo::default() };
        let response = compress(&info, &headers, Response::new(Body::from(vec![b'x'; bytes])));
        let gzipped = response.headers().contains_key(header::CONTENT_ENCODING);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let mut plain = Vec::new();
        if gzipped {
            flate2::read::GzDecoder::new(&*body).read_to_end(&mut plain).unwrap();
            assert!(body.len() < bytes);
        } else {
            plain = body.to_vec();
        }
        (gzipped, plain.len())
    }

    #[tokio::test]
    async fn large_answers_are_compressed_for_those_who_take_it() {
        let large = 200 * 1024;
        for (accept, verb, bytes, gzipped) in [
            ("gzip", "list", large, true),
            ("deflate, gzip;q=0.5", "get", large, true),
            ("gzip;q=0", "list", large, false),
            ("identity", "list", large, false),
            ("gzip", "watch", large, false),
            ("gzip", "list", 1024, false),
        ] {
            assert_eq!(answer(accept, verb, bytes).await, (gzipped, bytes), "{accept} {verb} {bytes}");
        }
    }
}
