"""Config -> Plan: frozen, with every decision made before the first request."""
