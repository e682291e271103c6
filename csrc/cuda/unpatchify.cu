#include "pysora/unpatchify.h"

#include "launch.h"
#include "rows.h"

// One pass, and no shared memory: a thread transposes P pixels by P channels in its registers, between 128-bit reads
// along the channels of a token and 128-bit writes along a row of the video.
namespace pysora::cuda {
namespace {

constexpr int kBlock = 128;

// Four registers of 16 bytes hold P values.
__device__ void transpose(const uint4 (&in)[4], uint4 (&out)[4]) {
  out[0] = {in[0].x, in[1].x, in[2].x, in[3].x};
  out[1] = {in[0].y, in[1].y, in[2].y, in[3].y};
  out[2] = {in[0].z, in[1].z, in[2].z, in[3].z};
  out[3] = {in[0].w, in[1].w, in[2].w, in[3].w};
}

// The low (0x5410) or the high (0x7632) halves of two registers, for 16-bit values.
template <unsigned kHalves>
__device__ uint4 halves(std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d, std::uint32_t e,
                        std::uint32_t f, std::uint32_t g, std::uint32_t h) {
  return {__byte_perm(a, b, kHalves), __byte_perm(c, d, kHalves), __byte_perm(e, f, kHalves),
          __byte_perm(g, h, kHalves)};
}
__device__ void transpose(const uint4 (&in)[8], uint4 (&out)[8]) {
  const auto pair = [&](std::uint32_t uint4::* at, uint4& even, uint4& odd) {
    even = halves<0x5410>(in[0].*at, in[1].*at, in[2].*at, in[3].*at, in[4].*at, in[5].*at, in[6].*at, in[7].*at);
    odd = halves<0x7632>(in[0].*at, in[1].*at, in[2].*at, in[3].*at, in[4].*at, in[5].*at, in[6].*at, in[7].*at);
  };
  pair(&uint4::x, out[0], out[1]), pair(&uint4::y, out[2], out[3]);
  pair(&uint4::z, out[4], out[5]), pair(&uint4::w, out[6], out[7]);
}

// The place of a row of the video: row y of frame t of sample b.
struct Row {
  unsigned b, t, y;
  std::int64_t tokens;  // offset of its piece of the row's first token
};

__device__ Row find_row(const UnpatchifyParams& p, unsigned row) {
  const unsigned pt = static_cast<unsigned>(p.patch[0]), ph = static_cast<unsigned>(p.patch[1]);
  const unsigned gh = static_cast<unsigned>(p.grid[1]), height = gh * ph,
                 frames = static_cast<unsigned>(p.grid[0]) * pt;
  const unsigned y = row % height, t = row / height % frames, b = row / height / frames;
  const std::int64_t token = std::int64_t{t / pt * gh + y / ph} * p.grid[2];
  const std::int64_t piece = std::int64_t{t % pt * ph + y % ph} * p.patch[2] * p.C;
  return {b, t, y, b * p.strides[0] + token * p.strides[1] + piece * p.strides[2]};
}

__device__ std::int64_t line(const UnpatchifyParams& p, Row row, unsigned c) {
  return (((row.b * p.C + c) * p.grid[0] * p.patch[0] + row.t) * p.grid[1] * p.patch[1] + row.y) * p.grid[2] *
         p.patch[2];
}

// Thread by thread, fastest first: `near` blocks of channels (two where they are even: whole 32-byte sectors), the
// blocks of pixels of a row, the other blocks of channels, the rows.
template <class T>
__global__ void __launch_bounds__(kBlock)
    unpatchify_kernel(const __grid_constant__ UnpatchifyParams p, unsigned near, unsigned items) {
  constexpr int P = kPack<T>;
  const unsigned pw = static_cast<unsigned>(p.patch[2]), across = static_cast<unsigned>(p.grid[2]) * pw / P;
  const unsigned far = static_cast<unsigned>(p.C) / P / near;
  for (unsigned item = blockIdx.x * kBlock + threadIdx.x; item < items; item += gridDim.x * kBlock) {
    const unsigned x = item / near % across * P, c = (item / near / across % far * near + item % near) * P;
    const Row row = find_row(p, item / near / across / far);
    const T* tokens = static_cast<const T*>(p.tokens) + row.tokens + c;
    unsigned w = x / pw, k = x % pw;
    uint4 in[P], out[P];
#pragma unroll
    for (int i = 0; i < P; ++i) {
      in[i] = *reinterpret_cast<const uint4*>(tokens + w * p.strides[1] + k * p.C);
      if (++k == pw) k = 0, ++w;
    }
    transpose(in, out);
#pragma unroll
    for (int i = 0; i < P; ++i) *reinterpret_cast<uint4*>(static_cast<T*>(p.out) + line(p, row, c + i) + x) = out[i];
  }
}

// Value by value, in the order of the video.
template <class T>
__global__ void __launch_bounds__(kBlock)
    unpatchify_single_kernel(const __grid_constant__ UnpatchifyParams p, unsigned items) {
  const unsigned pw = static_cast<unsigned>(p.patch[2]), width = static_cast<unsigned>(p.grid[2]) * pw;
  const unsigned C = static_cast<unsigned>(p.C);
  for (unsigned item = blockIdx.x * kBlock + threadIdx.x; item < items; item += gridDim.x * kBlock) {
    const unsigned x = item % width, c = item / width % C;
    const Row row = find_row(p, item / width / C);
    const T* token = static_cast<const T*>(p.tokens) + row.tokens + x / pw * p.strides[1];
    static_cast<T*>(p.out)[line(p, row, c) + x] = token[(std::int64_t{x % pw} * C + c) * p.strides[2]];
  }
}

// Whether every piece of a token and every row of the video starts at a multiple of 16 bytes.
bool wide(const UnpatchifyParams& p, int pack) {
  const std::int64_t tokens = p.grid[0] * p.grid[1] * p.grid[2];
  return aligned(p.tokens) && aligned(p.out) && p.strides[2] == 1 && p.C % pack == 0 &&
         p.grid[2] * p.patch[2] % pack == 0 && (p.B == 1 || p.strides[0] % pack == 0) &&
         (tokens == 1 || p.strides[1] % pack == 0);
}

}  // namespace

void unpatchify(const UnpatchifyParams& p, cudaStream_t stream) {
  const std::int64_t rows = p.B * p.grid[0] * p.patch[0] * p.grid[1] * p.patch[1], width = p.grid[2] * p.patch[2];
  if (rows * width * p.C == 0) return;
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int P = kPack<T>;
    if (wide(p, P)) {
      const std::int64_t items = rows * (width / P) * (p.C / P);
      PYSORA_LAUNCH(unpatchify_kernel<T>, row_blocks(items, {1, kBlock}), kBlock, 0, stream, p, p.C / P % 2 ? 1 : 2,
                    static_cast<unsigned>(items));
    } else {
      const std::int64_t items = rows * width * p.C;
      PYSORA_LAUNCH(unpatchify_single_kernel<T>, row_blocks(items, {1, kBlock}), kBlock, 0, stream, p,
                    static_cast<unsigned>(items));
    }
  });
}

}  // namespace pysora::cuda
