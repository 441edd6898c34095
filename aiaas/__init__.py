"""aiaas: the gateway that a platform team puts in front of its own vLLM."""

__version__ = "0.1.0"
