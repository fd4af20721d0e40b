//! How much is kept of which request: `audit.k8s.io/v1` `Policy`.

use crate::{
    authn::UserInfo,
    config::{self, ConfigError, Section},
    request::RequestInfo,
};

/// How much is kept of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who asked for what, and the status of the answer.
    Metadata,
    /// The body of the request as well.
    Request,
    /// The body of the answer as well.
    RequestResponse,
}

/// When something is kept of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before it is looked at.
    RequestReceived,
    /// The head of the answer is there, its body follows: for requests that last, such as watches.
    ResponseStarted,
    /// It has been answered.
    ResponseComplete,
    /// The server failed.
    Panic,
}

const LEVELS: [Level; 4] = [Level::None, Level::Metadata, Level::Request, Level::RequestResponse];
const STAGES: [Stage; 4] =
    [Stage::RequestReceived, Stage::ResponseStarted, Stage::ResponseComplete, Stage::Panic];

impl Level {
    /// The word of policies and events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

impl Stage {
    /// The word of policies and events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// How much is kept of which request. The first rule that fits decides; where none does, nothing is kept.
///
/// ```
/// use kapi::audit::AuditPolicy;
///
/// let policy = "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: All}]}";
/// let why = AuditPolicy::parse(policy).unwrap_err();
/// assert_eq!(why.field, "rules[0].level");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditPolicy {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rule {
    what: Kept,
    users: Vec<String>,
    groups: Vec<String>,
    verbs: Vec<String>,
    namespaces: Vec<String>,
    resources: Vec<Resources>,
    paths: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Resources {
    group: String,
    resources: Vec<String>,
    names: Vec<String>,
}

/// What is kept of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) level: Level,
    /// The stages that are left out, as bits.
    omitted: u8,
    pub(crate) omit_managed_fields: bool,
}

impl Kept {
    pub(crate) const fn omits(self, stage: Stage) -> bool {
        self.omitted & stage.bit() != 0
    }
}

impl AuditPolicy {
    /// Keeps the metadata of every request once it is answered.
    #[must_use]
    pub fn metadata() -> Self {
        let omitted = Stage::RequestReceived.bit();
        let what = Kept { level: Level::Metadata, omitted, omit_managed_fields: false };
        Self { rules: vec![Rule { what, ..Rule::default() }] }
    }

    /// Reads a policy in YAML or JSON (`--audit-policy-file`).
    ///
    /// # Errors
    /// When it is none; the error names the field.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let document = config::read(text, "Policy", &["audit.k8s.io/v1"])?;
        let root = Section::root(&document)?;
        root.only(&["apiVersion", "kind", "metadata", "rules", "omitStages", "omitManagedFields"])?;
        let omitted = stages(&root)?;
        let managed = root.flag("omitManagedFields")?.unwrap_or(false);
        let rules = root.sections("rules")?;
        if rules.is_empty() {
            return Err(root.wrong("rules", "loaded illegal policy with 0 rules"));
        }
        let rules = rules.iter().map(|section| Rule::parse(section, omitted, managed));
        Ok(Self { rules: rules.collect::<Result<_, _>>()? })
    }

    /// What is kept of a request; `user` is who sent it, if that is known.
    pub(crate) fn decide(&self, user: Option<&UserInfo>, request: &RequestInfo) -> Kept {
        let rule = self.rules.iter().find(|rule| rule.fits(user, request));
        rule.map_or(Kept::default(), |rule| rule.what)
    }
}

fn stages(section: &Section<'_>) -> Result<u8, ConfigError> {
    let mut bits = 0;
    for (index, text) in section.texts("omitStages")?.iter().enumerate() {
        let stage = STAGES.into_iter().find(|stage| stage.name() == text).ok_or_else(|| {
            let names = STAGES.map(Stage::name).join(",");
            section.wrong(
                &format!("omitStages[{index}]"),
                format!("Invalid value: {text:?}: allowed stages are {names}"),
            )
        })?;
        bits |= stage.bit();
    }
    Ok(bits)
}

impl Rule {
    fn parse(section: &Section<'_>, omitted: u8, managed: bool) -> Result<Self, ConfigError> {
        section.only(&[
            "level",
            "users",
            "userGroups",
            "verbs",
            "resources",
            "namespaces",
            "nonResourceURLs",
            "omitStages",
            "omitManagedFields",
        ])?;
        let level = section.required("level")?;
        let level = LEVELS.into_iter().find(|known| known.name() == level).ok_or_else(|| {
            let names = LEVELS.map(|level| format!("{:?}", level.name())).join(", ");
            section.wrong("level", format!("Unsupported value: {level:?}: supported values: {names}"))
        })?;
        let paths = section.texts("nonResourceURLs")?;
        for (index, path) in paths.iter().enumerate().filter(|(_, path)| *path != "*") {
            let wrong = |why: &str| {
                section.wrong(&format!("nonResourceURLs[{index}]"), format!("Invalid value: {path:?}: {why}"))
            };
            if !path.starts_with('/') {
                return Err(wrong("non-resource URL rules must begin with a '/' character"));
            }
            if path.strip_suffix('*').unwrap_or(path).contains('*') {
                return Err(wrong("non-resource URL wildcards '*' must be the final character of the rule"));
            }
        }
        let resources = section.sections("resources")?;
        let resources = resources.iter().map(Resources::parse).collect::<Result<Vec<_>, _>>()?;
        let namespaces = section.texts("namespaces")?;
        let of_resources = !resources.is_empty() || !namespaces.is_empty();
        if of_resources && !paths.is_empty() {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            return Err(section.wrong("nonResourceURLs", why));
        }
        let omit_managed_fields = section.flag("omitManagedFields")?.unwrap_or(managed);
        Ok(Self {
            what: Kept { level, omitted: omitted | stages(section)?, omit_managed_fields },
            users: section.texts("users")?,
            groups: section.texts("userGroups")?,
            verbs: section.texts("verbs")?,
            namespaces,
            resources,
            paths,
        })
    }

    /// Upstream's `audit/policy.ruleMatches`.
    fn fits(&self, user: Option<&UserInfo>, request: &RequestInfo) -> bool {
        let has = |list: &[String], text: &str| list.iter().any(|item| item == text);
        if !self.users.is_empty() && !user.is_some_and(|user| has(&self.users, &user.name)) {
            return false;
        }
        let in_group = |user: &UserInfo| user.groups.iter().any(|group| has(&self.groups, group));
        if !self.groups.is_empty() && !user.is_some_and(in_group) {
            return false;
        }
        if !self.verbs.is_empty() && !has(&self.verbs, &request.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return request.is_resource
                && (self.namespaces.is_empty() || has(&self.namespaces, &request.namespace))
                && (self.resources.is_empty() || self.resources.iter().any(|one| one.fits(request)));
        }
        let path = |spec: &String| {
            let begins = spec.ends_with('*') && request.path.starts_with(spec.trim_end_matches('*'));
            *spec == request.path || begins
        };
        self.paths.is_empty() || (!request.is_resource && self.paths.iter().any(path))
    }
}

impl Resources {
    fn parse(section: &Section<'_>) -> Result<Self, ConfigError> {
        section.only(&["group", "resources", "resourceNames"])?;
        let group = section.text("group")?.to_owned();
        let is_name = |label: &str| {
            let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
        };
        if !group.is_empty() && group != "*" && !group.split('.').all(is_name) {
            let why = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
            return Err(section.wrong("group", format!("Invalid value: {group:?}: {why}")));
        }
        let (resources, names) = (section.texts("resources")?, section.texts("resourceNames")?);
        if resources.is_empty() && !names.is_empty() {
            return Err(section.wrong("resourceNames", "using resourceNames requires at least one resource"));
        }
        Ok(Self { group, resources, names })
    }

    fn fits(&self, request: &RequestInfo) -> bool {
        if self.group != "*" && self.group != request.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.names.is_empty() && !self.names.contains(&request.name) {
            return false;
        }
        let (resource, sub) = (request.resource.as_str(), request.subresource.as_str());
        self.resources.iter().any(|spec| {
            spec == "*"
                || (sub.is_empty() && spec == resource)
                || spec.split_once('/').is_some_and(|(spec_resource, spec_sub)| {
                    match (spec_resource, spec_sub) {
                        ("*", _) => !sub.is_empty() && spec_sub == sub,
                        (_, "*") => spec_resource == resource,
                        _ => spec_resource == resource && spec_sub == sub,
                    }
                })
        })
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::request::Query;

    fn policy(rules: &str) -> Result<AuditPolicy, ConfigError> {
        AuditPolicy::parse(&format!("{{apiVersion: audit.k8s.io/v1, kind: Policy, {rules}}}"))
    }

    fn asks(method: Method, uri: &str) -> RequestInfo {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        RequestInfo::new(&method, path, &Query::parse(query))
    }

    /// Expected results: `audit/policy/checker_test.go`, and its `ruleMatches`.
    #[test]
    fn rules_fit_as_upstream() {
        let tim = UserInfo::new("tim@k8s.io", ["humans", "developers"]);
        let busybox = || asks(Method::GET, "/api/v1/namespaces/default/pods/busybox");
        let log = || asks(Method::GET, "/api/v1/namespaces/default/pods/busybox/log");
        let roles = || asks(Method::GET, "/apis/rbac.authorization.k8s.io/v1/clusterroles/edit");
        let metrics = || asks(Method::GET, "/metrics");
        for (rule, request, expected) in [
            ("", busybox(), true),
            ("users: ['tim@k8s.io']", busybox(), true),
            ("users: [ann]", busybox(), false),
            ("userGroups: [developers]", busybox(), true),
            ("userGroups: [robots]", busybox(), false),
            ("verbs: [list, get]", busybox(), true),
            ("verbs: [create]", busybox(), false),
            ("namespaces: [default]", busybox(), true),
            ("namespaces: ['']", busybox(), false),
            ("namespaces: ['']", roles(), true),
            ("namespaces: [default]", metrics(), false),
            ("resources: [{resources: [pods]}]", busybox(), true),
            ("resources: [{resources: [pods]}]", log(), false),
            ("resources: [{resources: [pods/log]}]", log(), true),
            ("resources: [{resources: ['pods/*']}]", log(), true),
            ("resources: [{resources: ['pods/*']}]", busybox(), true),
            ("resources: [{resources: ['*/log']}]", log(), true),
            ("resources: [{resources: ['*/log']}]", busybox(), false),
            ("resources: [{resources: ['*']}]", log(), true),
            ("resources: [{resources: ['*']}]", roles(), false),
            ("resources: [{group: '*'}]", roles(), true),
            ("resources: [{group: '*', resources: [pods], resourceNames: [busybox]}]", busybox(), true),
            ("resources: [{resources: [pods], resourceNames: [edit]}]", busybox(), false),
            ("resources: [{group: rbac.authorization.k8s.io}]", roles(), true),
            ("nonResourceURLs: [/metrics]", metrics(), true),
            ("nonResourceURLs: ['/met*']", metrics(), true),
            ("nonResourceURLs: ['*']", metrics(), true),
            ("nonResourceURLs: ['*']", busybox(), false),
            ("nonResourceURLs: [/healthz]", metrics(), false),
        ] {
            let rules =
                format!("rules: [{{level: Request{}{rule}}}]", if rule.is_empty() { "" } else { ", " });
            let kept = policy(&rules).unwrap().decide(Some(&tim), &request);
            assert_eq!(kept.level == Level::Request, expected, "{rule}: {request:?}");
        }
        let nobody = policy("rules: [{level: Request, users: [tim]}, {level: Metadata}]").unwrap();
        assert_eq!(nobody.decide(None, &busybox()).level, Level::Metadata);
    }

    #[test]
    fn rules_have_what_the_policy_has() {
        let text = "omitStages: [Panic], omitManagedFields: true, rules: [{level: Request, verbs: [get], omitStages: [RequestReceived]}, {level: Metadata, omitManagedFields: false}]";
        let policy = policy(text).unwrap();
        let got = policy.decide(None, &asks(Method::GET, "/api/v1/pods/a"));
        assert!(got.omits(Stage::Panic) && got.omits(Stage::RequestReceived) && got.omit_managed_fields);
        let put = policy.decide(None, &asks(Method::PUT, "/api/v1/pods/a"));
        assert!(put.omits(Stage::Panic) && !put.omits(Stage::RequestReceived) && !put.omit_managed_fields);
    }

    /// Expected results: `apis/audit/validation/validation_test.go`.
    #[test]
    fn faults_are_named() {
        for (rules, field) in [
            ("", "rules"),
            ("rules: [{level: ''}]", "rules[0].level"),
            ("rules: [{level: All}]", "rules[0].level"),
            ("rules: [{level: None}, {level: None, users: tim}]", "rules[1].users"),
            ("rules: [{level: None, nonResourceURLs: [metrics]}]", "rules[0].nonResourceURLs[0]"),
            ("rules: [{level: None, nonResourceURLs: ['/a*b']}]", "rules[0].nonResourceURLs[0]"),
            ("rules: [{level: None, nonResourceURLs: [/a], namespaces: [b]}]", "rules[0].nonResourceURLs"),
            ("rules: [{level: None, resources: [{group: a/v1}]}]", "rules[0].resources[0].group"),
            (
                "rules: [{level: None, resources: [{resourceNames: [a]}]}]",
                "rules[0].resources[0].resourceNames",
            ),
            ("rules: [{level: None, omitStages: [Late]}]", "rules[0].omitStages[0]"),
            ("rules: [{level: None}], omitStages: [foo]", "omitStages[0]"),
            ("rules: [{level: None, user: tim}]", "rules[0].user"),
        ] {
            assert_eq!(policy(rules).unwrap_err().field, field, "{rules}");
        }
    }
}
