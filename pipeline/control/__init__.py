"""The OffloadController: observe, decide, act."""
