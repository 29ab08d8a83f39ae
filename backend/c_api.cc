// The C ABI over PagedAttentionBackend: checks arguments, turns statuses into codes, lets no exception out.
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "backend/cuda_stream.h"
#include "backend/hybridgen.h"
#include "backend/paged_attention_backend.h"
#include "backend/topology_json.h"
#include "kernels/cpu_features.h"
#include "kernels/kernel_table.h"

using hybridgen::PagedAttentionBackend;

struct hg_backend {
  std::unique_ptr<PagedAttentionBackend> impl;
  pid_t pid;  // of the process that created it: threads and reserved memory do not survive a fork
};

struct hg_plan {
  hybridgen::Plan impl;
};

namespace {

constexpr char kVersion[] = "0.1.0";

// Thread-local, so that two engines in one process do not see each other's messages.
std::string& LastError() {
  thread_local std::string message;
  return message;
}

hg_status Fail(const absl::Status& status) {
  LastError() = std::string(status.message());
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kOutOfRange:
      return HG_INVALID_ARGUMENT;
    case absl::StatusCode::kDeadlineExceeded:
      return HG_DEADLINE_EXCEEDED;
    case absl::StatusCode::kResourceExhausted:
      return HG_RESOURCE_EXHAUSTED;
    case absl::StatusCode::kFailedPrecondition:
      return HG_FAILED_PRECONDITION;
    case absl::StatusCode::kUnimplemented:
      return HG_UNIMPLEMENTED;
    case absl::StatusCode::kUnavailable:
      return HG_UNAVAILABLE;
    default:
      return HG_INTERNAL;
  }
}

hg_status Finish(const absl::Status& status) { return status.ok() ? HG_OK : Fail(status); }

absl::Status Null(const char* call, const char* field) {
  return absl::InvalidArgumentError(absl::StrCat(call, ": ", field, " is null; accepted: a valid pointer"));
}

absl::Status CheckBuffer(const char* call, const char* buffer, size_t capacity, const size_t* needed) {
  if (needed == nullptr) return Null(call, "needed");
  if (buffer == nullptr && capacity > 0) return Null(call, "buffer");
  return absl::OkStatus();
}

// As much of the text as fits, terminated; *needed is what it takes.
void CopyText(const std::string& text, char* buffer, size_t capacity, size_t* needed) {
  *needed = text.size() + 1;
  if (capacity == 0) return;
  const size_t copied = std::min(text.size(), capacity - 1);
  std::memcpy(buffer, text.data(), copied);
  buffer[copied] = '\0';
}

// A struct of an older caller is shorter and of a newer one longer; at least everything up to `least` must be there.
template <typename T>
absl::StatusOr<T> ReadStruct(const char* call, const char* name, const T* from, size_t least) {
  if (from == nullptr) return Null(call, name);
  if (from->struct_size < least || from->struct_size > 4096) {
    return absl::InvalidArgumentError(absl::StrCat(call, ": ", name, ".struct_size is ", from->struct_size,
                                                   "; accepted: ", least, " to 4096 (sizeof the struct, here ",
                                                   sizeof(T), ")"));
  }
  T copy;
  std::memset(&copy, 0, sizeof(copy));
  std::memcpy(&copy, from, std::min<size_t>(from->struct_size, sizeof(T)));
  return copy;
}

// Runs `body` (returning absl::Status) with everything that no C caller may see caught.
template <typename Body>
hg_status Guard(const char* call, const Body& body) {
  try {
    return Finish(body());
  } catch (const std::bad_alloc&) {
    return Fail(absl::ResourceExhaustedError(absl::StrCat(call, ": out of memory")));
  } catch (const std::exception& error) {
    return Fail(absl::InternalError(absl::StrCat(call, ": ", error.what())));
  } catch (...) {
    return Fail(absl::InternalError(absl::StrCat(call, ": unknown exception")));
  }
}

// Guard for calls on a backend: refuses null and inherited ones.
template <typename Body>
hg_status WithBackend(const char* call, hg_backend* backend, const Body& body) {
  return Guard(call, [&]() -> absl::Status {
    if (backend == nullptr) return Null(call, "backend");
    if (backend->pid != getpid()) {
      return absl::FailedPreconditionError(absl::StrCat(call, ": the backend was created by process ", backend->pid,
                                                        " and this is its fork ", getpid(),
                                                        "; create a backend in this process"));
    }
    return body(*backend->impl);
  });
}

template <typename Enum>
absl::Status ReadEnum(const char* field, int32_t value, int32_t last, const char* accepted, Enum& out) {
  if (value < 0 || value > last) {
    return absl::InvalidArgumentError(absl::StrCat("create backend: ", field, " is ", value, "; accepted: ", accepted));
  }
  out = static_cast<Enum>(value);
  return absl::OkStatus();
}

absl::StatusOr<hybridgen::BackendOptions> ReadConfig(const hg_config* config) {
  absl::StatusOr<hg_config> c =
      ReadStruct("create backend", "config", config, offsetof(hg_config, timeout_seconds) + sizeof(double));
  if (!c.ok()) return c.status();
  hybridgen::BackendOptions o;
  for (const absl::Status& status : {
           ReadEnum("device_kind", c->device_kind, 2, "0 (cpu), 1 (emulated), 2 (cuda)", o.device_kind),
           ReadEnum("binding", c->binding, 1, "0 (identity), 1 (tiered)", o.binding),
           ReadEnum("executor", c->executor, 2, "0 (auto), 1 (openmp), 2 (pool)", o.executor),
           ReadEnum("dtype", c->dtype, 2, "0 (float32), 1 (float16), 2 (bfloat16)", o.dtype),
           ReadEnum("host_page_format", c->host_page_format, 1, "0 (exact), 1 (int8)", o.host_page_format),
           ReadEnum("page_digests", c->page_digests, 1, "0 (none), 1 (on_publish)", o.page_digests),
           ReadEnum("placement", c->placement, 3, "0 (auto), 1 (role), 2 (proportional), 3 (interleave)", o.placement),
       }) {
    if (!status.ok()) return status;
  }
  if (c->kv_dtype == HG_FLOAT8_E4M3 || c->kv_dtype == HG_FLOAT8_E5M2) {
    o.kv_dtype = static_cast<hybridgen::DType>(c->kv_dtype);
  } else if (c->kv_dtype != 0) {
    return absl::InvalidArgumentError(absl::StrCat("create backend: kv_dtype is ", c->kv_dtype,
                                                   "; accepted: 0 (dtype), 3 (float8_e4m3), 4 (float8_e5m2)"));
  }
  o.isa_is_auto = c->isa == HG_ISA_AUTO;
  if (!o.isa_is_auto) {
    absl::Status status = ReadEnum("isa", c->isa, 5,
                                   "-1 (auto), 0 (portable), 1 (avx2), 2 (avx512), 3 (avx512_bf16), 4 (amx_bf16), "
                                   "5 (avx512_vnni)",
                                   o.isa);
    if (!status.ok()) return status;
  }
  o.num_kv_heads = c->num_kv_heads;
  o.head_size = c->head_size;
  o.block_size = c->block_size;
  o.num_threads = c->num_threads;
  o.device_threads = c->device_threads == 0 ? 1 : c->device_threads;
  o.speculative_tokens = c->speculative_tokens;
  o.dram_bytes = c->dram_bytes;
  o.cxl_bytes = c->cxl_bytes;
  o.dram_node = c->dram_node;
  o.cxl_node = c->cxl_node;
  o.interleave_dram_weight = c->interleave_dram_weight == 0 ? 1 : c->interleave_dram_weight;
  o.interleave_cxl_weight = c->interleave_cxl_weight == 0 ? 1 : c->interleave_cxl_weight;
  if (c->cxl_device != nullptr) o.cxl_device = c->cxl_device;
  o.dram_gigabytes_per_second = c->dram_gigabytes_per_second;
  o.cxl_gigabytes_per_second = c->cxl_gigabytes_per_second;
  o.streaming_share = c->streaming_share;
  o.device_gigabytes_per_second = c->device_gigabytes_per_second;
  o.mover_gigabytes_per_second = c->mover_gigabytes_per_second;
  o.head_groups = c->head_groups;
  o.cuda_device = c->cuda_device;
  o.graph_tokens = c->graph_tokens;
  o.graph_pages = c->graph_pages;
  if (c->timeout_seconds != 0) {
    constexpr double kMaxSeconds = 1e6;
    if (!(c->timeout_seconds > 0 && c->timeout_seconds <= kMaxSeconds)) {
      return absl::InvalidArgumentError(absl::StrCat("create backend: timeout_seconds is ", c->timeout_seconds,
                                                     "; accepted: 0 (60 seconds) or up to ", kMaxSeconds));
    }
    o.timeout = absl::Seconds(c->timeout_seconds);
  }
  if (c->cpus != nullptr) {
    constexpr int kMaxCpus = 1024;  // of cpu_set_t
    if (c->num_cpus < 1 || c->num_cpus > kMaxCpus) {
      return absl::InvalidArgumentError(
          absl::StrCat("create backend: num_cpus is ", c->num_cpus, "; accepted: 1 to ", kMaxCpus));
    }
    o.cpus.assign(c->cpus, c->cpus + c->num_cpus);
    for (int cpu : o.cpus) {
      if (cpu < 0 || cpu >= kMaxCpus) {
        return absl::InvalidArgumentError(
            absl::StrCat("create backend: cpus names CPU ", cpu, "; accepted: 0 to ", kMaxCpus - 1));
      }
    }
  }
  return o;
}

absl::StatusOr<hybridgen::GraphShape> ReadGraph(const char* call, const hg_graph* graph) {
  absl::StatusOr<hg_graph> g = ReadStruct(call, "graph", graph, offsetof(hg_graph, query_tokens) + sizeof(int32_t));
  if (!g.ok()) return g.status();
  return hybridgen::GraphShape{g->num_tokens, g->query_tokens};
}

hybridgen::TensorView View(const hg_tensor* tensor) {
  if (tensor == nullptr) return {};
  return {tensor->data, tensor->token_stride, tensor->head_stride};
}

// Fills *plan, or a new one if it is null.
absl::Status FillPlan(hg_plan** plan, absl::FunctionRef<absl::Status(hybridgen::Plan&)> fill) {
  std::unique_ptr<hg_plan> made;
  if (*plan == nullptr) made = std::make_unique<hg_plan>();
  absl::Status status = fill(made != nullptr ? made->impl : (*plan)->impl);
  if (status.ok() && made != nullptr) *plan = made.release();
  return status;
}

// Copies the text that `read` returns; a wrong buffer is refused before anything is read.
hg_status GiveTopology(char* buffer, size_t capacity, size_t* needed,
                       absl::FunctionRef<absl::StatusOr<std::string>()> read) {
  return Guard("memory topology", [&]() -> absl::Status {
    if (absl::Status status = CheckBuffer("memory topology", buffer, capacity, needed); !status.ok()) return status;
    const absl::StatusOr<std::string> json = read();
    if (!json.ok()) return json.status();
    CopyText(*json, buffer, capacity, needed);
    return absl::OkStatus();
  });
}

}  // namespace

extern "C" {

int32_t hg_abi_version(void) { return HG_ABI_VERSION; }

const char* hg_last_error(void) { return LastError().c_str(); }

const char* hg_build_info(void) {
  static const std::string* const info = [] {
    const hybridgen::CpuFeatures features = hybridgen::DetectCpuFeatures();
    std::string rows;
    for (const hybridgen::Isa isa : hybridgen::AllIsas()) {
      absl::StrAppend(&rows, rows.empty() ? "" : " ", hybridgen::IsaName(isa),
                      hybridgen::Supports(features, isa) ? "" : " (not on this CPU)");
    }
    return new std::string(absl::StrCat("hybridgen ", kVersion, ", ABI ", HG_ABI_VERSION, ", kernels: ", rows,
                                        ", selected: ", hybridgen::SelectKernels(features).name,
                                        ", CPU features: ", features.ToString()));
  }();
  return info->c_str();
}

hg_status hg_cuda_status(void) {
  return Guard("CUDA status", [] { return hybridgen::CudaStatus(); });
}

hg_status hg_backend_create(const hg_config* config, hg_backend** out) {
  return Guard("create backend", [&]() -> absl::Status {
    if (out == nullptr) return Null("create backend", "out");
    *out = nullptr;
    absl::StatusOr<hybridgen::BackendOptions> options = ReadConfig(config);
    if (!options.ok()) return options.status();
    absl::StatusOr<std::unique_ptr<PagedAttentionBackend>> impl = PagedAttentionBackend::Create(*options);
    if (!impl.ok()) return impl.status();
    *out = new hg_backend{*std::move(impl), getpid()};
    return absl::OkStatus();
  });
}

void hg_backend_destroy(hg_backend* backend) {
  if (backend == nullptr) return;
  // A forked child has neither the threads to join nor the memory to return: the inherited object is left alone.
  if (backend->pid != getpid()) return;
  delete backend;
}

hg_status hg_backend_add_layer(hg_backend* backend, const hg_layer* layer, int32_t* index) {
  return WithBackend("add layer", backend, [&](PagedAttentionBackend& impl) -> absl::Status {
    if (index == nullptr) return Null("add layer", "index");
    absl::StatusOr<hg_layer> l = ReadStruct("add layer", "layer", layer, offsetof(hg_layer, sinks) + sizeof(void*));
    if (!l.ok()) return l.status();
    constexpr int kMaxHeads = 65536;
    if (l->num_query_heads < 1 || l->num_query_heads > kMaxHeads) {
      return absl::InvalidArgumentError(
          absl::StrCat("add layer: num_query_heads is ", l->num_query_heads, "; accepted: 1 to ", kMaxHeads));
    }
    hybridgen::LayerParams params;
    params.num_query_heads = l->num_query_heads;
    params.scale = l->scale;
    params.soft_cap = l->soft_cap;
    params.sliding_window = l->sliding_window;
    if (l->alibi_slopes != nullptr) {
      params.alibi_slopes.assign(l->alibi_slopes, l->alibi_slopes + l->num_query_heads);
    }
    if (l->sinks != nullptr) params.sinks.assign(l->sinks, l->sinks + l->num_query_heads);
    if (l->k_scale != 0) params.k_scale = l->k_scale;
    if (l->v_scale != 0) params.v_scale = l->v_scale;
    absl::StatusOr<int> added = impl.AddLayer(params);
    if (!added.ok()) return added.status();
    *index = *added;
    return absl::OkStatus();
  });
}

hg_status hg_backend_bind_identity(hg_backend* backend, const hg_pool* pool) {
  return WithBackend("bind identity", backend, [&](PagedAttentionBackend& impl) -> absl::Status {
    absl::StatusOr<hg_pool> p =
        ReadStruct("bind identity", "pool", pool, offsetof(hg_pool, token_stride) + sizeof(int64_t));
    if (!p.ok()) return p.status();
    return impl.BindIdentity({p->layer, p->data, p->num_blocks, p->block_stride, p->head_stride, p->token_stride});
  });
}

hg_status hg_backend_bind_tiered(hg_backend* backend, const hg_regions* regions) {
  return WithBackend("bind tiered", backend, [&](PagedAttentionBackend& impl) -> absl::Status {
    absl::StatusOr<hg_regions> r =
        ReadStruct("bind tiered", "regions", regions, offsetof(hg_regions, num_blocks) + sizeof(int64_t));
    if (!r.ok()) return r.status();
    if (r->data == nullptr) return Null("bind tiered", "data");
    constexpr int kMaxLayers = 65536;
    if (r->num_layers < 1 || r->num_layers > kMaxLayers) {
      return absl::InvalidArgumentError(
          absl::StrCat("bind tiered: num_layers is ", r->num_layers, "; accepted: 1 to ", kMaxLayers));
    }
    hybridgen::TieredPool pool;
    pool.data.assign(r->data, r->data + r->num_layers);
    pool.bytes = r->bytes;
    pool.num_blocks = r->num_blocks;
    return impl.BindTiered(pool);
  });
}

hg_status hg_backend_update_requests(hg_backend* backend, const hg_request_delta* deltas, int32_t count) {
  return WithBackend("update requests", backend, [&](PagedAttentionBackend& impl) -> absl::Status {
    if (count < 0) {
      return absl::InvalidArgumentError(absl::StrCat("update requests: count is ", count, "; accepted: 0 or more"));
    }
    if (count == 0) return absl::OkStatus();
    if (deltas == nullptr) return Null("update requests", "deltas");
    absl::StatusOr<hybridgen::BlockTableMirror*> mirror = impl.Mirror();
    if (!mirror.ok()) return mirror.status();
    // The array's stride is the caller's struct size.
    const char* next = reinterpret_cast<const char*>(deltas);
    for (int32_t i = 0; i < count; ++i, next += deltas->struct_size) {
      absl::StatusOr<hg_request_delta> d =
          ReadStruct("update requests", "deltas", reinterpret_cast<const hg_request_delta*>(next),
                     offsetof(hg_request_delta, num_blocks) + sizeof(int32_t));
      if (!d.ok()) return d.status();
      if (d->num_blocks < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("update requests: num_blocks is ", d->num_blocks, "; accepted: 0 or more"));
      }
      if (d->blocks == nullptr && d->num_blocks > 0) return Null("update requests", "blocks");
      const absl::Span<const int32_t> blocks(d->blocks, d->num_blocks);
      absl::Status status;
      switch (d->event) {
        case HG_REQUEST_SET:
          status = (*mirror)->Set(d->request, blocks);
          break;
        case HG_REQUEST_APPEND:
          status = (*mirror)->Append(d->request, blocks);
          break;
        case HG_REQUEST_PREEMPT:
        case HG_REQUEST_FINISH:
          (*mirror)->Remove(d->request);
          break;
        default:
          status = absl::InvalidArgumentError(absl::StrCat("update requests: event is ", d->event,
                                                           "; accepted: 0 (set), 1 (append), 2 (preempt), 3 (finish)"));
      }
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  });
}

hg_status hg_backend_plan_step(hg_backend* backend, const hg_batch* batch, hg_plan** plan) {
  return WithBackend("plan step", backend, [&](PagedAttentionBackend& impl) -> absl::Status {
    if (plan == nullptr) return Null("plan step", "plan");
    absl::StatusOr<hg_batch> b =
        ReadStruct("plan step", "batch", batch, offsetof(hg_batch, num_slots) + sizeof(int64_t));
    if (!b.ok()) return b.status();
    constexpr int kMaxSequences = 1 << 20;
    if (b->num_sequences < 0 || b->num_sequences > kMaxSequences) {
      return absl::InvalidArgumentError(
          absl::StrCat("plan step: num_sequences is ", b->num_sequences, "; accepted: 0 to ", kMaxSequences));
    }
    if (b->query_start == nullptr) return Null("plan step", "query_start");
    if (b->seq_lens == nullptr && b->num_sequences > 0) return Null("plan step", "seq_lens");
    if (b->block_table_stride < 0 || b->num_slots < 0) {
      return absl::InvalidArgumentError(absl::StrCat("plan step: block_table_stride is ", b->block_table_stride,
                                                     " and num_slots ", b->num_slots, "; accepted: 0 or more"));
    }
    hybridgen::StepBatch step;
    const size_t count = b->num_sequences;
    step.query_start = {b->query_start, count + 1};
    step.seq_lens = {b->seq_lens, count};
    step.causal = b->causal != 0;
    step.block_tables = b->block_tables;
    step.block_table_stride = b->block_table_stride;
    if (b->requests != nullptr) step.requests = {b->requests, count};
    if (b->slot_mapping != nullptr) {
      step.has_slot_mapping = true;
      step.slot_mapping = {b->slot_mapping, static_cast<size_t>(b->num_slots)};
    }
    return FillPlan(plan, [&](hybridgen::Plan& to) { return impl.PlanStep(step, to); });
  });
}

hg_status hg_backend_plan_capture(hg_backend* backend, const hg_graph* graph, void* stream, hg_plan** plan) {
  return WithBackend("plan capture", backend, [&](PagedAttentionBackend& impl) -> absl::Status {
    if (plan == nullptr) return Null("plan capture", "plan");
    absl::StatusOr<hybridgen::GraphShape> shape = ReadGraph("plan capture", graph);
    if (!shape.ok()) return shape.status();
    return FillPlan(
        plan, [&](hybridgen::Plan& to) { return impl.PlanCapture(*shape, to, static_cast<CUstream_st*>(stream)); });
  });
}

hg_status hg_backend_begin_step(hg_backend* backend, hg_plan* plan, const hg_graph* graph, void* stream) {
  return WithBackend("begin step", backend, [&](PagedAttentionBackend& impl) -> absl::Status {
    if (plan == nullptr) return Null("begin step", "plan");
    const auto queue = static_cast<CUstream_st*>(stream);
    if (graph == nullptr) return impl.BeginStep(plan->impl, nullptr, queue);
    absl::StatusOr<hybridgen::GraphShape> shape = ReadGraph("begin step", graph);
    if (!shape.ok()) return shape.status();
    return impl.BeginStep(plan->impl, &*shape, queue);
  });
}

hg_status hg_backend_check_replay(hg_backend* backend, const hg_plan* plan, const hg_graph* graph) {
  return WithBackend("check replay", backend, [&](PagedAttentionBackend& impl) -> absl::Status {
    if (plan == nullptr) return Null("check replay", "plan");
    absl::StatusOr<hybridgen::GraphShape> shape = ReadGraph("check replay", graph);
    if (!shape.ok()) return shape.status();
    return impl.CheckReplay(plan->impl, *shape);
  });
}

void hg_plan_destroy(hg_plan* plan) { delete plan; }

hg_status hg_backend_forward(hg_backend* backend, hg_plan* plan, int32_t layer, const hg_tensor* query,
                             const hg_tensor* key, const hg_tensor* value, const hg_tensor* output) {
  return hg_backend_forward_on_stream(backend, plan, layer, query, key, value, output, nullptr);
}

hg_status hg_backend_forward_on_stream(hg_backend* backend, hg_plan* plan, int32_t layer, const hg_tensor* query,
                                       const hg_tensor* key, const hg_tensor* value, const hg_tensor* output,
                                       void* stream) {
  return WithBackend("forward", backend, [&](PagedAttentionBackend& impl) -> absl::Status {
    if (plan == nullptr) return Null("forward", "plan");
    return impl.Forward(plan->impl, layer, View(query), View(key), View(value), View(output),
                        static_cast<CUstream_st*>(stream));
  });
}

hg_status hg_backend_stats_json(hg_backend* backend, char* buffer, size_t capacity, size_t* needed) {
  return WithBackend("statistics", backend, [&](PagedAttentionBackend& impl) -> absl::Status {
    if (absl::Status status = CheckBuffer("statistics", buffer, capacity, needed); !status.ok()) return status;
    CopyText(impl.StatisticsJson(), buffer, capacity, needed);
    return absl::OkStatus();
  });
}

hg_status hg_topology_json(const char* root, const char* override_kinds, char* buffer, size_t capacity,
                           size_t* needed) {
  return GiveTopology(buffer, capacity, needed, [&] {
    return hybridgen::TopologyJson(root == nullptr ? "" : root, override_kinds == nullptr ? "" : override_kinds);
  });
}

hg_status hg_topology_measured_json(const char* override_kinds, char* buffer, size_t capacity, size_t* needed) {
  return GiveTopology(buffer, capacity, needed,
                      [&] { return hybridgen::MeasuredTopologyJson(override_kinds == nullptr ? "" : override_kinds); });
}

hg_status hg_backend_set_streaming_share(hg_backend* backend, double share) {
  return WithBackend("set streaming share", backend,
                     [&](PagedAttentionBackend& impl) { return impl.SetStreamingShare(share); });
}

}  // extern "C"
