"""The simulator: a stand-in for vLLM that answers as vLLM does on the wire and says in every answer what it is."""
