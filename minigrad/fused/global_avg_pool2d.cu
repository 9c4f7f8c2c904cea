// Average pooling of B images of H x W pixels and C channels, over the whole image. The gradient needs no kernel: see global_avg_pool2d.py.
//
// global_avg_pool2d_forward_naive   a thread per image, channel     grid ceil(B C / 128)                   block 128
// global_avg_pool2d_forward         8 threads for each              grid (B, ceil(C / 32))                 block (32, 8)    used
//
// Bytes moved (float32): 4 B C (H W + 1). T is the type of a number.

// instances: global_avg_pool2d_forward_naive<float>
template <typename T>
__global__ void global_avg_pool2d_forward_naive(const T* __restrict__ x, T* __restrict__ y, int count, int pixels, int channels)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    x += (long long)(i / channels) * pixels * channels + i % channels;
    T sum = 0;
    for (int p = 0; p < pixels; p++) sum += x[(long long)p * channels];
    y[i] = sum / pixels;
}

// A warp reads 32 channels of a pixel, and the eight warps of a block every eighth pixel.
// instances: global_avg_pool2d_forward<float>, global_avg_pool2d_forward<double>
template <typename T>
__global__ void __launch_bounds__(256) global_avg_pool2d_forward(const T* __restrict__ x, T* __restrict__ y, int pixels, int channels)
{
    __shared__ T sums[8][32];
    const int c = blockIdx.y * 32 + threadIdx.x;
    x += (long long)blockIdx.x * pixels * channels;
    T sum = 0;
    if (c < channels) {
        for (int first = threadIdx.y; first < pixels; first += 8 * 128) {     // a running sum of thousands would lose digits
            const int last = pixels - first > 8 * 128 ? first + 8 * 128 : pixels;
            T part = 0;
#pragma unroll 4                                                      // so that four loads are on their way at a time; the order of addition stays
            for (int p = first; p < last; p += 8) part += x[(long long)p * channels + c];
            sum += part;
        }
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || c >= channels) return;
    for (int k = 1; k < 8; k++) sum += sums[k][threadIdx.x];
    y[(long long)blockIdx.x * channels + c] = sum / pixels;
}
