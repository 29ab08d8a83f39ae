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

// Names in a directory in ascending order, without "." and ".."; empty if it cannot be read.
std::vector<std::string> ListDirectory(const std::string& path);
// Last component of what a symbolic link names, existing or not; nullopt if it is no link.
std::optional<std::string> LinkName(const std::string& path);
// The path without links; nullopt if it does not exist.
std::optional<std::string> RealPath(const std::string& path);

// A non-negative number alone on its line; nullopt for anything else ("max", garbage, out of range).
std::optional<int64_t> ParseCount(absl::string_view text);
std::optional<int64_t> ReadCount(const std::string& path);

// No machine has as much memory: a larger number is garbage, and sums of smaller ones do not overflow.
constexpr int64_t kMostBytes = int64_t{1} << 56;

// An address or size in hexadecimal, with or without 0x, as sysfs writes them; nullopt for garbage and from kMostBytes.
std::optional<int64_t> ParseHex(absl::string_view text);

// The number after `key` in a file of "key value" or "key: value kB" lines, as /proc/meminfo or memory.stat.
std::optional<int64_t> ParseField(absl::string_view text, absl::string_view key);
// The same of a "kB" field, in bytes; nullopt from kMostBytes.
std::optional<int64_t> ParseKibibytes(absl::string_view text, absl::string_view key);

// A list such as "0-2,5" in ascending order; empty text is an empty list. nullopt for garbage and for ids above 1023,
// the kernel's own limit.
std::optional<std::vector<int>> ParseIdList(absl::string_view text);
// The list in a file. A file of no bytes is unreadable: the kernel ends even an empty list with a line feed.
std::optional<std::vector<int>> ReadIdList(const std::string& path);

}  // namespace hybridgen

#endif  // MEMORY_SYSTEM_FILES_H_
