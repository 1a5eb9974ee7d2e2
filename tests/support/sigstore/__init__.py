"""The services of a private Sigstore instance, on loopback. The clients are the unmodified ones."""
