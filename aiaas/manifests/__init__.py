"""Plan -> Kubernetes objects. Pure."""
