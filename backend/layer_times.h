// Seconds that the device spends on layers, from one layer of each step, which stands for all of them.
#ifndef BACKEND_LAYER_TIMES_H_
#define BACKEND_LAYER_TIMES_H_

#include <cstdint>

#include "absl/status/status.h"
#include "backend/device_stream.h"

namespace hybridgen {

// Two steps may be under way; which layer is looked at goes round with the steps.
class LayerTimes {
 public:
  // Places of a layer in the stream, in this order.
  enum Place { kBegin, kAttended, kMerged, kAnswered, kJoined, kNumPlaces };

  // A step of so many layers, each with so many calls of the joint.
  LayerTimes(DeviceStream* stream, int num_layers) : stream_(stream), num_layers_(num_layers) {}
  absl::Status Start();

  // `parity`: of the step, which is noted before another of that parity begins.
  void BeginStep(int parity, int num_calls);
  // Queues the time of a place of the layer that runs as number `index` of the step, if it is the one.
  absl::Status Pass(Place place, int index);
  // Adds the times of a step that is done. A step that did not get to the layer adds nothing.
  absl::Status Note(int parity);

  double attend_seconds() const { return attend_seconds_; }
  double merge_seconds() const { return merge_seconds_; }

 private:
  struct Step {
    int layer = 0;
    int num_calls = 0;
    int passed = 0;  // places
  };

  absl::Status Add(int parity, Place from, Place to, int times, double& seconds);
  int StampOf(int parity, Place place) const { return first_stamp_ + parity * kNumPlaces + place; }

  DeviceStream* const stream_;
  const int num_layers_;
  int first_stamp_ = 0;
  int next_layer_ = 0;
  int parity_ = 0;  // of the present step
  Step steps_[2];
  double attend_seconds_ = 0;
  double merge_seconds_ = 0;
};

}  // namespace hybridgen

#endif  // BACKEND_LAYER_TIMES_H_
