"""Plan -> Kubernetes objects, pure."""
