"""Engines that aiaas starts as child processes: vLLM and the simulator."""
