"""The HTTP/1.1 client of the smoke test and the load test: it reads the clock before it parses."""
