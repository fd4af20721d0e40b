//! Node selectors, read once per pod and matched against many nodes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodSpec};
use kcore::Labels;

/// One requirement on a label or field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    key: Box<str>,
    operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    Gt(i64),
    Lt(i64),
    /// Something that can't be read. A term that holds it matches nothing, as upstream.
    Invalid,
}

impl Requirement {
    fn read(requirement: &NodeSelectorRequirement) -> Self {
        let values = requirement.values.clone().unwrap_or_default();
        let number = |make: fn(i64) -> Operator| match &values[..] {
            [value] => value.parse().map_or(Operator::Invalid, make),
            _ => Operator::Invalid,
        };
        let operator = match requirement.operator.as_str() {
            "In" if !values.is_empty() => Operator::In(values),
            "NotIn" if !values.is_empty() => Operator::NotIn(values),
            "Exists" if values.is_empty() => Operator::Exists,
            "DoesNotExist" if values.is_empty() => Operator::DoesNotExist,
            "Gt" => number(Operator::Gt),
            "Lt" => number(Operator::Lt),
            _ => Operator::Invalid,
        };
        Self { key: requirement.key.as_str().into(), operator }
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.iter().any(|known| known == value)),
            Operator::NotIn(values) => value.is_none_or(|value| values.iter().all(|known| known != value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt(least) => number().is_some_and(|value| value > *least),
            Operator::Lt(most) => number().is_some_and(|value| value < *most),
            Operator::Invalid => false,
        }
    }
}

/// Requirements that must all hold; one without any matches no node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl Term {
    /// Reads a term of the API.
    #[must_use]
    pub fn read(term: &NodeSelectorTerm) -> Self {
        let read = |list: &Option<Vec<NodeSelectorRequirement>>| {
            list.iter().flatten().map(Requirement::read).collect()
        };
        Self { labels: read(&term.match_expressions), fields: read(&term.match_fields) }
    }

    /// Whether a node with this name and these labels matches.
    #[must_use]
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        if self.is_empty() {
            return false;
        }
        let field = |requirement: &Requirement| {
            &*requirement.key == "metadata.name" && requirement.matches(Some(name))
        };
        self.labels.iter().all(|requirement| requirement.matches(labels.get(&requirement.key)))
            && self.fields.iter().all(field)
    }

    /// Whether it has no requirements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The names of nodes that the term is bound to; `None` when it does not fix the name.
    fn names(&self) -> Option<Vec<&str>> {
        let mut names: Option<Vec<&str>> = None;
        for requirement in &self.fields {
            let Operator::In(values) = &requirement.operator else { continue };
            if &*requirement.key == "metadata.name" {
                let both = |value: &&str| names.as_ref().is_none_or(|known| known.contains(value));
                names = Some(values.iter().map(String::as_str).filter(both).collect());
            }
        }
        names
    }
}

/// What a pod's `nodeSelector` and required node affinity ask of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequiredAffinity {
    selector: Vec<(Box<str>, Box<str>)>,
    /// Any of them; `None` when the pod has no required affinity.
    terms: Option<Vec<Term>>,
}

impl RequiredAffinity {
    /// Reads a pod's requirements; `None` when it has none.
    #[must_use]
    pub fn read(spec: &PodSpec) -> Option<Self> {
        let pairs = spec.node_selector.iter().flatten();
        let selector: Vec<_> =
            pairs.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let terms = affinity
            .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref())
            .map(|required| required.node_selector_terms.iter().map(Term::read).collect());
        (!selector.is_empty() || terms.is_some()).then_some(Self { selector, terms })
    }

    /// Whether a node with this name and these labels will do.
    #[must_use]
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.terms.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(name, labels)))
    }

    /// The only nodes that can match, by name, when each term fixes them; may be empty when terms contradict
    /// themselves.
    #[must_use]
    pub fn names(&self) -> Option<Vec<Arc<str>>> {
        let terms = self.terms.as_ref().filter(|terms| !terms.is_empty())?;
        let mut all = Vec::new();
        for term in terms {
            all.extend(term.names()?.into_iter().map(Arc::from));
        }
        Some(all)
    }
}

/// Preferred terms with their weights (1 to 100); terms without requirements are left out, as upstream.
#[must_use]
pub fn preferred(spec: &PodSpec) -> Vec<(i64, Term)> {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let terms = affinity.and_then(|node| node.preferred_during_scheduling_ignored_during_execution.as_ref());
    let read = terms.into_iter().flatten().map(|term| (i64::from(term.weight), Term::read(&term.preference)));
    read.filter(|(weight, term)| *weight != 0 && !term.is_empty()).collect()
}
