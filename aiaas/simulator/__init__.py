"""The simulator: a stand-in for vLLM that answers as vLLM does on the wire and identifies itself in every answer."""
