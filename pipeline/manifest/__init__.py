"""The signed statement of one release: bytes in, decision out. No I/O."""
