//! Which form of an answer the caller asks for.

use http::{HeaderMap, header};
use kcore::Status;

use crate::error::ApiResult;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The objects themselves, as JSON.
    Object,
    /// `meta.k8s.io/v1` `Table`, as `kubectl get` shows it.
    Table,
    /// Metadata alone (`PartialObjectMetadata`).
    Metadata,
}

/// One entry of an `Accept` header.
pub(crate) struct MediaRange<'a> {
    pub(crate) essence: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl MediaRange<'_> {
    pub(crate) fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }
}

/// The entries of the `Accept` headers in their order; clients list what they prefer first.
pub(crate) fn ranges(headers: &HeaderMap) -> Vec<MediaRange<'_>> {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let entries = values.flat_map(|value| value.split(','));
    entries
        .map(|entry| {
            let mut parts = entry.split(';').map(str::trim);
            let essence = parts.next().unwrap_or_default();
            MediaRange { essence, parameters: parts.filter_map(|part| part.split_once('=')).collect() }
        })
        .filter(|range| !range.essence.is_empty())
        .collect()
}

/// Picks the first form that the server can give.
///
/// # Errors
/// 406 when the caller takes none of them.
pub(crate) fn form(headers: &HeaderMap) -> ApiResult<Form> {
    let ranges = ranges(headers);
    if ranges.is_empty() {
        return Ok(Form::Object);
    }
    for range in &ranges {
        if !matches!(range.essence, "application/json" | "application/*" | "*/*") {
            continue;
        }
        let in_meta =
            range.parameter("g") == "meta.k8s.io" && ["v1", "v1beta1"].contains(&range.parameter("v"));
        match range.parameter("as") {
            "" => return Ok(Form::Object),
            "Table" if in_meta => return Ok(Form::Table),
            "PartialObjectMetadata" | "PartialObjectMetadataList" if in_meta => return Ok(Form::Metadata),
            _ => {}
        }
    }
    Err(Status::failure(
        406,
        "NotAcceptable",
        "only the following media types are accepted: application/json",
    )
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_can_be_given_is_taken() {
        for (accept, expected) in [
            ("", Some(Form::Object)),
            ("*/*", Some(Form::Object)),
            ("application/vnd.kubernetes.protobuf,application/json", Some(Form::Object)),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Some(Form::Table)),
            ("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", Some(Form::Object)),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Some(Form::Metadata)),
            ("application/vnd.kubernetes.protobuf", None),
        ] {
            let mut headers = HeaderMap::new();
            if !accept.is_empty() {
                headers.insert(header::ACCEPT, accept.parse().unwrap());
            }
            assert_eq!(form(&headers).ok(), expected, "{accept}");
        }
    }
}
