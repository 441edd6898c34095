"""Programs that use the gateway: what each needs, what its user pastes, and whether a gateway offers it."""
