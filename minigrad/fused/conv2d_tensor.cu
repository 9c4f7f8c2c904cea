// Convolution and its two gradients on tensor cores: the products that conv2d.cu describes, of float32 arrays whose channels come by fours.
//
// y, dx      conv2d_tensor                   a block per tile of pixels, C columns  grid (tiles, G columns / C, phases)     block 128
// dweight    conv2d_tensor_weight_gradient   a block per tile of channels, slice    grid (channels, taps / 9, G S)          block 128
//            conv2d_weight_gradient_sum      (of conv2d.cu) adds the slices
//
// Two mma instructions of a warp multiply 16 pixels x 16 channels by 16 channels x 8 columns, for which it takes 64 multiply-adds otherwise. What is
// left is to bring the numbers there. So a block reads a tile of the images, with the rim that its taps reach, into shared memory, 16 channels at a
// time, and takes all taps from it: a tap is an offset that all lanes share, and no index is computed in the loop. For 32 columns x is read once, but
// for the rims of tiles, and y written once: 4 (|x| + |y|) bytes, and 2 B Ho Wo K O / G operations.
//
// PRODUCTS 1 (precision "tf32" and "bf16"): factors are rounded to 11 bits. PRODUCTS 3: x = high + low with 11 bits each, and
// x y = low high + high low + high high, without low low, 2^-22 of it: as accurate as float32, though it makes infinities nan. Tensor cores cut sums
// off, so these are added up outside them after every 16 (dweight: 8) numbers.
//
// Instructions of a warp for 8192 multiply-adds (16 pixels x 16 channels x 32 columns of a tap), as compiled for sm_90, in the main loop:
//                                                all   multiply-adds or mma   reads of shared memory
//     y, dx      conv2d_implicit, 32 columns     498   256                    26
//                3 products                      115    24                     4
//                1 product                        61     8                     4
//     dweight    conv2d_weight_gradient, 32      468   256                    24
//                3 products                      149    24                     9
//                1 product                        72     8                     9
// By the H100's data sheet (495 TFLOP/s in tf32, 67 in float32) an mma takes the time of 4.3 multiply-adds of a warp. No GPU has timed these kernels,
// nor shown the error of three products. (On the emulator, which cuts sums off as harshly as tensor cores are known to, it is within the bound that
// holds for float32 kernels.) So conv2d.py computes float32 without them.
#include "tensor_core.cuh"
#include "walk.cuh"

// Four numbers as they go to shared memory: where one product is enough, they are rounded here, once and not for every tap.
template <int PRODUCTS>
__device__ __forceinline__ float4 prepared(const float4& x)
{
    if constexpr (PRODUCTS == 3) return x;
    return make_float4(to_tf32(x.x), to_tf32(x.y), to_tf32(x.z), to_tf32(x.w));
}

// i / by for i < 1024 and by <= 1024: shared memory of 64 KB has room for so many pixels of 16 channels. One product, where a division by what the
// compiler does not know is 40 instructions, more than all else that it takes to bring a number to shared memory.
struct Division {
    int inverse;
    explicit __device__ Division(int by) : inverse(((1 << 20) + by - 1) / by) {}
    __device__ int operator()(int i) const { return i * inverse >> 20; }
};

// to[place(i)] = prepared(load(i)) for i < count, by all 128 threads of a block. A thread has AT_ONCE loads on their way before it waits for the
// first: one at a time, a block would wait for as many round trips to memory as a thread has numbers to bring.
template <int PRODUCTS, typename Load, typename Place>
__device__ __forceinline__ void bring(float4* to, int count, Load load, Place place)
{
    constexpr int AT_ONCE = 7;
    for (int first = threadIdx.x; first < count; first += 128 * AT_ONCE) {
        float4 got[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const int i = first + 128 * k;
            got[k] = i < count ? load(i) : make_float4(0, 0, 0, 0);
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const int i = first + 128 * k;
            if (i < count) to[place(i)] = prepared<PRODUCTS>(got[k]);
        }
    }
}

// The bits of x = high + low. low's own last bits are cut off by the tensor core; it is nothing where one product is enough.
template <int PRODUCTS>
__device__ __forceinline__ void split(float x, unsigned& high, unsigned& low)
{
    const float rounded = PRODUCTS == 3 ? to_tf32(x) : x;
    high = __float_as_uint(rounded);
    if constexpr (PRODUCTS == 3) low = __float_as_uint(x - rounded);
}

// --- y from x (gradient false), dx from dy (gradient true): target (B, h, w, G columns) from source (B, h', w', G depth)

// Warps of a block take 16 M pixels each, and 8 N columns, the same ones. The order of K is free: a lane takes channels 4 t to 4 t + 3 of a row with
// one read, and the mma counts them as its columns t and t + 4, twice. matrix (G, kh, kw, columns, depth); depth and columns, of one group, are
// multiples of 4. bias (G columns) or null. A tile is tile_n images x tile_h rows x tile_w columns of one phase, at most 64 M pixels; tile_pixels:
// room for its source.
// instances: conv2d_tensor<4, 2, 1>, conv2d_tensor<2, 4, 1>, conv2d_tensor<4, 2, 3>, conv2d_tensor<2, 4, 3>
template <int M, int N, int PRODUCTS>
__global__ void __launch_bounds__(128, 3)
conv2d_tensor(const float4* __restrict__ source, const float4* __restrict__ matrix, const float* __restrict__ bias, float2* __restrict__ target,
              bool gradient, int batch, int source_h, int source_w, int target_h, int target_w, int depth, int columns, int groups, int kernel_h,
              int kernel_w, int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, int tile_n, int tile_h, int tile_w,
              int tile_pixels)
{
    constexpr int COLUMNS = 8 * N;
    extern __shared__ float4 shared[];
    float4* const pixels = shared;                                    // (tile_n, span_h, span_w, 16 channels)
    float4* const weights = shared + tile_pixels * 4;                 // (taps, COLUMNS, 16 channels)

    const int tiles = (columns + COLUMNS - 1) / COLUMNS, group = blockIdx.y / tiles, first_column = blockIdx.y % tiles * COLUMNS;
    const int phases_w = min(stride_w, target_w);                     // of dx: each phase has blocks of its own
    const Walk down = walk(gradient, blockIdx.z / phases_w, target_h, kernel_h, stride_h, pad_h, dilation_h);
    const Walk across = walk(gradient, blockIdx.z % phases_w, target_w, kernel_w, stride_w, pad_w, dilation_w);
    const int tiles_w = (across.count + tile_w - 1) / tile_w, tiles_h = (down.count + tile_h - 1) / tile_h;
    const int v0 = blockIdx.x % tiles_w * tile_w, u0 = blockIdx.x / tiles_w % tiles_h * tile_h, image0 = blockIdx.x / tiles_w / tiles_h * tile_n;
    if (image0 >= batch) return;                                      // phases may differ by a tile
    const int reach_h = max(down.taps - 1, 0) * down.step, reach_w = max(across.taps - 1, 0) * across.step;
    const int back_h = max(-reach_h, 0), back_w = max(-reach_w, 0);   // how far taps go back, where they do
    const int top = down.base + u0 * down.scale - back_h, left = across.base + v0 * across.scale - back_w;
    const int span_h = (tile_h - 1) * down.scale + abs(reach_h) + 1, span_w = (tile_w - 1) * across.scale + abs(reach_w) + 1;
    const Division by_span_h(span_h), by_span_w(span_w), by_taps(max(across.taps, 1));

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int place[M][2], pixel[M][2];                                     // of rows g and g + 8 in `pixels`, in the target; -1: no such pixel
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = (warp * M + i) * 16 + half * 8 + g, n = row / tile_w / tile_h, u = row / tile_w % tile_h, v = row % tile_w;
            const bool inside = n < tile_n && image0 + n < batch && u0 + u < down.count && v0 + v < across.count;
            place[i][half] = inside ? ((n * span_h + u * down.scale) * span_w + v * across.scale) * 4 + t : t;
            place[i][half] += (back_h * span_w + back_w) * 4;
            const int h = down.first + (u0 + u) * down.spacing, w = across.first + (v0 + v) * across.spacing;
            pixel[i][half] = inside ? ((image0 + n) * target_h + h) * target_w + w : -1;
        }
    }

    float totals[M][N][4] = {};
    for (int first = 0; first < depth; first += 16) {                 // channels [first, first + 16)
        if (first) __syncthreads();
        const auto same = [](int i) { return i; };                    // in shared memory as counted
        const int apart = groups * (depth / 4), start = group * (depth / 4) + first / 4;     // in float4: neighbouring pixels; the first
        bring<PRODUCTS>(pixels, tile_n * span_h * span_w * 4, [&](int i) {
            const int row = by_span_w(i / 4), n = by_span_h(row), image = image0 + n, h = top + row - n * span_h, w = left + i / 4 - row * span_w;
            const bool there = image < batch && h >= 0 && h < source_h && w >= 0 && w < source_w && first + i % 4 * 4 < depth;
            const int pixel = (image * source_h + h) * source_w + w;
            return there ? source[(long long)pixel * apart + start + i % 4] : make_float4(0, 0, 0, 0);
        }, same);
        bring<PRODUCTS>(weights, down.taps * across.taps * COLUMNS * 4, [&](int i) {
            const int channel = first + i % 4 * 4, column = first_column + i / 4 % COLUMNS, tap = i / 4 / COLUMNS;
            const int tap_h = by_taps(tap), r = down.tap + tap_h * down.tap_step, s = across.tap + (tap - tap_h * across.taps) * across.tap_step;
            const int row = ((group * kernel_h + r) * kernel_w + s) * columns + column;
            return channel < depth && column < columns ? matrix[(row * depth + channel) / 4] : make_float4(0, 0, 0, 0);
        }, same);
        __syncthreads();

        const float4* weight = weights + g * 4 + t;
        for (int r = 0; r < down.taps; r++) {
            for (int s = 0; s < across.taps; s++, weight += COLUMNS * 4) {
                const int offset = (r * down.step * span_w + s * across.step) * 4;
                unsigned b_high[N][2][2], b_low[N][2][2];             // [columns][k][halves of k]
#pragma unroll
                for (int j = 0; j < N; j++) {
                    const float4 b = weight[j * 32];
                    split<PRODUCTS>(b.x, b_high[j][0][0], b_low[j][0][0]), split<PRODUCTS>(b.y, b_high[j][0][1], b_low[j][0][1]);
                    split<PRODUCTS>(b.z, b_high[j][1][0], b_low[j][1][0]), split<PRODUCTS>(b.w, b_high[j][1][1], b_low[j][1][1]);
                }
#pragma unroll
                for (int i = 0; i < M; i++) {
                    unsigned a_high[2][4], a_low[2][4];               // [k][halves of k, halves of the rows]
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const float4 a = pixels[place[i][half] + offset];
                        split<PRODUCTS>(a.x, a_high[0][half], a_low[0][half]), split<PRODUCTS>(a.y, a_high[0][half + 2], a_low[0][half + 2]);
                        split<PRODUCTS>(a.z, a_high[1][half], a_low[1][half]), split<PRODUCTS>(a.w, a_high[1][half + 2], a_low[1][half + 2]);
                    }
                    float sums[N][4] = {};
#pragma unroll
                    for (int k = 0; k < 2; k++) {
#pragma unroll
                        for (int j = 0; PRODUCTS == 3 && j < N; j++) multiply_add(sums[j], a_low[k], b_high[j][k]);
#pragma unroll
                        for (int j = 0; PRODUCTS == 3 && j < N; j++) multiply_add(sums[j], a_high[k], b_low[j][k]);
                    }
#pragma unroll
                    for (int k = 0; k < 2; k++) {
#pragma unroll
                        for (int j = 0; j < N; j++) multiply_add(sums[j], a_high[k], b_high[j][k]);
                    }
#pragma unroll
                    for (int j = 0; j < N; j++) {
#pragma unroll
                        for (int e = 0; e < 4; e++) totals[i][j][e] += sums[j][e];
                    }
                }
            }
        }
    }

#pragma unroll
    for (int j = 0; j < N; j++) {
        const int column = first_column + j * 8 + 2 * t;
        if (column >= columns) continue;
        float2 added = make_float2(0, 0);
        if (bias) added = make_float2(bias[group * columns + column], bias[group * columns + column + 1]);
#pragma unroll
        for (int i = 0; i < M; i++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                if (pixel[i][half] < 0) continue;
                target[(((long long)pixel[i][half] * groups + group) * columns + column) / 2] =
                    make_float2(totals[i][j][2 * half] + added.x, totals[i][j][2 * half + 1] + added.y);
            }
        }
    }
}

// --- dweight: the windows transposed, (K, B Ho Wo), times dy, (B Ho Wo, O / G)

// A block has 16 TILES input and as many output channels, a warp 16 x 16 of them for 9 taps; with TILES 1 the warps share the rows of a tile instead.
// Slice s takes tiles s, s + S, ... of tile_n images x tile_h rows x tile_w columns of dy, tile_w a multiple of 8. Two neighbouring channels of a
// lane are rows g and g + 8 of the mma, two neighbouring outputs its column g in two of them. partial (S, G, kh kw, I/G, O/G); with TILES 1 there
// are four times as many slices. inputs and outputs, of one group, are multiples of 4.
// instances: conv2d_tensor_weight_gradient<1, 1>, conv2d_tensor_weight_gradient<2, 1>, conv2d_tensor_weight_gradient<1, 3>
// instances: conv2d_tensor_weight_gradient<2, 3>
template <int TILES, int PRODUCTS>
__global__ void __launch_bounds__(128, 3)
conv2d_tensor_weight_gradient(const float4* __restrict__ x, const float4* __restrict__ dy, float2* __restrict__ partial, int batch, int height,
                              int width, int out_height, int out_width, int inputs, int outputs, int groups, int kernel_h, int kernel_w, int stride_h,
                              int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, int tile_n, int tile_h, int tile_w)
{
    constexpr int TAPS = 9, SHARES = TILES == 1 ? 4 : 1, CHANNELS = 16 * TILES, PITCH = CHANNELS / 4 + 2;    // 8 numbers more: other banks
    extern __shared__ float4 shared[];
    const int all = kernel_h * kernel_w, first_tap = blockIdx.y * TAPS, group = blockIdx.z % groups, slice = blockIdx.z / groups;
    const int across = (outputs + CHANNELS - 1) / CHANNELS, first_i = blockIdx.x / across * CHANNELS, first_o = blockIdx.x % across * CHANNELS;
    const int span_h = (tile_h - 1) * stride_h + (kernel_h - 1) * dilation_h + 1, span_w = (tile_w - 1) * stride_w + (kernel_w - 1) * dilation_w + 1;
    float4* const pixels = shared;                                    // (tile_n, span_h, span_w, PITCH)
    float4* const gradients = pixels + tile_n * span_h * span_w * PITCH;                 // (tile_n, tile_h, tile_w, PITCH)

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int share = TILES == 1 ? warp : 0, row_i = TILES == 1 ? 0 : warp / 2 * 16, row_o = TILES == 1 ? 0 : warp % 2 * 16;
    int offsets[TAPS];
#pragma unroll
    for (int e = 0; e < TAPS; e++) {
        const int tap = min(first_tap + e, all - 1);                  // beyond the last: computed, not written
        offsets[e] = (tap / kernel_w * dilation_h * span_w + tap % kernel_w * dilation_w) * PITCH * 2;
    }

    // `rows` x `columns` pixels of images of h x w, from (top, left) of image0 on, channels [first, first + CHANNELS), zero where there is nothing
    auto fetch = [&](float4* to, const float4* from, int rows, int columns, int image0, int top, int left, int h, int w, int channels, int first) {
        constexpr int PACKS = CHANNELS / 4;
        const int apart = groups * (channels / 4), start = group * (channels / 4) + first / 4;     // in float4: neighbouring pixels; the first
        const Division by_rows(rows), by_columns(columns);
        bring<PRODUCTS>(to, tile_n * rows * columns * PACKS, [&](int i) {
            const int row = by_columns(i / PACKS), n = by_rows(row), image = image0 + n;
            const int down = top + row - n * rows, right = left + i / PACKS - row * columns;
            const bool there = image < batch && down >= 0 && down < h && right >= 0 && right < w && first + i % PACKS * 4 < channels;
            const int pixel = (image * h + down) * w + right;
            return there ? from[(long long)pixel * apart + start + i % PACKS] : make_float4(0, 0, 0, 0);
        }, [](int i) { return i / PACKS * PITCH + i % PACKS; });
    };

    const int tiles_w = (out_width + tile_w - 1) / tile_w, tiles_h = (out_height + tile_h - 1) / tile_h, tiles_n = (batch + tile_n - 1) / tile_n;
    const int slices = gridDim.z / groups;
    float totals[TAPS][2][4] = {};
    for (int tile = slice; tile < tiles_n * tiles_h * tiles_w; tile += slices) {
        const int v0 = tile % tiles_w * tile_w, u0 = tile / tiles_w % tiles_h * tile_h, image0 = tile / tiles_w / tiles_h * tile_n;
        if (tile != slice) __syncthreads();
        fetch(pixels, x, span_h, span_w, image0, u0 * stride_h - pad_h, v0 * stride_w - pad_w, height, width, inputs, first_i);
        fetch(gradients, dy, tile_h, tile_w, image0, u0, v0, out_height, out_width, outputs, first_o);
        __syncthreads();
        for (int row = share; row < tile_n * tile_h; row += SHARES) {
            const int at = (row / tile_h * span_h + row % tile_h * stride_h) * span_w + t * stride_w;
            const float2* a_row = reinterpret_cast<const float2*>(pixels + at * PITCH) + row_i / 2 + g;
            const float2* b_row = reinterpret_cast<const float2*>(gradients + (row * tile_w + t) * PITCH) + row_o / 2 + g;
            for (int v = 0; v < tile_w; v += 8, a_row += 16 * stride_w * PITCH, b_row += 16 * PITCH) {
                unsigned b_high[2][2], b_low[2][2];                   // [outputs][halves of k]
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    const float2 b = b_row[k * 8 * PITCH];
                    split<PRODUCTS>(b.x, b_high[0][k], b_low[0][k]), split<PRODUCTS>(b.y, b_high[1][k], b_low[1][k]);
                }
#pragma unroll
                for (int e = 0; e < TAPS; e++) {
                    unsigned a_high[4], a_low[4];
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        const float2 a = a_row[offsets[e] + k * 8 * stride_w * PITCH];
                        split<PRODUCTS>(a.x, a_high[2 * k], a_low[2 * k]), split<PRODUCTS>(a.y, a_high[2 * k + 1], a_low[2 * k + 1]);
                    }
                    float sums[2][4] = {};
#pragma unroll
                    for (int j = 0; PRODUCTS == 3 && j < 2; j++) multiply_add(sums[j], a_low, b_high[j]);
#pragma unroll
                    for (int j = 0; PRODUCTS == 3 && j < 2; j++) multiply_add(sums[j], a_high, b_low[j]);
#pragma unroll
                    for (int j = 0; j < 2; j++) multiply_add(sums[j], a_high, b_high[j]);
#pragma unroll
                    for (int j = 0; j < 2; j++) {
#pragma unroll
                        for (int q = 0; q < 4; q++) totals[e][j][q] += sums[j][q];
                    }
                }
            }
        }
    }

#pragma unroll
    for (int e = 0; e < TAPS; e++) {
        if (first_tap + e >= all) break;
#pragma unroll
        for (int q = 0; q < 4; q++) {
            const int c = first_i + row_i + 2 * g + q / 2, o = first_o + row_o + 4 * t + q % 2 * 2;
            if (c >= inputs || o >= outputs) continue;
            const long long row = (((long long)slice * SHARES + share) * groups + group) * all + first_tap + e;
            partial[((row * inputs + c) * outputs + o) / 2] = make_float2(totals[e][0][q], totals[e][1][q]);
        }
    }
}
