"""What builds, patches and checks the pinned llama.cpp: used by build.py, by the checks, and by hand."""
