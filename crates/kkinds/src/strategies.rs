//! Which strategy a built-in resource has.

use std::sync::Arc;

use kcore::{Clock, SystemClock};
use kschema::strategy::{Plain, Strategy};

use crate::{
    access_review, admission_policy, api_service, autoscaler, certificate_request, config_map, cron_job, csi,
    daemon_set, deployment, device, disruption_budget, endpoints, event, eviction_request, flow_control,
    ingress, job, lease, limit_range, namespace, network_policy, node, persistent_volume,
    persistent_volume_claim, pod, pod_certificate, pod_group, priority_class, rbac, replication_controller,
    resource_definition, resource_quota, runtime_class, secret,
    service::{self, ServiceAddresses},
    service_account, service_cidr, stateful_set, storage_class, storage_migration, storage_version,
    volume_attachment, webhook_configuration,
};

/// What the built-in strategies need from outside.
#[derive(Clone, Debug)]
pub struct Strategies {
    /// Which addresses and ports services get.
    pub addresses: Arc<ServiceAddresses>,
    /// Tells when taints of devices were added, and whether certificates begin now.
    pub clock: Arc<dyn Clock>,
}

impl Default for Strategies {
    fn default() -> Self {
        Self { addresses: Arc::default(), clock: Arc::new(SystemClock) }
    }
}

/// The strategy of a built-in resource.
#[must_use]
pub fn builtin(qualified: &str, strategies: &Strategies) -> Arc<dyn Strategy> {
    let found = core(qualified, strategies).or_else(|| workload(qualified)).or_else(|| cluster(qualified));
    let found = found.or_else(|| extension(qualified, strategies)).or_else(|| off(qualified, strategies));
    found.unwrap_or_else(|| Arc::new(Plain))
}

/// The kinds of the core group, and those that stand for them in groups of their own.
fn core(qualified: &str, strategies: &Strategies) -> Option<Arc<dyn Strategy>> {
    let loopback = strategies.addresses.loopback;
    Some(match qualified {
        "pods" => Arc::new(pod::Pods),
        "podtemplates" => Arc::new(pod::PodTemplates),
        "nodes" => Arc::new(node::Nodes),
        "namespaces" => Arc::new(namespace::Namespaces),
        "configmaps" => Arc::new(config_map::ConfigMaps),
        "secrets" => Arc::new(secret::Secrets),
        "serviceaccounts" => Arc::new(service_account::ServiceAccounts),
        "endpoints" => Arc::new(endpoints::Endpoints { loopback }),
        "endpointslices.discovery.k8s.io" => Arc::new(endpoints::EndpointSlices { loopback }),
        "events" => Arc::new(event::Events { strict: false }),
        "events.events.k8s.io" => Arc::new(event::Events { strict: true }),
        "limitranges" => Arc::new(limit_range::LimitRanges),
        "resourcequotas" => Arc::new(resource_quota::ResourceQuotas),
        "persistentvolumes" => Arc::new(persistent_volume::PersistentVolumes),
        "persistentvolumeclaims" => Arc::new(persistent_volume_claim::PersistentVolumeClaims),
        "services" => Arc::new(service::Services::new(Arc::clone(&strategies.addresses))),
        _ => return None,
    })
}

/// The kinds that keep pods running.
fn workload(qualified: &str) -> Option<Arc<dyn Strategy>> {
    Some(match qualified {
        "deployments.apps" => Arc::new(deployment::Deployments),
        "replicasets.apps" => Arc::new(deployment::ReplicaSets),
        "statefulsets.apps" => Arc::new(stateful_set::StatefulSets),
        "daemonsets.apps" => Arc::new(daemon_set::DaemonSets),
        "controllerrevisions.apps" => Arc::new(stateful_set::ControllerRevisions),
        "replicationcontrollers" => Arc::new(replication_controller::ReplicationControllers),
        "jobs.batch" => Arc::new(job::Jobs),
        "cronjobs.batch" => Arc::new(cron_job::CronJobs),
        "horizontalpodautoscalers.autoscaling" => Arc::new(autoscaler::HorizontalPodAutoscalers),
        "poddisruptionbudgets.policy" => Arc::new(disruption_budget::PodDisruptionBudgets),
        _ => return None,
    })
}

/// The kinds that say what a cluster has, and who may do what.
fn cluster(qualified: &str) -> Option<Arc<dyn Strategy>> {
    Some(match qualified {
        "networkpolicies.networking.k8s.io" => Arc::new(network_policy::NetworkPolicies),
        "ingresses.networking.k8s.io" => Arc::new(ingress::Ingresses),
        "ingressclasses.networking.k8s.io" => Arc::new(ingress::IngressClasses),
        "servicecidrs.networking.k8s.io" => Arc::new(service_cidr::ServiceCidrs),
        "ipaddresses.networking.k8s.io" => Arc::new(service_cidr::IpAddresses),
        "storageclasses.storage.k8s.io" => Arc::new(storage_class::StorageClasses),
        "volumeattributesclasses.storage.k8s.io" => Arc::new(storage_class::VolumeAttributesClasses),
        "volumeattachments.storage.k8s.io" => Arc::new(volume_attachment::VolumeAttachments),
        "csidrivers.storage.k8s.io" => Arc::new(csi::CsiDrivers),
        "csinodes.storage.k8s.io" => Arc::new(csi::CsiNodes),
        "csistoragecapacities.storage.k8s.io" => Arc::new(csi::CsiStorageCapacities),
        "roles.rbac.authorization.k8s.io" => Arc::new(rbac::Roles { namespaced: true }),
        "clusterroles.rbac.authorization.k8s.io" => Arc::new(rbac::Roles { namespaced: false }),
        "rolebindings.rbac.authorization.k8s.io" => Arc::new(rbac::Bindings { namespaced: true }),
        "clusterrolebindings.rbac.authorization.k8s.io" => Arc::new(rbac::Bindings { namespaced: false }),
        "subjectaccessreviews.authorization.k8s.io" => {
            Arc::new(access_review::AccessReviews { of_others: true, local: false })
        }
        "localsubjectaccessreviews.authorization.k8s.io" => {
            Arc::new(access_review::AccessReviews { of_others: true, local: true })
        }
        "selfsubjectaccessreviews.authorization.k8s.io" => {
            Arc::new(access_review::AccessReviews { of_others: false, local: false })
        }
        "priorityclasses.scheduling.k8s.io" => Arc::new(priority_class::PriorityClasses),
        "runtimeclasses.node.k8s.io" => Arc::new(runtime_class::RuntimeClasses),
        "leases.coordination.k8s.io" => Arc::new(lease::Leases),
        "leasecandidates.coordination.k8s.io" => Arc::new(lease::LeaseCandidates),
        _ => return None,
    })
}

/// The kinds that extend the server, and say how it serves.
fn extension(qualified: &str, strategies: &Strategies) -> Option<Arc<dyn Strategy>> {
    Some(match qualified {
        "apiservices.apiregistration.k8s.io" => Arc::new(api_service::ApiServices),
        "customresourcedefinitions.apiextensions.k8s.io" => {
            Arc::new(resource_definition::CustomResourceDefinitions)
        }
        "mutatingwebhookconfigurations.admissionregistration.k8s.io"
        | "validatingwebhookconfigurations.admissionregistration.k8s.io" => {
            Arc::new(webhook_configuration::WebhookConfigurations)
        }
        "validatingadmissionpolicies.admissionregistration.k8s.io" => {
            Arc::new(admission_policy::ValidatingPolicies)
        }
        "mutatingadmissionpolicies.admissionregistration.k8s.io" => {
            Arc::new(admission_policy::MutatingPolicies)
        }
        "validatingadmissionpolicybindings.admissionregistration.k8s.io" => {
            Arc::new(admission_policy::Bindings { mutates: false })
        }
        "mutatingadmissionpolicybindings.admissionregistration.k8s.io" => {
            Arc::new(admission_policy::Bindings { mutates: true })
        }
        "flowschemas.flowcontrol.apiserver.k8s.io" => Arc::new(flow_control::FlowSchemas),
        "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io" => Arc::new(flow_control::PriorityLevels),
        "certificatesigningrequests.certificates.k8s.io" => {
            Arc::new(certificate_request::CertificateSigningRequests)
        }
        "clustertrustbundles.certificates.k8s.io" => Arc::new(certificate_request::ClusterTrustBundles),
        "storageversionmigrations.storagemigration.k8s.io" => {
            Arc::new(storage_migration::StorageVersionMigrations)
        }
        "resourceclaims.resource.k8s.io" => Arc::new(device::claim::ResourceClaims),
        "resourceclaimtemplates.resource.k8s.io" => Arc::new(device::claim::ResourceClaimTemplates),
        "deviceclasses.resource.k8s.io" => Arc::new(device::claim::DeviceClasses),
        "resourceslices.resource.k8s.io" => {
            Arc::new(device::slice::ResourceSlices { clock: Arc::clone(&strategies.clock) })
        }
        _ => return None,
    })
}

/// The kinds that are off by default upstream.
fn off(qualified: &str, strategies: &Strategies) -> Option<Arc<dyn Strategy>> {
    Some(match qualified {
        "devicetaintrules.resource.k8s.io" => {
            Arc::new(device::taint_rule::DeviceTaintRules { clock: Arc::clone(&strategies.clock) })
        }
        "resourcepoolstatusrequests.resource.k8s.io" => {
            Arc::new(device::pool_status::ResourcePoolStatusRequests)
        }
        "podcertificaterequests.certificates.k8s.io" => {
            Arc::new(pod_certificate::PodCertificateRequests { clock: Arc::clone(&strategies.clock) })
        }
        "storageversions.internal.apiserver.k8s.io" => Arc::new(storage_version::StorageVersions),
        "evictionrequests.lifecycle.k8s.io" => {
            Arc::new(eviction_request::EvictionRequests { evictions: false })
        }
        "evictions.lifecycle.k8s.io" => Arc::new(eviction_request::EvictionRequests { evictions: true }),
        "workloads.scheduling.k8s.io" => Arc::new(pod_group::Workloads),
        "podgroups.scheduling.k8s.io" => Arc::new(pod_group::PodGroups { composite: false }),
        "compositepodgroups.scheduling.k8s.io" => Arc::new(pod_group::PodGroups { composite: true }),
        _ => return None,
    })
}
