// Average pooling of B images of H x W pixels and C channels, over Ho x Wo windows.
//
// forward     avg_pool2d_forward_naive          a thread per output number      grid ceil(B Ho Wo C / 128)             block 128
//             avg_pool2d_forward                a thread per output pack        grid (ceil(B Ho / Y), columns)         block (X, Y)     used
// gradient    avg_pool2d_backward_naive         a thread per input number       grid ceil(B H W C / 128)               block 128
//             avg_pool2d_backward               a thread per input pack         grid (ceil(B H / Y), columns)          block (X, Y)     used
//
// Bytes moved (float32), with n input and m output numbers: 4 (n + m), both ways; overlapping windows meet their common pixels in the cache.
// Backward gathers: each pixel sums the windows it lies in, always in the same order. Scattering would need atomics where windows overlap.
// A block of X by Y <= 128 threads covers X neighbouring packs of a row (all of them, if there are at most 128: then `columns` is 1) in Y rows of all
// images. So threads find their pixel by two divisions of small numbers; the naive kernels do four of large ones.
// T is the type of a number, V what is read at once: float, float4 or double. `packs` is C / (numbers in a V).
#include "pack.cuh"

// --- forward: a window begins at (oh stride - pad); its pixels outside of the image are 0, and count

// instances: avg_pool2d_forward_naive<float>
template <typename T>
__global__ void avg_pool2d_forward_naive(const T* __restrict__ x, T* __restrict__ y, long long count, int height, int width, int out_height,
                                         int out_width, int channels, int kernel_h, int kernel_w, int stride_h, int stride_w, int pad_h, int pad_w)
{
    const long long i = blockIdx.x * 128LL + threadIdx.x;
    if (i >= count) return;
    const int c = i % channels, ow = i / channels % out_width, oh = i / channels / out_width % out_height;
    const long long image = i / channels / out_width / out_height * height;
    T sum = 0;
    for (int k = 0; k < kernel_h * kernel_w; k++) {
        const int h = oh * stride_h - pad_h + k / kernel_w, w = ow * stride_w - pad_w + k % kernel_w;
        if (h >= 0 && h < height && w >= 0 && w < width) sum += x[((image + h) * width + w) * channels + c];
    }
    y[i] = sum / (kernel_h * kernel_w);
}

// instances: avg_pool2d_forward<float, float>, avg_pool2d_forward<float, float4>, avg_pool2d_forward<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(128) avg_pool2d_forward(const V* __restrict__ x, V* __restrict__ y, int rows, int height, int width,
                                                          int out_height, int out_width, int packs, int kernel_h, int kernel_w, int stride_h,
                                                          int stride_w, int pad_h, int pad_w)
{
    constexpr int N = sizeof(V) / sizeof(T);
    const int j = blockIdx.y * blockDim.x + threadIdx.x, row = blockIdx.x * blockDim.y + threadIdx.y;    // within a row of the output; which row
    if (j >= out_width * packs || row >= rows) return;
    const int ow = j / packs, p = j % packs, oh = row % out_height, top = oh * stride_h - pad_h, left = ow * stride_w - pad_w;
    const long long image = (long long)(row / out_height) * height;
    const int first = max(0, left), count = min(width, left + kernel_w) - first;
    Sum<T, N> sum;
    for (int h = max(0, top); h < min(height, top + kernel_h); h++) {
        sum.add_row(packs_of<T>(x) + ((image + h) * width + first) * packs + p, count, packs);
    }
    auto mean = sum.total();
    for (T& v : mean.v) v /= kernel_h * kernel_w;
    packs_of<T>(y)[(long long)row * out_width * packs + j] = mean;
}

// --- backward: window o along an axis has pixel h at o stride - pad <= h < o stride - pad + kernel

// instances: avg_pool2d_backward_naive<float>
template <typename T>
__global__ void avg_pool2d_backward_naive(const T* __restrict__ dy, T* __restrict__ dx, long long count, int height, int width, int out_height,
                                          int out_width, int channels, int kernel_h, int kernel_w, int stride_h, int stride_w, int pad_h, int pad_w)
{
    const long long i = blockIdx.x * 128LL + threadIdx.x;
    if (i >= count) return;
    const int c = i % channels, w = i / channels % width, h = i / channels / width % height;
    const long long image = i / channels / width / height * out_height;
    T sum = 0;
    for (int oh = 0; oh < out_height; oh++) {
        for (int ow = 0; ow < out_width; ow++) {                      // all windows of the image; most of them lie elsewhere
            const int r = h + pad_h - oh * stride_h, s = w + pad_w - ow * stride_w;
            if (r >= 0 && r < kernel_h && s >= 0 && s < kernel_w) sum += dy[((image + oh) * out_width + ow) * channels + c];
        }
    }
    dx[i] = sum / (kernel_h * kernel_w);
}

// instances: avg_pool2d_backward<float, float>, avg_pool2d_backward<float, float4>, avg_pool2d_backward<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(128) avg_pool2d_backward(const V* __restrict__ dy, V* __restrict__ dx, int rows, int height, int width,
                                                           int out_height, int out_width, int packs, int kernel_h, int kernel_w, int stride_h,
                                                           int stride_w, int pad_h, int pad_w)
{
    constexpr int N = sizeof(V) / sizeof(T);
    const int j = blockIdx.y * blockDim.x + threadIdx.x, row = blockIdx.x * blockDim.y + threadIdx.y;    // within a row of the image; which row
    if (j >= width * packs || row >= rows) return;
    const int w = j / packs + pad_w, p = j % packs, h = row % height + pad_h;            // counted from where the padding begins
    const long long image = (long long)(row / height) * out_height;
    const int last_h = min(h / stride_h, out_height - 1), last_w = min(w / stride_w, out_width - 1);
    Sum<T, N> sum;
    for (int oh = last_h; oh >= 0 && oh * stride_h + kernel_h > h; oh--) {
        int ow = last_w;
        while (ow >= 0 && ow * stride_w + kernel_w > w) {
            const int begun = ow, end = max(ow - 128, -1);            // as `add_row`
            for (; ow > end && ow * stride_w + kernel_w > w; ow--) sum.add(packs_of<T>(dy)[((image + oh) * out_width + ow) * packs + p]);
            sum.added(begun - ow);
        }
    }
    auto gradient = sum.total();
    for (T& v : gradient.v) v /= kernel_h * kernel_w;                 // not times the reciprocal, which is rounded
    packs_of<T>(dx)[(long long)row * width * packs + j] = gradient;
}
