"""The cost of a request and of a stream event: aiaas beside nginx, on the same core. `python -m tests.bench`."""
