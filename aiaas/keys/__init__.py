"""API keys: make and parse one, hash and verify it, keep the records in a file."""
