#!/usr/bin/env bash
# Every kernel is compiled for every architecture, and none moves more than a few registers to memory:
# ptxas_test.sh resource_table.py ARCHITECTURES REPORT...
exec python3 "$@"
