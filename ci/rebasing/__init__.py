"""The parts of ci/rebase.py: where upstream is, what each stage does, what the report says, and what is written."""
