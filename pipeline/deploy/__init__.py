"""Brings a verified release to a Kubernetes cluster, one Pi first."""
