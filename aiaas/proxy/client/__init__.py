"""The client side: accept connections, read and identify requests, write answers."""
