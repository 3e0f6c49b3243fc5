"""A soak: thousands of runs, loads and generated tokens in one process each, and whether anything is left behind.

- what is done: ``programs`` (one hooked run of each kind, with arguments drawn anew), ``parts`` (what repeats them)
- what is looked at: ``readings`` (memory, threads, handles and processes); what decides: ``verdict``
- the command and its table: ``__main__``
"""
