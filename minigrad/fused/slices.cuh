// The last step of a sum over rows that was made slice by slice: what linear and layer_norm share.
#pragma once

// total (columns,) = sum of partial (slices, columns) over the slices, for 32 columns to a block of (32, 16) threads: every 16th slice is added up by
// one of them, and the first adds up the 16 sums. One order of addition, so a run can be repeated bit for bit. All threads must call it.
template <typename T>
__device__ __forceinline__ void add_slices(const T* __restrict__ partial, T* __restrict__ total, int slices, int columns)
{
    __shared__ T sums[16][32];
    const int i = threadIdx.x, j = threadIdx.y, c = blockIdx.x * 32 + i;
    T sum = 0;
    if (c < columns) {
        #pragma unroll 8                                              // so that eight loads are on their way at a time; the order of addition stays
        for (int s = j; s < slices; s += 16) sum += partial[(long long)s * columns + c];
    }
    sums[j][i] = sum;
    __syncthreads();
    if (j > 0 || c >= columns) return;
    for (int k = 1; k < 16; k++) sum += sums[k][i];
    total[c] = sum;
}
