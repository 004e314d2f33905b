// Fused attention of the pretended GPU: a part of device.cpp, which has the includes.
//
// A GPU has kernels that keep no scores. They take less than the CPU's: with a mask no grouped heads, and without one
// grouped heads in half precision alone. What they do not take is written out, scores and all, as on a real one.

int64_t fused_choice(const Tensor& query, const Tensor& key, const Tensor&, const std::optional<Tensor>& mask,
                     double dropout, bool, std::optional<double>, bool) {
  const bool half = query.scalar_type() == at::kHalf || query.scalar_type() == at::kBFloat16;
  if (query.dim() != 4 || dropout > 0) return static_cast<int64_t>(at::SDPBackend::math);
  if (half && !mask.has_value()) return static_cast<int64_t>(at::SDPBackend::flash_attention);
  const bool grouped = query.size(1) != key.size(1);
  return static_cast<int64_t>(grouped ? at::SDPBackend::math : at::SDPBackend::efficient_attention);
}

Tensor to_device(const Tensor& result) {
  const size_t size = result.storage().nbytes();
  return tensor_of(c10::Storage(c10::Storage::use_byte_size_t(), size, moved(result), &allocator, true),
                   c10::DispatchKey::CUDA, result);
}

Tensor nothing(at::ScalarType dtype) { return at::empty({0}, at::TensorOptions(kFirst).dtype(dtype)); }

// Keys or values with as many heads as the queries have.
Tensor ungrouped(const Tensor& tensor, const Tensor& query) {
  const auto group = query.size(1) / tensor.size(1);
  return group == 1 ? tensor : tensor.repeat_interleave(group, 1);
}

Tensor grouped(const Tensor& gradient, const Tensor& tensor) {
  if (gradient.size(1) == tensor.size(1)) return gradient;
  const int64_t heads = tensor.size(1), group = gradient.size(1) / heads;
  return gradient.unflatten(1, {heads, group}).sum(2);
}

std::tuple<Tensor, Tensor> attend(const Tensor& query, const Tensor& key, const Tensor& value, bool is_causal,
                                  const std::optional<Tensor>& mask, std::optional<double> scale) {
  const Tensor q = on_cpu(query);
  std::optional<Tensor> m;
  if (mask.has_value() && mask->defined()) m = on_cpu(*mask);
  return at::_scaled_dot_product_flash_attention_for_cpu(q, ungrouped(on_cpu(key), q), ungrouped(on_cpu(value), q), 0.0,
                                                         is_causal, m, scale);
}

std::tuple<Tensor, Tensor, Tensor> attend_backward(const Tensor& gradient, const Tensor& query, const Tensor& key,
                                                   const Tensor& value, const Tensor& out, const Tensor& logsumexp,
                                                   bool is_causal, const Tensor& mask, std::optional<double> scale) {
  const Tensor q = on_cpu(query), k = on_cpu(key), v = on_cpu(value);
  std::optional<Tensor> m;
  if (mask.defined()) m = on_cpu(mask);
  auto [of_q, of_k, of_v] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      on_cpu(gradient), q, ungrouped(k, q), ungrouped(v, q), on_cpu(out), on_cpu(logsumexp), 0.0, is_causal, m, scale);
  return {to_device(of_q), to_device(grouped(of_k, k).contiguous()), to_device(grouped(of_v, v).contiguous())};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, c10::SymInt, c10::SymInt, Tensor, Tensor, Tensor> flash(
    const Tensor& query, const Tensor& key, const Tensor& value, double, bool is_causal, bool,
    std::optional<double> scale) {
  count("aten::_scaled_dot_product_flash_attention");
  auto [out, logsumexp] = attend(query, key, value, is_causal, std::nullopt, scale);
  return {to_device(out), to_device(logsumexp), Tensor(), Tensor(), query.size(2), key.size(2),
          nothing(at::kLong), nothing(at::kLong), nothing(query.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor> flash_backward(const Tensor& gradient, const Tensor& query, const Tensor& key,
                                                  const Tensor& value, const Tensor& out, const Tensor& logsumexp,
                                                  const Tensor&, const Tensor&, c10::SymInt, c10::SymInt, double,
                                                  bool is_causal, const Tensor&, const Tensor&,
                                                  std::optional<double> scale) {
  count("aten::_scaled_dot_product_flash_attention_backward");
  return attend_backward(gradient, query, key, value, out, logsumexp, is_causal, Tensor(), scale);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> efficient(const Tensor& query, const Tensor& key, const Tensor& value,
                                                     const std::optional<Tensor>& mask, bool, double, bool is_causal,
                                                     std::optional<double> scale) {
  count("aten::_scaled_dot_product_efficient_attention");
  auto [out, logsumexp] = attend(query, key, value, is_causal, mask, scale);
  return {to_device(out), to_device(logsumexp), nothing(at::kLong), nothing(at::kLong)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> efficient_backward(
    const Tensor& gradient, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& mask,
    const Tensor& out, const Tensor& logsumexp, const Tensor&, const Tensor&, double, std::array<bool, 4>,
    bool is_causal, std::optional<double> scale) {
  count("aten::_scaled_dot_product_efficient_attention_backward");
  auto [of_q, of_k, of_v] = attend_backward(gradient, query, key, value, out, logsumexp, is_causal, mask, scale);
  return {of_q, of_k, of_v, Tensor()};
}

const at::native::RegisterCUDADispatch choice_is_ours(at::native::_fused_sdp_choice_stub, &fused_choice);
