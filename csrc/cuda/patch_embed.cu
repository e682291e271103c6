#include "pysora/patch_embed.h"

#include "launch.h"
#include "product.h"

// A block gathers the patches of 64 tokens once and meets them with the weights of 64 features at a time.
namespace pysora::cuda {
namespace {

constexpr int kTokens = 64, kFeatures = 64;
constexpr int kSlice = 64;  // values of a patch that a step multiplies
constexpr int kSliceChunks = kSlice / kChunk;
constexpr int kRowsBytes = kTokens * kSlice * 2, kWeightsBytes = kFeatures * kSlice * 2;
constexpr int kBiasBytes = kFeatures * 2, kStageBytes = kWeightsBytes + kBiasBytes;
constexpr int kSegment = kChunk / 2;   // tokens of 128 bits of a row of the video where patches are two wide
constexpr std::int64_t kBlocks = 512;  // enough to fill a card

struct Plan {
  unsigned tokens, t, h, w;  // in all; of a sample's frames, rows and columns
  int K, slices;             // values of a patch; slices of them
  int tiles, group;          // tiles of features; how many of them a block takes
  bool wide_video, wide_weight, wide_bias, wide_out;
};

// Where value k of a patch lies, patches and weights being [C, pt, ph, pw].
__device__ std::int64_t inside(const PatchEmbedParams& p, const std::int64_t (&strides)[5], int k) {
  const int pt = static_cast<int>(p.weight_shape[2]), ph = static_cast<int>(p.weight_shape[3]);
  const int pw = static_cast<int>(p.weight_shape[4]);
  const int x = k % pw, rows = k / pw, y = rows % ph, frames = rows / ph;
  return frames / pt * strides[1] + frames % pt * strides[2] + y * strides[3] + x * strides[4];
}

// Where the patch of a token begins.
__device__ std::int64_t origin(const PatchEmbedParams& p, const Plan& plan, unsigned token) {
  const unsigned rows = token / plan.w, frames = rows / plan.h, samples = frames / plan.t;
  return samples * p.video_strides[0] + frames % plan.t * p.weight_shape[2] * p.video_strides[2] +
         rows % plan.h * p.weight_shape[3] * p.video_strides[3] +
         token % plan.w * p.weight_shape[4] * p.video_strides[4];
}

// Chunk `chunk` of a row of patches or weights: `base` is the row's first value.
template <class T>
__device__ uint4 pick(const PatchEmbedParams& p, const T* base, const std::int64_t (&strides)[5], int chunk, int K) {
  alignas(16) T values[kChunk];
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    const int k = chunk * kChunk + i;
    from_float(0.0f, values[i]);
    if (k < K) values[i] = base[inside(p, strides, k)];
  }
  return *reinterpret_cast<uint4*>(values);
}

// Patches [kTokens, K] from `token` on, slice after slice, filled up with zeros.
template <class T>
__device__ void gather_patches(const PatchEmbedParams& p, const Plan& plan, unsigned token, unsigned char* rows) {
  const auto* video = static_cast<const T*>(p.video);
  share(plan.slices * kSliceChunks * kTokens, [&](int i) {
    const int row = i % kTokens, chunk = i / kTokens;
    uint4 values{};
    if (token + row < plan.tokens) {
      values = pick(p, video + origin(p, plan, token + row), p.video_strides, chunk, plan.K);
    }
    *reinterpret_cast<uint4*>(rows + chunk / kSliceChunks * kRowsBytes +
                              place<kSliceChunks>(row, chunk % kSliceChunks)) = values;
  });
}

// The same where patches are two wide and 128 bits of a row of the video belong to four tokens. Of a warp, two lanes
// take neighbouring memory and 16 the pairs of values of the same tokens.
template <class T>
__device__ void gather_pairs(const PatchEmbedParams& p, const Plan& plan, unsigned token, unsigned char* rows) {
  const auto* video = static_cast<const T*>(p.video);
  const int lane = threadIdx.x % 32;
  for (int segment = threadIdx.x / 32 * 2 + lane % 2; segment < kTokens / kSegment; segment += kThreads / 16) {
    const unsigned first = token + segment * kSegment;
    const T* base = first < plan.tokens ? video + origin(p, plan, first) : nullptr;
    for (int pair = lane / 2; pair < plan.slices * kSlice / 2; pair += 16) {
      uint4 values{};
      if (base && 2 * pair < plan.K) {
        values = load_wide(base + inside(p, p.video_strides, 2 * pair));
      }
      const std::uint32_t words[kSegment] = {values.x, values.y, values.z, values.w};
      unsigned char* slice = rows + pair / (kSlice / 2) * kRowsBytes;
#pragma unroll
      for (int j = 0; j < kSegment; ++j) {
        const int at = place<kSliceChunks>(segment * kSegment + j, pair / 4 % kSliceChunks) + pair % 4 * 4;
        *reinterpret_cast<std::uint32_t*>(slice + at) = words[j];
      }
    }
  }
}

// The weights of a tile of features, one slice; with the last slice their bias.
template <class T>
__device__ void fetch_weights(const PatchEmbedParams& p, const Plan& plan, int tile, int slice, unsigned char* stage) {
  constexpr int kRows = kThreads / kSliceChunks;  // fetched at a time
  const int chunk = threadIdx.x % kSliceChunks, own = threadIdx.x / kSliceChunks;
  const int D = static_cast<int>(p.weight_shape[0]), k = slice * kSlice + chunk * kChunk;
  const auto* weight = static_cast<const T*>(p.weight);
  const T* from = weight + (tile * kFeatures + own) * p.weight_strides[0];
#pragma unroll
  for (int row = own; row < kFeatures; row += kRows, from += kRows * p.weight_strides[0]) {
    const bool exists = tile * kFeatures + row < D && k < plan.K;
    unsigned char* to = stage + place<kSliceChunks>(row, chunk);
    if (plan.wide_weight) {
      copy_async(shared_address(to), exists ? from + k : weight, exists ? 16 : 0);
    } else {
      *reinterpret_cast<uint4*>(to) = pick(p, from, p.weight_strides, k / kChunk, exists ? plan.K : 0);
    }
  }
  if (slice + 1 < plan.slices || threadIdx.x >= kFeatures / kChunk || !p.bias) return;
  const int d = tile * kFeatures + static_cast<int>(threadIdx.x) * kChunk, count = D - d;
  const T* bias = static_cast<const T*>(p.bias) + (count > 0 ? d * p.bias_stride : 0);
  fetch(stage + kWeightsBytes + threadIdx.x * 16, bias, p.bias_stride, count, plan.wide_bias);
}

// Which slice of which tile of features a step takes, and where its operands lie.
struct Step {
  int tile, slice = 0, stage = 0;

  __device__ void advance(const Plan& plan) {
    stage = stage + 1 == kStages ? 0 : stage + 1;
    if (++slice < plan.slices) return;
    slice = 0, ++tile;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    patch_embed_kernel(const __grid_constant__ PatchEmbedParams p, const __grid_constant__ Plan plan) {
  PYSORA_SHARED(shared);
  unsigned char* stages = shared + plan.slices * kRowsBytes;
  unsigned char* room = stages + kStages * kStageBytes;
  const int groups = (plan.tiles + plan.group - 1) / plan.group;
  const unsigned token = blockIdx.x / groups * kTokens;
  const int first = static_cast<int>(blockIdx.x % groups) * plan.group;
  const int tiles = plan.tiles - first < plan.group ? plan.tiles - first : plan.group;
  const std::int64_t D = p.weight_shape[0];

  Product<T, kTokens, kFeatures, 2, 2> product;
  product.clear();
  Step loaded{first}, read{first};
  const auto load = [&](int) {
    fetch_weights<T>(p, plan, loaded.tile, loaded.slice, stages + loaded.stage * kStageBytes);
    loaded.advance(plan);
  };
  const auto multiply = [&](int) {
    const int slice = read.slice, tile = read.tile;
    unsigned char* stage = stages + read.stage * kStageBytes;
    read.advance(plan);
    const std::uint32_t a = shared_address(shared + slice * kRowsBytes), b = shared_address(stage);
#pragma unroll
    for (int k = 0; k < kSliceChunks; k += 2) {
      if (slice * kSlice + k * kChunk >= plan.K) break;
      product.step([&](int i) { return a + place<kSliceChunks>(product.a_row(i), k + product.a_chunk()); },
                   [&](int j) { return b + place<kSliceChunks>(product.b_row() + 16 * j, k + product.b_chunk()); });
    }
    if (slice + 1 < plan.slices) return;
    product.keep(room, [&](int column, const std::uint32_t&, float2& sums) {
      if (!p.bias) return;
      const T* bias = reinterpret_cast<const T*>(stage + kWeightsBytes) + column;
      sums.x += to_float(bias[0]), sums.y += to_float(bias[1]);
    });
    product.clear();
    __syncthreads();  // the next step's barrier comes before the room is filled again
    product.each_chunk(room, [&](int row, int chunk, const uint4* values) {
      const std::int64_t d = std::int64_t{tile} * kFeatures + chunk * kChunk;
      if (token + row >= plan.tokens || d >= D) return;
      const int count = static_cast<int>(D - d < kChunk ? D - d : kChunk);
      put(static_cast<T*>(p.out) + std::int64_t{token + row} * D + d, 1, count, plan.wide_out, *values);
    });
  };
  if (plan.wide_video) {
    gather_pairs<T>(p, plan, token, shared);
  } else {
    gather_patches<T>(p, plan, token, shared);
  }
  pipeline(tiles * plan.slices, load, [](int) {}, multiply);
}

bool eighths(const std::int64_t (&strides)[5], int from, int to) {
  for (int i = from; i < to; ++i) {
    if (strides[i] % kChunk) return false;
  }
  return true;
}

// Whether the values of each filter lie side by side, in the order of a patch.
bool rows_are_dense(const PatchEmbedParams& p) {
  std::int64_t stride = 1;
  for (int i = 4; i > 0; stride *= p.weight_shape[i--]) {
    if (p.weight_shape[i] > 1 && p.weight_strides[i] != stride) return false;
  }
  return true;
}

Plan plan_of(const PatchEmbedParams& p) {
  Plan plan{};
  plan.t = static_cast<unsigned>(p.video_shape[2] / p.weight_shape[2]);
  plan.h = static_cast<unsigned>(p.video_shape[3] / p.weight_shape[3]);
  plan.w = static_cast<unsigned>(p.video_shape[4] / p.weight_shape[4]);
  plan.tokens = static_cast<unsigned>(p.video_shape[0]) * plan.t * plan.h * plan.w;
  std::int64_t K = 1;
  for (int i = 1; i < 5; ++i) K *= p.weight_shape[i];
  const std::int64_t D = p.weight_shape[0];
  plan.K = static_cast<int>(K);
  plan.slices = static_cast<int>(K > kSlice ? ceil_div(K, kSlice) : 1);
  plan.tiles = static_cast<int>(ceil_div(D, kFeatures));
  // Few tokens: more blocks share their features.
  const std::int64_t token_tiles = ceil_div(plan.tokens, kTokens), groups = ceil_div(kBlocks, token_tiles + 1);
  plan.group = static_cast<int>(ceil_div(plan.tiles, groups));
  plan.wide_video = aligned(p.video) && p.weight_shape[4] == 2 && p.video_strides[4] == 1 &&
                    p.video_shape[4] % kChunk == 0 && eighths(p.video_strides, 0, 4);
  plan.wide_weight = aligned(p.weight) && rows_are_dense(p) && p.weight_strides[0] % kChunk == 0 && K % kChunk == 0;
  plan.wide_bias = aligned(p.bias) && p.bias_stride == 1 && D % kChunk == 0;
  plan.wide_out = aligned(p.out) && D % kChunk == 0;
  return plan;
}

template <class T>
void launch(const PatchEmbedParams& p, cudaStream_t stream) {
  const Plan plan = plan_of(p);
  if (plan.tokens == 0 || plan.tiles == 0) return;
  const int shared = plan.slices * kRowsBytes + kStages * kStageBytes + Product<T, kTokens, kFeatures, 2, 2>::kRoom;
  const auto blocks = ceil_div(plan.tokens, kTokens) * ceil_div(plan.tiles, plan.group);
  cudaFuncSetAttribute(patch_embed_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  PYSORA_LAUNCH(patch_embed_kernel<T>, static_cast<unsigned>(blocks), kThreads, shared, stream, p, plan);
}

}  // namespace

void patch_embed(const PatchEmbedParams& p, cudaStream_t stream) {
  p.dtype == Dtype::bf16 ? launch<Bf16>(p, stream) : launch<F16>(p, stream);
}

}  // namespace pysora::cuda
