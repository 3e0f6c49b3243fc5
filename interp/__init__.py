"""llama-interp: look inside any GGUF model, and change what you find, at llama.cpp's own speed."""

from .arrays import load_array, save_array
from .attention import Attention, attention
from .control import ControlVector
from .edits import Edit, add, edit, replace, scale
from .errors import EditError, FileError, InterpError, LibraryError, ModelError, RunError, SiteError
from .graph import Tensor
from .lens import Lens, logit_lens
from .model import Model
from .run import Generation, Run
from .sites import At, Key, Site, at

__all__ = [
    "At",
    "Attention",
    "ControlVector",
    "Edit",
    "EditError",
    "FileError",
    "Generation",
    "InterpError",
    "Key",
    "Lens",
    "LibraryError",
    "Model",
    "ModelError",
    "Run",
    "RunError",
    "Site",
    "SiteError",
    "Tensor",
    "add",
    "at",
    "attention",
    "edit",
    "load_array",
    "logit_lens",
    "replace",
    "save_array",
    "scale",
]
