// A CUDA device whose memory is main memory, for a torch that was built without CUDA.
//
// Kernels of the CPU do the work, on the same bytes. What a real device refuses is refused: tensors of two devices in
// one operation, a generator of the CPU, a fused optimiser's step count on the CPU. What costs time on a real device is
// counted: kernels by name, copies in each direction, and whatever makes the CPU wait. Live and peak bytes are exact.
//
// It knows nothing about speed, streams that run at once, the limits of CUDA's own kernels, fragmentation, or NCCL.
#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/SDPBackend.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

namespace {

using at::Tensor;
using c10::IValue;

constexpr auto kDevice = c10::DeviceType::CUDA;
const c10::Device kFirst(kDevice, 0);

std::atomic<long long> live_bytes{0}, peak_bytes{0}, limit_bytes{0};

void take(long long bytes) {
  const long long now = live_bytes += bytes;
  long long highest = peak_bytes.load();
  while (now > highest && !peak_bytes.compare_exchange_weak(highest, now)) {
  }
}

std::mutex counts_lock;
std::map<std::string, long long> counts;

void count(const std::string& what) {
  std::lock_guard<std::mutex> guard(counts_lock);
  ++counts[what];
}

struct Held {
  c10::DataPtr block;
  size_t bytes;
};

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const long long limit = limit_bytes;
    TORCH_CHECK_WITH(OutOfMemoryError, !limit || live_bytes + static_cast<long long>(bytes) <= limit,
                     "CUDA out of memory. Tried to allocate ", bytes, " bytes; ", live_bytes.load(), " of ", limit,
                     " are in use (pretended)");
    return owned(c10::GetCPUAllocator()->allocate(bytes), bytes);
  }

  // Memory of the CPU as memory of the device, until it is freed.
  static c10::DataPtr owned(c10::DataPtr block, size_t bytes) {
    take(static_cast<long long>(bytes));
    void* start = block.get();
    auto release = [](void* context) {
      std::unique_ptr<Held> held(static_cast<Held*>(context));
      take(-static_cast<long long>(held->bytes));
    };
    return {start, new Held{std::move(block), bytes}, release, kFirst};
  }

  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

Allocator allocator;

struct DeviceGuard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kDevice; }
  c10::Device exchangeDevice(c10::Device) const override { return kFirst; }
  c10::Device getDevice() const override { return kFirst; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kFirst); }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStream(device); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { count("wait: stream"); }
};

DeviceGuard device_guard;
c10::impl::DeviceGuardImplRegistrar device_guard_registrar(kDevice, &device_guard);

struct CUDAHooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::Device getDeviceFromPtr(void*) const override { return kFirst; }
  at::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  at::Allocator* getCUDADeviceAllocator() const override { return &allocator; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::globalContext().defaultGenerator(c10::Device(c10::kCPU));
  }
};

// Whoever asked for the hooks before this library was loaded got those of a torch without CUDA, for good: ours take
// their place in memory.
const bool hooks_are_ours = [] {
  static_assert(sizeof(CUDAHooks) == sizeof(at::CUDAHooksInterface));
  new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) CUDAHooks();
  return true;
}();

Tensor tensor_of(c10::Storage storage, c10::DispatchKey key, const Tensor& like) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return made;
}

void forget(void* storage) { delete static_cast<c10::Storage*>(storage); }

// The same bytes as a tensor of the CPU. Its storage may grow, into memory of its own.
Tensor on_cpu(const Tensor& tensor) {
  const c10::Storage& storage = tensor.storage();
  c10::DataPtr bytes(const_cast<void*>(storage.data()), new c10::Storage(storage), forget, c10::Device(c10::kCPU));
  auto same = tensor_of(c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(bytes),
                                     c10::GetCPUAllocator(), true),
                        c10::DispatchKey::CPU, tensor);
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) same.unsafeGetTensorImpl()->set_wrapped_number(true);
  return same;
}

// The memory of a result on the CPU becomes memory of the device.
c10::DataPtr moved(const Tensor& result) {
  auto* storage = new c10::Storage(result.storage());
  c10::DataPtr block(const_cast<void*>(storage->data()), storage, forget, c10::Device(c10::kCPU));
  return Allocator::owned(std::move(block), storage->nbytes());
}

#include "attention.h"

// --- every operation ---------------------------------------------------------------------------------------------------

using Names = std::unordered_set<std::string>;

const Names kViews = {"aten::view", "aten::as_strided", "aten::_reshape_alias", "aten::unfold"};
const Names kWaits = {"aten::_local_scalar_dense", "aten::nonzero",    "aten::masked_select",
                      "aten::equal",               "aten::is_nonzero", "aten::_unique2"};
// Their indices may be tensors of the CPU, which are then copied.
const Names kIndexing = {"aten::index",           "aten::index_put",     "aten::index_put_",
                         "aten::_index_put_impl_", "aten::_unsafe_index", "aten::_unsafe_index_put"};
// Others take a number that is a tensor of the CPU; these want all on the device.
const Names kStrict = {"aten::gather",       "aten::index_select", "aten::embedding",   "aten::scatter", "aten::scatter_",
                       "aten::scatter_add_", "aten::index_add_",   "aten::index_copy_", "aten::take"};

struct Pair {
  Tensor here, there;  // of the device, and its bytes as a tensor of the CPU
};

class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack* stack) : op_(op), stack_(stack), name_(op.schema().name()) {}

  void run() {
    const auto& arguments = op_.schema().arguments();
    const size_t first = stack_->size() - arguments.size();
    for (size_t i = 0; i < arguments.size(); ++i) to_cpu((*stack_)[first + i], i);
    if (!pairs_.empty()) {
      TORCH_CHECK(elsewhere_.empty(), "Expected all tensors to be on the same device, but found at least two devices, ",
                  "cuda:0 and cpu! (", name_, ": ", elsewhere_, " on the CPU; pretended)");
      TORCH_CHECK(!cpu_generator_, "Expected a 'cuda' device type for generator but found 'cpu' (", name_, ")");
      makes_device_tensors_ = true;
    }
    if (kViews.count(name_) == 0) count(name_);
    if (kWaits.count(name_)) count("wait: " + name_);
    op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack_);
    for (auto& pair : pairs_) grow(pair);
    const size_t results = op_.schema().returns().size();
    for (size_t i = stack_->size() - results; i < stack_->size(); ++i) to_device((*stack_)[i]);
  }

 private:
  void to_cpu(IValue& value, size_t place) {
    if (value.isTensor()) {
      value = argument(value.toTensor(), place, false);
    } else if (value.isTensorList()) {
      std::vector<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(argument(tensor, place, true));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector()) {
        const bool given = tensor.has_value() && tensor->defined();
        list.push_back(given ? std::optional<Tensor>(argument(*tensor, place, true)) : std::nullopt);
      }
      value = list;
    } else if (value.isDevice() && value.toDevice().is_cuda()) {
      makes_device_tensors_ = true;
      value = c10::Device(c10::kCPU);
    } else if (value.isGenerator() && value.toGenerator().defined()) {
      cpu_generator_ = value.toGenerator().device().is_cpu();
    }
  }

  Tensor argument(const Tensor& tensor, size_t place, bool in_list) {
    if (!tensor.defined()) return tensor;
    if (tensor.is_cuda()) {
      pairs_.push_back({tensor, on_cpu(tensor)});
      return pairs_.back().there;
    }
    if (kIndexing.count(name_) && place == 1) {
      count("host to device");
    } else if (tensor.dim() > 0 || in_list || kStrict.count(name_)) {
      elsewhere_ += (elsewhere_.empty() ? "" : ", ") + op_.schema().arguments()[place].name();
    }
    return tensor;
  }

  // What an operation with a result to write into has made of its size and memory.
  static void grow(Pair& pair) {
    if (pair.there.storage().data() != pair.here.storage().data()) {
      auto* storage = pair.here.storage().unsafeGetStorageImpl();
      storage->set_data_ptr_noswap(moved(pair.there));
      storage->set_nbytes(pair.there.storage().nbytes());
    }
    if (pair.there.sizes() != pair.here.sizes() || pair.there.strides() != pair.here.strides()) {
      pair.here.unsafeGetTensorImpl()->set_sizes_and_strides(pair.there.sizes(), pair.there.strides(),
                                                             pair.there.storage_offset());
    }
  }

  void to_device(IValue& value) {
    if (value.isTensor()) {
      value = result(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(result(tensor));
      value = list;
    }
  }

  Tensor result(const Tensor& tensor) {
    if (!tensor.defined() || tensor.is_cuda() || !makes_device_tensors_) return tensor;
    const void* bytes = tensor.storage().data();
    for (const auto& pair : pairs_) {
      if (pair.there.unsafeGetTensorImpl() == tensor.unsafeGetTensorImpl()) return pair.here;
      if (bytes && pair.here.storage().data() == bytes)  // a view
        return tensor_of(pair.here.storage(), c10::DispatchKey::CUDA, tensor);
    }
    const size_t size = tensor.storage().nbytes();
    return tensor_of(c10::Storage(c10::Storage::use_byte_size_t(), size, moved(tensor), &allocator, true),
                     c10::DispatchKey::CUDA, tensor);
  }

  const c10::OperatorHandle& op_;
  torch::jit::Stack* stack_;
  const std::string name_;
  std::vector<Pair> pairs_;
  std::string elsewhere_;
  bool cpu_generator_ = false, makes_device_tensors_ = false;
};

void by_the_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) { Call(op, stack).run(); }

using Dtype = std::optional<at::ScalarType>;
using Format = std::optional<at::MemoryFormat>;

at::ScalarType known(Dtype dtype) { return dtype.value_or(at::typeMetaToScalarType(at::get_default_dtype())); }

Tensor empty(at::IntArrayRef size, Dtype dtype, std::optional<at::Layout>, std::optional<at::Device>,
             std::optional<bool>, Format format) {
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA), known(dtype), format);
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, Dtype dtype, std::optional<at::Layout>,
                     std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           known(dtype));
}

Tensor& copy(Tensor& self, const Tensor& source, bool non_blocking) {
  if (self.is_cuda() && source.is_cuda()) {
    count("aten::copy_");
  } else {
    const std::string way = self.is_cuda() ? "host to device" : "device to host";
    count(way);
    if (!non_blocking) count("wait: " + way);
  }
  Tensor to = self.is_cuda() ? on_cpu(self) : self;
  to.copy_(source.is_cuda() ? on_cpu(source) : source);
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage storage, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  if (stride.empty()) {
    impl->set_storage_offset(offset);
    impl->set_sizes_contiguous(size);
  } else {
    impl->set_sizes_and_strides(size, stride, offset);
  }
  return self;
}

Tensor bytes_of(const Tensor& tensor) { return tensor.is_cuda() ? on_cpu(tensor) : tensor; }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("_scaled_dot_product_flash_attention", flash);
  m.impl("_scaled_dot_product_flash_attention_backward", flash_backward);
  m.impl("_scaled_dot_product_efficient_attention", efficient);
  m.impl("_scaled_dot_product_efficient_attention_backward", efficient_backward);
}
TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>()); }
TORCH_LIBRARY(pretend, m) { m.def("bytes_of(Tensor tensor) -> Tensor"); }
TORCH_LIBRARY_IMPL(pretend, CompositeExplicitAutograd, m) { m.impl("bytes_of", bytes_of); }

}  // namespace

extern "C" {
long long pretend_live() { return live_bytes; }
long long pretend_peak() { return peak_bytes; }
void pretend_reset_peak() { peak_bytes = live_bytes.load(); }
void pretend_limit(long long bytes) { limit_bytes = bytes; }
void pretend_reset_counts() {
  std::lock_guard<std::mutex> guard(counts_lock);
  counts.clear();
}
// "name\tnumber\n" for everything that was counted; valid until the next call.
const char* pretend_counts() {
  static std::string text;
  std::lock_guard<std::mutex> guard(counts_lock);
  text.clear();
  for (const auto& [name, number] : counts) text += name + "\t" + std::to_string(number) + "\n";
  return text.c_str();
}
}
