//! What crosses crates: scenarios, real clients, bad input, leaks, and the tidiness of the tree.

mod bad_input;
mod clients;
mod devices;
mod etcdctl;
mod foreign;
mod ha;
mod helm;
mod kube_rs;
mod kubectl;
mod kubectl_drain;
mod kubectl_groups;
mod kubectl_sets;
mod kubectl_streams;
mod kubectl_tokens;
mod leaks;
mod mini_cluster;
mod paused_time;
mod pod_tokens;
mod scheduling;
mod schemathesis;
mod support;
mod swaps;
mod tidy;
