"""A model folder's weights as transformers loads them: from disk, without remote code, its errors said well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import StageError


def load(folder: Path, **settings: Any) -> Any:
    """Return the causal language model in `folder`; `settings` are `from_pretrained`'s, `dtype` among them.

    Raises:
        StageError: transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **settings)
    except (OSError, ValueError, KeyError) as e:
        raise StageError(f"{folder}: transformers cannot load it: {e}", hint="fetch the model again") from e
