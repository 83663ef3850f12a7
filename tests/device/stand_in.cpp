// Two CUDA devices for a torch without CUDA, whose memory is the host's. torch's own dispatcher, autograd
// engine, device guards and stream handles run as they do with a GPU; what torch itself computes on such a
// tensor it computes on the CPU. test_torch_path.py compiles this and preloads it, so that it is there before
// torch asks which accelerators there are.
#include <ATen/DeviceAccelerator.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>

// A torch built without CUDA has no accelerator, whatever registers itself: this definition comes before its
// own.
std::optional<c10::DeviceType> at::accelerator::getAccelerator(bool) { return c10::DeviceType::CUDA; }

namespace {

constexpr c10::DeviceIndex kDevices = 2;
thread_local c10::DeviceIndex current = 0;
c10::StreamId streams[kDevices] = {};  // the current one of each device

void* handle_of(c10::DeviceIndex device, c10::StreamId stream) {  // not null, and each another
  return reinterpret_cast<void*>(0x1000 * (device + 1) + stream);
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device old = getDevice();
    setDevice(device);
    return old;
  }
  c10::Device getDevice() const override { return {type(), current}; }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() >= 0 && device.index() < kDevices, "there is no ", device);
    current = device.index();
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current = device.index(); }
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::UNSAFE, device, streams[device.index()]);
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const c10::Stream old = getStream(stream.device());
    streams[stream.device_index()] = stream.id();
    return old;
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    return handle_of(stream.device_index(), stream.id());
  }
  // All is done when a call returns.
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

std::atomic<long long> allocated[kDevices] = {};  // bytes asked for, ever

// On the current device, as CUDA's.
struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    allocated[current] += static_cast<long long>(bytes);
    void* const data = bytes == 0 ? nullptr : std::aligned_alloc(512, (bytes + 511) / 512 * 512);
    return {data, data, &std::free, {c10::DeviceType::CUDA, current}};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
Allocator allocator;

}  // namespace

namespace at {  // where, and under which name, torch looks for it
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
};
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at

namespace {

using at::Tensor;
constexpr c10::DispatchKeySet kCuda(c10::DispatchKey::CUDA);

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(device.value_or(at::Device(at::kCUDA)));
  return at::detail::empty_generic(size, &allocator, kCuda, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(device.value_or(at::Device(at::kCUDA)));
  return at::detail::empty_strided_generic(size, stride, &allocator, kCuda, c10::dtype_or_default(dtype));
}

// The same memory as a tensor of the CPU.
Tensor on_host(const Tensor& t) {
  if (t.is_cpu()) return t;
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), t.options().device(at::kCPU));
}

Tensor& copy(Tensor& to, const Tensor& from, bool) {
  if (to.numel() != 0) on_host(to).copy_(on_host(from));
  return to;
}
Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  if (to.numel() != 0) on_host(to).copy_(on_host(from));
  return to;
}
// What an op of the CPU gave back, over a tensor that it was to change or to fill.
Tensor copy_back(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) {
    to.unsafeGetTensorImpl()->shallow_copy_from(at::empty(from.sizes(), to.options()).getIntrusivePtr());
  }
  return copy_from(from, to, false);
}
at::Scalar element(const Tensor& tensor) { return on_host(tensor).item(); }

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("copy_", copy);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_back);
  library.impl("_local_scalar_dense", element);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("view", static_cast<Tensor (*)(const Tensor&, at::IntArrayRef)>(at::native::view));
  library.impl("_reshape_alias", at::native::_reshape_alias);
}

void on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) { at::native::cpu_fallback(op, stack); }
TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>()); }

}  // namespace

// For ctypes.
extern "C" {
int stand_in_current_device() { return current; }
long long stand_in_allocated(int device) { return allocated[device]; }
void stand_in_set_stream(int device, long long stream) { streams[device] = stream; }
void* stand_in_handle(int device, long long stream) {
  return handle_of(static_cast<c10::DeviceIndex>(device), stream);
}
}
