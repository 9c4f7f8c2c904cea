// Max pooling of B images of H x W pixels and C channels to Ho x Wo windows.
//
// Forward      max_pool2d_forward_naive     a thread per output number     grid ceil(B Ho Wo C / 128)               block 128
//              max_pool2d_forward           a thread per output pack       grid (B Ho, ceil(Wo packs / 128))        block 128     used
// Backward     max_pool2d_backward_naive    a thread per input number      grid ceil(B H W C / 128)                 block 128
//              max_pool2d_backward          a thread per input pack        grid (B H, ceil(W packs / 128))          block 128     used
//
// Bytes moved (float32), with n input and m output numbers:  forward 4 n + 8 m,  backward 8 m + 4 n. Overlapping windows meet their common pixels in
// the cache. Forward notes the place of each maximum within its window (`place`, counted in reading order), so backward reads neither x nor y.
//
// Backward gathers: each pixel asks the windows it lies in whether they took their maximum from it. Scattering, each window giving its gradient to
// one pixel, would read less but needs atomics where windows overlap, and the order of their additions changes from run to run.
// A block stays in one row of the image, so that threads find their pixel by one division of small numbers; the naive kernels do four of large ones.
// T is the type of a number, V what is read at once: float, float4 or double. `packs` is C / (numbers in a V).
#include "pack.cuh"

// --- forward: a window begins at (oh stride - pad), its pixels outside of the image are skipped

// instances: max_pool2d_forward_naive<float>
template <typename T>
__global__ void max_pool2d_forward_naive(const T* __restrict__ x, T* __restrict__ y, int* __restrict__ place, long long count, int height, int width,
                                         int out_height, int out_width, int channels, int kernel_h, int kernel_w, int stride_h, int stride_w,
                                         int pad_h, int pad_w)
{
    const long long i = blockIdx.x * 128LL + threadIdx.x;
    if (i >= count) return;
    const int c = i % channels, ow = i / channels % out_width, oh = i / channels / out_width % out_height;
    const long long image = i / channels / out_width / out_height * height;
    T best = -__int_as_float(0x7f800000);                             // -infinity: NVRTC knows no INFINITY
    int found = -1;
    for (int k = 0; k < kernel_h * kernel_w; k++) {
        const int h = oh * stride_h - pad_h + k / kernel_w, w = ow * stride_w - pad_w + k % kernel_w;
        if (h < 0 || h >= height || w < 0 || w >= width) continue;
        const T v = x[((image + h) * width + w) * channels + c];
        if (found < 0 || v > best || (v != v && best == best)) best = v, found = k;      // the first; and the first NaN wins over all
    }
    y[i] = best;
    place[i] = found;
}

// instances: max_pool2d_forward<float, float>, max_pool2d_forward<float, float4>, max_pool2d_forward<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(128) max_pool2d_forward(const V* __restrict__ x, V* __restrict__ y, int* __restrict__ place, int height, int width,
                                                          int out_height, int out_width, int packs, int kernel_h, int kernel_w, int stride_h,
                                                          int stride_w, int pad_h, int pad_w)
{
    constexpr int N = sizeof(V) / sizeof(T);
    const int j = blockIdx.y * 128 + threadIdx.x;                     // within a row of the output
    if (j >= out_width * packs) return;
    const int ow = j / packs, p = j % packs, oh = blockIdx.x % out_height, top = oh * stride_h - pad_h, left = ow * stride_w - pad_w;
    const long long image = (long long)(blockIdx.x / out_height) * height;
    Pack<T, N> best;
    Pack<int, N> found;
    for (int k = 0; k < N; k++) best.v[k] = -__int_as_float(0x7f800000), found.v[k] = -1;
    for (int r = max(0, -top); r < min(kernel_h, height - top); r++) {
        for (int s = max(0, -left); s < min(kernel_w, width - left); s++) {
            const auto pack = packs_of<T>(x)[((image + top + r) * width + left + s) * packs + p];
            for (int k = 0; k < N; k++) {
                const T v = pack.v[k];
                if (found.v[k] < 0 || v > best.v[k] || (v != v && best.v[k] == best.v[k])) best.v[k] = v, found.v[k] = r * kernel_w + s;
            }
        }
    }
    const long long i = (long long)blockIdx.x * out_width * packs + j;
    packs_of<T>(y)[i] = best;
    reinterpret_cast<Pack<int, N>*>(place)[i] = found;
}

// --- backward: window o along an axis has pixel h at o stride - pad <= h < o stride - pad + kernel

// instances: max_pool2d_backward_naive<float>
template <typename T>
__global__ void max_pool2d_backward_naive(const T* __restrict__ dy, const int* __restrict__ place, T* __restrict__ dx, long long count, int height,
                                          int width, int out_height, int out_width, int channels, int kernel_h, int kernel_w, int stride_h,
                                          int stride_w, int pad_h, int pad_w)
{
    const long long i = blockIdx.x * 128LL + threadIdx.x;
    if (i >= count) return;
    const int c = i % channels, w = i / channels % width, h = i / channels / width % height;
    const long long image = i / channels / width / height * out_height;
    T sum = 0;
    for (int oh = 0; oh < out_height; oh++) {
        for (int ow = 0; ow < out_width; ow++) {                      // all windows of the image; most of them lie elsewhere
            const int r = h + pad_h - oh * stride_h, s = w + pad_w - ow * stride_w;
            const long long o = ((image + oh) * out_width + ow) * channels + c;
            if (r >= 0 && r < kernel_h && s >= 0 && s < kernel_w && place[o] == r * kernel_w + s) sum += dy[o];
        }
    }
    dx[i] = sum;
}

// instances: max_pool2d_backward<float, float>, max_pool2d_backward<float, float4>, max_pool2d_backward<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(128) max_pool2d_backward(const V* __restrict__ dy, const int* __restrict__ place, V* __restrict__ dx, int height,
                                                           int width, int out_height, int out_width, int packs, int kernel_h, int kernel_w,
                                                           int stride_h, int stride_w, int pad_h, int pad_w)
{
    constexpr int N = sizeof(V) / sizeof(T);
    const int j = blockIdx.y * 128 + threadIdx.x;                     // within a row of the image
    if (j >= width * packs) return;
    const int w = j / packs + pad_w, p = j % packs, h = blockIdx.x % height + pad_h;     // counted from where the padding begins
    const long long image = (long long)(blockIdx.x / height) * out_height;
    const int first_h = h < kernel_h ? 0 : (h - kernel_h) / stride_h + 1, last_h = min(h / stride_h, out_height - 1);
    const int first_w = w < kernel_w ? 0 : (w - kernel_w) / stride_w + 1, last_w = min(w / stride_w, out_width - 1);
    Pack<T, N> sum = {};
    for (int oh = first_h; oh <= last_h; oh++) {
        for (int ow = first_w; ow <= last_w; ow++) {
            const long long o = ((image + oh) * out_width + ow) * packs + p;
            const auto pack = packs_of<T>(dy)[o];
            const auto found = reinterpret_cast<const Pack<int, N>*>(place)[o];
            const int here = (h - oh * stride_h) * kernel_w + w - ow * stride_w;
            for (int k = 0; k < N; k++) sum.v[k] += found.v[k] == here ? pack.v[k] : T(0);
        }
    }
    packs_of<T>(dx)[(long long)blockIdx.x * width * packs + j] = sum;
}
