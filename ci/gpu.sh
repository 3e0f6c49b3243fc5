#!/usr/bin/env bash
# Build, tests and bench on a machine with a GPU, in one command: see ci/gpu.py
exec python3 "$(dirname "${BASH_SOURCE[0]}")/gpu.py" "$@"
