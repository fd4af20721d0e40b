//! Pods on a node: the pod machine, the node agent and container runtimes
pub mod logs;
pub mod machine;
pub mod runtime;
