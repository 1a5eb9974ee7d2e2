"""One module per DVC stage, named as in dvc.yaml: cached, reproducible, offline, without an identity."""
