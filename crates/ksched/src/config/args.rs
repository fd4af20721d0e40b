//! The arguments of plug-ins, with upstream's defaults and checks.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::core::v1::{NodeAffinity as NodeAffinityTerms, TopologySpreadConstraint};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    config::{ConfigError, extenders::go_duration},
    plugins::{
        BIND_TIMEOUT, BINDING_TIMEOUT, BalancedAllocation, DefaultPreemption, DynamicResources,
        FILTER_TIMEOUT, InterPodAffinity, NodeAffinity, NodeResourcesFit, PodTopologySpread, ScoringStrategy,
        VolumeBinding,
    },
    spread::SpreadConstraint,
};

type Errors = Vec<ConfigError>;

/// Reads arguments; none are those without any field. `apiVersion` and `kind` may stand beside the fields.
fn read<T: DeserializeOwned>(args: &Value) -> Result<T, Errors> {
    let mut args = if args.is_null() { json!({}) } else { args.clone() };
    if let Some(fields) = args.as_object_mut() {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    serde_json::from_value(args)
        .map_err(|why| vec![ConfigError::new("", format!("strict decoding error: {why}"))])
}

fn checked<T>(value: T, errors: Errors) -> Result<T, Errors> {
    if errors.is_empty() { Ok(value) } else { Err(errors) }
}

/// For plug-ins without arguments.
pub(crate) fn none(args: &Value) -> Result<(), Errors> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Args {}
    read::<Args>(args).map(drop)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ResourceWeight {
    name: String,
    #[serde(default)]
    weight: i64,
}

/// CPU and memory, unless something is named; a weight that is not set is 1.
fn weights(named: Vec<ResourceWeight>) -> Vec<(String, i64)> {
    if named.is_empty() {
        return vec![("cpu".to_owned(), 1), ("memory".to_owned(), 1)];
    }
    named.into_iter().map(|one| (one.name, if one.weight == 0 { 1 } else { one.weight })).collect()
}

pub(crate) fn node_resources_fit(args: &Value) -> Result<NodeResourcesFit, Errors> {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
    struct Args {
        ignored_resources: Vec<String>,
        ignored_resource_groups: Vec<String>,
        scoring_strategy: Option<Strategy>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Strategy {
        #[serde(rename = "type", default)]
        kind: String,
        #[serde(default)]
        resources: Vec<ResourceWeight>,
        requested_to_capacity_ratio: Option<Ratio>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Ratio {
        #[serde(default)]
        shape: Vec<Point>,
    }
    const KINDS: [&str; 3] = ["LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"];
    let args: Args = read(args)?;
    let mut errors = Vec::new();
    for (number, group) in args.ignored_resource_groups.iter().enumerate() {
        if group.contains('/') {
            let path = format!("ignoredResourceGroups[{number}]");
            let why = "resource group name can't contain '/'";
            errors.push(ConfigError::invalid(path, format!("{group:?}"), why));
        }
    }
    let Some(Strategy { kind, resources, requested_to_capacity_ratio: ratio }) = args.scoring_strategy else {
        let fit = NodeResourcesFit::default();
        return checked(fit.ignoring(args.ignored_resources, args.ignored_resource_groups), errors);
    };
    let path = "scoringStrategy";
    let weights = weights(resources);
    for (number, (name, weight)) in weights.iter().enumerate() {
        if !(1..=100).contains(weight) {
            let why = format!("resource weight of {name} not in valid range (0, 100]");
            errors.push(ConfigError::invalid(format!("{path}.resources[{number}].weight"), weight, &why));
        }
    }
    let path_of_ratio = format!("{path}.requestedToCapacityRatio");
    let strategy = match (kind.as_str(), ratio) {
        ("LeastAllocated", None) => ScoringStrategy::LeastAllocated,
        ("MostAllocated", None) => ScoringStrategy::MostAllocated,
        ("RequestedToCapacityRatio", Some(ratio)) => {
            check_shape(&ratio.shape, &format!("{path_of_ratio}.shape"), &mut errors);
            let shape: Vec<_> = ratio.shape.iter().map(|point| (point.utilization, point.score)).collect();
            ScoringStrategy::RequestedToCapacityRatio(shape.into())
        }
        ("RequestedToCapacityRatio", None) => {
            let why = "Required value: must be specified when type is RequestedToCapacityRatio";
            errors.push(ConfigError::new(path_of_ratio, why));
            ScoringStrategy::LeastAllocated
        }
        (kind, ratio) => {
            if !KINDS.contains(&kind) {
                let known = KINDS.map(|kind| format!("{kind:?}")).join(", ");
                let why = format!("Unsupported value: {kind:?}: supported values: {known}");
                errors.push(ConfigError::new(format!("{path}.type"), why));
            }
            if ratio.is_some() {
                let why = "Forbidden: must be nil when type is not RequestedToCapacityRatio";
                errors.push(ConfigError::new(path_of_ratio, why));
            }
            ScoringStrategy::LeastAllocated
        }
    };
    let fit = NodeResourcesFit::new(strategy, weights);
    checked(fit.ignoring(args.ignored_resources, args.ignored_resource_groups), errors)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Point {
    #[serde(default)]
    utilization: i64,
    #[serde(default)]
    score: i64,
}

fn check_shape(shape: &[Point], path: &str, errors: &mut Errors) {
    if shape.is_empty() {
        errors.push(ConfigError::new(path, "Required value: at least one point must be specified"));
    }
    let falls = shape.windows(2).position(|pair| pair[0].utilization >= pair[1].utilization);
    if let Some(at) = falls.map(|at| at + 1) {
        let why = "values must be sorted in increasing order";
        let path = format!("{path}[{at}].utilization");
        errors.push(ConfigError::invalid(path, shape[at].utilization, why));
    }
    for (number, point) in shape.iter().enumerate() {
        for (field, value, most) in [("utilization", point.utilization, 100), ("score", point.score, 10)] {
            if !(0..=most).contains(&value) {
                let why = format!("not in valid range [0, {most}]");
                errors.push(ConfigError::invalid(format!("{path}[{number}].{field}"), value, &why));
            }
        }
    }
}

pub(crate) fn balanced_allocation(args: &Value) -> Result<BalancedAllocation, Errors> {
    #[derive(Deserialize, Default)]
    #[serde(deny_unknown_fields, default)]
    struct Args {
        resources: Vec<ResourceWeight>,
    }
    let weights = weights(read::<Args>(args)?.resources);
    let (mut errors, mut seen) = (Vec::new(), BTreeSet::new());
    for (number, (name, weight)) in weights.iter().enumerate() {
        if !seen.insert(name) {
            let why = format!("Duplicate value: {name:?}");
            errors.push(ConfigError::new(format!("resources[{number}].name"), why));
        }
        if *weight != 1 {
            errors.push(ConfigError::invalid(format!("resources[{number}].weight"), weight, "must be 1"));
        }
    }
    checked(BalancedAllocation::new(weights.into_iter().map(|(name, _)| name)), errors)
}

pub(crate) fn node_affinity(args: &Value) -> Result<NodeAffinity, Errors> {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
    struct Args {
        added_affinity: Option<NodeAffinityTerms>,
    }
    let added = read::<Args>(args)?.added_affinity;
    Ok(added.as_ref().map_or_else(NodeAffinity::default, NodeAffinity::with_added))
}

pub(crate) fn volume_binding(args: &Value) -> Result<VolumeBinding, Errors> {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
    struct Args {
        bind_timeout_seconds: Option<i64>,
        shape: Option<Value>,
    }
    let args: Args = read(args)?;
    let mut errors = Vec::new();
    let timeout = args
        .bind_timeout_seconds
        .map_or(Some(BIND_TIMEOUT), |seconds| u64::try_from(seconds).ok().map(Duration::from_secs));
    if timeout.is_none() {
        let why = "invalid BindTimeoutSeconds, should not be a negative value";
        errors.push(ConfigError::invalid(
            "bindTimeoutSeconds",
            args.bind_timeout_seconds.unwrap_or_default(),
            why,
        ));
    }
    if let Some(shape) = args.shape {
        let why = "unexpected field `shape`, remove it or turn on the feature gate StorageCapacityScoring";
        errors.push(ConfigError::invalid("shape", shape, why));
    }
    checked(VolumeBinding::new(timeout.unwrap_or(BIND_TIMEOUT)), errors)
}

pub(crate) fn dynamic_resources(args: &Value) -> Result<DynamicResources, Errors> {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
    struct Args {
        filter_timeout: Option<String>,
        binding_timeout: Option<String>,
    }
    let args: Args = read(args)?;
    let mut errors = Vec::new();
    let filter = args.filter_timeout.as_deref().map_or(Some(FILTER_TIMEOUT), go_duration);
    if filter.is_none() {
        let (text, why) = (args.filter_timeout.unwrap_or_default(), "must be zero or positive");
        errors.push(ConfigError::invalid("filterTimeout", text, why));
    }
    let binding = args.binding_timeout.as_deref().map_or(Some(BINDING_TIMEOUT), go_duration);
    let binding = binding.filter(|timeout| *timeout >= Duration::from_secs(1));
    if binding.is_none() {
        let (text, why) = (args.binding_timeout.unwrap_or_default(), "must be at least 1 second");
        errors.push(ConfigError::invalid("bindingTimeout", text, why));
    }
    let plugin = DynamicResources::new(binding.unwrap_or(BINDING_TIMEOUT));
    checked(plugin.with_filter_timeout(filter.unwrap_or(FILTER_TIMEOUT)), errors)
}

pub(crate) fn pod_topology_spread(args: &Value) -> Result<PodTopologySpread, Errors> {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
    struct Args {
        default_constraints: Vec<TopologySpreadConstraint>,
        defaulting_type: Option<String>,
    }
    let args: Args = read(args)?;
    let mut errors = Vec::new();
    let kind = args.defaulting_type.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("System");
    if !matches!(kind, "System" | "List") {
        let why = format!("Unsupported value: {kind:?}: supported values: \"System\", \"List\"");
        errors.push(ConfigError::new("defaultingType", why));
    }
    if kind == "System" && !args.default_constraints.is_empty() {
        let why = "when .defaultConstraints are not empty";
        errors.push(ConfigError::invalid("defaultingType", format!("{kind:?}"), why));
    }
    for (number, constraint) in args.default_constraints.iter().enumerate() {
        let same = |other: &TopologySpreadConstraint| {
            other.topology_key == constraint.topology_key
                && other.when_unsatisfiable == constraint.when_unsatisfiable
        };
        let repeated = args.default_constraints[..number].iter().any(same);
        check_constraint(constraint, repeated, &format!("defaultConstraints[{number}]"), &mut errors);
    }
    let plugin = match kind {
        "List" => {
            let constraints = args.default_constraints.iter();
            let read = |constraint| SpreadConstraint::read(constraint, &kcore::Labels::default());
            PodTopologySpread::with_defaults(constraints.map(read).collect())
        }
        _ => PodTopologySpread::default(),
    };
    checked(plugin, errors)
}

fn check_constraint(constraint: &TopologySpreadConstraint, repeated: bool, path: &str, errors: &mut Errors) {
    let TopologySpreadConstraint { max_skew, topology_key: key, when_unsatisfiable: otherwise, .. } =
        constraint;
    if *max_skew <= 0 {
        errors.push(ConfigError::invalid(format!("{path}.maxSkew"), max_skew, "not in valid range (0, inf)"));
    }
    if key.is_empty() {
        errors.push(ConfigError::new(format!("{path}.topologyKey"), "Required value: can not be empty"));
    }
    let path_otherwise = format!("{path}.whenUnsatisfiable");
    match otherwise.as_str() {
        "DoNotSchedule" | "ScheduleAnyway" => {}
        "" => errors.push(ConfigError::new(path_otherwise, "Required value: can not be empty")),
        other => {
            let why = format!(
                "Unsupported value: {other:?}: supported values: \"DoNotSchedule\", \"ScheduleAnyway\""
            );
            errors.push(ConfigError::new(path_otherwise, why));
        }
    }
    if constraint.label_selector.is_some() {
        let why = "Forbidden: constraint must not define a selector, as they deduced for each pod";
        errors.push(ConfigError::new(format!("{path}.labelSelector"), why));
    }
    if repeated {
        errors.push(ConfigError::new(path, format!("Duplicate value: \"{{{key}, {otherwise}}}\"")));
    }
}

pub(crate) fn inter_pod_affinity(args: &Value) -> Result<InterPodAffinity, Errors> {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
    struct Args {
        hard_pod_affinity_weight: Option<i64>,
        ignore_preferred_terms_of_existing_pods: bool,
    }
    let args: Args = read(args)?;
    let weight = args.hard_pod_affinity_weight.unwrap_or(1);
    let mut errors = Vec::new();
    if !(0..=100).contains(&weight) {
        errors.push(ConfigError::invalid("hardPodAffinityWeight", weight, "not in valid range [0, 100]"));
    }
    let plugin = InterPodAffinity {
        hard_pod_affinity_weight: weight,
        ignore_preferred_terms_of_existing_pods: args.ignore_preferred_terms_of_existing_pods,
    };
    checked(plugin, errors)
}

pub(crate) fn default_preemption(args: &Value) -> Result<DefaultPreemption, Errors> {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
    struct Args {
        min_candidate_nodes_percentage: Option<i64>,
        min_candidate_nodes_absolute: Option<i64>,
    }
    let args: Args = read(args)?;
    let percentage = args.min_candidate_nodes_percentage.unwrap_or(10);
    let absolute = args.min_candidate_nodes_absolute.unwrap_or(100);
    let (of_percentage, of_absolute) = ("minCandidateNodesPercentage", "minCandidateNodesAbsolute");
    let mut errors = Vec::new();
    if !(0..=100).contains(&percentage) {
        errors.push(ConfigError::invalid(of_percentage, percentage, "not in valid range [0, 100]"));
    }
    if absolute < 0 {
        errors.push(ConfigError::invalid(of_absolute, absolute, "not in valid range [0, inf)"));
    }
    if percentage == 0 && absolute == 0 {
        for (path, other) in [(of_percentage, of_absolute), (of_absolute, of_percentage)] {
            let why = format!("cannot be zero at the same time as {other}");
            errors.push(ConfigError::invalid(path, 0, &why));
        }
    }
    let number = |value: i64| usize::try_from(value).unwrap_or_default();
    checked(DefaultPreemption::candidates(number(percentage), number(absolute)), errors)
}
