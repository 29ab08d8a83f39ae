#include "backend/layer_times.h"

namespace hybridgen {

absl::Status LayerTimes::Start() {
  absl::StatusOr<int> first = stream_->MakeStamps(2 * kNumPlaces);
  if (first.ok()) first_stamp_ = *first;
  return first.status();
}

void LayerTimes::BeginStep(int parity, int num_calls) {
  parity_ = parity;
  steps_[parity] = {next_layer_, num_calls};
  next_layer_ = (next_layer_ + 1) % num_layers_;
}

absl::Status LayerTimes::Pass(Place place, int index) {
  Step& step = steps_[parity_];
  if (index != step.layer) return absl::OkStatus();
  step.passed = place + 1;
  return stream_->Stamp(StampOf(parity_, place));
}

absl::Status LayerTimes::Add(int parity, Place from, Place to, int times, double& seconds) {
  absl::StatusOr<double> between = stream_->SecondsBetween(StampOf(parity, from), StampOf(parity, to));
  if (between.ok()) seconds += *between * times * num_layers_;
  return between.status();
}

absl::Status LayerTimes::Note(int parity) {
  const Step& step = steps_[parity];
  if (step.passed <= kMerged) return absl::OkStatus();
  if (absl::Status status = Add(parity, kBegin, kAttended, 1, attend_seconds_); !status.ok()) return status;
  if (absl::Status status = Add(parity, kAttended, kMerged, 1, merge_seconds_); !status.ok()) return status;
  if (step.num_calls == 0 || step.passed <= kJoined) return absl::OkStatus();
  return Add(parity, kAnswered, kJoined, step.num_calls, merge_seconds_);  // the last call's, for all
}

}  // namespace hybridgen
