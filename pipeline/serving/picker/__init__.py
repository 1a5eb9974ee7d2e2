"""The endpoint picker: the gateway's decision for a data plane that carries the bytes itself."""
