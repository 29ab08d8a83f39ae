#include "tests/gpu/report.h"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <sstream>

namespace hybridgen {
namespace {

std::string Quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char code[8];
      std::snprintf(code, sizeof(code), "\\u%04x", c);
      out += code;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string Number(double x) {
  if (!std::isfinite(x)) return "null";
  char text[32];
  std::snprintf(text, sizeof(text), "%.6g", x);
  return text;
}

// A cell of a table: a bar would end it.
std::string Cell(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

}  // namespace

std::string Report::Json() const {
  std::string out = "{\n  \"facts\": {";
  for (size_t i = 0; i < facts_.size(); ++i) {
    out += (i == 0 ? "\n    " : ",\n    ") + Quoted(facts_[i].first) + ": " + Quoted(facts_[i].second);
  }
  out += "\n  },\n  \"figures\": [";
  for (size_t i = 0; i < figures_.size(); ++i) {
    const Figure& f = figures_[i];
    out += (i == 0 ? "\n    {" : ",\n    {") + std::string("\"name\": ") + Quoted(f.name) +
           ", \"value\": " + Number(f.value) + ", \"unit\": " + Quoted(f.unit);
    if (!f.of.empty()) out += ", \"of\": " + Quoted(f.of) + ", \"fraction\": " + Number(f.fraction);
    out += "}";
  }
  return out + "\n  ]\n}\n";
}

std::string Report::Markdown() const {
  std::string out = "| fact | |\n|---|---|\n";
  for (const auto& [name, value] : facts_) out += "| " + Cell(name) + " | " + Cell(value) + " |\n";
  out += "\n| measured | value | unit | of | fraction |\n|---|---|---|---|---|\n";
  for (const Figure& f : figures_) {
    out += "| " + Cell(f.name) + " | " + Number(f.value) + " | " + Cell(f.unit) + " | " + Cell(f.of) + " | " +
           (f.of.empty() ? "" : Number(f.fraction)) + " |\n";
  }
  return out;
}

std::string ParseArguments(int argc, const char* const* argv, CheckOptions& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--few") {
      options.few = true;
    } else if (argument.rfind("--fact=", 0) == 0) {
      const std::string fact = argument.substr(7);
      const size_t equals = fact.find('=');
      if (equals == std::string::npos || equals == 0) return "'" + argument + "' is not --fact=NAME=VALUE";
      options.facts.emplace_back(fact.substr(0, equals), fact.substr(equals + 1));
    } else if (argument.rfind("--sdpa=", 0) == 0) {
      std::ifstream file(argument.substr(7));
      std::stringstream text;
      text << file.rdbuf();
      if (!file || !ParseSdpa(text.str(), options.sdpa)) return "'" + argument + "': no file of lines GROUP SECONDS";
    } else if (argument.rfind("--", 0) == 0 || !options.out.empty()) {
      return "'" + argument + "' is not taken; usage: check --few | check [--fact=NAME=VALUE]... [--sdpa=FILE] OUT";
    } else {
      options.out = argument;
    }
  }
  if (options.few != options.out.empty()) return "a folder for the results is needed, or --few without one";
  return "";
}

bool ParseSdpa(const std::string& text, std::vector<std::pair<int, double>>& sdpa) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    int group = 0;
    double seconds = 0;
    std::string rest;
    if (!(words >> group >> seconds) || group <= 0 || !(seconds > 0) || words >> rest) return false;
    sdpa.emplace_back(group, seconds);
  }
  return !sdpa.empty();
}

}  // namespace hybridgen
