"""Wire knowledge of the OpenAI-compatible API, without I/O."""
