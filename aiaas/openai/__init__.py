"""The wire format of the OpenAI-compatible API, without I/O."""
