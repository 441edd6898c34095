"""Child processes that aiaas starts: a managed vLLM, and the simulator."""
