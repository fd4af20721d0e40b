//! URLs (`library/urls.go`).

use std::sync::Arc;

use crate::{
    error::EvalError,
    eval::Eval,
    functions::{Body, Functions},
    native::{Kind, Native, url::Url},
    value::{Entries, Key, Map, Value},
};

pub(super) fn add(functions: &mut Functions) {
    functions.global("url", to_url, &[("string_to_url", "(string) kubernetes.URL")]);
    functions.global("isURL", is_url, &[("is_url_string", "(string) bool")]);
    let parts: &[(&'static str, &'static str, Body)] = &[
        ("getScheme", "url_get_scheme", |args| part(args, |url| url.scheme.clone())),
        ("getHost", "url_get_host", |args| part(args, |url| url.host.clone())),
        ("getHostname", "url_get_hostname", |args| part(args, |url| url.hostname().to_owned())),
        ("getPort", "url_get_port", |args| part(args, |url| url.port().to_owned())),
        ("getEscapedPath", "url_get_escaped_path", |args| part(args, Url::escaped_path)),
    ];
    for (name, id, body) in parts {
        functions.add(name, true, (*id).into(), "(kubernetes.URL) string", *body);
    }
    functions.member("getQuery", query, &[("url_get_query", "(kubernetes.URL) map<string, list<string>>")]);
}

fn to_url<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let [Value::String(text)] = args else {
        return Err(EvalError::no_such_overload());
    };
    let url = Url::parse(text)
        .map_err(|error| EvalError::new(format!("URL parse error during conversion from string: {error}")))?;
    Ok(Value::Native(Native(Kind::Url(Arc::new(url)))))
}

fn is_url<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::String(text)] => Ok(Value::Bool(Url::parse(text).is_ok())),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn part<'a>(args: &[Value<'a>], read: impl Fn(&Url) -> String) -> Eval<'a> {
    match args {
        [Value::Native(Native(Kind::Url(url)))] => Ok(Value::from(read(url))),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn query<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let [Value::Native(Native(Kind::Url(url)))] = args else {
        return Err(EvalError::no_such_overload());
    };
    let mut entries = Entries::default();
    for (name, values) in url.query() {
        let values: Vec<Value<'a>> = values.into_iter().map(Value::from).collect();
        entries.insert(Key::Text(name.clone()), Value::from(name), Value::from(values));
    }
    Ok(Value::Map(Map::Values(Arc::new(entries))))
}
