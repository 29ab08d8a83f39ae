// Python module hybridgen._core: the C ABI as classes Backend and Plan. Statuses become exceptions of
// hybridgen.errors; torch is never seen, tensors come as addresses and strides.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "backend/hybridgen.h"

namespace py = pybind11;

namespace {

[[noreturn]] void Raise(hg_status status, const std::string& message) {
  const py::object error =
      py::module_::import("hybridgen.errors").attr("from_status")(static_cast<int>(status), message);
  PyErr_SetObject(py::type::handle_of(error).ptr(), error.ptr());
  throw py::error_already_set();
}

void Check(hg_status status) {
  if (status != HG_OK) Raise(status, hg_last_error());
}

// The text of a function that fills a buffer and tells how much it needs, which may grow between calls. `expected`
// bytes that suffice save a call.
template <typename Fill>
std::string ReadText(const Fill& fill, size_t expected = 0) {
  size_t needed = expected;
  if (expected == 0) Check(fill(nullptr, 0, &needed));
  std::string text;
  do {
    text.resize(needed);
    Check(fill(text.data(), text.size(), &needed));
  } while (needed > text.size());
  text.resize(needed - 1);
  return text;
}

// Why device kind cuda cannot be had; none if it can, as far as is known before CUDA is initialised.
std::optional<std::string> CudaProblem() {
  if (hg_cuda_status() == HG_OK) return std::nullopt;
  return hg_last_error();
}

std::string TopologyJson(const std::optional<std::string>& root, const std::optional<std::string>& override_kinds) {
  return ReadText([&](char* buffer, size_t capacity, size_t* needed) {
    return hg_topology_json(root ? root->c_str() : nullptr, override_kinds ? override_kinds->c_str() : nullptr, buffer,
                            capacity, needed);
  });
}

std::string MeasuredTopologyJson(const std::optional<std::string>& override_kinds) {
  constexpr size_t kExpected = size_t{1} << 20;
  return ReadText(
      [&](char* buffer, size_t capacity, size_t* needed) {
        hg_status status;
        {
          const py::gil_scoped_release release;  // measures for up to a second
          status =
              hg_topology_measured_json(override_kinds ? override_kinds->c_str() : nullptr, buffer, capacity, needed);
        }
        return status;
      },
      kExpected);
}

struct Name {
  const char* name;
  int32_t value;
};
constexpr Name kDeviceKinds[] = {{"cpu", HG_DEVICE_CPU}, {"emulated", HG_DEVICE_EMULATED}, {"cuda", HG_DEVICE_CUDA}};
constexpr Name kBindings[] = {{"identity", HG_BINDING_IDENTITY}, {"tiered", HG_BINDING_TIERED}};
constexpr Name kExecutors[] = {{"auto", HG_EXECUTOR_AUTO}, {"openmp", HG_EXECUTOR_OPENMP}, {"pool", HG_EXECUTOR_POOL}};
constexpr Name kPlacements[] = {{"auto", HG_PLACEMENT_AUTO},
                                {"role", HG_PLACEMENT_ROLE},
                                {"proportional", HG_PLACEMENT_PROPORTIONAL},
                                {"interleave", HG_PLACEMENT_INTERLEAVE}};
constexpr Name kHostPageFormats[] = {{"exact", HG_HOST_PAGES_EXACT}, {"int8", HG_HOST_PAGES_INT8}};
constexpr Name kPageDigests[] = {{"none", HG_PAGE_DIGESTS_NONE}, {"on_publish", HG_PAGE_DIGESTS_ON_PUBLISH}};
constexpr Name kIsas[] = {
    {"auto", HG_ISA_AUTO},        {"portable", HG_ISA_PORTABLE},       {"avx2", HG_ISA_AVX2},
    {"avx512", HG_ISA_AVX512},    {"avx512_vnni", HG_ISA_AVX512_VNNI}, {"avx512_bf16", HG_ISA_AVX512_BF16},
    {"amx_bf16", HG_ISA_AMX_BF16}};
constexpr Name kDtypes[] = {{"float32", HG_FLOAT32}, {"float16", HG_FLOAT16}, {"bfloat16", HG_BFLOAT16}};
constexpr Name kKvDtypes[] = {{"float8_e4m3", HG_FLOAT8_E4M3}, {"float8_e5m2", HG_FLOAT8_E5M2}};
constexpr Name kEvents[] = {{"set", HG_REQUEST_SET},
                            {"append", HG_REQUEST_APPEND},
                            {"preempt", HG_REQUEST_PREEMPT},
                            {"finish", HG_REQUEST_FINISH}};

template <size_t N>
int32_t ValueOf(const char* field, const std::string& text, const Name (&names)[N]) {
  std::string accepted;
  for (const Name& entry : names) {
    if (text == entry.name) return entry.value;
    accepted += accepted.empty() ? entry.name : std::string(", ") + entry.name;
  }
  Raise(HG_INVALID_ARGUMENT, std::string(field) + " is '" + text + "'; accepted: " + accepted);
}

enum class Null { kRefused, kAccepted };

// An address given as a Python int; None is a null pointer where the field may be absent.
void* Address(const char* field, py::handle value, Null null) {
  if (value.is_none() && null == Null::kAccepted) return nullptr;
  if (PyLong_Check(value.ptr())) {
    const uint64_t address = PyLong_AsUnsignedLongLong(value.ptr());
    if (PyErr_Occurred() != nullptr) {
      PyErr_Clear();  // negative or too wide
    } else if (address != 0) {
      return reinterpret_cast<void*>(address);
    }
  }
  Raise(HG_INVALID_ARGUMENT, std::string(field) + " is " + std::string(py::repr(value)) +
                                 "; accepted: a non-zero address" + (null == Null::kAccepted ? ", or None" : ""));
}

// A [tokens][heads][head_size] tensor; torch has no negative strides, and the library would follow them anywhere.
hg_tensor Tensor(const char* field, py::handle data, int64_t token_stride, int64_t head_stride, Null null) {
  if (token_stride < 0 || head_stride < 0) {
    Raise(HG_INVALID_ARGUMENT, std::string(field) + " has strides " + std::to_string(token_stride) + " (token), " +
                                   std::to_string(head_stride) + " (head); accepted: 0 or more elements");
  }
  return {Address(field, data, null), token_stride, head_stride};
}

// A host array of exactly this element type with contiguous rows; never converted, so that a wrong dtype is an error
// and not a silent copy.
template <typename T>
const T* Array(const char* field, py::handle value, int dims, int64_t first_dim, py::ssize_t* row_stride = nullptr) {
  const std::string type = py::str(static_cast<py::object>(py::dtype::of<T>()));
  if (!py::isinstance<py::array_t<T>>(value)) {
    Raise(HG_INVALID_ARGUMENT,
          std::string(field) + " is " + std::string(py::str(py::type::handle_of(value))) +
              (py::isinstance<py::array>(value) ? " of dtype " + std::string(py::str(value.attr("dtype")))
                                                : std::string()) +
              "; accepted: a numpy array of " + type);
  }
  const py::array array = py::reinterpret_borrow<py::array>(value);
  const bool contiguous = array.ndim() == dims && (array.shape(dims - 1) < 2 || array.strides(dims - 1) == sizeof(T));
  if (!contiguous || (first_dim >= 0 && array.shape(0) != first_dim)) {
    Raise(HG_INVALID_ARGUMENT, std::string(field) + " has shape " + std::string(py::str(value.attr("shape"))) +
                                   " and strides " + std::string(py::str(value.attr("strides"))) +
                                   "; accepted: " + std::to_string(dims) + " contiguous dimension(s)" +
                                   (first_dim >= 0 ? ", the first of " + std::to_string(first_dim) : ""));
  }
  if (row_stride != nullptr) *row_stride = array.strides(0) / static_cast<py::ssize_t>(sizeof(T));
  return static_cast<const T*>(array.data());
}

class Backend;

class Plan {
 public:
  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() { hg_plan_destroy(plan_); }

 private:
  friend class Backend;
  hg_plan* plan_ = nullptr;
  int64_t owner_ = 0;  // number of the backend that filled it; 0: none yet
};

class Backend {
 public:
  explicit Backend(const hg_config& config) : number_(next_number_++) { Check(hg_backend_create(&config, &backend_)); }
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  ~Backend() { hg_backend_destroy(backend_); }

  int32_t AddLayer(int32_t num_query_heads, float scale, float soft_cap, int32_t sliding_window,
                   const std::optional<std::vector<float>>& alibi_slopes,
                   const std::optional<std::vector<float>>& sinks, float k_scale, float v_scale) {
    const Use use(this);
    const auto per_head = [&](const char* field, const std::optional<std::vector<float>>& values) -> const float* {
      if (!values) return nullptr;
      if (static_cast<int64_t>(values->size()) != num_query_heads) {
        Raise(HG_INVALID_ARGUMENT, std::string(field) + " has " + std::to_string(values->size()) +
                                       " elements; accepted: num_query_heads, " + std::to_string(num_query_heads));
      }
      return values->data();
    };
    hg_layer layer = {};
    layer.struct_size = sizeof(layer);
    layer.num_query_heads = num_query_heads;
    layer.scale = scale;
    layer.soft_cap = soft_cap;
    layer.sliding_window = sliding_window;
    layer.alibi_slopes = per_head("alibi_slopes", alibi_slopes);
    layer.sinks = per_head("sinks", sinks);
    layer.k_scale = k_scale;
    layer.v_scale = v_scale;
    int32_t index = 0;
    Check(hg_backend_add_layer(backend_, &layer, &index));
    return index;
  }

  void BindIdentity(int32_t layer, py::handle data, int64_t num_blocks, int64_t block_stride, int64_t head_stride,
                    int64_t token_stride) {
    const Use use(this);
    const hg_pool pool = {sizeof(pool), layer,       Address("data", data, Null::kRefused), num_blocks, block_stride,
                          head_stride,  token_stride};
    Check(hg_backend_bind_identity(backend_, &pool));
  }

  void BindTiered(const std::vector<py::object>& data, int64_t bytes, int64_t num_blocks) {
    const Use use(this);
    std::vector<void*> addresses;
    for (const py::object& address : data) addresses.push_back(Address("data", address, Null::kRefused));
    const hg_regions regions = {sizeof(regions), static_cast<int32_t>(addresses.size()), addresses.data(), bytes,
                                num_blocks};
    hg_status status;
    {
      const py::gil_scoped_release release;  // touches every page of the host tiers
      status = hg_backend_bind_tiered(backend_, &regions);
    }
    Check(status);
  }

  void UpdateRequests(const std::vector<std::tuple<std::string, uint64_t, std::vector<int32_t>>>& updates) {
    const Use use(this);
    std::vector<hg_request_delta> deltas;
    deltas.reserve(updates.size());
    for (const auto& [event, request, blocks] : updates) {
      deltas.push_back({sizeof(hg_request_delta), ValueOf("event", event, kEvents), request, blocks.data(),
                        static_cast<int32_t>(blocks.size())});
    }
    Check(hg_backend_update_requests(backend_, deltas.data(), static_cast<int32_t>(deltas.size())));
  }

  void PlanStep(Plan& plan, py::handle query_start, py::handle seq_lens, bool causal, py::handle block_tables,
                py::handle requests, py::handle slot_mapping) {
    const Use use(this);
    if (plan.owner_ != 0) CheckOwner(plan);
    const int32_t* const lens = Array<int32_t>("seq_lens", seq_lens, 1, -1);
    const int64_t num_sequences = py::len(seq_lens);
    hg_batch batch = {};
    batch.struct_size = sizeof(batch);
    batch.num_sequences = static_cast<int32_t>(num_sequences);
    batch.query_start = Array<int32_t>("query_start", query_start, 1, num_sequences + 1);
    batch.seq_lens = lens;
    batch.causal = causal ? 1 : 0;
    if (!block_tables.is_none()) {
      py::ssize_t stride = 0;
      batch.block_tables = Array<int32_t>("block_tables", block_tables, 2, num_sequences, &stride);
      batch.block_table_stride = stride;
    }
    if (!requests.is_none()) batch.requests = Array<uint64_t>("requests", requests, 1, num_sequences);
    if (!slot_mapping.is_none()) {
      batch.slot_mapping = Array<int64_t>("slot_mapping", slot_mapping, 1, -1);
      batch.num_slots = py::len(slot_mapping);
    }
    hg_status status;
    {
      const py::gil_scoped_release release;
      status = hg_backend_plan_step(backend_, &batch, &plan.plan_);
    }
    Check(status);
    plan.owner_ = number_;
  }

  void PlanCapture(Plan& plan, int32_t num_tokens, uint64_t stream) {
    const Use use(this);
    if (plan.owner_ != 0) CheckOwner(plan);
    const hg_graph graph = Graph(num_tokens);
    hg_status status;
    {
      const py::gil_scoped_release release;
      status = hg_backend_plan_capture(backend_, &graph, reinterpret_cast<void*>(stream), &plan.plan_);
    }
    Check(status);
    plan.owner_ = number_;
  }

  void BeginStep(const Plan& plan, int32_t num_tokens, uint64_t stream) {
    const Use use(this);
    CheckOwner(plan);
    const hg_graph graph = Graph(num_tokens);
    hg_status status;
    {
      const py::gil_scoped_release release;
      status = hg_backend_begin_step(backend_, plan.plan_, &graph, reinterpret_cast<void*>(stream));
    }
    Check(status);
  }

  void Forward(const Plan& plan, int32_t layer, py::handle query, int64_t query_token, int64_t query_head,
               py::handle key, int64_t key_token, int64_t key_head, py::handle value, int64_t value_token,
               int64_t value_head, py::handle output, int64_t output_token, int64_t output_head, uint64_t stream) {
    const Use use(this);
    CheckOwner(plan);
    const hg_tensor q = Tensor("query", query, query_token, query_head, Null::kRefused);
    const hg_tensor k = Tensor("key", key, key_token, key_head, Null::kAccepted);
    const hg_tensor v = Tensor("value", value, value_token, value_head, Null::kAccepted);
    const hg_tensor o = Tensor("output", output, output_token, output_head, Null::kRefused);
    hg_status status;
    {
      const py::gil_scoped_release release;
      status =
          hg_backend_forward_on_stream(backend_, plan.plan_, layer, &q, &k, &v, &o, reinterpret_cast<void*>(stream));
    }
    Check(status);
  }

  std::string Stats() {
    const Use use(this);
    return ReadText([this](char* buffer, size_t capacity, size_t* needed) {
      return hg_backend_stats_json(backend_, buffer, capacity, needed);
    });
  }

  void SetStreamingShare(double share) {
    const Use use(this);
    Check(hg_backend_set_streaming_share(backend_, share));
  }

  void Close() {
    if (backend_ == nullptr) return;
    const Use use(this);
    hg_backend_destroy(std::exchange(backend_, nullptr));
  }

 private:
  // One call at a time on an open backend: the ABI's contract, kept here because the GIL is released inside calls.
  class Use {
   public:
    explicit Use(Backend* backend) : backend_(backend) {
      if (backend->busy_.exchange(true, std::memory_order_acquire)) {
        Raise(HG_FAILED_PRECONDITION, "another thread is inside a call on this backend; accepted: one at a time");
      }
      if (backend->backend_ == nullptr) {
        backend->busy_.store(false, std::memory_order_release);
        Raise(HG_FAILED_PRECONDITION, "the backend is closed");
      }
    }
    ~Use() { backend_->busy_.store(false, std::memory_order_release); }

   private:
    Backend* const backend_;
  };

  static hg_graph Graph(int32_t num_tokens) { return {sizeof(hg_graph), num_tokens, /*query_tokens=*/1}; }

  void CheckOwner(const Plan& plan) const {
    if (plan.owner_ != number_) {
      Raise(HG_INVALID_ARGUMENT, plan.owner_ == 0
                                     ? "plan was not planned yet; accepted: a plan of this backend's plan_step"
                                     : "plan belongs to another backend; accepted: a plan of this backend's plan_step");
    }
  }

  inline static int64_t next_number_ = 1;  // under the GIL

  const int64_t number_;
  hg_backend* backend_ = nullptr;
  std::atomic<bool> busy_{false};
};

std::unique_ptr<Backend> MakeBackend(
    const std::string& device_kind, const std::string& binding, const std::string& executor, const std::string& isa,
    const std::string& dtype, int32_t num_kv_heads, int32_t head_size, int32_t block_size, int32_t num_threads,
    int32_t device_threads, int32_t speculative_tokens, int64_t dram_bytes, int64_t cxl_bytes, int32_t dram_node,
    int32_t cxl_node, const std::optional<std::string>& cxl_device, const std::string& placement,
    int32_t interleave_dram_weight, int32_t interleave_cxl_weight, double dram_gigabytes_per_second,
    double cxl_gigabytes_per_second, double mover_gigabytes_per_second, int32_t head_groups, double streaming_share,
    double device_gigabytes_per_second, double timeout_seconds, const std::optional<std::vector<int32_t>>& cpus,
    int32_t cuda_device, const std::optional<std::string>& kv_dtype, const std::string& host_page_format,
    int32_t graph_tokens, int32_t graph_pages, const std::string& page_digests) {
  hg_config config = {};
  config.struct_size = sizeof(config);
  config.device_kind = ValueOf("device_kind", device_kind, kDeviceKinds);
  config.binding = ValueOf("binding", binding, kBindings);
  config.executor = ValueOf("executor", executor, kExecutors);
  config.isa = ValueOf("isa", isa, kIsas);
  config.dtype = ValueOf("dtype", dtype, kDtypes);
  config.num_kv_heads = num_kv_heads;
  config.head_size = head_size;
  config.block_size = block_size;
  config.num_threads = num_threads;
  config.device_threads = device_threads;
  config.speculative_tokens = speculative_tokens;
  config.dram_bytes = dram_bytes;
  config.cxl_bytes = cxl_bytes;
  config.dram_node = dram_node;
  config.cxl_node = cxl_node;
  config.cxl_device = cxl_device ? cxl_device->c_str() : nullptr;
  config.placement = ValueOf("placement", placement, kPlacements);
  config.interleave_dram_weight = interleave_dram_weight;
  config.interleave_cxl_weight = interleave_cxl_weight;
  config.dram_gigabytes_per_second = dram_gigabytes_per_second;
  config.cxl_gigabytes_per_second = cxl_gigabytes_per_second;
  config.mover_gigabytes_per_second = mover_gigabytes_per_second;
  config.head_groups = head_groups;
  config.streaming_share = streaming_share;
  config.device_gigabytes_per_second = device_gigabytes_per_second;
  config.timeout_seconds = timeout_seconds;
  config.cuda_device = cuda_device;
  if (kv_dtype) config.kv_dtype = ValueOf("kv_dtype", *kv_dtype, kKvDtypes);
  config.graph_tokens = graph_tokens;
  config.graph_pages = graph_pages;
  config.host_page_format = ValueOf("host_page_format", host_page_format, kHostPageFormats);
  config.page_digests = ValueOf("page_digests", page_digests, kPageDigests);
  if (cpus) {
    config.cpus = cpus->data();
    config.num_cpus = static_cast<int32_t>(cpus->size());
  }
  return std::make_unique<Backend>(config);
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The C ABI of libhybridgen.so; see backend/hybridgen.h for what the fields mean.";
  if (hg_abi_version() != HG_ABI_VERSION) {
    throw py::import_error("libhybridgen.so has ABI version " + std::to_string(hg_abi_version()) +
                           ", this module needs " + std::to_string(HG_ABI_VERSION));
  }
  module.def("abi_version", &hg_abi_version);
  module.def("build_info", &hg_build_info, "Library version, CPU features, kernel rows.");
  module.def("cuda_problem", &CudaProblem, "Why device kind cuda cannot be had, or None; does not initialise CUDA.");
  module.def(
      "topology_json", &TopologyJson, py::arg("root") = py::none(), py::arg("override") = py::none(),
      "Memory nodes, memory devices, GPUs and advice on tiers as JSON. root: a directory that holds sys and proc; "
      "override: kinds such as '2:cxl,3:hbm'.");
  module.def("topology_measured_json", &MeasuredTopologyJson, py::arg("override") = py::none(),
             "The same of this machine, with its nodes measured.");

  py::class_<Plan>(module, "Plan", "Memory of one planned step, filled by Backend.plan_step.").def(py::init<>());

  using py::arg;
  py::class_<Backend>(module, "Backend")
      .def(py::init(&MakeBackend), py::kw_only(), arg("device_kind"), arg("binding"), arg("executor") = "auto",
           arg("isa") = "auto", arg("dtype"), arg("num_kv_heads"), arg("head_size"), arg("block_size"),
           arg("num_threads") = 0, arg("device_threads") = 0, arg("speculative_tokens") = 0, arg("dram_bytes") = 0,
           arg("cxl_bytes") = 0, arg("dram_node") = -1, arg("cxl_node") = -1, arg("cxl_device") = py::none(),
           arg("placement") = "auto", arg("interleave_dram_weight") = 1, arg("interleave_cxl_weight") = 1,
           arg("dram_gigabytes_per_second") = 0.0, arg("cxl_gigabytes_per_second") = 0.0,
           arg("mover_gigabytes_per_second") = 0.0, arg("head_groups") = 0, arg("streaming_share") = 0.0,
           arg("device_gigabytes_per_second") = 0.0, arg("timeout_seconds") = 0.0, arg("cpus") = py::none(),
           arg("cuda_device") = 0, arg("kv_dtype") = py::none(), arg("host_page_format") = "exact",
           arg("graph_tokens") = 0, arg("graph_pages") = 0, arg("page_digests") = "none")
      .def("add_layer", &Backend::AddLayer, py::kw_only(), arg("num_query_heads"), arg("scale"), arg("soft_cap") = 0.0f,
           arg("sliding_window") = 0, arg("alibi_slopes") = py::none(), arg("sinks") = py::none(),
           arg("k_scale") = 1.0f, arg("v_scale") = 1.0f, "Returns the layer's index: 0, 1, ...")
      .def("bind_identity", &Backend::BindIdentity, arg("layer"), arg("data"), arg("num_blocks"), arg("block_stride"),
           arg("head_stride"), arg("token_stride"), "Strides in elements; V of a token lies head_size after its K.")
      .def("bind_tiered", &Backend::BindTiered, py::kw_only(), arg("data"), arg("bytes"), arg("num_blocks"),
           "data: address of each layer's region of `bytes` bytes.")
      .def("update_requests", &Backend::UpdateRequests, arg("deltas"),
           "deltas: (event, request number, block ids), event one of set, append, preempt, finish.")
      .def("plan_step", &Backend::PlanStep, arg("plan"), py::kw_only(), arg("query_start"), arg("seq_lens"),
           arg("causal") = true, arg("block_tables") = py::none(), arg("requests") = py::none(),
           arg("slot_mapping") = py::none(),
           "numpy arrays: int32 query_start [n + 1], seq_lens [n] and block_tables [n, width], uint64 requests [n], "
           "int64 slot_mapping.")
      .def("plan_capture", &Backend::PlanCapture, arg("plan"), py::kw_only(), arg("num_tokens"), arg("stream"),
           "A plan with which every layer runs once while its stream is captured, or to warm up. Not during a capture.")
      .def("begin_step", &Backend::BeginStep, arg("plan"), py::kw_only(), arg("num_tokens"), arg("stream"),
           "Takes a planned step of single-token sequences up for the graph captured for num_tokens, which the caller "
           "replays on the stream next, once.")
      .def("forward", &Backend::Forward, arg("plan"), arg("layer"), arg("query"), arg("query_token_stride"),
           arg("query_head_stride"), arg("key"), arg("key_token_stride"), arg("key_head_stride"), arg("value"),
           arg("value_token_stride"), arg("value_head_stride"), arg("output"), arg("output_token_stride"),
           arg("output_head_stride"), arg("stream") = 0,
           "Addresses and strides in elements of [tokens, heads, head_size]; key and value None: nothing is written. "
           "stream: the CUDA stream that the layer runs in, 0 the default one; device kind cuda.")
      .def("stats", &Backend::Stats, "Statistics as JSON text.")
      .def("set_streaming_share", &Backend::SetStreamingShare, arg("share"))
      .def("close", &Backend::Close, "Frees everything; later calls raise FailedPrecondition.");
}
