"""What a request and a stream event cost: aiaas beside nginx, on the same core, in one run. `python -m tests.bench`."""
