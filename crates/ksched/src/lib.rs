//! The Kubernetes scheduler as a library: framework, plug-ins and explained decisions
