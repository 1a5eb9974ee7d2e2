"""A node at the edge: one released model behind one port, kept current, proven before it answers."""
