"""The exceptions of this package: everything that a user can run into is an InterpError."""


class InterpError(Exception):
    """Base of every error that this package raises on purpose."""


class LibraryError(InterpError):
    """The compiled library is missing, cannot be loaded or has another layout than this package."""


class ModelError(InterpError):
    """A model file cannot be loaded, or a model lacks what was asked of it."""


class DeviceError(InterpError):
    """A device that does not exist, a server that does not answer, or too little memory on one of them."""


class SiteError(InterpError, LookupError):
    """A name, layer, head or position that does not exist; the message lists what does."""


class EditError(InterpError):
    """An edit that cannot be traced into the graph, or that would reach nothing."""


class RunError(InterpError):
    """A run that cannot be made: an empty prompt, a prompt longer than the context, no memory."""


class FileError(InterpError, OSError):
    """A file that cannot be read or written, or whose kind is unknown."""


class ProcessError(InterpError):
    """The process of an isolated model ended; the message says how, and what llama.cpp said last."""
