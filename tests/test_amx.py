"""Matrix instructions of Intel's servers: a compiler must not drop the shapes of their tiles."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest

from ci import toolchain

HEADER = Path(__file__).parents[1] / "patches" / "native" / "amx.h"

#: the first argument goes into the shape of a tile, and so does the second
SOURCE = """
#include <immintrin.h>
struct shapes { unsigned char palette, start, none[14]; unsigned short columns[16]; unsigned char rows[16]; };
void load(int columns, int rows) {
    alignas(64) shapes tiles = {};
    tiles.palette = 1;
    tiles.columns[5] = columns;
    tiles.rows[5] = rows;
    _tile_loadconfig(&tiles);
}
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="instructions of x86")
def test_the_shapes_of_tiles_are_stored_before_they_are_loaded(cxx, tmp_path):
    (tmp_path / "tiles.cpp").write_text(SOURCE)
    # as in build.cmake: Clang's intrinsic needs no mending
    mended = [] if "clang" in toolchain.version(cxx).lower() else ["-include", str(HEADER)]
    command = [cxx, "-O3", "-mamx-tile", *mended, "-S", "-o", "-", "tiles.cpp"]
    code = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    before = code[: code.index("ldtilecfg")]
    # of the arguments' registers, into memory
    assert re.search(r"mov[wl]\s+%e?di, -?\d+\(%", before) and re.search(r"mov[bl]\s+%(sil|esi), -?\d+\(%", before), code
