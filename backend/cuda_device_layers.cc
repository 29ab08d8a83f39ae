// The layers of the CUDA device: eager ones, and those that a graph captures.
#include "absl/strings/str_cat.h"
#include "backend/cuda_device_impl.h"

namespace hybridgen {

absl::Status CudaDevice::CheckNotCaptured(CUstream_st* stream) {
  absl::StatusOr<bool> capturing = stream_->Capturing(stream);
  if (!capturing.ok() || !*capturing) return capturing.status();
  return absl::FailedPreconditionError(
      "forward: the stream is captured in a graph, and this plan is of one step; accepted: layers of a plan made for a "
      "capture (graph_tokens of the backend), or eager launches (piecewise graphs leave attention out)");
}

absl::Status CudaDevice::CheckPages(const LayerCall& call) const {
  if (call.pages->pool_page_bytes == limits_.page_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("cuda device: blocks of layer ", call.layer, " are ", call.pages->pool_page_bytes,
                   " bytes apart; accepted: ", limits_.page_bytes, ", as in the other layers"));
}

absl::Status CudaDevice::TryRunLayer(const LayerCall& call) {
  if (absl::Status status = CheckNotCaptured(call.stream); !status.ok()) return status;
  if (begun_ != Begun::kEager || call.plan->step != step_) {
    if (begun_ == Begun::kReplay && call.plan->step == step_) {
      return absl::FailedPreconditionError(
          absl::StrCat("forward: step ", step_, " was begun for a graph; queue the graph, or begin without one"));
    }
    if (absl::Status status = BeginStep(*call.plan, call.pages->pool_page_bytes, nullptr, call.stream); !status.ok()) {
      return status;
    }
  } else if (absl::Status status = stream_->SwitchTo(call.stream); !status.ok()) {
    return status;
  }
  const CudaStep& step = this->step();
  if (absl::Status status = CheckPages(call); !status.ok()) return status;
  if (!step.calls.empty() && layers_run_ == static_cast<int>(o_.layers.size())) {
    return absl::FailedPreconditionError(absl::StrCat("forward: all ", layers_run_, " layers of step ", step.step,
                                                      " have run; run every layer of a plan once, in order"));
  }
  if (!step.calls.empty()) {
    parts_[parity_]->SetLayer(layers_run_, {call.layer, *call.pages, call.key.data != nullptr});
  }
  if (absl::Status status = eager_.Run(call, step, window_of_[call.layer], layers_run_, {&streaming_, &times_});
      !status.ok()) {
    return status;
  }
  CountReads(call.layer, *call.pages, step);
  ++layers_run_;
  return absl::OkStatus();
}

// A layer of a graph: launched for the graph's counts, into the capture or, to warm up, with the step without tokens.
absl::Status CudaDevice::TryCaptureLayer(const LayerCall& call) {
  const int layers = static_cast<int>(o_.layers.size());
  if (begun_ != Begun::kCapture || captured_->shape.num_tokens != call.capture->num_tokens ||
      captured_->shape.query_tokens != call.capture->query_tokens || layers_run_ == layers) {
    return absl::FailedPreconditionError(absl::StrCat(
        "forward: layer ", call.layer, " of the capture of ", call.capture->num_tokens,
        " tokens does not follow its plan; plan the capture, then run its ", layers, " layers once, in order"));
  }
  if (absl::Status status = CheckPages(call); !status.ok()) return status;
  const HostLayer layer = {call.layer, *call.pages, call.key.data != nullptr};
  if (static_cast<size_t>(layers_run_) == captured_->layers.size()) captured_->layers.emplace_back();
  captured_->layers[layers_run_] = layer;
  absl::StatusOr<bool> capturing = stream_->Capturing(call.stream);
  if (!capturing.ok()) return capturing.status();
  if (*capturing) {
    stream_->BeginCapture(call.stream);
  } else if (absl::Status status = stream_->SwitchTo(call.stream); !status.ok()) {
    return status;
  }
  const absl::Status status = replayed_->Run(call, captured_->launches, window_of_[call.layer], layers_run_++, {});
  if (*capturing) stream_->EndCapture();
  return status;
}

}  // namespace hybridgen
