// What a check reports: facts of the machine and figures, as JSON and as Markdown; and its command line.
#ifndef TESTS_GPU_REPORT_H_
#define TESTS_GPU_REPORT_H_

#include <string>
#include <utility>
#include <vector>

namespace hybridgen {

struct Figure {
  std::string name;  // of what was measured, its shape included
  double value = 0;
  std::string unit;
  // What the value is held against, measured in the same run: `fraction` = value / that, or that / value for times.
  // Empty: nothing.
  std::string of;
  double fraction = 0;
};

class Report {
 public:
  void Fact(std::string name, std::string value) { facts_.emplace_back(std::move(name), std::move(value)); }
  void Add(Figure figure) { figures_.push_back(std::move(figure)); }
  // {"facts": {name: value}, "figures": [{"name", "value", "unit", "of", "fraction"}]}; a value that is no number is
  // null.
  std::string Json() const;
  // One table of the facts and one of the figures.
  std::string Markdown() const;

 private:
  std::vector<std::pair<std::string, std::string>> facts_;
  std::vector<Figure> figures_;
};

struct CheckOptions {
  bool few = false;  // correctness of few cases only, for compute-sanitizer
  std::string out;   // folder of gpu_check.json and gpu_check.md
  std::vector<std::pair<std::string, std::string>> facts;
  std::vector<std::pair<int, double>> sdpa;  // group -> seconds of torch's SDPA on the shapes of bandwidth.cu
};

// check --few | check [--fact=NAME=VALUE]... [--sdpa=FILE] OUT. Returns why it cannot be taken, or nothing.
std::string ParseArguments(int argc, const char* const* argv, CheckOptions& options);

// Lines "GROUP SECONDS". Returns false for anything else.
bool ParseSdpa(const std::string& text, std::vector<std::pair<int, double>>& sdpa);

}  // namespace hybridgen

#endif  // TESTS_GPU_REPORT_H_
