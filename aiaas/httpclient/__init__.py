"""The one HTTP/1.1 client of smoke test and load test: it reads the clock before anything else."""
