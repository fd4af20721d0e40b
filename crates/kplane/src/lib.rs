//! A Kubernetes cluster inside your process: the builder that composes kplane's crates
