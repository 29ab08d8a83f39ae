// Tolerant parsers: what cannot be read is unknown, never zero.
#include "memory/system_files.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace hybridgen {

namespace fs = std::filesystem;

std::optional<std::string> ReadSystemFile(const std::string& path) {
  std::FILE* const file = std::fopen(path.c_str(), "r");
  if (file == nullptr) return std::nullopt;
  std::string text;
  char buffer[4096];
  size_t count;
  while ((count = std::fread(buffer, 1, sizeof(buffer), file)) > 0) text.append(buffer, count);
  const bool failed = std::ferror(file) != 0;
  std::fclose(file);
  if (failed) return std::nullopt;
  return text;
}

std::vector<std::string> ListDirectory(const std::string& path) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(path, error), end; !error && entry != end; entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::optional<std::string> LinkName(const std::string& path) {
  std::error_code error;
  const fs::path target = fs::read_symlink(path, error);
  if (error) return std::nullopt;
  return target.filename().string();
}

std::optional<std::string> RealPath(const std::string& path) {
  std::error_code error;
  const fs::path real = fs::canonical(path, error);
  if (error) return std::nullopt;
  return real.string();
}

std::optional<int64_t> ParseCount(absl::string_view text) {
  int64_t value = 0;
  if (!absl::SimpleAtoi(text, &value) || value < 0) return std::nullopt;
  return value;
}

std::optional<int64_t> ReadCount(const std::string& path) {
  const std::optional<std::string> text = ReadSystemFile(path);
  return text ? ParseCount(*text) : std::nullopt;
}

std::optional<int64_t> ParseHex(absl::string_view text) {
  uint64_t value = 0;
  text = absl::StripAsciiWhitespace(text);
  if (absl::StartsWith(text, "-") || !absl::SimpleHexAtoi(text, &value) || value >= kMostBytes) return std::nullopt;
  return static_cast<int64_t>(value);
}

std::optional<int64_t> ParseField(absl::string_view text, absl::string_view key) {
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    for (size_t i = 0; i + 1 < words.size(); ++i) {
      if (words[i] == key) return ParseCount(words[i + 1]);
    }
  }
  return std::nullopt;
}

std::optional<int64_t> ParseKibibytes(absl::string_view text, absl::string_view key) {
  constexpr int64_t kKiB = 1024;
  const std::optional<int64_t> count = ParseField(text, key);
  if (!count || *count >= kMostBytes / kKiB) return std::nullopt;
  return *count * kKiB;
}

std::optional<std::vector<int>> ParseIdList(absl::string_view text) {
  constexpr int64_t kMaxId = 1023;
  std::vector<int> ids;
  text = absl::StripAsciiWhitespace(text);
  if (text.empty()) return ids;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const std::pair<absl::string_view, absl::string_view> range = absl::StrSplit(part, absl::MaxSplits('-', 1));
    const std::optional<int64_t> first = ParseCount(range.first);
    const bool single = range.first.size() == part.size();
    const std::optional<int64_t> last = single ? first : ParseCount(range.second);
    if (!first || !last || *first > *last || *last > kMaxId) return std::nullopt;
    for (int64_t id = *first; id <= *last; ++id) ids.push_back(static_cast<int>(id));
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

std::optional<std::vector<int>> ReadIdList(const std::string& path) {
  const std::optional<std::string> text = ReadSystemFile(path);
  if (!text || text->empty()) return std::nullopt;
  return ParseIdList(*text);
}

}  // namespace hybridgen
