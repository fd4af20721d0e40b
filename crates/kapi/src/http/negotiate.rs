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
    /// The objects themselves, as protobuf.
    Protobuf,
    /// Metadata alone, as protobuf.
    MetadataProtobuf,
    /// The objects themselves, as YAML.
    Yaml,
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

/// The media type of Kubernetes' protobuf.
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Picks the first form that the server can give. `built_in`: the kind has protobuf messages. `watch`: the answer is a stream,
/// which YAML has no form for.
///
/// # Errors
/// 406 when the caller takes none of them.
pub(crate) fn form(headers: &HeaderMap, built_in: bool, watch: bool) -> ApiResult<Form> {
    let ranges = ranges(headers);
    if ranges.is_empty() {
        return Ok(Form::Object);
    }
    for range in &ranges {
        let in_meta =
            range.parameter("g") == "meta.k8s.io" && ["v1", "v1beta1"].contains(&range.parameter("v"));
        let metadata = in_meta && range.parameter("as").starts_with("PartialObjectMetadata");
        match (range.essence, range.parameter("as")) {
            ("application/json" | "application/*" | "*/*", "") => return Ok(Form::Object),
            ("application/json", "Table") if in_meta => return Ok(Form::Table),
            ("application/json", _) if metadata => return Ok(Form::Metadata),
            (PROTOBUF, "") if built_in => return Ok(Form::Protobuf),
            (PROTOBUF, _) if metadata => return Ok(Form::MetadataProtobuf),
            ("application/yaml", "") if !watch => return Ok(Form::Yaml),
            _ => {}
        }
    }
    let accepted = match (watch, built_in) {
        (true, true) => "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch",
        (true, false) => "application/json;stream=watch",
        (false, true) => "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        (false, false) => "application/json, application/yaml",
    };
    let message = format!("only the following media types are accepted: {accepted}");
    Err(Status::failure(406, "NotAcceptable", message).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_can_be_given_is_taken() {
        for (accept, expected) in [
            ("", Some(Form::Object)),
            ("*/*", Some(Form::Object)),
            ("application/vnd.kubernetes.protobuf,application/json", Some(Form::Protobuf)),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json",
                Some(Form::MetadataProtobuf),
            ),
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", None),
            ("application/yaml", Some(Form::Yaml)),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Some(Form::Table)),
            ("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", Some(Form::Object)),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Some(Form::Metadata)),
            ("application/cbor", None),
        ] {
            let mut headers = HeaderMap::new();
            if !accept.is_empty() {
                headers.insert(header::ACCEPT, accept.parse().unwrap());
            }
            assert_eq!(form(&headers, true, false).ok(), expected, "{accept}");
        }
    }

    #[test]
    fn kinds_without_messages_and_streams_have_fewer_forms() {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::ACCEPT,
            "application/vnd.kubernetes.protobuf, application/json;q=0.5".parse().unwrap(),
        );
        assert_eq!(form(&headers, false, false).unwrap(), Form::Object);
        headers.insert(header::ACCEPT, "application/yaml".parse().unwrap());
        assert_eq!(form(&headers, true, true).unwrap_err().0.code, 406);
    }
}
