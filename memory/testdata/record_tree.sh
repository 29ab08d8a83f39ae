#!/bin/sh
# Records what the topology reader looks at, as one small text file: record_tree.sh [ROOT] > NAME.tree
# ROOT holds `sys` and `proc`; by default the running machine. A line is `path = content` with \n for a line feed, or
# `path -> target` for a symbolic link. Needs a POSIX shell and awk, so that it runs where there is no Python.
set -e
cd "${1:-/}"
top=$(pwd -P)
top=${top%/}/

# One line for each path that exists.
record() {
  for path in "$@"; do
    if [ -L "$path" ]; then
      printf '%s -> %s\n' "$path" "$(readlink "$path")"
    elif [ -f "$path" ] && cat "$path" >/dev/null 2>&1; then
      case $path in
        *meminfo) only='Mem(Total|Free|Available):' ;;
        *) only='' ;;
      esac
      awk -v path="$path" -v only="$only" '
        BEGIN { printf "%s = ", path }
        $0 ~ only { printf "%s\\n", $0 }
        END { print "" }' "$path"
    fi
  done
}

# The link of a device on its bus, its driver, and attributes: record_device LINK ATTRIBUTE...
record_device() {
  [ -L "$1" ] || return 0
  device=$(cd "$1" && pwd -P)
  device=${device#"$top"}
  record "$1" "$device/driver"
  shift
  for attribute in "$@"; do
    # shellcheck disable=SC2086  # an attribute may be a pattern
    record $device/$attribute
  done
}

{
  node=sys/devices/system/node
  record proc/meminfo sys/kernel/mm/transparent_hugepage/enabled sys/devices/system/memory/block_size_bytes \
    $node/online $node/has_* $node/node[0-9]*/cpulist $node/node[0-9]*/distance $node/node[0-9]*/meminfo \
    $node/node[0-9]*/memory[0-9]* $node/node[0-9]*/memory_failure/total \
    $node/node[0-9]*/access[01]/initiators/read_* $node/node[0-9]*/hugepages/*/nr_hugepages \
    $node/node[0-9]*/hugepages/*/free_hugepages sys/devices/virtual/memory_tiering/memory_tier*/nodelist
  for link in sys/bus/dax/devices/*; do record_device "$link" size target_node align; done
  for link in sys/bus/cxl/devices/region*; do record_device "$link" mode resource size 'access[01]/read_*'; done
  for link in sys/bus/pci/devices/*; do
    case $(cat "$link/class" 2>/dev/null) in
      0x03*) record_device "$link" class vendor device numa_node ;;
    esac
  done
} | LC_ALL=C sort
