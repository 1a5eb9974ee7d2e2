"""Thin doors to the world: processes, services, libraries. They translate foreign errors and decide nothing."""
