"""Floods of connections against a gateway in a pod's memory, with innocent clients beside them."""
