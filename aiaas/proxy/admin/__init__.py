"""The admin endpoint: what a gateway tells its operator about itself, on loopback only."""
