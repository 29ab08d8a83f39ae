#!/usr/bin/env bash
# The documentation holds the tables that spread_table prints: spread_table_test.sh SPREAD_TABLE PAGE
set -euo pipefail

printed=0
while IFS= read -r line; do
  [[ -z "$line" ]] && continue
  printed=$((printed + 1))
  if ! grep -Fxq -- "$line" "$2"; then
    echo "$2 lacks: $line"
    echo "print the tables again: bazel run //scheduler:spread_table"
    exit 1
  fi
done < <("$1")
[[ "$printed" -ge 10 ]] || { echo "only $printed lines printed"; exit 1; }
