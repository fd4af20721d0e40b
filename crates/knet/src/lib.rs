//! From a Kubernetes Service to a connection: service proxies, address allocation and cluster DNS
