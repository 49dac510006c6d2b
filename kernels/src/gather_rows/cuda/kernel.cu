// out[i] = x[rows[i]], as words.
// Macros: WORD, the widest unsigned type that divides a row's bytes; WORDS per row; THREADS.
#include "lathe.cuh"
using namespace lathe;

extern "C" __global__ void __launch_bounds__(THREADS) gather_rows(const WORD* x, const int* rows, WORD* out) {
    let_next_start();
    int column = int(blockIdx.y) * THREADS + int(threadIdx.x);
    if (column >= WORDS) return;
    wait_for_previous();
    out[u64(blockIdx.x) * WORDS + column] = x[u64(rows[blockIdx.x]) * WORDS + column];
}
