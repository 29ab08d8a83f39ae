// Reading the small text files of sysfs and procfs, with roots that tests can replace.
#ifndef MEMORY_SYSTEM_FILES_H_
#define MEMORY_SYSTEM_FILES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace hybridgen {

struct SystemRoots {
  std::string sysfs = "/sys";
  std::string procfs = "/proc";
};

// Content of a text file; nullopt if it cannot be read.
std::optional<std::string> ReadSystemFile(const std::string& path);

// A non-negative number alone on its line; nullopt for anything else ("max", garbage, out of range).
std::optional<int64_t> ParseCount(absl::string_view text);
std::optional<int64_t> ReadCount(const std::string& path);

// The number after `key` in a file of "key value" or "key: value kB" lines, as /proc/meminfo or memory.stat.
std::optional<int64_t> ParseField(absl::string_view text, absl::string_view key);

// A list such as "0-2,5" in ascending order; empty text is an empty list. nullopt for garbage and for ids above 1023,
// the kernel's own limit.
std::optional<std::vector<int>> ParseIdList(absl::string_view text);

}  // namespace hybridgen

#endif  // MEMORY_SYSTEM_FILES_H_
