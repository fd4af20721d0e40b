//! What an update of a pod or template may keep although it is not valid any more (`pkg/api/pod/util.go`).

use kschema::error::FieldError;
use serde_json::Value;

use super::{affinity, annotations, containers::all_containers, resources, security, spread};
use crate::{
    check::{Look, Path},
    volume_source,
};

/// Which rules are relaxed. All are strict for new objects.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// It is a pod and not a template.
    pub(crate) pod: bool,
    /// The deletion cost was no number.
    pub(crate) lax_deletion_cost: bool,
    /// The selectors of (anti-)affinity were faulty.
    pub(crate) lax_affinity: bool,
    /// The values of the required node affinity were faulty.
    pub(crate) lax_node_values: bool,
    /// The selectors of spread constraints were faulty.
    pub(crate) lax_spread: bool,
    /// The label keys of spread constraints were faulty.
    pub(crate) lax_spread_keys: bool,
    /// Amounts of huge pages were no whole pages.
    pub(crate) lax_huge_pages: bool,
    /// The path of a projected token went up.
    pub(crate) lax_token_path: bool,
    /// Sysctls of the host's namespaces were set.
    pub(crate) lax_sysctls: bool,
    /// An init container's resize policy asked for a restart.
    pub(crate) lax_init_resize: bool,
    /// Block devices were used with a user namespace.
    pub(crate) lax_devices: bool,
    /// The host's network was used with a user namespace.
    pub(crate) lax_host_network: bool,
    /// Tolerations compared numbers (KEP-5471, off by default).
    pub(crate) comparisons: bool,
    /// A policy other than `Recursive` was used (KEP-1710, off by default).
    pub(crate) se_linux_policies: bool,
}

impl Options {
    /// The options for changing a template (or, with `pod`, a pod) from `old`.
    pub(crate) fn of_update(old: &Value, pod: bool) -> Self {
        let (spec, path) = (&old["spec"], Path::root(""));
        let found = |check: &dyn Fn(&mut Vec<FieldError>)| {
            let mut errors = Vec::new();
            check(&mut errors);
            !errors.is_empty()
        };
        let user_namespace = spec.some_flag("hostUsers") == Some(false);
        let policy = spec["securityContext"].has("seLinuxChangePolicy");
        Self {
            pod,
            lax_deletion_cost: annotations::deletion_cost_is_faulty(&old["metadata"]),
            lax_affinity: affinity::selectors_are_faulty(spec),
            lax_node_values: affinity::node_values_are_faulty(spec),
            lax_spread: spread::selectors_are_faulty(spec),
            lax_spread_keys: spread::keys_are_faulty(spec),
            lax_huge_pages: resources::uses_broken_huge_pages(spec),
            lax_token_path: found(&|errors| token_paths(spec, &path, errors)),
            lax_sysctls: found(&|errors| security::host_sysctls(spec, &path, errors)),
            lax_init_resize: spec.list("initContainers").iter().any(|container| {
                container.text("restartPolicy") != "Always"
                    && container
                        .list("resizePolicy")
                        .iter()
                        .any(|p| p.text("restartPolicy") == "RestartContainer")
            }),
            lax_devices: user_namespace && all_containers(spec).any(|(_, _, c)| c.count("volumeDevices") > 0),
            lax_host_network: user_namespace && spec.flag("hostNetwork"),
            comparisons: spec.list("tolerations").iter().any(|t| matches!(t.text("operator"), "Lt" | "Gt")),
            se_linux_policies: policy,
        }
    }
}

fn token_paths(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for volume in spec.list("volumes") {
        for source in volume.get("projected").map(|all| all.list("sources")).unwrap_or_default() {
            if let Some(token) = source.get_some("serviceAccountToken") {
                volume_source::local_path(token.text("path"), path, errors);
            }
        }
    }
}
