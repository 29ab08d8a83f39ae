#include "memory/memory_node.h"

namespace hybridgen {

const char* MemoryKindName(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::kUnknown:
      return "unknown";
    case MemoryKind::kDram:
      return "dram";
    case MemoryKind::kCxl:
      return "cxl";
    case MemoryKind::kHbm:
      return "hbm";
    case MemoryKind::kPersistent:
      return "persistent";
  }
  return "unknown";
}

const char* RelativeSpeedName(RelativeSpeed speed) {
  switch (speed) {
    case RelativeSpeed::kUnknown:
      return "unknown";
    case RelativeSpeed::kSlower:
      return "slower";
    case RelativeSpeed::kSimilar:
      return "similar";
    case RelativeSpeed::kFaster:
      return "faster";
  }
  return "unknown";
}

const char* DaxUseName(DaxUse use) {
  switch (use) {
    case DaxUse::kUnknown:
      return "unknown";
    case DaxUse::kNode:
      return "node";
    case DaxUse::kMapped:
      return "mapped";
  }
  return "unknown";
}

const char* TransparentHugePagesName(TransparentHugePages mode) {
  switch (mode) {
    case TransparentHugePages::kUnknown:
      return "unknown";
    case TransparentHugePages::kNever:
      return "never";
    case TransparentHugePages::kMadvise:
      return "madvise";
    case TransparentHugePages::kAlways:
      return "always";
  }
  return "unknown";
}

}  // namespace hybridgen
