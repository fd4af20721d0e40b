//! Pods on a node: the pod machine, the node agent and container runtimes
