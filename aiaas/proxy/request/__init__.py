"""Read, check, admit and price a request."""
