"""Rate limits, quotas and slots: arithmetic first, stores behind one protocol."""
