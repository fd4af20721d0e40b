//! What crosses crates: scenarios, real clients, bad input, leaks, and the tidiness of the tree.

mod access;
mod api_objects;
mod bad_input;
mod certificates;
mod clients;
mod cloud;
mod devices;
mod etcdctl;
mod faults;
mod foreign;
mod ha;
mod helm;
mod kube_rs;
mod kubectl;
mod kubectl_access;
mod kubectl_drain;
mod kubectl_groups;
mod kubectl_sets;
mod kubectl_streams;
mod kubectl_tokens;
mod kubectl_top;
mod leaks;
mod mini_cluster;
mod nodes;
#[cfg(target_os = "linux")]
mod oci;
mod paused_time;
mod pod_tokens;
mod scenarios;
mod scheduling;
mod schemathesis;
mod support;
mod swaps;
mod tidy;
mod volumes;
