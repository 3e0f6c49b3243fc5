"""Compares small random models of many architectures with transformers.

    python -m ci.architectures                      all of them
    python -m ci.architectures llama gpt-oss        only these
    python -m ci.architectures --write              all, and write docs/architectures.md

Exit code 1 where a bound does not hold. Needs the extra `reference`: torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path

from ci.project import BuildError
from ci.steps import write_text

from . import shapes, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ci.architectures", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(shapes.BY_NAME)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--write", action="store_true", help="write docs/architectures.md; takes all architectures")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in shapes.BY_NAME]:
        parser.error(f"no architecture is called {', '.join(unknown)}; there are {', '.join(shapes.BY_NAME)}")
    if given.names and given.write:
        parser.error("--write takes all architectures: give no names")
    if missing := [package for package in ("torch", "transformers") if find_spec(package) is None]:
        sys.exit(f"{' and '.join(missing)} missing: pip install torch==2.13.0, then pip install -e '.[reference]'")
    try:
        results = compared([shapes.BY_NAME[name] for name in given.names or shapes.BY_NAME])
    except BuildError as error:
        sys.exit(f"error: {error}")
    if given.json:
        write_text(given.json, json.dumps([found.as_json() for found in results], indent=1) + "\n")
    if given.write:
        table.write(results)
        print(f"wrote the tables into {table.PAGE.relative_to(table.ROOT)}")
    print(f"{len(results)} architectures, {sum(found.n_arrays for found in results)} arrays compared")
    return 1 if any(found.problems for found in results) else 0


def compared(chosen: list[shapes.Shape]) -> list:
    """The results of these shapes, each printed as soon as it is there."""
    import torch

    from . import compare, convert

    # for models so small, waiting for other threads takes longer than computing
    torch.set_num_threads(1)
    files, results = convert.files(chosen), []
    for shape in chosen:
        found = compare.compare(shape, files[shape.name])
        results.append(found)
        shown = ", ".join(f"{name} {error:.1e}" for name, error in found.errors.items())
        print(f"{shape.name:<20} {shown}", flush=True)
        for problem in found.problems:
            print(f"{'':<20} {problem}", flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
