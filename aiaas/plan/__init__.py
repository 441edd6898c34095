"""Config -> Plan: frozen, with every decision taken before the first request."""
