"""From an admitted request to vLLM's answer: which backend, which endpoint, how often, and byte for byte."""
