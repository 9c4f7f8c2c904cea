// Correct kernels that use what device.h offers. What they must give is in test_vocabulary.py.

__global__ void who_am_i(int* thread, int* block)
{
    const int in_block = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const int of_grid = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const int i = of_grid * blockDim.x * blockDim.y * blockDim.z + in_block;
    thread[i] = threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z;
    block[i] = blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z;
}

__global__ void shuffles(const float* x, float* y, int width)       // y (5, threads)
{
    const int i = threadIdx.x, n = blockDim.x;
    const float v = x[i];
    y[i] = __shfl_sync(0xffffffff, v, 3, width);
    y[n + i] = __shfl_up_sync(0xffffffff, v, 2, width);
    y[2 * n + i] = __shfl_down_sync(0xffffffff, v, 2, width);
    y[3 * n + i] = __shfl_xor_sync(0xffffffff, v, 1, width);
    y[4 * n + i] = float(__shfl_sync(0xffffffff, double(v) / 3, i ^ 1, width) * 3);
}

__global__ void votes(const int* x, unsigned* y)                    // y (3, threads)
{
    const int i = threadIdx.x, n = blockDim.x;
    y[i] = __ballot_sync(0xffffffff, x[i] > 0);
    y[n + i] = __any_sync(0xffffffff, x[i] > 0);
    y[2 * n + i] = __all_sync(0xffffffff, x[i] > 0);
}

__global__ void half_warps_apart(const float* x, float* y)           // each half of a warp adds up its own, the second one twice as often
{
    const unsigned mask = threadIdx.x < 16 ? 0x0000ffff : 0xffff0000;
    float v = x[threadIdx.x];
    if (threadIdx.x < 16)
        for (int apart = 8; apart > 0; apart /= 2) v += __shfl_xor_sync(mask, v, apart);
    else
        for (int k = 0; k < 2; k++)
            for (int apart = 8; apart > 0; apart /= 2) v += __shfl_xor_sync(mask, v, apart);
    y[threadIdx.x] = v;
}

// instances: transpose<float>, transpose<unsigned char>
template <typename T>
__global__ void transpose(const T* x, T* y, int rows, int columns)   // one block of 8 x 8 threads for every tile
{
    __shared__ T tile[8][9];
    const int row = blockIdx.y * 8 + threadIdx.y, column = blockIdx.x * 8 + threadIdx.x;
    if (row < rows && column < columns) tile[threadIdx.y][threadIdx.x] = x[row * columns + column];
    __syncthreads();
    const int out_row = blockIdx.x * 8 + threadIdx.y, out_column = blockIdx.y * 8 + threadIdx.x;
    if (out_row < columns && out_column < rows) y[out_row * rows + out_column] = tile[threadIdx.x][threadIdx.y];
}

__global__ void running_sum(const double* x, double* y)             // in dynamic shared memory, two buffers in turn
{
    extern __shared__ double buffer[];
    double *from = buffer, *to = buffer + blockDim.x;
    from[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    for (int apart = 1; apart < blockDim.x; apart *= 2) {
        to[threadIdx.x] = from[threadIdx.x] + (threadIdx.x >= apart ? from[threadIdx.x - apart] : 0);
        __syncthreads();
        double* other = from;
        from = to, to = other;
    }
    y[threadIdx.x] = from[threadIdx.x];
}

__global__ void histogram(const int* x, int* counts, int n)
{
    __shared__ int own[4];
    if (threadIdx.x < 4) own[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&own[x[i]], 1);
    __syncthreads();
    if (threadIdx.x < 4) atomicAdd(&counts[threadIdx.x], own[threadIdx.x]);
}

__global__ void atomics(int* x, float* f, unsigned long long* u)      // 32 threads
{
    const int i = threadIdx.x;
    atomicAdd(&x[0], i), atomicSub(&x[1], i), atomicMin(&x[2], i), atomicMax(&x[3], i), atomicAnd(&x[4], ~(1 << (i % 4))), atomicOr(&x[5], 1 << (i % 4));
    atomicXor(&x[6], 1 << i % 8), atomicCAS(&x[7], i, i + 1);         // only in ascending order does this one count to 32
    atomicAdd(f, 0.5f);
    atomicAdd(u, 1ULL << 40);
}

__global__ void arithmetic(const float* x, float* y)                  // one thread
{
    y[0] = rsqrtf(x[0]);
    y[1] = __expf(x[1]) + __fdividef(x[0], x[1]);
    y[2] = max(x[0], x[1]) - min(x[0], x[1]);
    y[3] = __int_as_float(0x7f800000);
    y[4] = __popc(0xff) + 10 * __clz(1) + 1000 * __ffs(8);
    const float4 four = make_float4(1, 2, 3, 4);
    y[5] = four.x + 10 * four.y + 100 * four.z + 1000 * four.w;
    y[6] = __ldg(x) + normcdff(0);
    y[7] = __saturatef(x[0]);
}
