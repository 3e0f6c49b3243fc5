"""Small random models of many architectures, compared live with transformers: ``python -m ci.architectures -h``.

``shapes`` lists the models, each a ``shape``, and ``weights`` fills them; ``reference`` runs them in transformers;
``convert`` makes GGUF files of them with llama.cpp's own converter, which ``converter`` drives in a process of its own;
``compare`` runs both sides, with the ``edits`` that both know; a ``result`` is held to the ``bounds``; ``table`` writes
``docs/architectures.md``.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# the tests' models and their cache
if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))
