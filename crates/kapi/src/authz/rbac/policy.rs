//! All roles and bindings, found by who is meant: subject, then bindings, then rules.

use std::{fmt, sync::Arc};

use ahash::HashMap;
use serde_json::Value;

use super::rule::PolicyRule;
use crate::{authn::UserInfo, request::RequestInfo};

const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Some verbs, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verbs(u16);

/// The verbs that have a bit of their own. All others share one.
const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

impl Verbs {
    /// The bit of a request's verb.
    pub(super) fn of(verb: &str) -> Self {
        Self(1 << VERBS.iter().position(|known| *known == verb).unwrap_or(VERBS.len()))
    }

    /// The bits of all verbs that a rule may be about.
    fn of_rule(rule: &PolicyRule) -> Self {
        let bits = rule.verbs.iter().map(|verb| if verb == "*" { u16::MAX } else { Self::of(verb).0 });
        Self(bits.fold(0, |all, one| all | one))
    }

    fn meet(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// The rules of a role. Beside them, close together, stand their verbs: of a role that does not allow a request hardly any rule
/// is looked at.
#[derive(Debug)]
pub(super) struct Role {
    pub(super) rules: Box<[PolicyRule]>,
    verbs: Box<[Verbs]>,
    /// Those of all rules.
    all: Verbs,
}

impl Role {
    fn new(rules: Vec<PolicyRule>) -> Self {
        let verbs: Box<[Verbs]> = rules.iter().map(Verbs::of_rule).collect();
        let all = Verbs(verbs.iter().fold(0, |all, one| all | one.0));
        Self { verbs, all, rules: rules.into() }
    }

    /// Whether a rule allows the request, whose verb is this.
    pub(super) fn allows(&self, request: &RequestInfo, verb: Verbs) -> bool {
        let about = self.verbs.iter().zip(&self.rules).filter(|(verbs, _)| verbs.meet(verb));
        self.all.meet(verb) && about.into_iter().any(|(_, rule)| rule.allows(request))
    }
}

/// The roles and bindings of a cluster.
#[derive(Debug, Default)]
pub(super) struct Policy {
    roles: Roles,
    /// By namespace, empty for cluster role bindings.
    bindings: HashMap<Box<str>, Bindings>,
}

/// The roles, each at a place that its bindings know: a decision goes from a binding to its rules without a look into a map.
#[derive(Debug, Default)]
struct Roles {
    /// By namespace, empty for cluster roles, and name.
    places: HashMap<Box<str>, HashMap<Box<str>, usize>>,
    all: Vec<Place>,
    /// Places that nobody has.
    free: Vec<usize>,
}

/// Where a role is, or would be that bindings refer to.
#[derive(Debug, Default)]
struct Place {
    role: Option<Role>,
    bindings: usize,
}

impl Roles {
    fn place(&self, namespace: &str, name: &str) -> Option<usize> {
        self.places.get(namespace)?.get(name).copied()
    }

    /// The place of a role that may not be there yet.
    fn reserve(&mut self, namespace: &str, name: &str) -> usize {
        if let Some(place) = self.place(namespace, name) {
            return place;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.all.push(Place::default());
            self.all.len() - 1
        });
        self.places.entry(namespace.into()).or_default().insert(name.into(), place);
        place
    }

    /// Gives a place back that has neither a role nor a binding.
    fn release(&mut self, namespace: &str, name: &str) {
        let Some(place) = self.place(namespace, name) else {
            return;
        };
        if self.all[place].role.is_some() || self.all[place].bindings > 0 {
            return;
        }
        self.free.push(place);
        if let Some(names) = self.places.get_mut(namespace) {
            names.remove(name);
            if names.is_empty() {
                self.places.remove(namespace);
            }
        }
    }

    fn at(&self, place: usize) -> Option<&Role> {
        self.all.get(place)?.role.as_ref()
    }
}

/// The bindings of one namespace, or of the cluster.
#[derive(Debug, Default)]
struct Bindings {
    named: HashMap<Box<str>, Arc<Binding>>,
    /// Lists are in the order of names, so that the same policy always gives the same reasons.
    users: HashMap<Box<str>, Vec<Arc<Binding>>>,
    groups: HashMap<Box<str>, Vec<Arc<Binding>>>,
}

/// A binding, as far as decisions need it.
#[derive(Debug)]
pub(super) struct Binding {
    /// Empty for cluster role bindings.
    namespace: Box<str>,
    name: Box<str>,
    role_kind: Box<str>,
    role: Box<str>,
    /// Where its role is; none if the reference is of no kind of role.
    place: Option<usize>,
    subjects: Box<[Subject]>,
}

#[derive(Debug)]
enum Subject {
    User(Box<str>),
    Group(Box<str>),
    /// The user's name begins with [`SERVICE_ACCOUNT`].
    ServiceAccount {
        user: Box<str>,
    },
}

impl Subject {
    fn of(subject: &Value, binding_namespace: &str) -> Option<Self> {
        let text = |key: &str| subject[key].as_str().unwrap_or_default();
        let name = text("name");
        match text("kind") {
            "User" => Some(Self::User(name.into())),
            "Group" => Some(Self::Group(name.into())),
            "ServiceAccount" => {
                let own = Some(text("namespace")).filter(|namespace| !namespace.is_empty());
                let namespace = own.unwrap_or(binding_namespace);
                let user = format!("{SERVICE_ACCOUNT}{namespace}:{name}").into();
                (!namespace.is_empty()).then_some(Self::ServiceAccount { user })
            }
            _ => None,
        }
    }

    fn is(&self, user: &UserInfo) -> bool {
        match self {
            Self::User(name) | Self::ServiceAccount { user: name } => **name == *user.name,
            Self::Group(name) => user.is_in(name),
        }
    }
}

/// As upstream's `describeSubject`, which writes the name of a service account before its namespace.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "User {name:?}"),
            Self::Group(name) => write!(f, "Group {name:?}"),
            Self::ServiceAccount { user } => {
                let full = user.strip_prefix(SERVICE_ACCOUNT).unwrap_or(user);
                let (namespace, name) = full.split_once(':').unwrap_or((full, ""));
                write!(f, "ServiceAccount {:?}", format!("{name}/{namespace}"))
            }
        }
    }
}

/// Why something is allowed: a binding and the first of its subjects that is the caller.
#[derive(Debug)]
pub(super) struct Grant {
    binding: Arc<Binding>,
    subject: usize,
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Binding { namespace, name, role_kind, role, subjects, .. } = &*self.binding;
        f.write_str("RBAC: allowed by ")?;
        if namespace.is_empty() {
            write!(f, "ClusterRoleBinding {:?}", name)?;
        } else {
            write!(f, "RoleBinding {:?}", format!("{name}/{namespace}"))?;
        }
        write!(f, " of {role_kind} {role:?} to ")?;
        subjects.get(self.subject).map_or(Ok(()), |subject| subject.fmt(f))
    }
}

/// What a binding refers to and is not there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MissingRole {
    /// `Role` or `ClusterRole`, or what else the binding says.
    pub(super) kind: Box<str>,
    pub(super) name: Box<str>,
}

impl fmt::Display for MissingRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.kind {
            kind @ ("Role" | "ClusterRole") => {
                write!(f, "{}.{} {:?} not found", kind.to_lowercase(), super::GROUP, self.name)
            }
            other => write!(f, "unsupported role reference kind: {other:?}"),
        }
    }
}

/// The namespace of the roles that a binding in this one refers to; `None` if the kind is none of a role.
fn role_namespace<'n>(namespace: &'n str, kind: &str) -> Option<&'n str> {
    match kind {
        "Role" => Some(namespace),
        "ClusterRole" => Some(""),
        _ => None,
    }
}

impl Policy {
    /// Forgets the roles, or the bindings, of all namespaces or of the cluster.
    pub(super) fn clear(&mut self, roles: bool, namespaced: bool) {
        let concerns = |namespace: &str| namespace.is_empty() != namespaced;
        let named = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        let (mut gone_roles, mut gone_bindings) = (Vec::new(), Vec::new());
        if roles {
            for (namespace, names) in self.roles.places.iter().filter(|(namespace, _)| concerns(namespace)) {
                gone_roles.extend(names.keys().map(|name| named(namespace, name)));
            }
        } else {
            for (namespace, own) in self.bindings.iter().filter(|(namespace, _)| concerns(namespace)) {
                gone_bindings.extend(own.named.keys().map(|name| named(namespace, name)));
            }
        }
        for (namespace, name) in gone_roles {
            self.remove_role(&namespace, &name);
        }
        for (namespace, name) in gone_bindings {
            self.remove_binding(&namespace, &name);
        }
    }

    /// Takes a role over; its namespace is empty for a cluster role.
    pub(super) fn set_role(&mut self, namespace: &str, name: &str, role: &Value) {
        let place = self.roles.reserve(namespace, name);
        self.roles.all[place].role = Some(Role::new(PolicyRule::all_of(role)));
    }

    pub(super) fn remove_role(&mut self, namespace: &str, name: &str) {
        if let Some(place) = self.roles.place(namespace, name) {
            self.roles.all[place].role = None;
            self.roles.release(namespace, name);
        }
    }

    /// Takes a binding over; its namespace is empty for a cluster role binding.
    pub(super) fn set_binding(&mut self, namespace: &str, name: &str, object: &Value) {
        self.remove_binding(namespace, name);
        let text = |value: &Value| value.as_str().unwrap_or_default().into();
        let subjects = object["subjects"].as_array().into_iter().flatten();
        let (role_kind, role): (Box<str>, Box<str>) =
            (text(&object["roleRef"]["kind"]), text(&object["roleRef"]["name"]));
        let place = role_namespace(namespace, &role_kind).map(|of| self.roles.reserve(of, &role));
        if let Some(place) = place {
            self.roles.all[place].bindings += 1;
        }
        let binding = Arc::new(Binding {
            namespace: namespace.into(),
            name: name.into(),
            role_kind,
            role,
            place,
            subjects: subjects.filter_map(|subject| Subject::of(subject, namespace)).collect(),
        });
        let bindings = self.bindings.entry(namespace.into()).or_default();
        for subject in &binding.subjects {
            let list = bindings.list(subject);
            if let Err(place) = list.binary_search_by(|other| other.name.cmp(&binding.name)) {
                list.insert(place, Arc::clone(&binding));
            }
        }
        bindings.named.insert(name.into(), binding);
    }

    pub(super) fn remove_binding(&mut self, namespace: &str, name: &str) {
        let Some(bindings) = self.bindings.get_mut(namespace) else {
            return;
        };
        let Some(binding) = bindings.named.remove(name) else {
            return;
        };
        for subject in &binding.subjects {
            bindings.forget(subject, name);
        }
        if let Some((of, place)) = role_namespace(namespace, &binding.role_kind).zip(binding.place) {
            self.roles.all[place].bindings -= 1;
            self.roles.release(of, &binding.role);
        }
        if bindings.named.is_empty() {
            self.bindings.remove(namespace);
        }
    }

    /// The rules of a role that a binding in this namespace refers to.
    pub(super) fn role(&self, namespace: &str, kind: &str, name: &str) -> Result<&Role, MissingRole> {
        let place = role_namespace(namespace, kind).and_then(|of| self.roles.place(of, name));
        let role = place.and_then(|place| self.roles.at(place));
        role.ok_or_else(|| MissingRole { kind: kind.into(), name: name.into() })
    }

    /// Shows each binding that is for this user in this namespace, those of the cluster first, with the rules of its role.
    /// A binding that names both the user and groups of theirs is shown more than once. Ends with the first answer.
    pub(super) fn find<T>(
        &self,
        user: &UserInfo,
        namespace: &str,
        mut look: impl FnMut(&Arc<Binding>, Result<&Role, MissingRole>) -> Option<T>,
    ) -> Option<T> {
        let places = [Some(""), Some(namespace).filter(|namespace| !namespace.is_empty())];
        for bindings in places.into_iter().flatten().filter_map(|place| self.bindings.get(place)) {
            let users = bindings.users.get(user.name.as_str()).into_iter();
            let groups = user.groups.iter().filter_map(|group| bindings.groups.get(group.as_str()));
            for binding in users.chain(groups).flatten() {
                let role = binding.place.and_then(|place| self.roles.at(place));
                let role = role.ok_or_else(|| MissingRole {
                    kind: binding.role_kind.clone(),
                    name: binding.role.clone(),
                });
                if let Some(found) = look(binding, role) {
                    return Some(found);
                }
            }
        }
        None
    }
}

impl Bindings {
    fn list(&mut self, subject: &Subject) -> &mut Vec<Arc<Binding>> {
        match subject {
            Subject::User(name) | Subject::ServiceAccount { user: name } => {
                self.users.entry(name.clone()).or_default()
            }
            Subject::Group(name) => self.groups.entry(name.clone()).or_default(),
        }
    }

    fn forget(&mut self, subject: &Subject, binding: &str) {
        let (map, key) = match subject {
            Subject::User(name) | Subject::ServiceAccount { user: name } => (&mut self.users, name),
            Subject::Group(name) => (&mut self.groups, name),
        };
        if let Some(list) = map.get_mut(key) {
            list.retain(|other| &*other.name != binding);
            if list.is_empty() {
                map.remove(key);
            }
        }
    }
}

/// The reason for which a binding allows something to this user.
pub(super) fn grant(binding: &Arc<Binding>, user: &UserInfo) -> Grant {
    let subject = binding.subjects.iter().position(|subject| subject.is(user)).unwrap_or_default();
    Grant { binding: Arc::clone(binding), subject }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn verbs_lead_past_rules_that_are_about_others_alone() {
        let rule = |verbs: &[&str], resource: &str| {
            PolicyRule::of(&json!({"verbs": verbs, "apiGroups": [""], "resources": [resource]}))
        };
        let rules = vec![
            rule(&["get", "list"], "pods"),
            rule(&["delete"], "secrets"),
            rule(&["approve"], "requests"),
            rule(&["*"], "configmaps"),
            rule(&[], "nothing"),
        ];
        let role = Role::new(rules.clone());
        for verb in VERBS.iter().chain(&["approve", "sign", "*", ""]) {
            for resource in ["pods", "secrets", "requests", "configmaps", "nothing", "others"] {
                let request = RequestInfo {
                    is_resource: true,
                    verb: (*verb).to_owned(),
                    resource: resource.to_owned(),
                    ..RequestInfo::default()
                };
                let expected = rules.iter().any(|rule| rule.allows(&request));
                assert_eq!(role.allows(&request, Verbs::of(verb)), expected, "{verb} {resource}");
            }
        }
    }

    const KINDS: [&str; 3] = ["User", "Group", "ServiceAccount"];

    /// A role's name, whether it is one of the cluster, and subjects: kind and name.
    type Bound = (u8, bool, Vec<(u8, u8)>);

    /// One change of one object: its namespace (0 for the cluster) and name, and its new state.
    #[derive(Clone, Debug)]
    enum Change {
        Role(u8, u8, Option<u8>),
        Binding(u8, u8, Option<Bound>),
    }

    fn change() -> impl Strategy<Value = Change> {
        let subjects = prop::collection::vec((0u8..3, 0u8..3), 0..3);
        let binding = prop::option::of((0u8..3, any::<bool>(), subjects));
        prop_oneof![
            (0u8..3, 0u8..3, prop::option::of(0u8..3))
                .prop_map(|(place, name, verb)| Change::Role(place, name, verb)),
            (0u8..3, 0u8..4, binding).prop_map(|(place, name, state)| Change::Binding(place, name, state)),
        ]
    }

    fn place(number: u8) -> String {
        if number == 0 { String::new() } else { format!("ns{number}") }
    }

    fn users() -> Vec<UserInfo> {
        let mut users: Vec<UserInfo> = (0..3)
            .map(|number| UserInfo::new(format!("{number}"), [format!("{number}"), "2".to_owned()]))
            .collect();
        users.push(UserInfo::new("system:serviceaccount:ns1:0", [""; 0]));
        users
    }

    /// What upstream does: every binding is looked at in turn.
    fn naive(
        roles: &BTreeMap<(u8, u8), u8>,
        bindings: &BTreeMap<(u8, u8), Bound>,
        user: &UserInfo,
        namespace: u8,
        verb: u8,
    ) -> bool {
        bindings.iter().any(|((at, _), (role, cluster, subjects))| {
            let here = *at == 0 || *at == namespace;
            let is = |(kind, name): &(u8, u8)| match kind {
                0 => user.name == name.to_string(),
                1 => user.is_in(&name.to_string()),
                _ => user.name == format!("{SERVICE_ACCOUNT}ns1:{name}"),
            };
            // A binding of the cluster finds no roles of a namespace.
            let found =
                if *cluster { roles.get(&(0, *role)) } else { roles.get(&(*at, *role)).filter(|_| *at > 0) };
            here && subjects.iter().any(is) && found == Some(&verb)
        })
    }

    proptest! {
        #[test]
        fn the_index_says_what_a_look_at_everything_says(changes in prop::collection::vec(change(), 1..40)) {
            let mut policy = Policy::default();
            let (mut roles, mut bindings) = (BTreeMap::new(), BTreeMap::new());
            for change in changes {
                match change {
                    Change::Role(at, name, Some(verb)) => {
                        let rule = json!({"verbs": [verb.to_string()], "apiGroups": [""], "resources": ["pods"]});
                        policy.set_role(&place(at), &name.to_string(), &json!({"rules": [rule]}));
                        roles.insert((at, name), verb);
                    }
                    Change::Role(at, name, None) => {
                        policy.remove_role(&place(at), &name.to_string());
                        roles.remove(&(at, name));
                    }
                    Change::Binding(at, name, Some((role, cluster, subjects))) => {
                        let cluster = cluster || at == 0;
                        let kind = if cluster { "ClusterRole" } else { "Role" };
                        let list: Vec<Value> = subjects.iter().map(|(kind, name)| json!({
                            "kind": KINDS[usize::from(*kind)], "name": name.to_string(),
                            "namespace": if *kind == 2 { "ns1" } else { "" },
                        })).collect();
                        let object = json!({"roleRef": {"kind": kind, "name": role.to_string()}, "subjects": list});
                        policy.set_binding(&place(at), &name.to_string(), &object);
                        bindings.insert((at, name), (role, cluster, subjects));
                    }
                    Change::Binding(at, name, None) => {
                        policy.remove_binding(&place(at), &name.to_string());
                        bindings.remove(&(at, name));
                    }
                }
                for user in users() {
                    for (namespace, verb) in (0u8..3).flat_map(|namespace| (0u8..3).map(move |verb| (namespace, verb))) {
                        let ask = RequestInfo {
                            is_resource: true, verb: verb.to_string(), resource: "pods".to_owned(), ..RequestInfo::default()
                        };
                        let found = policy.find(&user, &place(namespace), |_, role| {
                            role.ok()?.allows(&ask, Verbs::of(&ask.verb)).then_some(())
                        });
                        let expected = naive(&roles, &bindings, &user, namespace, verb);
                        prop_assert_eq!(found.is_some(), expected, "{:?} in {} asks {}", &user, namespace, verb);
                    }
                }
            }
            for (at, name) in bindings.into_keys() {
                policy.remove_binding(&place(at), &name.to_string());
            }
            prop_assert!(policy.bindings.is_empty(), "nothing is left behind");
            policy.clear(true, true);
            policy.clear(true, false);
            prop_assert!(policy.roles.places.is_empty(), "nor a place of a role");
            prop_assert_eq!(policy.roles.free.len(), policy.roles.all.len());
        }
    }
}
