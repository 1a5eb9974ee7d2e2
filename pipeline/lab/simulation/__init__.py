"""Fleets in discrete events: the `route` and `decide` of production, with drawn requests and drawn faults."""
