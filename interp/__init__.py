"""llama-interp: look inside any GGUF model, and change what you find, at llama.cpp's own speed.

Where things are, and where new ones go:

- a model and its runs: ``model``, on ``session`` (one run at a time), ``program`` (what a run reads and changes), ``run``;
  what the methods do that are more than a run: ``generate``, ``chat``, ``state`` (prefixes), ``parts`` (resume, unembed);
  what threads may use beside a run: ``leases``; what a forked process lets go of: ``forks``
- an edit: ``edits``; one that takes values from other runs: ``patching``; what it is written in: ``graph`` and ``trace``
- a name for a tensor: ``aliases`` (roles on every architecture), ``sites`` (selectors); a weight as an array: ``weights``
- an analysis of one run: a module of its own, as ``lens``, ``attention``, ``attribution``
- a sweep: it makes ``cells`` and gives them to ``batched``, and returns a ``grid``; see ``ablation`` for a short one.
  ``several`` averages it over prompts, as a ``mean_sweep``
- a metric: ``metrics``; a picture: ``plot/``; a command: ``cli/``; a kind of file: ``files``
- the border to the library: ``header`` (structs and prototypes), ``native`` (finding and checking it), ``interrupts``
  (Ctrl-C meanwhile); ``isolated/`` puts a process between the two
- where a model runs: ``devices`` (what ``device=`` names), ``fit`` (whether it has room there), ``remote`` (RPC servers),
  ``rpc_server`` (being one)

How a backend is built is no matter of this package: its settings are in ``ci/toolchain.py``, and what it needs of the
machine is in a module of its own, as ``ci/cuda.py`` and ``ci/vulkan.py``. Hooks do not ask which one runs them, and
``tests/test_accelerator.py`` tests them on any.
"""

from .ablation import AblationSweep, KnockoutSweep, ablation_sweep, knockout_sweep
from .arrays import load_array, save_array
from .attach import attach, use_with_llama_cpp
from .attention import Attention, attention
from .attribution import Attribution, direct_logit_attribution
from .control import ControlVector
from .edits import Edit, add, edit, edit_host, knockout, project_out, replace, scale, steer
from .devices import Device, Devices
from .errors import (
    DeviceError, EditError, FileError, InterpError, LibraryError, ModelError, ProcessError, RunError, SiteError,
)  # fmt: skip
from .generate import Stream
from .graph import Tensor
from .induction import InductionScores, induction_scores
from .inspect import Graph, Node
from .lens import Lens, logit_lens
from .mean_sweep import MeanSweep
from .metrics import kl_divergence, logit_diff, probability
from .model import Model
from .patching import ablate, keep_only, patch
from .path_patching import PathPatch, path_patch
from .run import Generation, Run
from .sites import At, Key, Site, at
from .state import Prefix
from .stats import Stats, stats
from .sweep import Sweep, patch_sweep

__all__ = [
    "AblationSweep",
    "At",
    "Attention",
    "Attribution",
    "ControlVector",
    "Device",
    "DeviceError",
    "Devices",
    "Edit",
    "EditError",
    "FileError",
    "Generation",
    "Graph",
    "InductionScores",
    "InterpError",
    "Key",
    "KnockoutSweep",
    "Lens",
    "LibraryError",
    "MeanSweep",
    "Model",
    "ModelError",
    "Node",
    "PathPatch",
    "Prefix",
    "ProcessError",
    "Run",
    "RunError",
    "Site",
    "SiteError",
    "Stats",
    "Stream",
    "Sweep",
    "Tensor",
    "ablate",
    "ablation_sweep",
    "add",
    "at",
    "attach",
    "attention",
    "direct_logit_attribution",
    "edit",
    "edit_host",
    "induction_scores",
    "keep_only",
    "kl_divergence",
    "knockout",
    "knockout_sweep",
    "load_array",
    "logit_diff",
    "logit_lens",
    "patch",
    "patch_sweep",
    "path_patch",
    "probability",
    "project_out",
    "replace",
    "save_array",
    "scale",
    "stats",
    "steer",
    "use_with_llama_cpp",
]
