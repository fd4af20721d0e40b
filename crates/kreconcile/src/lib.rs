//! Watch, cache, queue, retry and leader election for everything that acts on a Kubernetes API; with the built-in controllers
