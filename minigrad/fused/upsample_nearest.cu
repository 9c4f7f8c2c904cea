// Nearest-neighbour upsampling of B images of H x W pixels and C channels: each pixel becomes a block of factor_h x factor_w.
//
// Forward     upsample_nearest_forward_naive    a thread per output number    grid ceil(n / 128)                                  block 128
//             upsample_nearest_forward          a thread per output pack      grid (B H factor_h, ceil(W factor_w packs / 128))   block 128    used
// Backward    upsample_nearest_backward_naive   a thread per input number     grid ceil(n / 128)                                  block 128
//             upsample_nearest_backward         a thread per input pack       grid (B H, ceil(W packs / 128))                     block 128    used
//
// Bytes moved (float32), with n input numbers: 4 n (1 + factor_h factor_w), both ways. Forward reads a pixel again for each of its copies, from the
// cache. Backward sums a block in reading order, in one kernel where the rule on Tensors (average pooling, times the factors) takes two.
// T is the type of a number, V what is read at once: float, float4 or double. `packs` is C / (numbers in a V).
#include "pack.cuh"

// instances: upsample_nearest_forward_naive<float>
template <typename T>
__global__ void upsample_nearest_forward_naive(const T* __restrict__ x, T* __restrict__ y, long long count, int width, int channels, int factor_h,
                                               int factor_w)
{
    const long long i = blockIdx.x * 128LL + threadIdx.x;
    if (i >= count) return;
    const long long c = i % channels, w = i / channels % (width * factor_w), row = i / channels / (width * factor_w);    // row: of all images
    y[i] = x[(row / factor_h * width + w / factor_w) * channels + c];
}

// instances: upsample_nearest_forward<float, float>, upsample_nearest_forward<float, float4>, upsample_nearest_forward<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(128) upsample_nearest_forward(const V* __restrict__ x, V* __restrict__ y, int width, int packs, int factor_h,
                                                                int factor_w)
{
    const int j = blockIdx.y * 128 + threadIdx.x;                     // within a row of the output
    if (j >= width * factor_w * packs) return;
    const long long row = blockIdx.x / factor_h;                      // the height of an image is a multiple of factor_h: rows of all images count on
    packs_of<T>(y)[(long long)blockIdx.x * width * factor_w * packs + j] = packs_of<T>(x)[(row * width + j / packs / factor_w) * packs + j % packs];
}

// instances: upsample_nearest_backward_naive<float>
template <typename T>
__global__ void upsample_nearest_backward_naive(const T* __restrict__ dy, T* __restrict__ dx, long long count, int width, int channels, int factor_h,
                                                int factor_w)
{
    const long long i = blockIdx.x * 128LL + threadIdx.x;
    if (i >= count) return;
    const long long c = i % channels, w = i / channels % width, row = i / channels / width;
    T sum = 0;
    for (int k = 0; k < factor_h * factor_w; k++) {
        sum += dy[((row * factor_h + k / factor_w) * width * factor_w + w * factor_w + k % factor_w) * channels + c];
    }
    dx[i] = sum;
}

// instances: upsample_nearest_backward<float, float>, upsample_nearest_backward<float, float4>, upsample_nearest_backward<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(128) upsample_nearest_backward(const V* __restrict__ dy, V* __restrict__ dx, int width, int packs, int factor_h,
                                                                 int factor_w)
{
    constexpr int N = sizeof(V) / sizeof(T);
    const int j = blockIdx.y * 128 + threadIdx.x;                     // within a row of the input
    if (j >= width * packs) return;
    const int w = j / packs, p = j % packs;
    Sum<T, N> sum;
    auto row = packs_of<T>(dy) + ((long long)blockIdx.x * factor_h * width + w) * factor_w * packs + p;
    for (int r = 0; r < factor_h; r++, row += (long long)width * factor_w * packs) sum.add_row(row, factor_w, packs);
    packs_of<T>(dx)[(long long)blockIdx.x * width * packs + j] = sum.total();
}
