// Cross-entropy of B rows of K logits, forward and backward; what is computed is derived in cross_entropy.py.
//
// Forward    cross_entropy_forward     log p, and a loss per row   grid ceil(B THREADS / 128)   block 128    THREADS 1: naive; 32: used for K <= 1024
//                                                                  grid B                       block 256    THREADS 256: used for longer rows
//            cross_entropy_mean        of the losses               grid 1                       block 256    used
// Backward   cross_entropy_backward    of logits and of targets    as forward                                used
//
// THREADS share a row: 1 makes the 32 lanes of a warp read addresses K numbers apart and leaves most of a GPU idle, since B is a hundred or so; with
// 32 or 256 they read neighbouring addresses, and the row, read three times, stays in the first-level cache. Bytes moved (float32), with 4 B K for the
// targets where they are not numbers of classes: forward 8 B K, backward 8 B K.
//
// The mean is taken by one block in one order, not by atomics: it is the same in every run. T is the type of a number. Either `labels` (B,) or
// `targets` (B, K) is null. `kept` is 1 - smoothing, made by the host in double: of two floats near 1 the difference has few digits. A label that is no
// class gives nan, in the loss and in the gradient of its row, and nothing is read out of bounds.
#include "rows.cuh"

template <int THREADS, typename T>
__device__ __forceinline__ T row_sum(T x)
{
    if constexpr (THREADS == 1) return x;
    else if constexpr (THREADS == 32) return warp_sum(x);
    else return block_sum(x);
}
template <int THREADS, typename T>
__device__ __forceinline__ T row_max(T x)
{
    if constexpr (THREADS == 1) return x;
    else if constexpr (THREADS == 32) return warp_max(x);
    else return block_max(x);
}

__device__ __forceinline__ bool is_class(long long label, int classes) { return label >= 0 && label < classes; }

template <typename T>
__device__ __forceinline__ T not_a_number() { return __int_as_float(0x7fc00000); }

// instances: cross_entropy_forward<float, 1>, cross_entropy_forward<float, 32>, cross_entropy_forward<float, 256>
// instances: cross_entropy_forward<double, 32>, cross_entropy_forward<double, 256>
template <typename T, int THREADS>
__global__ void __launch_bounds__(256) cross_entropy_forward(const T* __restrict__ logits, const long long* __restrict__ labels,
                                                             const T* __restrict__ targets, T* __restrict__ log_p, T* __restrict__ losses, int rows,
                                                             int classes, T kept, T smoothing)
{
    const int lane = threadIdx.x % THREADS, row = blockIdx.x * (blockDim.x / THREADS) + threadIdx.x / THREADS;
    if (row >= rows) return;                                          // all threads of the row: its sums miss nobody
    logits += (long long)row * classes;
    log_p += (long long)row * classes;
    T largest = lowest<T>(), sum = 0;
    for (int k = lane; k < classes; k += THREADS) largest = max(largest, logits[k]);
    largest = row_max<THREADS>(largest);
    for (int k = lane; k < classes; k += THREADS) sum += exp(logits[k] - largest);
    const T log_sum = log(row_sum<THREADS>(sum));

    const long long label = labels ? labels[row] : 0;
    T all = 0, picked = 0;                                            // sums of log p: of all classes, of the label (or by the targets)
    for (int k = lane; k < classes; k += THREADS) {
        const T value = logits[k] - largest - log_sum;
        log_p[k] = value;
        all += value;
        if (targets) picked += (targets[(long long)row * classes + k] * kept + smoothing / classes) * value;
        else if (k == label) picked = value;                          // 0 times the others would be nan where one is -inf
    }
    T total = row_sum<THREADS>(picked);
    if (!targets) {
        if (smoothing != 0) total = kept * total + smoothing / classes * row_sum<THREADS>(all);
        if (!is_class(label, classes)) total = not_a_number<T>();
    }
    if (lane == 0) losses[row] = total;
}

// loss = scale * sum of losses (B,)
// instances: cross_entropy_mean<float>, cross_entropy_mean<double>
template <typename T>
__global__ void __launch_bounds__(256) cross_entropy_mean(const T* __restrict__ losses, T* __restrict__ loss, int rows, T scale)
{
    T sum = 0;
    for (int row = threadIdx.x; row < rows; row += 256) sum += losses[row];
    sum = block_sum(sum);
    if (threadIdx.x == 0) loss[0] = sum * scale;
}

// With the smoothed target t, dlogits = (p sum(t) - t) dy / B and dtargets = -(1 - smoothing) log p dy / B. Either may be null: not wanted.
// instances: cross_entropy_backward<float, 1>, cross_entropy_backward<float, 32>, cross_entropy_backward<float, 256>
// instances: cross_entropy_backward<double, 32>, cross_entropy_backward<double, 256>
template <typename T, int THREADS>
__global__ void __launch_bounds__(256) cross_entropy_backward(const T* __restrict__ dy, const T* __restrict__ log_p,
                                                              const long long* __restrict__ labels, const T* __restrict__ targets,
                                                              T* __restrict__ dlogits, T* __restrict__ dtargets, int rows, int classes, T kept,
                                                              T smoothing)
{
    const int lane = threadIdx.x % THREADS, row = blockIdx.x * (blockDim.x / THREADS) + threadIdx.x / THREADS;
    if (row >= rows) return;
    const long long start = (long long)row * classes, label = labels ? labels[row] : 0;
    const T scale = labels && !is_class(label, classes) ? not_a_number<T>() : dy[0] / T(rows);
    T sum = 1;
    if (targets && dlogits) {
        sum = 0;
        for (int k = lane; k < classes; k += THREADS) sum += targets[start + k];
        sum = kept * row_sum<THREADS>(sum) + smoothing;
    }
    for (int k = lane; k < classes; k += THREADS) {
        const T value = log_p[start + k];
        if (dlogits) {
            const T target = targets ? targets[start + k] : T(k == label);
            dlogits[start + k] = (exp(value) * sum - kept * target - smoothing / classes) * scale;
        }
        if (dtargets) dtargets[start + k] = value * -kept * scale;
    }
}
