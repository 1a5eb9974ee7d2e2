"""Serving a release: nodes at the edge, the large server, and the gateway before them."""
