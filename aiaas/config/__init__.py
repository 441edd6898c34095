"""The operator's config file: its model, loading it and checking it."""
