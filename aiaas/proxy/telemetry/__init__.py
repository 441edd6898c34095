"""The log, the metrics, and the facts about a request that both are made of."""
