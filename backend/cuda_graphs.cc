#include "backend/cuda_graphs.h"

#include "absl/strings/str_cat.h"
#include "backend/step_plan.h"

namespace hybridgen {

absl::StatusOr<CudaGraph*> CudaGraphs::Make(const GraphShape& shape) {
  if (shape.num_tokens < 1 || shape.num_tokens > limits_.max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("plan capture: num_tokens is ", shape.num_tokens,
                                                   "; accepted: 1 to ", limits_.max_tokens,
                                                   " (graph_tokens of the backend)"));
  }
  if (shape.query_tokens < 1 || shape.query_tokens > limits_.query_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("plan capture: query_tokens is ", shape.query_tokens,
                                                   "; accepted: 1 to ", limits_.query_tokens,
                                                   ", which the decode kernel takes of a sequence"));
  }
  const auto [graph, made] = graphs_.try_emplace({shape.num_tokens, shape.query_tokens});
  if (made) {
    graph->second.shape = shape;
    graph->second.launches = LaunchesOf(shape);
  }
  return &graph->second;
}

absl::StatusOr<CudaGraph*> CudaGraphs::Find(const GraphShape& shape) {
  const auto graph = graphs_.find({shape.num_tokens, shape.query_tokens});
  const int captured = graph == graphs_.end() ? 0 : static_cast<int>(graph->second.layers.size());
  if (captured == limits_.num_layers) return &graph->second;
  return absl::FailedPreconditionError(
      absl::StrCat("begin step: of the graph of ", shape.num_tokens, " tokens, ", shape.query_tokens,
                   " of a sequence, ", captured, " of ", limits_.num_layers,
                   " layers have been captured; plan its capture and run every layer, or run the step eagerly"));
}

CudaStep CudaGraphs::LaunchesOf(const GraphShape& shape) const {
  const int32_t tokens = shape.num_tokens;
  CudaStep step;
  step.num_tokens = tokens;
  step.slots.assign(tokens, -1);
  step.decode.list.resize(MaxDeviceSplits(limits_.device_workers, tokens));
  step.decode.max_tokens = shape.query_tokens;
  step.kv_begin.assign(tokens * limits_.num_windows, 0);
  step.kv_end.assign(tokens, 0);
  step.position.assign(tokens, 0);
  step.output_merges.resize(tokens);
  step.row_merges.resize(tokens);
  step.partial_rows = tokens + static_cast<int32_t>(step.decode.list.size()) * shape.query_tokens;
  if (!limits_.joined) return step;
  step.joins.resize(tokens);
  step.query_tokens.assign(tokens, -1);
  step.write_tokens.assign(tokens, -1);
  CudaCall call;
  call.query_rows = call.write_rows = call.joins = {0, tokens};
  step.calls.push_back(call);
  return step;
}

CudaStep CudaGraphs::Largest() const {
  CudaStep step = LaunchesOf({limits_.max_tokens, limits_.query_tokens});
  step.pages.resize(limits_.max_pages);
  return step;
}

absl::Status CudaGraphs::Pad(const CudaGraph& graph, CudaStep& step) const {
  const CudaStep& to = graph.launches;
  absl::Status status;
  const auto fits = [&](const char* what, int64_t count, int64_t most) {
    if (count <= most || !status.ok()) return;
    status = absl::FailedPreconditionError(absl::StrCat("begin step: step ", step.step, " does not fit the graph of ",
                                                        graph.shape.num_tokens, " tokens: it has ", count, " ", what,
                                                        "; accepted: up to ", most, "; run the step eagerly"));
  };
  const auto pad = [&](const char* what, auto& list, const auto& model) {
    fits(what, static_cast<int64_t>(list.size()), static_cast<int64_t>(model.size()));
    list.resize(model.size(), model.empty() ? typename std::decay_t<decltype(list)>::value_type() : model.back());
  };
  fits("tokens", step.num_tokens, to.num_tokens);
  fits("items of prefill", static_cast<int64_t>(step.prefill.list.size()), 0);
  fits("query tokens of a sequence", step.decode.max_tokens, to.decode.max_tokens);
  fits("pages on the device (graph_pages of the backend)", static_cast<int64_t>(step.pages.size()), limits_.max_pages);
  fits("calls of the joint a layer", static_cast<int64_t>(step.calls.size()), static_cast<int64_t>(to.calls.size()));
  fits("rounds of streamed pages (streaming_share of the backend)", static_cast<int64_t>(step.streamed.rounds.size()),
       0);
  fits("rows of partials", step.partial_rows, to.partial_rows);
  pad("slots", step.slots, to.slots);
  pad("items of decode", step.decode.list, to.decode.list);
  pad("merges into the output", step.output_merges, to.output_merges);
  pad("merges into rows", step.row_merges, to.row_merges);
  pad("joins", step.joins, to.joins);
  pad("query rows of the CPU", step.query_tokens, to.query_tokens);
  pad("rows that the CPU writes", step.write_tokens, to.write_tokens);
  return status;
}

}  // namespace hybridgen
