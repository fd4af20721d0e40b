//! The rules of Kubernetes' built-in kinds that no schema can say: defaults, what may change, what is valid.
//!
//! [`strategies::builtin`] gives the [`Strategy`](kschema::strategy::Strategy) of a resource; `kapi` asks it on each write. A
//! module is named after the kinds it holds.

// What rules are written in.
mod check;

// Parts that several kinds share.
mod admission_rules;
mod certificate_content;
mod certificate_names;
mod claim_spec;
mod declared;
mod der;
mod node_labels;
mod volume_source;
mod webhook_client;

// The kinds of the core group.
mod config_map;
mod endpoints;
mod event;
mod limit_range;
mod namespace;
mod node;
mod pem;
mod persistent_volume;
mod persistent_volume_claim;
mod pod;
mod replication_controller;
mod resource_quota;
mod secret;
mod service;
mod service_account;

// What keeps pods running.
mod autoscaler;
mod cron_job;
mod daemon_set;
mod deployment;
mod disruption_budget;
mod job;
mod stateful_set;
mod workload;

// The other groups.
mod access_review;
mod admission_policy;
mod api_service;
mod certificate_request;
mod csi;
mod device;
mod eviction_request;
mod flow_control;
mod ingress;
mod lease;
mod network_policy;
mod pod_certificate;
mod pod_group;
mod priority_class;
mod rbac;
mod resource_definition;
mod runtime_class;
mod service_cidr;
mod storage_class;
mod storage_migration;
mod storage_version;
mod volume_attachment;
mod webhook_configuration;

// What objects use.
pub mod quota;

pub mod strategies;

pub use self::{service::ServiceAddresses, strategies::Strategies};

/// Whether a `metav1.LabelSelector` selects these labels.
pub use self::check::selects;
