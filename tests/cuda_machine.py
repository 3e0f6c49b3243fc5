"""A made-up machine for the tests of --cuda: scripts for nvcc and nvidia-smi, packages of NVIDIA's without content."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import upstream
from ci import cuda, toolchain

linux = pytest.mark.skipif(sys.platform != "linux", reason="NVIDIA's packages are laid out like this on Linux")

#: what each package of CUDA 13 installs, a little of it
WHEELS = {
    "nvidia-cublas": ["include/cublas_v2.h", "lib/libcublas.so.13", "lib/libcublasLt.so.13"],
    "nvidia-cuda-cccl": ["include/cccl/cub/cub.cuh"],
    "nvidia-cuda-crt": ["include/crt/host_config.h"],
    "nvidia-cuda-nvcc": ["bin/nvcc", "bin/nvcc.profile"],
    "nvidia-cuda-runtime": ["include/cuda_runtime.h", "lib/libcudart.so.13"],
    "nvidia-nvvm": ["nvvm/bin/cicc", "lib/libnvvm.so.4"],
}


class Machine:
    """A machine with nothing but what a test gives it."""

    def __init__(self, folder: Path):
        self.bin, self.env, self.folder = folder / "bin", folder / "env", folder
        self.site = self.env / "lib/python3.11/site-packages"
        for path in (self.bin, self.site):
            path.mkdir(parents=True)

    def script(self, path: Path, cases: dict[str, str]) -> Path:
        """A program that answers some command lines; each answer is shell code."""
        lines = "".join(f"  {pattern}) {code};;\n" for pattern, code in cases.items())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\ncase "$*" in\n{lines}  *) exit 9;;\nesac\n')
        path.chmod(0o755)
        return path

    def nvcc(self, path: Path, release: str, known: str = "75 80 86 90 120", compiles: str = "exit 0") -> Path:
        top = path.parent.parent
        return self.script(path, {
            "--version": f"echo 'nvcc: NVIDIA (R) compiler driver'; echo 'tools, release {release}, V{release}.88'",
            "'-v __none__'": f"echo '#$ TOP={top}/bin/..' >&2; exit 1",
            "--list-gpu-arch": f"for n in {known}; do echo compute_$n; done",
            "*-c*": compiles,
        })

    def toolkit(self, release: str = "13.0", cublas: bool = True, **options: str) -> Path:
        """A toolkit of the system; only a link to its compiler is in PATH."""
        root = self.folder / f"cuda-{release}"
        nvcc = self.nvcc(root / "bin/nvcc", release, **options)
        files = ["include/cuda_runtime.h", f"lib64/libcudart.so.{release.split('.')[0]}"]
        upstream.write(root, dict.fromkeys(files + ["include/cublas_v2.h", "lib64/libcublas.so"] * cublas, ""))
        (self.bin / "nvcc").symlink_to(nvcc)
        return root

    def driver(self, supports: str, *capabilities: str) -> None:
        listed = "; ".join(f"echo {one}" for one in capabilities) or "exit 6"
        self.script(self.bin / "nvidia-smi", {
            "''": f"echo '| NVIDIA-SMI 1.2   Driver Version: 1.2   {supports} |'",
            "-L": "echo 'GPU 0: NVIDIA Made Up (UUID: GPU-1)'",
            "'--query-gpu=compute_cap --format=csv,noheader'": listed,
        })

    def wheel(self, name: str, version: str, files: list[str], inside: str = "cu13") -> None:
        for old in self.site.glob(f"{name.replace('-', '_')}-*.dist-info"):
            shutil.rmtree(old)
        placed = [f"nvidia/{inside}/{file}" for file in files]
        upstream.write(self.site, dict.fromkeys(placed, f"{name} {version}"))
        info = f"{name.replace('-', '_')}-{version}.dist-info"
        upstream.write(self.site, {
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/RECORD": "".join(f"{file},,\n" for file in [*placed, f"{info}/RECORD"]),
        })
        if "bin/nvcc" in files:
            self.nvcc(self.site / f"nvidia/{inside}/bin/nvcc", version.rpartition(".")[0])

    def wheels(self, version: str = "13.0.88", **others: str) -> None:
        for name, files in WHEELS.items():
            self.wheel(name, others.get(name.replace("-", "_"), version), files)


def lonely(folder: Path, monkeypatch) -> Machine:
    """A machine whose PATH, packages and system folders are all its own."""
    found = Machine(folder / "machine")
    monkeypatch.setenv("PATH", str(found.bin))
    for name in ("CUDACXX", "CUDAHOSTCXX", "CUDA_HOME", "CUDA_PATH", "LLAMA_INTERP_CACHE"):
        monkeypatch.delenv(name, raising=False)
    # a toolkit of the machine that the tests run on is none of theirs
    monkeypatch.setattr(toolchain, "CUDA", str(folder / "absent"))
    monkeypatch.setattr(cuda, "SYSTEM", folder / "absent")
    monkeypatch.setattr(cuda.platform, "libc_ver", lambda: ("glibc", "2.36"))
    return found
