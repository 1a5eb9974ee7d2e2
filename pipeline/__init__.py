"""edge-release: from one teacher model to a signed release of variants, and everything that consumes it."""
