"""What ``ci/bench.py`` is made of: the cases, the processes that run them, and what is written of them."""
