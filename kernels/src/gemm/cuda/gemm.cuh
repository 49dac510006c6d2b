// What becomes of a tile of finished sums: bias, epilogue, one rounding. Shared by all GEMM kernels.
// Macros: OUT, ROWS (stored features), COLUMNS (of the output), BIAS (0 or 1), EPILOGUE (a struct of this file, with a
// function of lathe.cuh where it takes one).
#pragma once
#include "lathe.cuh"

namespace lathe {

// Four sums from `feature` of a row of the tile, with their bias. `first` is the tile's first feature; whoever calls has
// checked that the first of the four exists.
__device__ __forceinline__ void sums4(float (&y)[4], const float* row, int feature, int first, const float* bias) {
    Vec<float, 4> s = *reinterpret_cast<const Vec<float, 4>*>(row + feature);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        y[i] = s.at[i];
        if constexpr (BIAS) {
            int at = first + feature + i;
            if (ROWS % 4 == 0 || at < ROWS) y[i] = add(y[i], bias[at]);
        }
    }
}

// y = sum.
struct Store {
    static __device__ constexpr int width(int tile) { return tile; }
    template <int TILE>
    static __device__ __forceinline__ void values(float (&y)[4], const float* row, int column, int first,
                                                  const float* bias, const OUT*) {
        sums4(y, row, column, first, bias);
    }
};

// y = f(sum).
template <float (*F)(float)>
struct Act {
    static __device__ constexpr int width(int tile) { return tile; }
    template <int TILE>
    static __device__ __forceinline__ void values(float (&y)[4], const float* row, int column, int first,
                                                  const float* bias, const OUT*) {
        sums4(y, row, column, first, bias);
#pragma unroll
        for (int i = 0; i < 4; ++i) y[i] = F(y[i]);
    }
};

// y = join(gate, up); features alternate by 16.
template <class Join>
struct Gated {
    static __device__ constexpr int width(int tile) { return tile / 2; }
    template <int TILE>
    static __device__ __forceinline__ void values(float (&y)[4], const float* row, int column, int first,
                                                  const float* bias, const OUT*) {
        static_assert(TILE % 32 == 0, "a tile holds whole pairs of gate and up");
        int gate = column / 16 * 32 + column % 16;
        float up[4];
        sums4(y, row, gate, first, bias);
        sums4(up, row, gate + 16, first, bias);
#pragma unroll
        for (int i = 0; i < 4; ++i) y[i] = Join::of(y[i], up[i]);
    }
};

// f(gate) * up.
template <float (*F)(float)>
struct Product {
    static __device__ __forceinline__ float of(float gate, float up) { return mul(F(gate), up); }
};
template <float (*F)(float)>
using Glu = Gated<Product<F>>;

struct Clamped {
    static __device__ __forceinline__ float of(float gate, float up) { return clamped_swiglu(gate, up); }
};
using ClampedSwiglu = Gated<Clamped>;

// y = sum + residual, which may be the output's own bytes.
struct AddResidual {
    static __device__ constexpr int width(int tile) { return tile; }
    template <int TILE>
    static __device__ __forceinline__ void values(float (&y)[4], const float* row, int column, int first,
                                                  const float* bias, const OUT* residual) {
        sums4(y, row, column, first, bias);
        if constexpr (COLUMNS % 4 == 0) {
            auto r = *reinterpret_cast<const Vec<OUT, 4>*>(residual + first + column);
#pragma unroll
            for (int i = 0; i < 4; ++i) y[i] = add(y[i], to_f32(r.at[i]));
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (first + column + i < COLUMNS) y[i] = add(y[i], to_f32(residual[first + column + i]));
        }
    }
};

__device__ __forceinline__ void store4(float* to, const float (&y)[4]) {
    store_global16(to, __float_as_uint(y[0]), __float_as_uint(y[1]), __float_as_uint(y[2]), __float_as_uint(y[3]));
}
template <class T>
__device__ __forceinline__ void store4(T* to, const float (&y)[4]) {
    store_global8(to, pack<T>(y[0], y[1]), pack<T>(y[2], y[3]));
}

// Rows of the output that a launch's tokens are: one after another.
struct Dense {
    OUT* out;
    __device__ __forceinline__ u64 row(int token) const { return u64(token) * COLUMNS; }
};

// Stores a tile of sums `[TOKENS][STRIDE]` of shared memory whose corner is (`token0`, `first`); all threads, after a
// barrier.
template <class Epilogue, int TILE, int TOKENS, int STRIDE, int THREADS, class To>
__device__ __forceinline__ void finish(const float* sums, int token0, int first, int m, const float* bias,
                                       const OUT* residual, const To& to) {
    constexpr int WIDTH = Epilogue::width(TILE), VECS = WIDTH / 4;
    static_assert(STRIDE % 4 == 0 && WIDTH % 4 == 0);
    int column0 = first / TILE * WIDTH;
    for (int i = threadIdx.x; i < TOKENS * VECS; i += THREADS) {
        int token = i / VECS, column = i % VECS * 4;
        if (token0 + token >= m || column0 + column >= COLUMNS) continue;
        u64 row = to.row(token0 + token);
        float y[4];
        Epilogue::template values<TILE>(y, sums + token * STRIDE, column, first, bias, residual + row);
        OUT* at = to.out + row + column0 + column;
        if constexpr (COLUMNS % 4 == 0) {
            store4(at, y);
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j)
                if (column0 + column + j < COLUMNS) at[j] = from_f32<OUT>(y[j]);
        }
    }
}

// A block's tile: token tiles are taken `TURN` at a time, and within a group they go round fastest, so that blocks that
// run together share weights and the group's rows stay in the second-level cache.
struct Tile {
    int token, feature;
};
template <int FEATURES, int TOKENS, int TURN>
__device__ __forceinline__ Tile tile_of_block(int block, int m) {
    constexpr int ACROSS = (ROWS + FEATURES - 1) / FEATURES;
    int group = block / (TURN * ACROSS), rest = block - group * (TURN * ACROSS), first = group * TURN;
    int left = (m + TOKENS - 1) / TOKENS - first, width = left < TURN ? left : TURN;
    if (TURN == 1) width = 1;
    return {(first + rest % width) * TOKENS, rest / width * FEATURES};
}

}  // namespace lathe
