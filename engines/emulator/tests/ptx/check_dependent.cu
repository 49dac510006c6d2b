// Programmatic dependent launches. check_dependent.ptx is what NVRTC 13.0 makes of this file with
// --gpu-architecture=sm_90 -default-device --std=c++17 -lineinfo. Blocks of 64 threads.
using u32 = unsigned int;

__device__ __forceinline__ void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_next_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

extern "C" __global__ void produce(const u32* in, u32* out) {
    u32 t = threadIdx.x + 64 * blockIdx.x;
    wait_for_previous();
    out[t] = in[t] + 1;
    let_next_start();
}
// Lets the next start before it has waited itself.
extern "C" __global__ void hurry(const u32* in, u32* out) {
    u32 t = threadIdx.x + 64 * blockIdx.x;
    let_next_start();
    wait_for_previous();
    out[t] = in[t] * 2;
}
extern "C" __global__ void consume_good(const u32* in, u32* out, const u32* weights) {
    u32 t = threadIdx.x + 64 * blockIdx.x;
    u32 w = weights[t];
    wait_for_previous();
    out[t] = in[t] + w;
}
extern "C" __global__ void consume_bad(const u32* in, u32* out, const u32* weights) {
    u32 t = threadIdx.x + 64 * blockIdx.x;
    u32 x = in[t], w = weights[t];
    wait_for_previous();
    out[t] = x + w;
}
// Overwrites what the launch before may still read.
extern "C" __global__ void overwrite_bad(u32* in, const u32* weights) {
    u32 t = threadIdx.x + 64 * blockIdx.x;
    in[t] = weights[t];
    wait_for_previous();
}
// One thread waits for its block.
extern "C" __global__ void consume_by_one(const u32* in, u32* out) {
    u32 t = threadIdx.x + 64 * blockIdx.x;
    if (threadIdx.x == 0) wait_for_previous();
    __syncthreads();
    out[t] = in[t];
}
