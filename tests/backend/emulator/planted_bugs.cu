// Kernels with one mistake each, and beside some of them the same without it. tests/backend/emulator/test_planted_bugs.py says who must find what.

// --- shared memory and barriers

__global__ void sum_without_barrier(const float* x, float* out)
{
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    for (int step = 32; step > 0; step /= 2) {                        // a barrier is missing before this loop
        if (threadIdx.x < step) s[threadIdx.x] += s[threadIdx.x + step];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[0] = s[0];
}

__global__ void sum_with_barrier(const float* x, float* out)
{
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    for (int step = 32; step > 0; step /= 2) {
        if (threadIdx.x < step) s[threadIdx.x] += s[threadIdx.x + step];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[0] = s[0];
}

__global__ void atomic_on_new_memory(float* y) { atomicAdd(&y[threadIdx.x], 1.0f); }

__global__ void second_block_reads_the_first_ones_shared(float* y)
{
    __shared__ float s[32];
    if (blockIdx.x == 0) s[threadIdx.x] = 1;
    __syncthreads();
    if (threadIdx.x < 16) y[blockIdx.x * 16 + threadIdx.x] = s[threadIdx.x];  // every block has shared memory of its own
}

__global__ void second_block_reads_the_first_ones_dynamic(float* y)
{
    extern __shared__ float s[];
    if (blockIdx.x == 0) s[threadIdx.x] = 1;
    __syncthreads();
    y[blockIdx.x * 16 + threadIdx.x] = s[threadIdx.x];
}

__global__ void count_without_atomic(float* out)
{
    __shared__ float count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    count += 1;                                                       // all threads at once
    __syncthreads();
    if (threadIdx.x == 0) out[0] = count;
}

__global__ void count_between_blocks(float* out) { out[0] += 1; }     // launched with one thread in each of several blocks

__global__ void read_what_another_block_writes(float* x) { x[blockIdx.x] = x[(blockIdx.x + 1) % gridDim.x] + 1; }

__global__ void atomic_and_plain(float* out)
{
    atomicAdd(&out[0], 1.0f);
    if (threadIdx.x == 0) out[1] = out[0];                            // who has added by now?
}

__global__ void pass_on_without_syncwarp(const float* x, float* y)
{
    __shared__ float s[32];
    s[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = s[31 - threadIdx.x];                             // lanes of a warp need not be at the same place
}

__global__ void pass_on_with_syncwarp(const float* x, float* y)
{
    __shared__ float s[32];
    s[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    y[threadIdx.x] = s[31 - threadIdx.x];
}

__global__ void pass_on_between_warps_with_syncwarp(const float* x, float* y)
{
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    y[threadIdx.x] = s[threadIdx.x ^ 32];                             // of the other warp
}

__global__ void write_what_all_read(float* y)
{
    __shared__ float first;
    if (threadIdx.x == 0) first = 1;
    __syncthreads();
    y[threadIdx.x] = first;
    if (threadIdx.x == 31) first = 2;                                 // has everybody read it by now?
}

__global__ void write_what_another_warp_has_read(float* y)           // two warps
{
    __shared__ float first;
    if (threadIdx.x == 0) first = 1;
    __syncthreads();
    if (threadIdx.x % 32 == 0) y[threadIdx.x] = first;                // a lane of each
    if (threadIdx.x == 32) first = 2;
}

__global__ void read_what_another_warp_writes(float* y)              // two warps
{
    __shared__ float first;
    if (threadIdx.x == 0) first = 1;
    __syncthreads();
    if (threadIdx.x == 0) first = 2;
    if (threadIdx.x >= 32) {
        __syncwarp();                                                 // orders the second warp, not the two
        y[threadIdx.x] = first;
    }
}

__global__ void pass_on_by_half_a_warp(float* y)
{
    __shared__ float s[32];
    s[threadIdx.x] = 0;
    __syncthreads();
    if (threadIdx.x < 16) s[threadIdx.x] = 1;
    __syncwarp(threadIdx.x < 16 ? 0x0000ffff : 0xffff0000);           // each half for itself
    if (threadIdx.x >= 16) y[threadIdx.x] = s[31 - threadIdx.x];
}

__global__ void set_and_count(float* out)
{
    if (threadIdx.x == 0) out[0] = 5;
    atomicAdd(&out[0], 1.0f);
}

__global__ void write_what_another_block_has_read(float* x)           // two blocks of one thread
{
    const float v = x[0];
    if (blockIdx.x == 1) x[0] = v + x[0];                             // this block has read it too
}

__global__ void write_the_same_byte(unsigned char* y) { y[threadIdx.x / 2] = threadIdx.x; }

__global__ void two_shuffles(const float* x, float* y)
{
    const float v = x[threadIdx.x];
    if (threadIdx.x < 16)
        y[threadIdx.x] = __shfl_xor_sync(0xffffffff, v, 1);
    else
        y[threadIdx.x] = __shfl_xor_sync(0xffffffff, v, 2);
}

__global__ void two_masks(const float* x, float* y)
{
    y[threadIdx.x] = __shfl_xor_sync(threadIdx.x < 16 ? 0xffffffff : 0xffff0000, x[threadIdx.x], 1);
}

__global__ void barrier_for_some(float* y)
{
    if (threadIdx.x < 16) __syncthreads();
    y[threadIdx.x] = 1;
}

__global__ void two_barriers(float* y)
{
    if (threadIdx.x < 16)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = 1;
}

__global__ void shuffle_by_half_a_warp(const float* x, float* y)
{
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_down_sync(0xffffffff, x[threadIdx.x], 8);
}

__global__ void shuffle_without_oneself(const float* x, float* y) { y[threadIdx.x] = __shfl_down_sync(0x0000ffff, x[threadIdx.x], 8); }

__global__ void shared_before_it_is_set(float* y)
{
    __shared__ float s[32];
    y[threadIdx.x] = s[threadIdx.x];
}

// --- the same in templates, where a compiler places static variables in its own way

// instances: sum_by_template<float, 64>, sum_by_template<double, 64>
template <class T, int N>
__global__ void sum_by_template(const float* x, float* out)
{
    __shared__ T s[N];
    s[threadIdx.x] = x[threadIdx.x];
    for (int step = N / 2; step > 0; step /= 2) {                     // here too
        if (threadIdx.x < step) s[threadIdx.x] += s[threadIdx.x + step];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[0] = s[0];
}

template <class T>
struct Pair { T first, second; };

template <class T, int N>
__device__ T neighbours(T v)                                          // v of the thread before and the one after, added up
{
    __shared__ __align__(16) Pair<T> forth[N], back[N];
    __shared__ T none;
    if (threadIdx.x == 0) none = 0;
    forth[threadIdx.x].first = v, back[threadIdx.x].second = v;
    __syncthreads();
    const T before = threadIdx.x ? forth[threadIdx.x - 1].first : none, after = threadIdx.x < N - 1 ? back[threadIdx.x + 1].second : none;
    return before + after;
}

// instances: neighbours_twice<float, 32>, neighbours_twice<double, 32>
template <class T, int N>
__global__ void neighbours_twice(const float* x, float* y) { y[threadIdx.x] = neighbours<T, N>(neighbours<T, N>(x[threadIdx.x])); }

// instances: neighbours_once<double, 32>
template <class T, int N>
__global__ void neighbours_once(const float* x, float* y) { y[threadIdx.x] = neighbours<T, N>(x[threadIdx.x]); }

// instances: half_is_set<float, 32>
template <class T, int N>
__global__ void half_is_set(const float* x, float* y)
{
    __shared__ Pair<T> pairs[N];
    pairs[threadIdx.x].first = x[threadIdx.x];
    y[threadIdx.x] = pairs[threadIdx.x].second;
}

// instances: too_much_shared<double, 4096>
template <class T, int N>
__global__ void too_much_shared(float* y)
{
    __shared__ T first[N];
    first[threadIdx.x] = 1;
    __shared__ T second[N];                                           // 64 KB
    second[threadIdx.x] = first[threadIdx.x];
    y[threadIdx.x] = second[threadIdx.x];
}

// --- bounds

__global__ void read_past_the_end(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x + 1]; }

__global__ void write_past_the_end(const float* x, float* y) { y[threadIdx.x + 1] = x[threadIdx.x]; }

__global__ void read_before_the_beginning(const float* x, float* y) { y[threadIdx.x] = x[int(threadIdx.x) - 1]; }

__global__ void wild_pointer(const float* x, float* y) { y[threadIdx.x] = x[1LL << 44]; }

__global__ void past_dynamic_shared(float* y)
{
    extern __shared__ float s[];
    s[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x + 1];
}

__global__ void past_static_shared(float* y)
{
    __shared__ float s[32];
    s[threadIdx.x + 1] = 1;
    y[threadIdx.x] = 1;
}

__device__ __noinline__ float element(const float* array, int i) { return array[i]; }

__global__ void past_static_shared_by_a_pointer(float* y)
{
    __shared__ float first[32], second[32];
    first[threadIdx.x] = second[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = element(first, threadIdx.x + 1) + element(second, threadIdx.x);   // the last reads second[0], or whatever comes next
}

__global__ void past_local_array(float* y)
{
    float local[4] = {1, 2, 3, 4};
    y[threadIdx.x] = local[threadIdx.x];
}

__global__ void past_local_array_by_a_pointer(float* y)
{
    float local[4] = {1, 2, 3, 4};
    y[threadIdx.x] = element(local, threadIdx.x);
}

// --- C++

__global__ void misaligned_float4(const float* x, float* y)
{
    const float4 four = *reinterpret_cast<const float4*>(x + 1);
    y[0] = four.x + four.w;
}

__global__ void index_overflows(float* y, int rows, int columns) { y[threadIdx.x] = rows * columns > 0; }

__global__ void shift_too_far(float* y, int by) { y[threadIdx.x] = 1 << by; }

__global__ void divide_by_zero(float* y, int n) { y[threadIdx.x] = 1 / n; }

__global__ void null_pointer(const float* weight, float* y) { y[threadIdx.x] = weight[threadIdx.x]; }

__global__ void assertion(float* y, int n)
{
    assert(n < 4);
    y[threadIdx.x] = n;
}

// --- order

__global__ void add_in_any_order(const float* x, float* out) { atomicAdd(out, x[blockIdx.x * blockDim.x + threadIdx.x]); }

__global__ void last_one_stays(float* out) { atomicExch(out, float(threadIdx.x)); }

__global__ void wait_for_another_block(int* flag, float* y)
{
    if (blockIdx.x == 0)
        while (atomicAdd(flag, 0) == 0) {}
    else
        atomicExch(flag, 1);
    y[0] = 1;
}
