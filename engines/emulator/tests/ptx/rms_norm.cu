// y[row, :] = x[row, :] * w / rms(x[row, :]) for rows of 1024 bf16, one block of 128 threads each.
#include "lathe.cuh"
using namespace lathe;

extern "C" __global__ void __launch_bounds__(128)
    rms_norm(const bf16* __restrict__ x, const bf16* __restrict__ w, bf16* __restrict__ y, float eps) {
    __shared__ float sums[4];
    const int at = threadIdx.x * 8;
    const uint4 words = *(const uint4*)(x + size_t(blockIdx.x) * 1024 + at);
    float v[8];
    const bf16* parts = (const bf16*)&words;
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = to_f32(parts[i]);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) sum += v[i] * v[i];
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    const float inv = rsqrtf((sums[0] + sums[1] + sums[2] + sums[3]) / 1024 + eps);
    const uint4 weights = *(const uint4*)(w + at);
    const bf16* weight = (const bf16*)&weights;
    uint4 out;
    u32* words_out = (u32*)&out;
#pragma unroll
    for (int i = 0; i < 4; i++)
        words_out[i] = pack<bf16>(v[2 * i] * inv * to_f32(weight[2 * i]), v[2 * i + 1] * inv * to_f32(weight[2 * i + 1]));
    *(uint4*)(y + size_t(blockIdx.x) * 1024 + at) = out;
}
