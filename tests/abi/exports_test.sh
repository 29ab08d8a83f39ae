#!/usr/bin/env bash
# libhybridgen.so exports the functions of hybridgen.h, with their version, and nothing else: exports_test.sh LIBRARY HEADER
set -euo pipefail

library="$1"
header="$2"

exported="$(nm --dynamic --defined-only "$library" | awk '$2 != "A" {print $3}' | sort)"
declared="$(grep -o '\bhg_[a-z_]*(' "$header" | tr -d '(' | sort -u | sed 's/$/@@HYBRIDGEN_1/')"
if [[ "$exported" != "$declared" ]]; then
  echo "exported (-) and declared (+) functions differ:"
  diff -u <(printf '%s\n' "$exported") <(printf '%s\n' "$declared")
  exit 1
fi
# The core has no part of Python or torch, and no link-time OpenMP.
if readelf --dynamic "$library" | grep -E 'NEEDED.*(python|torch|c10|omp)'; then
  echo "libhybridgen.so must not need these libraries"
  exit 1
fi
echo "$(wc -l <<<"$exported") functions, all of them in hybridgen.h"
