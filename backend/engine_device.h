// What the engine for tests (random_engine.h) runs on: the model's shape, its requests, a device with a queue, and
// graphs on it.
#ifndef BACKEND_ENGINE_DEVICE_H_
#define BACKEND_ENGINE_DEVICE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "backend/device_stream.h"
#include "backend/layer_call.h"
#include "backend/paged_attention_backend.h"
#include "gtest/gtest.h"
#include "kernels/dtype.h"

namespace hybridgen {

struct Shape {
  DType dtype = DType::kFloat32;
  std::optional<DType> kv_dtype;  // float8
  int layers = 2;
  int kv_heads = 2;
  int group = 2;
  int head_size = 24;  // padded to 32 in host pages
  int block_size = 16;
  int query_heads() const { return kv_heads * group; }
  DType kv() const { return kv_dtype.value_or(dtype); }
};

// A request's tokens as the model would produce them. K/V of a position never change, except that rejected draft
// tokens are replaced by others.
struct Request {
  std::vector<int32_t> blocks;
  int computed = 0;                      // tokens whose K/V are in the cache
  int length = 0;                        // tokens that exist
  std::vector<std::vector<float>> k, v;  // [layer][position * kv_heads * head_size]
};

// A device with a queue of its own, for device_kind cuda.
struct EngineDevice {
  std::shared_ptr<DeviceStream> stream;  // null: the backend's kind has none
  std::function<void(const void* data, size_t bytes)> lend;
  std::function<void(const void* data)> take_back;
  std::function<absl::Status()> synchronize;
  int steps_ahead = 1;     // steps that are queued before their answers are looked at
  double weight_unit = 0;  // rounding of softmax weights in its kernels
  // Graphs that are captured, ascending by tokens; a step that one serves is replayed. Empty: all steps are eager.
  std::vector<GraphShape> graphs;
  std::function<void()> capture;                     // the engine's stream is captured from here ...
  std::function<void(size_t graph)> take_graph;      // ... to here
  std::function<absl::Status(size_t graph)> replay;  // queues it
};

// The engine's graphs: the layers' tensors at fixed addresses, filled and read in the stream's order.
class EngineGraphs {
 public:
  // Both outlive the object.
  EngineGraphs(const EngineDevice& device, const Shape& shape) : device_(device), shape_(shape) {}

  // Warms up and captures every graph, which writes nothing.
  void Capture(PagedAttentionBackend& backend) {
    if (device_.graphs.empty()) return;
    const int hq = shape_.query_heads(), hk = shape_.kv_heads, d = shape_.head_size;
    const size_t row = d * DTypeSize(shape_.dtype) * device_.graphs.back().num_tokens;
    for (int l = 0; l < shape_.layers; ++l) {
      layers_.push_back({std::vector<uint8_t>(hq * row, 0xff), std::vector<uint8_t>(hk * row, 0xff),
                         std::vector<uint8_t>(hk * row, 0xff), std::vector<uint8_t>(hq * row, 0xff)});
    }
    ForEachTensor([&](const std::vector<uint8_t>& tensor) { device_.lend(tensor.data(), tensor.size()); });
    for (size_t graph = 0; graph < device_.graphs.size(); ++graph) {
      for (const bool warm_up : {true, false}) {
        Plan plan;
        absl::Status status = backend.PlanCapture(device_.graphs[graph], plan, nullptr);
        ASSERT_TRUE(status.ok()) << status;
        if (!warm_up) device_.capture();
        for (int l = 0; l < shape_.layers; ++l) {
          Layer& t = layers_[l];
          status = backend.Forward(plan, l, {t.q.data(), hq * d, d}, {t.k.data(), hk * d, d}, {t.v.data(), hk * d, d},
                                   {t.out.data(), hq * d, d});
          ASSERT_TRUE(status.ok()) << status;
        }
        if (!warm_up) device_.take_graph(graph);
      }
    }
    ASSERT_TRUE(device_.synchronize().ok());
    ForEachTensor([](const std::vector<uint8_t>& tensor) {
      for (uint8_t x : tensor) ASSERT_EQ(x, 0xff) << "a capture or its warm-up has written";
    });
  }

  // When nothing uses them any more.
  void Release() {
    ForEachTensor([&](const std::vector<uint8_t>& tensor) { device_.take_back(tensor.data()); });
  }

  // The smallest graph that serves a step, or their number.
  size_t For(const std::vector<int32_t>& query_start) const {
    size_t graph = 0;
    for (; graph < device_.graphs.size(); ++graph) {
      bool serves = query_start.back() <= device_.graphs[graph].num_tokens;
      for (size_t i = 1; i < query_start.size(); ++i) {
        serves = serves && query_start[i] - query_start[i - 1] <= device_.graphs[graph].query_tokens;
      }
      if (serves) break;
    }
    return graph;
  }

  // Queues the copies of a step's tensors to a layer's. The output goes there as poison, so that what a replay leaves
  // alone shows; Read queues its way back.
  void Fill(int layer, const std::vector<uint8_t>& q, const std::vector<uint8_t>& k, const std::vector<uint8_t>& v,
            const uint8_t* out) {
    Layer& to = layers_[layer];
    ASSERT_TRUE(device_.stream->CopyToDevice(to.q.data(), q.data(), q.size()).ok());
    ASSERT_TRUE(device_.stream->CopyToDevice(to.k.data(), k.data(), k.size()).ok());
    ASSERT_TRUE(device_.stream->CopyToDevice(to.v.data(), v.data(), v.size()).ok());
    ASSERT_TRUE(device_.stream->CopyToDevice(to.out.data(), out, q.size()).ok());
  }
  void Read(int layer, size_t bytes, uint8_t* out) {
    ASSERT_TRUE(device_.stream->CopyToHost(out, layers_[layer].out.data(), bytes).ok());
  }

 private:
  // Of as many rows as the largest graph has.
  struct Layer {
    std::vector<uint8_t> q, k, v, out;
  };

  template <typename F>
  void ForEachTensor(F f) const {
    for (const Layer& layer : layers_) {
      for (const auto* tensor : {&layer.q, &layer.k, &layer.v, &layer.out}) f(*tensor);
    }
  }

  const EngineDevice& device_;
  const Shape& shape_;
  std::vector<Layer> layers_;
};

}  // namespace hybridgen

#endif  // BACKEND_ENGINE_DEVICE_H_
