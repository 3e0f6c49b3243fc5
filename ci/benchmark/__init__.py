"""What ``ci/bench.py`` is made of: the cases, the processes that run them, and what is written of them; and programs of
their own for what it does not measure: ``corpus``, ``scaling`` and ``instructions``."""
