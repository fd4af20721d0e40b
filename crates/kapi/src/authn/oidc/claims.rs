//! From what a token claims to a user: by claims that are taken as they are, or by expressions.

use std::collections::BTreeMap;

use kcel::{Bindings, Decl, Env, Program, Value as CelValue, limits::PER_CALL_COST_MAX};
use serde_json::{Map, Value, json};

use crate::{
    authn::UserInfo,
    config::{ConfigError, Section},
};

const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// An expression over `claims` or `user`.
pub(super) struct Expression {
    pub(super) text: String,
    variable: &'static str,
    program: Program,
}

impl Expression {
    /// Compiles an expression that must come to one of these types; none: to any.
    pub(super) fn compile(
        section: &Section<'_>,
        field: &str,
        variable: &'static str,
        types: &[&str],
    ) -> Result<Self, ConfigError> {
        let text = section.text(field)?.to_owned();
        let wrong = |why: String| section.wrong(field, format!("Invalid value: {text:?}: {why}"));
        let decl = if variable == "user" { user_decl() } else { Decl::map(Decl::dynamic()) };
        let env = Env::builder().variable(variable, decl).build();
        let program = env.compile(&text).map_err(|why| wrong(format!("compilation failed: {why}")))?;
        let found = program.output_type().to_string();
        if !types.is_empty() && !types.contains(&found.as_str()) {
            let why = match types {
                [one] => format!("must evaluate to {one}"),
                several => format!("must evaluate to one of [{}]", several.join(" ")),
            };
            return Err(wrong(why));
        }
        Ok(Self { text, variable, program })
    }

    fn eval<'a>(&'a self, value: &'a Value) -> Result<CelValue<'a>, String> {
        let bindings = Bindings::new().json(self.variable, value);
        self.program.eval(&bindings, PER_CALL_COST_MAX).result.map_err(|why| why.to_string())
    }

    /// Whether it is true.
    pub(super) fn holds(&self, value: &Value) -> Result<bool, String> {
        self.eval(value)?.as_bool().ok_or_else(|| "validation expression must return a boolean".to_owned())
    }

    fn text(&self, value: &Value, what: &str) -> Result<String, String> {
        let fail = |why: String| format!("oidc: error evaluating {what} claim expression: {why}");
        let found = self.eval(value).map_err(fail)?;
        let text = found.as_str().map(str::to_owned);
        text.ok_or_else(|| fail(format!("{what} claim expression must return a string")))
    }

    /// A text or a list of texts; empty ones are left out.
    fn texts(&self, value: &Value) -> Result<Vec<String>, String> {
        let strange = || "expression must return a string or a list of strings".to_owned();
        let found = self.eval(value)?.to_json().map_err(|_| strange())?;
        let list = match found {
            Value::Null => Vec::new(),
            Value::String(text) => vec![text],
            Value::Array(items) => {
                let texts = items.into_iter().map(|item| item.as_str().map(str::to_owned));
                texts.collect::<Option<_>>().ok_or_else(strange)?
            }
            _ => return Err(strange()),
        };
        Ok(list.into_iter().filter(|text| !text.is_empty()).collect())
    }

    /// Whether it reads this claim.
    pub(super) fn reads(&self, claim: &str) -> bool {
        ["claims.", "claims.?"].iter().any(|start| {
            let wanted = format!("{start}{claim}");
            self.text.match_indices(&wanted).any(|(at, _)| {
                let next = self.text[at + wanted.len()..].chars().next();
                !next.is_some_and(|next| next.is_alphanumeric() || next == '_')
            })
        })
    }
}

fn user_decl() -> Decl {
    let texts = || Decl::list(Decl::string());
    Decl::object("kubernetes.UserInfo")
        .field("username", Decl::string(), false)
        .field("uid", Decl::string(), false)
        .field("groups", texts(), false)
        .field("extra", Decl::map(texts()), false)
        .named("kubernetes.UserInfo")
}

/// Where a part of a user comes from.
pub(super) enum Source {
    /// A claim, after a prefix.
    Claim {
        claim: String,
        prefix: String,
    },
    Expression(Box<Expression>),
}

/// How a user is made of claims.
pub(super) struct Mapping {
    pub(super) name: Source,
    pub(super) groups: Option<Source>,
    pub(super) uid: Option<Source>,
    pub(super) extra: Vec<(String, Expression)>,
}

impl Mapping {
    pub(super) fn user(&self, claims: &Value) -> Result<UserInfo, String> {
        let uid = match &self.uid {
            None => String::new(),
            Some(Source::Claim { claim, .. }) => {
                let uid = claims[claim].as_str().map(str::to_owned);
                uid.ok_or_else(|| format!("oidc: parse uid claim {claim:?}: claim not present"))?
            }
            Some(Source::Expression(expression)) => expression.text(claims, "uid")?,
        };
        let mut extra = BTreeMap::new();
        if let Some(id) = claims["jti"].as_str().filter(|id| !id.is_empty()) {
            extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]);
        }
        for (key, expression) in &self.extra {
            let values = expression.texts(claims).map_err(|why| {
                format!("oidc: error evaluating extra claim expression: {}: {why}", expression.text)
            })?;
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        Ok(UserInfo { name: self.name(claims)?, uid, groups: self.groups(claims)?, extra })
    }

    fn name(&self, claims: &Value) -> Result<String, String> {
        match &self.name {
            Source::Expression(expression) => {
                let name = expression.text(claims, "username")?;
                if name.is_empty() {
                    return Err("oidc: empty username via CEL expression is not allowed".to_owned());
                }
                Ok(name)
            }
            Source::Claim { claim, prefix } => {
                let name = claims[claim].as_str();
                let name =
                    name.ok_or_else(|| format!("oidc: parse username claims {claim:?}: claim not present"))?;
                if claim == "email" && claims.get("email_verified").is_some_and(|verified| *verified != true)
                {
                    return Err("oidc: email not verified".to_owned());
                }
                Ok(format!("{prefix}{name}"))
            }
        }
    }

    fn groups(&self, claims: &Value) -> Result<Vec<String>, String> {
        match &self.groups {
            None => Ok(Vec::new()),
            Some(Source::Expression(expression)) => {
                let groups = expression.texts(claims);
                groups.map_err(|why| format!("oidc: error evaluating group claim expression: {why}"))
            }
            Some(Source::Claim { claim, prefix }) => {
                let groups: Option<Vec<&str>> = match &claims[claim] {
                    Value::Null => Some(Vec::new()),
                    Value::String(one) => Some(vec![one]),
                    Value::Array(several) => several.iter().map(Value::as_str).collect(),
                    _ => None,
                };
                let groups = groups
                    .ok_or_else(|| format!("oidc: parse groups claim {claim:?}: is no list of strings"))?;
                Ok(groups.into_iter().map(|group| format!("{prefix}{group}")).collect())
            }
        }
    }
}

/// A user as expressions see it.
pub(super) fn user_value(user: &UserInfo) -> Value {
    let extra: Map<String, Value> =
        user.extra.iter().map(|(key, values)| (key.clone(), json!(values))).collect();
    json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": extra})
}
