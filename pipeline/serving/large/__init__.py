"""The large server: the large tier, tensor parallel, behind a node's door."""
