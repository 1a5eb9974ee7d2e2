"""A model as a Hugging Face folder, whole or split for tensor parallelism."""
