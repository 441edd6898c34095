"""What is told: the log, the metrics, and the facts of a request that both are made of."""
