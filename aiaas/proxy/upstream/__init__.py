"""Send an admitted request to vLLM and relay the answer: backends, endpoints, retries, connections."""
