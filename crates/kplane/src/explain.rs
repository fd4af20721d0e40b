//! Where a pod would go, and why: `kplane explain pod`.

use std::{path::Path, sync::Arc};

use ksched::{Profile, config::SchedulerConfiguration, registry::Registry, what_if};
use kube::Client;

/// Why nothing can be explained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// The cluster can't be read.
    #[error("the cluster can't be read: {0}")]
    Cluster(#[from] what_if::WhatIfError),
    /// There is no such pod.
    #[error("pods {name:?} not found in the namespace {namespace}")]
    NoPod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// No profile is for the pod's scheduler.
    #[error("the pod is for the scheduler {0}, of which there is no profile")]
    NoProfile(String),
    /// A scheduler's configuration can't be read.
    #[error("{path}: {why}")]
    Configuration {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
}

/// Reads the profiles of a `KubeSchedulerConfiguration` from a file, in YAML or JSON.
///
/// # Errors
/// When it can't be read, or is wrong.
pub fn profiles(path: &Path) -> Result<Vec<Profile>, ExplainError> {
    let fail = |why: String| ExplainError::Configuration { path: path.display().to_string(), why };
    let text = std::fs::read_to_string(path).map_err(|why| fail(why.to_string()))?;
    let value = serde_saphyr::from_str(&text).map_err(|why| fail(why.to_string()))?;
    let read = SchedulerConfiguration::from_value(value).and_then(|read| read.profiles(&Registry::default()));
    read.map_err(|why| fail(why.to_string()))
}

/// Each node with its scores for the pod, or with why the pod can't go there. One that has a node is looked at as if it
/// waited for one again. Nothing is written.
///
/// ```no_run
/// # async fn example(client: kube::Client) -> Result<(), kplane::explain::ExplainError> {
/// let profiles = [ksched::Profile::default()];
/// println!("{}", kplane::explain::pod(&client, &profiles, "default", "web").await?);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// When there is no such pod, no profile for it, or the cluster can't be read.
pub async fn pod(
    client: &Client,
    profiles: &[Profile],
    namespace: &str,
    name: &str,
) -> Result<String, ExplainError> {
    let (snapshot, waiting) = what_if::from_cluster(client, profiles).await?;
    let placed = snapshot.nodes().flat_map(|node| node.pods().iter());
    let mut all = waiting.iter().chain(placed);
    let pod = all.find(|pod| *pod.namespace == *namespace && *pod.name == *name).map(Arc::clone);
    let missing = || ExplainError::NoPod { namespace: namespace.to_owned(), name: name.to_owned() };
    let pod = pod.ok_or_else(missing)?;
    let profile = profiles.iter().find(|profile| profile.scheduler_name() == &*pod.scheduler_name);
    let profile = profile.ok_or_else(|| ExplainError::NoProfile(pod.scheduler_name.to_string()))?;
    let mut text = what_if::explain(profile, &snapshot, &pod);
    if let Some(node) = &pod.node_name {
        text.push_str(&format!("It is on {node} now.\n"));
    }
    Ok(text)
}
