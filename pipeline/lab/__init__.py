"""What sees all parts at once: a small site on one machine, and a tour of it."""
