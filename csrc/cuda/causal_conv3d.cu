#include "pysora/causal_conv3d.h"

#include <cmath>

#include "launch.h"
#include "product.h"

// The convolution as a matrix product: the rows are a block's 8 x 16 pixels of a frame, the columns 96, 64 or 16 of the
// results' channels, summed over the kernel's taps and the channels. What all taps of a frame see of 16 channels, the
// pixels and those around them, is put into shared memory once; each tap reads it at other addresses.
//
// Norm on load: each pixel's length over the channels is needed before any of it is used. With 3x3x3 taps a pixel is
// loaded by 3 frames and, with the edges of the blocks, 1.4 times in each, so that a block that measured what it loads
// would read 4.2 times C values a pixel twice over, and again for every 96 results. A pass that reads x once and writes
// 4 bytes a pixel adds one quarter to the first reading alone; it also copies the new cache, which it has at hand.
namespace pysora::cuda {
namespace {

constexpr int kTileH = 8, kTileW = 16, kPixels = kTileH * kTileW;
constexpr int kDepth = 16;                     // channels of a step
constexpr int kDepthChunks = kDepth / kChunk;  // of a pixel or a filter's tap
constexpr int kBytes = kDepth * 2;

struct Plan {
  int C, out, T, H, W, kt, kh, kw;             // out: C'; H and W of x
  int tiles_h, tiles_w, tiles_c;               // of the results' pixels and channels
  int slices;                                  // of kDepth channels
  int slab_w, slab_pixels;                     // what the taps of a frame see, in pixels of x
  float root;                                  // of C
  unsigned per_row;                            // i * per_row >> 16 is i / slab_w
  int weights_bytes;                           // of a step: kw taps
  int slabs_at, scales_at, gamma_at, bias_at;  // bytes of shared memory before them
  bool wide_in, wide_out;
};

// Frame f of the cache and x one after the other; no data before the start.
template <class T>
struct Frame {
  const T* data;
  std::int64_t channel, row, column;

  __device__ Frame(const CausalConv3dParams& p, int b, int f, int past) {
    const bool old = f < past;
    const std::int64_t sample = old ? p.cache_strides[0] : p.x_strides[0];
    const std::int64_t frame = old ? p.cache_strides[2] : p.x_strides[2];
    channel = old ? p.cache_strides[1] : p.x_strides[1];
    row = old ? p.cache_strides[3] : p.x_strides[3];
    column = old ? p.cache_strides[4] : p.x_strides[4];
    const auto* first = static_cast<const T*>(old ? p.cache : p.x);
    data = first ? first + b * sample + (old ? f : f - past) * frame : nullptr;
  }
};

// ---- the pass before: scales and the new cache ----

constexpr int kLanes = 8;  // threads of a pixel

template <class T>
__global__ void __launch_bounds__(kThreads)
    frames_kernel(const __grid_constant__ CausalConv3dParams p, const __grid_constant__ Plan plan, int first_frame,
                  unsigned blocks) {  // of a frame
  const int past = plan.kt - 1, frames = past + plan.T;
  const unsigned image = blockIdx.x / blocks, count = frames - first_frame;
  const int f = first_frame + static_cast<int>(image % count), b = static_cast<int>(image / count);
  const int kept = f - plan.T;  // the frame's place in the new cache
  const Frame<T> frame(p, b, f, past);
  T* copy = static_cast<T*>(p.new_cache) + b * p.new_cache_strides[0] + kept * p.new_cache_strides[2];

  const unsigned size = static_cast<unsigned>(plan.H) * plan.W;
  const unsigned pixel = blockIdx.x % blocks * (kThreads / kLanes) + threadIdx.x / kLanes;
  const bool exists = pixel < size;
  const unsigned y = exists ? pixel / plan.W : 0, x = exists ? pixel % plan.W : 0;
  float sum = 0.0f;
#pragma unroll 1
  for (int c = threadIdx.x % kLanes * kChunk; c < plan.C; c += kLanes * kChunk) {
    uint4 values{};
    if (frame.data && exists) {
      const T* from = frame.data + y * frame.row + x * frame.column + c * frame.channel;
      values = plan.wide_in ? load_wide(from) : gather(from, frame.channel, plan.C - c);
    }
    if (kept >= 0 && exists) {
      T* to = copy + y * p.new_cache_strides[3] + x * p.new_cache_strides[4] + c * p.new_cache_strides[1];
      put(to, p.new_cache_strides[1], plan.C - c, plan.wide_in, values);
    }
    const T* value = reinterpret_cast<const T*>(&values);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) sum += to_float(value[j]) * to_float(value[j]);
  }
  if (!p.gamma.data) return;
  sum = warp_sum(sum, kLanes);
  if (threadIdx.x % kLanes || !exists) return;
  p.scales[(std::int64_t{b} * frames + f) * size + pixel] = plan.root * rsqrtf(fmaxf(sum, 1e-24f));
}

// ---- the convolution ----

// Which frame's which channels and which row of taps a step takes; the steps go through rows, then channels, then
// frames.
struct Step {
  int frame, slice, row;
  int slab, stage;  // where its operands lie

  __device__ Step(int first_frame) : frame(first_frame), slice(0), row(0), slab(0), stage(0) {}
  __device__ void advance(const Plan& plan) {
    stage = stage + 1 == kStages ? 0 : stage + 1;
    if (++row < plan.kh) return;
    row = 0;
    slab = slab + 1 == kStages ? 0 : slab + 1;
    if (++slice < plan.slices) return;
    slice = 0, ++frame;
  }
};

// The pixels of x, from (top, left) on, that the block's taps see of a frame: 16 channels of each.
template <class T>
__device__ __forceinline__ void fetch_slab(const CausalConv3dParams& p, const Plan& plan, const Frame<T>& frame,
                                           int channel, int top, int left, unsigned char* slab) {
  const T* data = frame.data + channel * frame.channel;
  share(plan.slab_pixels * kDepthChunks, [&](int i) {
    const int pixel = i / kDepthChunks, chunk = i % kDepthChunks;
    const int down = static_cast<int>(pixel * plan.per_row >> 16), right = pixel - down * plan.slab_w;
    const int y = top + down, x = left + right;
    const bool inside = y >= 0 && y < plan.H && x >= 0 && x < plan.W;
    const int count = inside ? plan.C - channel - chunk * kChunk : 0;
    const T* from = count > 0 ? data + y * frame.row + x * frame.column + chunk * kChunk * frame.channel : frame.data;
    fetch(slab + place<kDepthChunks>(pixel, chunk), from, frame.channel, count, plan.wide_in);
  });
}

// silu(x * scale * gamma) of what this thread has fetched; zeros stay zeros.
template <class T>
__device__ __forceinline__ void norm_slab(const Plan& plan, const float* scales, const float* gamma,
                                          unsigned char* slab) {
  const int chunk = threadIdx.x % kDepthChunks;  // kThreads is a multiple of kDepthChunks
  const float4 low = *reinterpret_cast<const float4*>(gamma + chunk * kChunk);
  const float4 high = *reinterpret_cast<const float4*>(gamma + chunk * kChunk + 4);
  const float gains[kChunk] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  share(plan.slab_pixels * kDepthChunks, [&](int i) {
    const int pixel = i / kDepthChunks;
    auto* at = reinterpret_cast<uint4*>(slab + place<kDepthChunks>(pixel, chunk));
    const uint4 raw = *at;
    const T* values = reinterpret_cast<const T*>(&raw);
    const float scale = scales[pixel];
    std::uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float pair[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float v = to_float(values[2 * j + e]) * scale * gains[2 * j + e];
        pair[e] = v * reciprocal_fast(1.0f + exp2_fast(v * -1.442695041f));
      }
      words[j] = pack<T>(pair[0], pair[1]);
    }
    *at = make_uint4(words[0], words[1], words[2], words[3]);
  });
}

// The weights of a row of taps for kBlockN results and 16 channels: [kw][kBlockN] rows.
template <class T, int kBlockN>
__device__ __forceinline__ void fetch_weights(const CausalConv3dParams& p, const Plan& plan, int first, int frame,
                                              int channel, int row, unsigned char* stage) {
  constexpr int kRows = kThreads / kDepthChunks;  // of a tap, fetched at a time
  const int chunk = threadIdx.x % kDepthChunks, own = threadIdx.x / kDepthChunks;
  const std::int64_t stride = p.weight_strides[1];
  const T* weight = static_cast<const T*>(p.weight);
  const T* from = weight + (channel + chunk * kChunk) * stride + frame * p.weight_strides[2] +
                  row * p.weight_strides[3] + (first + own) * p.weight_strides[0];
  const std::int64_t next = kRows * p.weight_strides[0];
  const int count = plan.C - channel - chunk * kChunk, results = plan.out - first - own;
  stage += place<kDepthChunks>(own, chunk);  // rows that are kRows apart lie alike
#pragma unroll 1
  for (int tap = 0; tap < plan.kw; ++tap, from += p.weight_strides[4], stage += kBlockN * kBytes) {
#pragma unroll
    for (int i = 0; i < kBlockN; i += kRows) {
      if (i + own >= kBlockN) continue;
      const int exist = i < results ? count : 0;
      fetch(stage + i * kBytes, exist > 0 ? from + (i ? next : 0) : weight, stride, exist, plan.wide_in);
    }
  }
}

template <class T, int kBlockN>
using ProductOf = Product<T, kPixels, kBlockN, kBlockN == 16 ? 4 : 2, kBlockN == 16 ? 1 : 2>;

template <class T, int kBlockN>
__global__ void __launch_bounds__(kThreads, kBlockN == 96 ? 3 : 4)
    causal_conv3d_kernel(const __grid_constant__ CausalConv3dParams p, const __grid_constant__ Plan plan) {
  PYSORA_SHARED(shared);
  unsigned block = blockIdx.x;
  const int first = static_cast<int>(block % plan.tiles_c) * kBlockN;
  block /= plan.tiles_c;
  const int x0 = static_cast<int>(block % plan.tiles_w) * kTileW;
  block /= plan.tiles_w;
  const int y0 = static_cast<int>(block % plan.tiles_h) * kTileH;
  block /= plan.tiles_h;
  const int t = static_cast<int>(block % plan.T), b = static_cast<int>(block / plan.T);
  const int past = plan.kt - 1, up = p.upsample ? 1 : 0, pad_h = plan.kh / 2, pad_w = plan.kw / 2;
  const int top = (y0 - pad_h) >> up, left = (x0 - pad_w) >> up;  // of the slab
  // Frames before the start are zeros: their taps add nothing.
  const int first_frame = p.cache || t >= past ? 0 : past - t;
  const int slab_bytes = plan.slab_pixels * kBytes;

  auto* scales = reinterpret_cast<float*>(shared + plan.scales_at);
  auto* gamma = reinterpret_cast<float*>(shared + plan.gamma_at);
  auto* bias = reinterpret_cast<float*>(shared + plan.bias_at);
  share(kBlockN, [&](int i) {
    const bool exists = p.bias && first + i < plan.out;
    bias[i] = exists ? to_float(static_cast<const T*>(p.bias)[(first + i) * p.bias_stride]) : 0.0f;
  });
  if (p.gamma.data) {
    share(plan.slices * kDepth, [&](int i) {
      float gain[1] = {0.0f};
      if (i < plan.C) load(p.gamma, i, gain);
      gamma[i] = gain[0];
    });
    share((plan.kt - first_frame) * plan.slab_pixels, [&](int i) {
      const int frame = i / plan.slab_pixels, pixel = i % plan.slab_pixels;
      const int y = top + pixel / plan.slab_w, x = left + pixel % plan.slab_w;
      const bool inside = y >= 0 && y < plan.H && x >= 0 && x < plan.W;
      const std::int64_t image = std::int64_t{b} * (past + plan.T) + t + first_frame + frame;
      scales[i] = inside ? p.scales[(image * plan.H + y) * plan.W + x] : 0.0f;
    });
    __syncthreads();
  }

  ProductOf<T, kBlockN> product;
  product.clear();
  Step loaded(first_frame), read(first_frame);
  const auto load = [&](int) {
    if (loaded.row == 0) {
      fetch_slab(p, plan, Frame<T>(p, b, t + loaded.frame, past), loaded.slice * kDepth, top, left,
                 shared + plan.slabs_at + loaded.slab * slab_bytes);
    }
    fetch_weights<T, kBlockN>(p, plan, first, loaded.frame, loaded.slice * kDepth, loaded.row,
                              shared + loaded.stage * plan.weights_bytes);
    loaded.advance(plan);
  };
  const auto norm = [&](int) {
    if (read.row != 0 || !p.gamma.data) return;
    norm_slab<T>(plan, scales + (read.frame - first_frame) * plan.slab_pixels, gamma + read.slice * kDepth,
                 shared + plan.slabs_at + read.slab * slab_bytes);
  };
  const auto multiply = [&](int) {
    const std::uint32_t a = shared_address(shared + plan.slabs_at + read.slab * slab_bytes);
    // The rows of a warp's b differ by multiples of 16: their chunks lie as those of the first do.
    const std::uint32_t b = shared_address(shared + read.stage * plan.weights_bytes) +
                            place<kDepthChunks>(product.b_row(), product.b_chunk());
    for (int tap = 0; tap < plan.kw; ++tap) {
      const int column = ((x0 + product.a_row(0) % kTileW + tap - pad_w) >> up) - left;
      product.step(
          [&](int i) {
            const int row = ((y0 + product.a_row(i) / kTileW + read.row - pad_h) >> up) - top;
            return a + place<kDepthChunks>(row * plan.slab_w + column, product.a_chunk());
          },
          [&](int j) { return b + (tap * kBlockN + j * 16) * kBytes; });
    }
    read.advance(plan);
  };
  pipeline((plan.kt - first_frame) * plan.slices * plan.kh, load, norm, multiply);

  // Residual and results pass through shared memory, whose operands are used up.
  __syncthreads();
  const int out_h = plan.H << up, out_w = plan.W << up;
  const auto each = [&](const std::int64_t (&strides)[5], const auto& body) {
    const std::int64_t image = b * strides[0] + t * strides[2];
    product.each_chunk(shared, [&](int row, int chunk, uint4* values) {
      const int y = y0 + row / kTileW, x = x0 + row % kTileW, c = first + chunk * kChunk;
      const int count = y < out_h && x < out_w ? plan.out - c : 0;
      body(image + y * strides[3] + x * strides[4] + c * strides[1], count, values);
    });
  };
  if (p.residual) {
    each(p.residual_strides, [&](std::int64_t at, int count, uint4* values) {
      const T* from = static_cast<const T*>(p.residual) + at;
      uint4 read{};
      if (count > 0) {
        read = plan.wide_out ? load_wide(from) : gather(from, p.residual_strides[1], count);
      }
      *values = read;
    });
    __syncthreads();
  }
  product.keep(shared, [&](int column, const std::uint32_t& residual, float2& sums) {
    const float2 add = *reinterpret_cast<const float2*>(bias + column);
    sums.x += add.x, sums.y += add.y;
    if (!p.residual) return;
    const T* pair = reinterpret_cast<const T*>(&residual);
    sums.x += to_float(pair[0]), sums.y += to_float(pair[1]);
  });
  __syncthreads();
  each(p.out_strides, [&](std::int64_t at, int count, const uint4* values) {
    put(static_cast<T*>(p.out) + at, p.out_strides[1], count, plan.wide_out, *values);
  });
}

// ---- launch ----

// Whether all chunks of 8 channels can be read at once.
bool wide(const void* data, const std::int64_t (&strides)[5]) {
  if (!data) return true;
  for (int i : {0, 2, 3, 4}) {
    if (strides[i] % kChunk) return false;
  }
  return strides[1] == 1 && aligned(data);
}

// Pixels of x that `taps` taps of `pixels` results see in one direction.
int seen(int pixels, int taps, int up) {
  return ((pixels - 1 + taps - 1 - taps / 2) >> up) - (-(taps / 2) >> up) + 1;
}

int block_channels(int out) {
  if (out <= 16) return 16;
  return ceil_div(out, 96) * 96 <= ceil_div(out, 64) * 64 ? 96 : 64;
}

Plan plan_of(const CausalConv3dParams& p, int block_n) {
  const auto size = [](std::int64_t n) { return static_cast<int>(n); };
  Plan plan{};
  plan.out = size(p.weight_shape[0]), plan.C = size(p.x_shape[1]), plan.T = size(p.x_shape[2]);
  plan.H = size(p.x_shape[3]), plan.W = size(p.x_shape[4]);
  plan.kt = size(p.weight_shape[2]), plan.kh = size(p.weight_shape[3]), plan.kw = size(p.weight_shape[4]);
  const int up = p.upsample ? 1 : 0;
  plan.tiles_h = size(ceil_div(plan.H << up, kTileH)), plan.tiles_w = size(ceil_div(plan.W << up, kTileW));
  plan.tiles_c = size(ceil_div(plan.out, block_n));
  plan.slices = size(ceil_div(plan.C, kDepth)), plan.root = std::sqrt(static_cast<float>(plan.C));
  plan.slab_w = seen(kTileW, plan.kw, up), plan.slab_pixels = plan.slab_w * seen(kTileH, plan.kh, up);
  plan.per_row = 65536 / plan.slab_w + 1;  // exact while pixels are few
  plan.weights_bytes = plan.kw * block_n * kBytes;
  plan.slabs_at = kStages * plan.weights_bytes;
  const int operands = plan.slabs_at + kStages * plan.slab_pixels * kBytes, room = kPixels * block_n * 2;
  plan.bias_at = operands > room ? operands : room;
  plan.gamma_at = plan.bias_at + block_n * 4;
  plan.scales_at = plan.gamma_at + plan.slices * kDepth * 4;
  plan.wide_in = plan.C % kChunk == 0 && wide(p.x, p.x_strides) && wide(p.weight, p.weight_strides);
  if (plan.kt > 1) {  // else there is no cache, and its strides may be anything
    plan.wide_in = plan.wide_in && wide(p.cache, p.cache_strides) && wide(p.new_cache, p.new_cache_strides);
  }
  plan.wide_out = plan.out % kChunk == 0 && wide(p.out, p.out_strides) && wide(p.residual, p.residual_strides);
  return plan;
}

template <class T>
void launch_frames(const CausalConv3dParams& p, const Plan& plan, cudaStream_t stream) {
  const int first_frame = p.gamma.data ? 0 : plan.T, frames = plan.kt - 1 + plan.T - first_frame;
  const std::int64_t blocks = ceil_div(std::int64_t{plan.H} * plan.W, kThreads / kLanes);
  const std::int64_t images = p.x_shape[0] * frames;
  if (images * blocks == 0) return;
  PYSORA_LAUNCH(frames_kernel<T>, static_cast<unsigned>(images * blocks), kThreads, 0, stream, p, plan, first_frame,
                static_cast<unsigned>(blocks));
}

template <class T, int kBlockN>
void launch_product(const CausalConv3dParams& p, const Plan& plan, cudaStream_t stream) {
  const int shared = plan.scales_at + (p.gamma.data ? plan.kt * plan.slab_pixels * 4 : 0);
  const std::int64_t blocks = p.x_shape[0] * plan.T * plan.tiles_h * plan.tiles_w * plan.tiles_c;
  if (blocks == 0) return;
  cudaFuncSetAttribute(causal_conv3d_kernel<T, kBlockN>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  PYSORA_LAUNCH((causal_conv3d_kernel<T, kBlockN>), static_cast<unsigned>(blocks), kThreads, shared, stream, p, plan);
}

template <class T>
void launch(const CausalConv3dParams& p, cudaStream_t stream) {
  const int block_n = block_channels(static_cast<int>(p.weight_shape[0]));
  const Plan plan = plan_of(p, block_n);
  launch_frames<T>(p, plan, stream);
  if (block_n == 96) launch_product<T, 96>(p, plan, stream);
  if (block_n == 64) launch_product<T, 64>(p, plan, stream);
  if (block_n == 16) launch_product<T, 16>(p, plan, stream);
}

}  // namespace

void causal_conv3d(const CausalConv3dParams& p, cudaStream_t stream) {
  p.dtype == Dtype::bf16 ? launch<Bf16>(p, stream) : launch<F16>(p, stream);
}

}  // namespace pysora::cuda
