"""Matrix instructions of Intel's servers: GCC must not drop the shapes of their tiles."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest

from ci import toolchain

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
def test_the_shapes_of_tiles_are_stored_before_they_are_loaded(tmp_path):
    compiler = toolchain.cxx()
    if compiler is None:
        pytest.skip("no C++ compiler: apt-get install g++")
    if "clang" in toolchain.version(compiler).lower():
        pytest.skip(f"{compiler} is Clang, and build.cmake gives the header to GCC alone: CXX=g++")
    header = Path(__file__).parents[1] / "patches" / "native" / "amx.h"
    (tmp_path / "tiles.cpp").write_text(SOURCE)
    command = [compiler, "-O3", "-mamx-tile", "-include", str(header), "-S", "-o", "-", "tiles.cpp"]
    code = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    before = code[: code.index("ldtilecfg")]
    # of the arguments' registers, into memory
    assert re.search(r"mov[wl]\s+%e?di, -?\d+\(%", before) and re.search(r"mov[bl]\s+%(sil|esi), -?\d+\(%", before), code
