"""A model in a process of its own, which ours survives: ``interp.Model(path, isolated=True)``.

The border is the C interface of the library, which is narrow and whose functions take numbers and plain memory: all of
``interp/`` stays on this side, with the user's functions, streams, results and errors, and only the library runs on the
other. So there is nothing that works differently on an isolated model, and nothing to be done for it when a feature is
added, as long as :mod:`.border` knows the memory behind each argument.

- :mod:`.border`: what each function of the library reads and writes behind its arguments
- :mod:`.link`: messages over a socket
- :mod:`.process`: the other process, its end, and what it said
- :mod:`.library`: our side, which looks like :class:`interp.native.Library`
- :mod:`.child`: the other side
- :mod:`.model`: the model, which starts a new process when the old one died
"""
