"""Small random models of many architectures, compared live with transformers: ``python -m ci.architectures -h``.

``shapes`` lists the models, ``reference`` runs them in transformers, ``convert`` makes GGUF files of them with llama.cpp's
own converter, ``compare`` runs both sides, and ``table`` writes ``docs/architectures.md``.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# the tests' models and their cache
if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))
