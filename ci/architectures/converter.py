"""llama.cpp's converter with another vocabulary: ``python converter.py TREE JOBS.json``, a program of its own.

A process can load one version of ``gguf`` only, and the converter needs the one of its own tree. All models of a call
are converted in one process, since importing torch and transformers takes far longer than converting.

``JOBS.json`` holds ``vocabulary``, the tokenizer's entries as ``[key, value, type, type of items]``, and ``jobs``, for
each model the converter's ``arguments`` and ``config``, keys of config.json that transformers loses when it reads the
file. Random models have no tokenizer, and what the converter asks of one differs by architecture: so all get these
entries, and everything else is the converter's own.
"""

from __future__ import annotations

import json
import logging
import runpy
import sys
from pathlib import Path


def main(tree: Path, work: Path) -> None:
    given = json.loads(work.read_text(encoding="utf-8"))
    sys.path[:0] = [str(tree), str(tree / "gguf-py")]
    import conversion
    import gguf

    find_class, load_config = conversion.get_model_class, conversion.ModelBase.load_hparams

    def set_vocab(self) -> None:
        for key, value, kind, items in given["vocabulary"]:
            self.gguf_writer.add_key_value(
                key, value, gguf.GGUFValueType(kind), None if items is None else gguf.GGUFValueType(items)
            )

    def with_vocabulary(*args, **options):
        found = find_class(*args, **options)
        found.set_vocab = set_vocab
        return found

    conversion.get_model_class = with_vocabulary
    script = str(tree / "convert_hf_to_gguf.py")
    for job in given["jobs"]:
        conversion.ModelBase.load_hparams = staticmethod(
            lambda *args, job=job, **options: load_config(*args, **options) | job["config"]
        )
        sys.argv = [script, *job["arguments"]]
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    logging.disable(logging.INFO)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
