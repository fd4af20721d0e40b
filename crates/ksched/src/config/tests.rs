use serde_json::{Value, json};

use super::{SchedulerConfiguration, merge};
use crate::{Profile, build, decide, registry::Registry};

fn configuration(profiles: &Value) -> Value {
    json!({"apiVersion": super::API_VERSION, "kind": "KubeSchedulerConfiguration", "profiles": profiles})
}

fn profile(profile: &Value) -> Result<Profile, String> {
    let read = SchedulerConfiguration::from_value(configuration(&json!([profile])));
    let built = read.and_then(|read| read.profiles(&Registry::default()));
    built.map(|mut profiles| profiles.remove(0)).map_err(|errors| errors.to_string())
}

#[test]
fn without_anything_it_is_the_default_profile() {
    let (read, built) = (profile(&json!({})).unwrap(), Profile::default());
    assert_eq!(read.scheduler_name(), "default-scheduler");
    assert!(read.filters().eq(built.filters()));
    assert!(read.scores().eq(built.scores()));
    let registry = Registry::default();
    let names: Vec<_> = registry.names().collect();
    assert!(merge::default_names().iter().all(|name| names.contains(name)));
    assert_eq!(names.len(), merge::default_names().len());
}

/// <https://kubernetes.io/docs/reference/scheduling/config/#multipoint>, with its examples.
#[test]
fn points_and_all_points_are_merged() {
    let scores = |plugins: Value| -> Vec<(String, i64)> {
        let profile = profile(&json!({"plugins": plugins})).unwrap();
        profile.scores().map(|(name, weight)| (name.to_owned(), weight)).collect()
    };
    let off = json!([{"name": "*"}]);
    let named = |pairs: &[(&str, i64)]| -> Vec<(String, i64)> {
        pairs.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect()
    };
    assert_eq!(
        scores(json!({"score": {"disabled": off, "enabled": [{"name": "ImageLocality", "weight": 7}]}})),
        named(&[("ImageLocality", 7)])
    );
    // What a point names itself comes first, if it is enabled for all points too.
    let all = json!({"disabled": off, "enabled":
        [{"name": "TaintToleration", "weight": 3}, {"name": "NodeAffinity"}, {"name": "DefaultBinder"}, {"name": "PrioritySort"}]});
    assert_eq!(
        scores(
            json!({"multiPoint": all, "score": {"enabled": [{"name": "NodeAffinity", "weight": 9}, {"name": "ImageLocality"}]}})
        ),
        named(&[("NodeAffinity", 9), ("TaintToleration", 3), ("ImageLocality", 1)])
    );
    assert_eq!(
        scores(json!({"multiPoint": all, "score": {"disabled": [{"name": "TaintToleration"}]}})),
        named(&[("NodeAffinity", 1)])
    );
    // A default one that is enabled again keeps its place and gets the new weight.
    let weights = scores(json!({"multiPoint": {"enabled": [{"name": "NodeAffinity", "weight": 50}]}}));
    assert_eq!(weights[1], ("NodeAffinity".to_owned(), 50));
}

/// The texts are those of upstream's `validation.go` and `validation_pluginargs.go`.
#[test]
fn what_is_wrong_is_told() {
    let args = |name: &str, args: Value| json!({"pluginConfig": [{"name": name, "args": args}]});
    let cases = [
        (json!({"schedulerName": ""}), "profiles[0].schedulerName: Required value"),
        (
            json!({"plugins": {"filter": {"enabled": [{"name": "Nonsense"}]}}}),
            "profiles[0].plugins: \"Nonsense\" does not exist",
        ),
        (
            json!({"plugins": {"filter": {"enabled": [{"name": "ImageLocality"}]}}}),
            "profiles[0].plugins: plugin \"ImageLocality\" does not extend Filter plugin",
        ),
        (
            json!({"plugins": {"bind": {"disabled": [{"name": "*"}]}}}),
            "profiles[0].plugins: a profile needs a plug-in for Bind",
        ),
        (
            args("DefaultPreemption", json!({"minCandidateNodesPercentage": 101})),
            "profiles[0].pluginConfig[0].args.minCandidateNodesPercentage: Invalid value: 101: not in valid range [0, 100]",
        ),
        (
            args("InterPodAffinity", json!({"hardPodAffinityWeight": -1})),
            "profiles[0].pluginConfig[0].args.hardPodAffinityWeight: Invalid value: -1: not in valid range [0, 100]",
        ),
        (
            args("NodeResourcesFit", json!({"scoringStrategy": {"type": "Most"}})),
            "profiles[0].pluginConfig[0].args.scoringStrategy.type: Unsupported value: \"Most\": supported values: \"LeastAllocated\", \"MostAllocated\", \"RequestedToCapacityRatio\"",
        ),
        (
            args(
                "NodeResourcesFit",
                json!({"scoringStrategy": {"type": "RequestedToCapacityRatio",
                "requestedToCapacityRatio": {"shape": [{"utilization": 50, "score": 3}, {"utilization": 10, "score": 11}]}}}),
            ),
            "[profiles[0].pluginConfig[0].args.scoringStrategy.requestedToCapacityRatio.shape[1].utilization: Invalid value: 10: values must be sorted in increasing order, profiles[0].pluginConfig[0].args.scoringStrategy.requestedToCapacityRatio.shape[1].score: Invalid value: 11: not in valid range [0, 10]]",
        ),
        (
            args(
                "PodTopologySpread",
                json!({"defaultConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}]}),
            ),
            "profiles[0].pluginConfig[0].args.defaultingType: Invalid value: \"System\": when .defaultConstraints are not empty",
        ),
        (
            args("NodeResourcesBalancedAllocation", json!({"resources": [{"name": "cpu", "weight": 2}]})),
            "profiles[0].pluginConfig[0].args.resources[0].weight: Invalid value: 2: must be 1",
        ),
        (
            json!({"pluginConfig": [{"name": "NodeAffinity"}, {"name": "NodeAffinity"}]}),
            "profiles[0].pluginConfig[1]: Duplicate value: \"NodeAffinity\"",
        ),
        (
            args("NodeAffinity", json!({"addedAfinity": {}})),
            "profiles[0].pluginConfig[0].args: strict decoding error: unknown field `addedAfinity`, expected `addedAffinity`",
        ),
        (
            args("DynamicResources", json!({"filterTimeout": "soon", "bindingTimeout": "500ms"})),
            "[profiles[0].pluginConfig[0].args.filterTimeout: Invalid value: soon: must be zero or positive, \
             profiles[0].pluginConfig[0].args.bindingTimeout: Invalid value: 500ms: must be at least 1 second]",
        ),
        (
            args("VolumeBinding", json!({"bindTimeoutSeconds": -1})),
            "profiles[0].pluginConfig[0].args.bindTimeoutSeconds: Invalid value: -1: invalid BindTimeoutSeconds, should not be a negative value",
        ),
        (
            json!({"plugins": {"filter": {"enabled": [{"name": "EBSLimits"}]}}}),
            "profiles[0].plugins.filter.enabled[0]: Invalid value: \"EBSLimits\": was invalid in version \"kubescheduler.config.k8s.io/v1\" (KubeSchedulerConfiguration is version \"kubescheduler.config.k8s.io/v1\")",
        ),
    ];
    for (given, expected) in cases {
        assert_eq!(profile(&given).map(|_| ()).unwrap_err(), expected, "{given}");
    }
    let two = configuration(&json!([{"schedulerName": "a"}, {"schedulerName": "a"}]));
    let why = SchedulerConfiguration::from_value(two).unwrap_err().to_string();
    assert_eq!(why, "profiles[1].schedulerName: Duplicate value: \"profiles[0].schedulerName\"");
    let mut other = configuration(&json!([]));
    other["podMaxBackoffSeconds"] = 0.into();
    let why = SchedulerConfiguration::from_value(other).unwrap_err().to_string();
    assert_eq!(
        why,
        "podMaxBackoffSeconds: Invalid value: 0: must be greater than or equal to PodInitialBackoffSeconds"
    );
}

#[test]
fn arguments_have_their_effect() {
    let mut snapshot = crate::Snapshot::new();
    for (name, cpu) in [("small", "2"), ("large", "8")] {
        snapshot.set_node(
            build::node(name).resource("cpu", cpu).resource("memory", "8Gi").label("size", name).info(),
        );
    }
    let pod = build::pod("p").request("cpu", "1").request("example.com/card", "1").info();
    let with =
        |name: &str, args: Value| profile(&json!({"pluginConfig": [{"name": name, "args": args}]})).unwrap();
    let most =
        json!({"ignoredResources": ["example.com/card"], "scoringStrategy": {"type": "MostAllocated"}});
    assert_eq!(decide(&with("NodeResourcesFit", most), &snapshot, &pod).node(), Some("small"));
    let of_group = json!({"ignoredResourceGroups": ["example.com"]});
    assert_eq!(decide(&with("NodeResourcesFit", of_group), &snapshot, &pod).node(), Some("large"));
    assert_eq!(decide(&Profile::default(), &snapshot, &pod).node(), None);
    let pod = build::pod("p").request("cpu", "1").info();
    let only_small = json!({"addedAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms":
        [{"matchExpressions": [{"key": "size", "operator": "In", "values": ["small"]}]}]}}});
    let decision = decide(&with("NodeAffinity", only_small), &snapshot, &pod);
    assert_eq!(decision.node(), Some("small"));
    let reasons: Vec<_> =
        decision.diagnosis().rejected.iter().map(|(.., rejection)| rejection.message()).collect();
    assert_eq!(reasons, ["node(s) didn't match scheduler-enforced node affinity"]);
    let rather_small = json!({"addedAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100,
        "preference": {"matchExpressions": [{"key": "size", "operator": "In", "values": ["small"]}]}}]}});
    assert_eq!(decide(&with("NodeAffinity", rather_small), &snapshot, &pod).node(), Some("small"));
}

/// The cases of upstream's `TestValidateKubeSchedulerConfiguration` about extenders
/// (`apis/config/validation/validation_test.go`).
#[test]
fn extenders_are_checked() {
    let check = |extenders: Value, expected: &str| {
        let mut given = configuration(&json!([]));
        given["extenders"] = extenders;
        let why = SchedulerConfiguration::from_value(given).unwrap_err().to_string();
        assert!(why.contains(expected), "{why}");
    };
    let base = || json!({"urlPrefix": "http://127.0.0.1:1"});
    let with = |key: &str, value: Value| {
        let mut extender = base();
        extender[key] = value;
        extender
    };
    let mut heavy = with("weight", json!(-1));
    heavy["prioritizeVerb"] = json!("prioritize");
    check(
        json!([heavy]),
        "extenders[0].weight: Invalid value: -1: must have a positive weight applied to it",
    );
    let binds = with("bindVerb", json!("bind"));
    check(
        json!([binds, binds]),
        "extenders: Invalid value: \"found 2 extenders implementing bind\": only one extender can implement bind",
    );
    let manages = |name: &str| with("managedResources", json!([{"name": name}]));
    check(
        json!([manages("example.com/foo"), manages("example.com/foo")]),
        "extenders[1].managedResources[0].name: Invalid value: \"example.com/foo\": duplicate extender managed resource name",
    );
    check(
        json!([manages("kubernetes.io/foo")]),
        "extenders[0].managedResources[0].name: Invalid value: \"kubernetes.io/foo\": is an invalid extended resource name",
    );
    check(json!([with("httpTimeout", json!("5"))]), "extenders[0].httpTimeout: strict decoding error");
    check(json!([with("verb", json!("x"))]), "unknown field `verb`");
}

#[test]
fn durations_are_read_as_go_writes_them() {
    use std::time::Duration;
    for (text, expected) in [
        ("5s", Some(Duration::from_secs(5))),
        ("1m0.5s", Some(Duration::from_millis(60_500))),
        ("100ms", Some(Duration::from_millis(100))),
        ("0", Some(Duration::ZERO)),
        ("1h", Some(Duration::from_secs(3600))),
        ("5", None),
        ("", None),
        ("s", None),
        ("-1s", None),
        ("1x", None),
    ] {
        assert_eq!(super::extenders::go_duration(text), expected, "{text:?}");
    }
}

/// <https://kubernetes.io/docs/concepts/scheduling-eviction/scheduler-perf-tuning/>; 0 has all nodes looked at here.
#[test]
fn the_share_of_nodes_is_the_profiles_or_that_of_all() {
    let cases = [
        (json!(null), json!(null), None),
        (json!(30), json!(null), Some(30)),
        (json!(30), json!(60), Some(60)),
        (json!(null), json!(60), Some(60)),
        (json!(30), json!(0), None),
        (json!(0), json!(null), None),
        (json!(100), json!(null), None),
    ];
    for (all, one, expected) in cases {
        let mut written = configuration(&json!([{"percentageOfNodesToScore": one}]));
        written["percentageOfNodesToScore"] = all.clone();
        let read = SchedulerConfiguration::from_value(written).unwrap();
        let profiles = read.profiles(&Registry::default()).unwrap();
        assert_eq!(profiles[0].sample_percent, expected, "{all} {one}");
    }
}
