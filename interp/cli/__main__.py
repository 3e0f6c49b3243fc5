"""`python -m interp.cli`."""

from . import main

main()
