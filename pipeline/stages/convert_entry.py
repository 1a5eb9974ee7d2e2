"""Run as a program: llama.cpp's own converter, with a pre-tokenizer for tokenizers it does not know.

    python -P convert_entry.py LLAMA_CPP PRE_TOKENIZER ARGUMENT...

Rules: the converter is not edited, and the given pre-tokenizer (empty: none) counts only where it would give up; its
`gguf-py` comes first on the path, so an installed `gguf` of another version does not matter.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any


def main(llama_cpp: Path, pre_tokenizer: str, arguments: list[str]) -> None:
    """Convert as `convert_hf_to_gguf.py ARGUMENT...` does."""
    sys.path[:0] = [str(llama_cpp / "gguf-py"), str(llama_cpp)]
    if pre_tokenizer:
        _know(pre_tokenizer)
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    runpy.run_path(str(llama_cpp / "convert_hf_to_gguf.py"), run_name="__main__")


def _know(pre_tokenizer: str) -> None:
    from conversion.base import TextModel

    known = TextModel.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            return pre_tokenizer

    TextModel.get_vocab_base_pre = get_vocab_base_pre


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
