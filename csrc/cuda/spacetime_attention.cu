#include "pysora/spacetime_attention.h"

#include "launch.h"
#include "ptx.h"

// Attention in one pass over the keys (Dao 2023, FlashAttention-2): a warp holds its queries, their scores against a
// tile of keys and the weighted sum of the values in registers; tiles come through two stages of shared memory.
//
// The reference that is subtracted from a query's scores need not be their maximum: it is raised only when a score
// passes it by kSlack, which is rare after the first tile (the idea is FlashAttention-4's). A weight is then at most
// 2^kSlack, which fp16 holds, and a maximum across lanes is only taken where it is raised.
namespace pysora::cuda {
namespace {

using Params = SpacetimeAttentionParams;

constexpr float kLog2e = 1.44269504f;
constexpr float kLn2 = 0.693147181f;
constexpr float kSlack = 8;
constexpr float kNone = -3.0e38f;  // the reference before the first key
constexpr unsigned kWholeWarp = 0xFFFFFFFF;

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;

// How a block's work is cut for a head of K values of 2 bytes. A row of shared memory is K values in chunks of 16
// bytes; chunk c of row r lies at c ^ (r % 8), so that 8 rows' chunks of one number meet all banks.
template <int K>
struct Cut {
  // Of a warp, 16 queries each. With two, what is read from shared memory serves twice; at K = 128 the registers do not
  // suffice for that, and fewer keys a tile leave room for two blocks on every card.
  static constexpr int slabs = K == 64 ? 2 : 1;
  static constexpr int warp_queries = 16 * slabs;
  static constexpr int queries = kWarps * warp_queries;
  static constexpr int keys = K == 64 ? 64 : 32;  // of a tile
  static constexpr int part = 32;                 // of a tile's keys have their scores in registers at once
  static constexpr int row_bytes = 2 * K;
  static constexpr int chunks = K / 8;  // of a row
  static constexpr int tile_bytes = keys * row_bytes;
  static constexpr int stage_bytes = 2 * tile_bytes;  // keys, then values
  static constexpr int bias_bytes = 4 * keys;         // of a stage
  static constexpr int shared_bytes(bool bias) { return 2 * (stage_bytes + (bias ? bias_bytes : 0)); }
  static_assert(queries * row_bytes <= stage_bytes, "the queries come, and the result goes, through one stage");
};

// The most tiles of queries: sample s has the tiles from q_offsets[s] / queries + s on, of which the last may be empty,
// so that a block finds its sample by bisection, and nobody needs to know the lengths on the host.
template <int K>
__host__ __device__ std::int64_t query_tiles(const Params& p) {
  constexpr int queries = Cut<K>::queries;
  return p.q_offsets ? p.Lq / queries + p.S : (p.Lq + queries - 1) / queries;
}

// The queries and keys of a block: those of one sample and head.
struct Job {
  unsigned b, n;
  int q0, q1, k0, k1;
};

template <int K>
__device__ Job find_job(const Params& p) {
  constexpr int queries = Cut<K>::queries;
  const unsigned tiles = static_cast<unsigned>(query_tiles<K>(p)), N = static_cast<unsigned>(p.N);
  const unsigned pair = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  Job j{pair / N, pair % N, 0, static_cast<int>(p.Lq), 0, static_cast<int>(p.Lk)};
  int first = static_cast<int>(tile);
  if (p.q_offsets) {
    int s = 0, beyond = static_cast<int>(p.S);
    while (beyond - s > 1) {
      const int middle = (s + beyond) / 2;
      (p.q_offsets[middle] / queries + middle <= first ? s : beyond) = middle;
    }
    j.q0 = p.q_offsets[s], j.q1 = min(p.q_offsets[s + 1], j.q1);
    j.k0 = p.k_offsets[s], j.k1 = min(p.k_offsets[s + 1], j.k1);
    first -= j.q0 / queries + s;
  }
  j.q0 += first * queries;
  return j;
}

// Where a thread's part of the rows of a tile lies: one chunk of every `step`-th row.
template <int K>
struct Rows {
  static constexpr int step = kThreads / Cut<K>::chunks;
  const char* from;
  std::int64_t stride;  // bytes of `step` rows
  int row;
  std::uint32_t to;  // offset in a tile

  __device__ Rows(const void* base, const std::int64_t (&strides)[4], const Job& j, int first) {
    const int chunk = static_cast<int>(threadIdx.x) % Cut<K>::chunks;
    row = static_cast<int>(threadIdx.x) / Cut<K>::chunks;
    to = row * Cut<K>::row_bytes + (chunk ^ row % 8) * 16;
    from = static_cast<const char*>(base) +
           2 * (j.b * strides[0] + (first + row) * strides[1] + j.n * strides[2] + chunk * 8);
    stride = 2 * step * strides[1];
  }

  // Copies the next `rows` rows to a tile, zeros for those from `left` on.
  template <int rows>
  __device__ void copy(std::uint32_t tile, int left) {
    static_assert(rows % step == 0 && step % 8 == 0);
    if (left >= rows) {
#pragma unroll
      for (int i = 0; i < rows; i += step, from += stride) copy_async(tile + to + i * Cut<K>::row_bytes, from);
    } else {
#pragma unroll
      for (int i = 0; i < rows; i += step, from += stride)
        copy_async(tile + to + i * Cut<K>::row_bytes, from, row + i < left ? 16 : 0);
    }
  }
};

// What a warp holds in registers, as fragments of 16 queries. Element e of a fragment of scores or sums belongs to row
// lane / 4 + e / 2 * 8 and column lane % 4 * 2 + e % 2.
template <class T, int K>
struct Warp {
  using C = Cut<K>;
  std::uint32_t q[C::slabs][K / 16][4];
  float sum[C::slabs][K / 8][4] = {}, total[C::slabs][2] = {}, reference[C::slabs][2];
  float s[C::slabs][C::part / 8][4];  // scores before the factor, then weights
  const int lane = threadIdx.x % 32;
  // Where load_matrices finds 16 rows: rows lane % 16, chunks lane / 16 of every 2; and, for keys, rows lane % 8 and 8
  // more for lane / 16, chunks lane / 8 % 2 of every 2. The next 2 chunks are at this ^ 32.
  const std::uint32_t by_row = lane % 16 * C::row_bytes + (lane / 16 ^ lane % 8) * 16;
  const std::uint32_t by_key = (lane % 8 + lane / 16 * 8) * C::row_bytes + (lane / 8 % 2 ^ lane % 8) * 16;

  __device__ Warp() {
#pragma unroll
    for (auto& slab : reference) slab[0] = slab[1] = kNone;
  }

  // A negative scale is its absolute value with the queries negated, so that the largest product is the largest score;
  // with the scale 0 the queries are 0, so that -inf can hide a key.
  __device__ void read_queries(std::uint32_t at, float scale) {
#pragma unroll
    for (int m = 0; m < C::slabs; ++m)
#pragma unroll
      for (int i = 0; i < K / 16; ++i) load_matrices(q[m][i], (at + m * 16 * C::row_bytes + by_row) ^ (i * 32));
    if (scale > 0) return;
#pragma unroll
    for (auto& slab : q)
#pragma unroll
      for (auto& fragment : slab)
#pragma unroll
        for (auto& pair : fragment) pair = scale == 0 ? 0 : pair ^ 0x80008000;
  }

  __device__ void multiply_keys(std::uint32_t keys) {
#pragma unroll
    for (int i = 0; i < K / 16; ++i)
#pragma unroll
      for (int n = 0; n < C::part / 16; ++n) {
        std::uint32_t b[4];
        load_matrices(b, ((keys + by_key) ^ (i * 32)) + n * 16 * C::row_bytes);
#pragma unroll
        for (int m = 0; m < C::slabs; ++m) {
          if (i == 0) {
            mma_zero<T>(s[m][2 * n], q[m][i], b[0], b[1]);
            mma_zero<T>(s[m][2 * n + 1], q[m][i], b[2], b[3]);
          } else {
            mma<T>(s[m][2 * n], q[m][i], b[0], b[1]);
            mma<T>(s[m][2 * n + 1], q[m][i], b[2], b[3]);
          }
        }
      }
  }

  // bias: of the first key, in shared memory.
  __device__ void add_bias(const float* bias, float factor) {
#pragma unroll
    for (int n = 0; n < C::part / 8; ++n) {
      const float2 two = reinterpret_cast<const float2*>(bias)[n * 4 + lane % 4];
#pragma unroll
      for (int m = 0; m < C::slabs; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][n][e] = fmaf(s[m][n][e], factor, (e % 2 ? two.y : two.x) * kLog2e);
    }
  }

  // Hides the keys from `left` on.
  __device__ void hide(int left) {
    left -= lane % 4 * 2;
#pragma unroll
    for (auto& slab : s)
#pragma unroll
      for (int n = 0; n < C::part / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (n * 8 + e % 2 >= left) slab[n][e] = -INFINITY;
  }

  // Turns scores into weights 2^(s * factor - reference), where the reference is raised first if need be.
  __device__ void weigh(float factor) {
    float most[C::slabs][2];
    bool passed = false;
#pragma unroll
    for (int m = 0; m < C::slabs; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        most[m][h] = fmaxf(s[m][0][2 * h], s[m][0][2 * h + 1]);
#pragma unroll
        for (int n = 1; n < C::part / 8; ++n) most[m][h] = fmaxf(most[m][h], fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
        passed |= fmaf(most[m][h], factor, -reference[m][h]) > kSlack;
      }
    if (__any_sync(kWholeWarp, passed)) raise(most, factor);
#pragma unroll
    for (int m = 0; m < C::slabs; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int n = 0; n < C::part / 8; ++n)
#pragma unroll
          for (int e = 2 * h; e < 2 * h + 2; ++e) s[m][n][e] = exp2_fast(fmaf(s[m][n][e], factor, -reference[m][h]));
        float part = s[m][0][2 * h] + s[m][0][2 * h + 1];  // sums of sums lose less
#pragma unroll
        for (int n = 1; n < C::part / 8; ++n) part += s[m][n][2 * h] + s[m][n][2 * h + 1];
        total[m][h] += part;
      }
  }

  // Makes the largest score so far the reference; four lanes share a row.
  __device__ void raise(const float (&most)[C::slabs][2], float factor) {
#pragma unroll
    for (int m = 0; m < C::slabs; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float top = most[m][h] * factor;
        top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 1));
        top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 2));
        top = fmaxf(top, reference[m][h]);
        const float shrink = exp2_fast(reference[m][h] - top);
        reference[m][h] = top;
        total[m][h] *= shrink;
#pragma unroll
        for (int n = 0; n < K / 8; ++n) sum[m][n][2 * h] *= shrink, sum[m][n][2 * h + 1] *= shrink;
      }
  }

  __device__ void add_values(std::uint32_t values) {
#pragma unroll
    for (int i = 0; i < C::part / 16; ++i) {
      std::uint32_t weights[C::slabs][4];
#pragma unroll
      for (int m = 0; m < C::slabs; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          weights[m][e] = pack<T>(s[m][2 * i + e / 2][e % 2 * 2], s[m][2 * i + e / 2][e % 2 * 2 + 1]);
#pragma unroll
      for (int n = 0; n < K / 16; ++n) {
        std::uint32_t b[4];
        load_matrices_transposed(b, ((values + by_row) ^ (n * 32)) + i * 16 * C::row_bytes);
#pragma unroll
        for (int m = 0; m < C::slabs; ++m) {
          mma<T>(sum[m][2 * n], weights[m], b[0], b[1]);
          mma<T>(sum[m][2 * n + 1], weights[m], b[2], b[3]);
        }
      }
    }
  }

  // Stores the warp's queries from number `first` on. Rows leave through `room` in shared memory, which nobody else
  // uses, so that they can be stored 16 bytes at a time.
  __device__ void store(const Params& p, const Job& j, int first, unsigned char* room) {
#pragma unroll
    for (int m = 0; m < C::slabs; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float all = total[m][h];
        all += __shfl_xor_sync(kWholeWarp, all, 1);
        all += __shfl_xor_sync(kWholeWarp, all, 2);
        const float inverse = all == 0 ? 0.0f : reciprocal_fast(all);
        const int row = m * 16 + h * 8 + lane / 4, i = first + row;
        if (p.lse && lane % 4 == 0 && i < j.q1)
          p.lse[(j.b * p.N + j.n) * p.Lq + i] = fmaf(log2_fast(all), kLn2, reference[m][h] * kLn2);
#pragma unroll
        for (int n = 0; n < K / 8; ++n)
          *reinterpret_cast<std::uint32_t*>(room + row * C::row_bytes + (n ^ lane / 4) * 16 + lane % 4 * 4) =
              pack<T>(sum[m][n][2 * h] * inverse, sum[m][n][2 * h + 1] * inverse);
      }
    __syncwarp();
    constexpr int rows = 32 / C::chunks;  // at once
    const int chunk = lane % C::chunks, row = lane / C::chunks;
    const std::int64_t stride = rows * p.N * K;
    T* out = static_cast<T*>(p.out) + ((j.b * p.Lq + first + row) * p.N + j.n) * K + chunk * 8;
#pragma unroll
    for (int i = 0; i < C::warp_queries; i += rows, out += stride)
      if (first + row + i < j.q1)
        *reinterpret_cast<uint4*>(out) =
            *reinterpret_cast<const uint4*>(room + (row + i) * C::row_bytes + (chunk ^ (row + i) % 8) * 16);
  }
};

template <class T, int K, bool kBias>
__global__ void __launch_bounds__(kThreads, 2) spacetime_attention_kernel(const __grid_constant__ Params p) {
  using C = Cut<K>;
  PYSORA_SHARED(shared);
  const std::uint32_t stages = shared_address(shared), biases = stages + 2 * C::stage_bytes;
  const Job j = find_job<K>(p);
  if (j.q0 >= j.q1) return;
  const int all_keys = j.k1 - j.k0, tiles = (all_keys + C::keys - 1) / C::keys;
  const int of_warp = static_cast<int>(threadIdx.x) / 32 * C::warp_queries;  // its first query

  Rows<K> keys(p.k, p.k_strides, j, j.k0), values(p.v, p.v_strides, j, j.k0);
  const float* bias = nullptr;
  if constexpr (kBias)
    bias = p.key_bias + j.b * p.bias_strides[0] + (j.k0 + static_cast<int>(threadIdx.x)) * p.bias_strides[1];
  const auto copy_tile = [&](int tile) {
    const std::uint32_t to = stages + tile % 2 * C::stage_bytes;
    const int left = all_keys - tile * C::keys;
    keys.template copy<C::keys>(to, left);
    values.template copy<C::keys>(to + C::tile_bytes, left);
    if constexpr (kBias) {
      const int i = static_cast<int>(threadIdx.x);
      if (i < C::keys) copy_async_word(biases + tile % 2 * C::bias_bytes + 4 * i, bias, i < left ? 4 : 0);
      bias += C::keys * p.bias_strides[1];
    }
    copy_commit();
  };

  Warp<T, K> warp;
  if (tiles > 0) {  // the first tile goes to the first stage, the queries to the second
    Rows<K>(p.q, p.q_strides, j, j.q0).template copy<C::queries>(stages + C::stage_bytes, j.q1 - j.q0);
    copy_commit();
    copy_tile(0);
    copy_wait<1>();
    __syncthreads();
    warp.read_queries(stages + C::stage_bytes + of_warp * C::row_bytes, p.scale);
  }
  const float factor = p.scale == 0 ? kLog2e : fabsf(p.scale) * kLog2e;
  for (int tile = 0; tile < tiles; ++tile) {
    copy_wait<0>();
    __syncthreads();  // the tile is there, and nobody reads the last one any more
    if (tile + 1 < tiles) copy_tile(tile + 1);
    const std::uint32_t stage = stages + tile % 2 * C::stage_bytes;
    const int left = all_keys - tile * C::keys;
#pragma unroll 1
    for (int i = 0; i < C::keys && i < left; i += C::part) {
      warp.multiply_keys(stage + i * C::row_bytes);
      if constexpr (kBias)
        warp.add_bias(reinterpret_cast<const float*>(shared + 2 * C::stage_bytes) + tile % 2 * C::keys + i, factor);
      if (left - i < C::part) warp.hide(left - i);
      warp.weigh(kBias ? 1.0f : factor);
      warp.add_values(stage + C::tile_bytes + i * C::row_bytes);
    }
  }
  // Through the stage that the last tile is not in.
  warp.store(p, j, j.q0 + of_warp, shared + tiles % 2 * C::stage_bytes + of_warp * C::row_bytes);
}

template <class T, int K, bool kBias>
void launch(const Params& p, cudaStream_t stream) {
  constexpr int bytes = Cut<K>::shared_bytes(kBias);
  const std::int64_t blocks = query_tiles<K>(p) * p.N * p.B;
  if (blocks == 0) return;
  static_assert(bytes <= 48 * 1024, "what every card gives without being asked");
  PYSORA_LAUNCH((spacetime_attention_kernel<T, K, kBias>), static_cast<unsigned>(blocks), kThreads, bytes, stream, p);
}

template <class T>
void launch(const Params& p, cudaStream_t stream) {
  if (p.K == 64) {
    p.key_bias ? launch<T, 64, true>(p, stream) : launch<T, 64, false>(p, stream);
  } else {
    p.key_bias ? launch<T, 128, true>(p, stream) : launch<T, 128, false>(p, stream);
  }
}

}  // namespace

void spacetime_attention(const Params& p, cudaStream_t stream) {
  p.dtype == Dtype::bf16 ? launch<Bf16>(p, stream) : launch<F16>(p, stream);
}

}  // namespace pysora::cuda
