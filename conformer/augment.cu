// A batch of training images out of the data set in the GPU's memory: gathered, shifted, flipped, normalised, a square cut out of each; the formulas
// are in augment.py.
//
//   augment_naive   a thread per number           grid (B, ceil(H W C / 256))         block 256
//   augment         a thread per pack of numbers  grid (B, ceil(H W C / N / 256))     block 256   used
//
// Bytes moved for float32: 5 B H W C, 4 of them written; 32 B of plan are read by every block of an image and come from the cache.
//
// images (N, H, W, C) and labels (N) are the data set. `plan` has a row of two int4 for each image of an epoch, batch after batch: which image it is;
// where its window begins, in pixels down and right; whether it is flipped; top, left and side of the square in which it is 0 afterwards (and a
// spare number).
// `place` points at the number of the batch: a captured graph makes another one each time.
// `constants` are the scale of each channel and then its offset. The product and the sum are rounded one by one, as NumPy does: the same bits.
// T is the type of a number of the network, V what is written at once: float, float4 or double.
#include "../minigrad/fused/pack.cuh"

// Where number k of an output image comes from, as in `_mirror` of augment.py, and what is made of it.
struct Source {
    const unsigned char* image;
    const float* constants;
    int down, right, flipped, top, left, side, height, width, channels;

    static __device__ __forceinline__ int mirror(int index, int size) { return size - 1 - abs(size - 1 - abs(index)); }
    __device__ __forceinline__ float operator[](int k) const
    {
        const int channel = k % channels, pixel = k / channels, row = pixel / width, column = pixel % width;
        if (unsigned(row - top) < unsigned(side) && unsigned(column - left) < unsigned(side)) return 0;
        const int from_row = mirror(row + down, height), from_column = mirror((flipped ? width - 1 - column : column) + right, width);
        const float value = image[(from_row * width + from_column) * channels + channel];
        return __fadd_rn(__fmul_rn(value, constants[channel]), constants[channels + channel]);
    }
};

// The image that this block works on; its first thread copies the label.
__device__ __forceinline__ Source source(const unsigned char* images, const long long* labels, const int4* plan, const unsigned long long* place,
                                         const float* constants, long long* y, int height, int width, int channels)
{
    const int4 from = plan[2 * (*place * gridDim.x + blockIdx.x)], square = plan[2 * (*place * gridDim.x + blockIdx.x) + 1];
    if (blockIdx.y == 0 && threadIdx.x == 0) y[blockIdx.x] = labels[from.x];
    const unsigned char* image = images + (long long)from.x * height * width * channels;
    return {image, constants, from.y, from.z, from.w, square.x, square.y, square.z, height, width, channels};
}

// instances: augment_naive<float>, augment_naive<double>
template <typename T>
__global__ void augment_naive(const unsigned char* __restrict__ images, const long long* __restrict__ labels, const int4* __restrict__ plan,
                              const unsigned long long* __restrict__ place, const float* __restrict__ constants, T* __restrict__ x,
                              long long* __restrict__ y, int height, int width, int channels)
{
    const Source from = source(images, labels, plan, place, constants, y, height, width, channels);
    const int numbers = height * width * channels, k = blockIdx.y * blockDim.x + threadIdx.x;
    if (k < numbers) x[(long long)blockIdx.x * numbers + k] = from[k];
}

// instances: augment<float, float>, augment<float, float4>, augment<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(256) augment(const unsigned char* __restrict__ images, const long long* __restrict__ labels,
                                               const int4* __restrict__ plan, const unsigned long long* __restrict__ place,
                                               const float* __restrict__ constants, V* __restrict__ x, long long* __restrict__ y, int height, int width,
                                               int channels)
{
    constexpr int N = sizeof(V) / sizeof(T);
    const Source from = source(images, labels, plan, place, constants, y, height, width, channels);
    const int packs = height * width * channels / N, i = blockIdx.y * 256 + threadIdx.x;
    if (i >= packs) return;
    Pack<T, N> pack;
    #pragma unroll
    for (int k = 0; k < N; k++) pack.v[k] = from[N * i + k];
    packs_of<T>(x)[(long long)blockIdx.x * packs + i] = pack;
}
