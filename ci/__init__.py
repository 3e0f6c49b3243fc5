"""What builds, patches and checks the pinned llama.cpp: used by build.py, by the checks, and by hand.

Where things are, and where new ones go:

- a build: ``plan`` (what is to be built), ``source`` (llama.cpp's tree), ``library`` (compiling it), ``environment`` (Python
  and its packages); how each step reports, locks and publishes: ``steps``; the folders and the pin: ``project``
- a backend: its settings in ``toolchain``; what it needs of the machine in a module of its own, as ``cuda`` (with
  ``nvidia``) and ``vulkan``; how long it takes: ``estimate``
- a library of another kind, in a folder of its own: for other machines ``wheel/`` (with ``check_wheel``), with sanitizers
  ``sanitize``; what is made with a library: ``programs/``
- the series: ``series``, ``check_patches``, ``repo``; the night: ``rebase`` on ``rebasing/``, ``publish`` on ``github``
- what is measured: ``bench`` and ``benchmark/``; on a machine with a GPU: ``gpu``; over thousands of runs: ``soak/``; which
  bits stay: ``determinism``; against transformers, architecture by architecture: ``architectures/``
- what is said: ``doctor``; every command of the pages: ``docs``
"""
