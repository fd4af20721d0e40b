//! Where a webhook is called: by URL, or by service (`k8s.io/apiserver/pkg/util/webhook`).

use kschema::{error::FieldError, quote::Quoted};
use serde_json::Value;

use crate::check::{Look, Path, Report, form, texts};

type Errors = Vec<FieldError>;

/// The versions of reviews that a server speaks.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

/// Checks the client configuration at `path`.
pub(crate) fn validate(config: &Value, path: &Path<'_>, errors: &mut Errors) {
    match (config.some_text("url"), config.get_some("service")) {
        (Some(text), None) => url(text, &path.field("url"), errors),
        (None, Some(found)) => service(found, &path.field("service"), errors),
        _ => errors.required(path, "exactly one of url or service is required"),
    }
}

/// The parts of a URL that are looked at.
#[derive(Default)]
struct Url<'a> {
    scheme: &'a str,
    user: Option<&'a str>,
    host: &'a str,
    query: &'a str,
    fragment: &'a str,
}

impl<'a> Url<'a> {
    fn parse(text: &'a str) -> Self {
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let is_scheme = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphabetic())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        };
        let (scheme, rest) =
            rest.split_once(':').filter(|(scheme, _)| is_scheme(scheme)).unwrap_or(("", rest));
        let authority = rest.strip_prefix("//").map_or("", |rest| rest.split('/').next().unwrap_or_default());
        let (user, host) =
            authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        Self { scheme, user, host, query, fragment }
    }
}

/// Whether a text is a URL with a scheme and a host.
pub(crate) fn is_absolute(text: &str) -> bool {
    let url = Url::parse(text);
    !url.scheme.is_empty() && !url.host.is_empty()
}

fn url(text: &str, path: &Path<'_>, errors: &mut Errors) {
    const FORM: &str = "; desired format: https://host[/path]";
    if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
        let why = format!(
            "url must be a valid URL: parse {text}: net/url: invalid control character in URL{FORM}",
            text = Quoted(text)
        );
        errors.required(path, &why);
        return;
    }
    let url = Url::parse(text);
    if !url.scheme.eq_ignore_ascii_case("https") {
        let why = format!("'https' is the only allowed URL scheme{FORM}");
        errors.invalid(path, url.scheme, why);
    }
    if url.host.is_empty() {
        errors.invalid(path, url.host, format_args!("host must be specified{FORM}"));
    }
    if let Some(user) = url.user {
        errors.invalid(path, user, "user information is not permitted in the URL");
    }
    if !url.fragment.is_empty() {
        errors.invalid(path, url.fragment, "fragments are not permitted in the URL");
    }
    if !url.query.is_empty() {
        errors.invalid(path, url.query, "query parameters are not permitted in the URL");
    }
}

fn service(service: &Value, path: &Path<'_>, errors: &mut Errors) {
    // Upstream mixes the two up: what is missing is reported under the other's name.
    if service.text("namespace").is_empty() {
        errors.required(&path.field("name"), "");
    }
    if service.text("name").is_empty() {
        errors.required(&path.field("namespace"), "");
    }
    let port = service.int("port");
    if !(1..=65_535).contains(&port) {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        errors.invalid(&path.field("port"), port, why);
    }
    let (whole, field) = (service.text("path"), path.field("path"));
    if whole.is_empty() || whole == "/" {
        return;
    }
    if whole == "//" {
        errors.invalid(&field, whole, "segment[0] may not be empty");
        return;
    }
    if !whole.starts_with('/') {
        errors.invalid(&field, whole, "must start with a '/'");
    }
    let rest = whole.get(1..).unwrap_or_default();
    for (index, step) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if step.is_empty() {
            errors.invalid(&field, whole, format_args!("segment[{index}] may not be empty"));
            continue;
        }
        for fault in form::dns_subdomain(step) {
            errors.invalid(&field, whole, format_args!("segment[{index}]: {fault}"));
        }
    }
}

/// Whether the list names a version that a server speaks.
pub(crate) fn speaks(versions: &[Value]) -> bool {
    texts(versions).any(|version| REVIEWS.contains(&version))
}

/// Checks the versions of reviews that a webhook takes. `needed`: what a missing list's message says. `strict`: one of them
/// must be spoken by this server.
pub(crate) fn reviews(
    object: &Value,
    key: &str,
    needed: &str,
    strict: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let list = path.field(key);
    let versions: Vec<&str> = texts(object.list(key)).collect();
    if versions.is_empty() {
        errors.required(&list, needed);
        return;
    }
    for (index, version) in versions.iter().enumerate() {
        if versions[..index].contains(version) {
            errors.invalid(&list.index(index), *version, "duplicate version");
        } else {
            errors.faults(&list.index(index), version, form::dns_1035_label(version));
        }
    }
    if strict && !speaks(object.list(key)) {
        errors.invalid(&list, object.get_some(key), "must include at least one of v1, v1beta1");
    }
}
