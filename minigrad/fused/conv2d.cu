// Convolution of B images of H x W pixels and I channels with O kernels of kh x kw pixels, in G groups, and its two gradients.
//
// y          conv2d_naive                    a thread per output number            grid ceil(n / 128)               block 128       few channels
//            conv2d_columns                  a thread per number of the windows    grid ceil(n / 256)               block 256
//            conv2d_implicit                 a block per tile of 128 x C           grid (rows, G columns, phases)   block 4 C       used
// dx         conv2d_input_gradient_naive     a thread per input number             grid ceil(n / 128)               block 128       few channels
//            conv2d_implicit                 the same, on dy                                                                        used
// dweight    conv2d_weight_gradient_naive    a thread per weight                   grid ceil(n / 128)               block 128
//            conv2d_weight_gradient_direct   a thread per weight and slice of S    grid (O / 32, K / 8, S)          block (32, 8)   few channels
//            conv2d_weight_gradient          a block per tile of 128 x C, slice    grid (rows, columns, G S)        block 4 C       used
//            conv2d_weight_gradient_sum      adds the slices                       grid ceil(n / 32 or 256)         block 256       used
//
// A convolution is a product of matrices: the windows as rows, (B Ho Wo, K) with K = kh kw I / G, times the weight, (K, O / G). A 1x1 convolution is
// that as it stands, and goes to cuBLAS (conv2d.py). For the others there are two ways. conv2d_columns writes the windows out for cuBLAS: for 3x3 an
// array 9 times the image, written once and read once. A number of it takes part in 2 O / G operations for these 8 bytes, and up to O / G = 80 a GPU
// like the H100 (67 TFLOP/s in float32 and 3.35 TB/s, says its data sheet: 20 operations a byte) would wait for memory. conv2d_implicit puts the
// windows together where they are multiplied, in shared memory: x and y cross the bus about once, 4 (|x| + |y|) bytes, because what windows share is
// still in the cache, and nothing is allocated. That is why it is used: by this reckoning, columns were not timed. Its 2 B Ho Wo K O / G
// operations are float32 multiply-adds; where factors may have less than 24 bits, conv2d_tensor.cu takes its place.
//
// A tile: 4 C threads, each with 8 x 4 sums in registers; a step brings 64 bytes along K of both factors into shared memory, where each number is
// read by C / 4 or 16 threads. While a step is multiplied, the next one is on its way from memory into registers; with two buffers one barrier a step
// is enough. C is 64, 32 or 16 after O: 12 channels would leave four fifths of 64 columns idle. A thread may have 128 registers, so 512 threads are
// at work on a multiprocessor at a time; what hides their waiting is less their number than the 32 multiply-adds each has for 12 numbers it reads.
// Groups of fewer than 8 channels (one group per channel, say) would leave tiles empty: they take a thread per number, and are not tuned further.
//
// dx gathers, as y does: a pixel sums the outputs that saw it. For stride s these saw it at different places of the kernel for each remainder of the
// pixel's row and column by s, its phase. Within a phase it is again a convolution of dy, over the taps that fit and no others (`Walk`): no product
// with an inserted zero is computed. Scattering would need atomics, and the order of their additions changes from run to run; for the same reason
// the slices of dweight are added by a kernel of their own.
//
// T is the type of a number, V what is read at once: float, float4 or double.
#include "pack.cuh"
#include "walk.cuh"

// --- y, and dx, by a thread for every number

// instances: conv2d_naive<float>, conv2d_naive<double>
template <typename T>
__global__ void __launch_bounds__(128) conv2d_naive(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                                                    T* __restrict__ y, long long count, int height, int width, int out_height, int out_width,
                                                    int inputs, int outputs, int groups, int kernel_h, int kernel_w, int stride_h, int stride_w,
                                                    int pad_h, int pad_w, int dilation_h, int dilation_w)
{
    const long long i = blockIdx.x * 128LL + threadIdx.x;
    if (i >= count) return;
    const int o = i % (outputs * groups), ow = i / (outputs * groups) % out_width, oh = i / (outputs * groups) / out_width % out_height;
    const long long image = i / (outputs * groups) / out_width / out_height * height;
    T sum = bias ? bias[o] : T(0);
    for (int r = 0; r < kernel_h; r++) {
        for (int s = 0; s < kernel_w; s++) {
            const int h = oh * stride_h - pad_h + r * dilation_h, w = ow * stride_w - pad_w + s * dilation_w;
            if (h < 0 || h >= height || w < 0 || w >= width) continue;
            const T* pixel = x + ((image + h) * width + w) * inputs * groups + o / outputs * inputs;
            for (int c = 0; c < inputs; c++) sum += pixel[c] * weight[((o * inputs + c) * kernel_h + r) * kernel_w + s];
        }
    }
    y[i] = sum;
}

// instances: conv2d_input_gradient_naive<float>, conv2d_input_gradient_naive<double>
template <typename T>
__global__ void __launch_bounds__(128) conv2d_input_gradient_naive(const T* __restrict__ dy, const T* __restrict__ weight, T* __restrict__ dx,
                                                                   long long count, int height, int width, int out_height, int out_width, int inputs,
                                                                   int outputs, int groups, int kernel_h, int kernel_w, int stride_h, int stride_w,
                                                                   int pad_h, int pad_w, int dilation_h, int dilation_w)
{
    const long long i = blockIdx.x * 128LL + threadIdx.x;
    if (i >= count) return;
    const int c = i % (inputs * groups), w = i / (inputs * groups) % width, h = i / (inputs * groups) / width % height;
    const int group = c / inputs;
    const long long image = i / (inputs * groups) / width / height * out_height;
    T sum = 0;
    for (int r = 0; r < kernel_h; r++) {
        for (int s = 0; s < kernel_w; s++) {
            const int down = h + pad_h - r * dilation_h, right = w + pad_w - s * dilation_w, oh = down / stride_h, ow = right / stride_w;
            if (down < 0 || right < 0 || down % stride_h || right % stride_w || oh >= out_height || ow >= out_width) continue;
            const T* pixel = dy + (((image + oh) * out_width + ow) * groups + group) * outputs;
            for (int k = 0; k < outputs; k++) {
                sum += pixel[k] * weight[(((group * outputs + k) * inputs + c % inputs) * kernel_h + r) * kernel_w + s];
            }
        }
    }
    dx[i] = sum;
}

// --- the windows written out: columns (G, B Ho Wo, kh kw I/G)

// instances: conv2d_columns<float>
template <typename T>
__global__ void __launch_bounds__(256) conv2d_columns(const T* __restrict__ x, T* __restrict__ columns, long long count, int rows, int height,
                                                      int width, int out_height, int out_width, int inputs, int groups, int kernel_h, int kernel_w,
                                                      int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w)
{
    const long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i >= count) return;
    const int depth = kernel_h * kernel_w * inputs, k = i % depth, row = i / depth % rows, group = i / depth / rows, tap = k / inputs;
    const int h = row / out_width % out_height * stride_h - pad_h + tap / kernel_w * dilation_h;
    const int w = row % out_width * stride_w - pad_w + tap % kernel_w * dilation_w;
    const long long image = (long long)(row / out_width / out_height) * height;
    const bool inside = h >= 0 && h < height && w >= 0 && w < width;
    columns[i] = inside ? x[(((image + h) * width + w) * groups + group) * inputs + k % inputs] : T(0);
}

// --- a tile of a product: what conv2d_implicit and conv2d_weight_gradient have in common

constexpr int ROWS = 128;

// 8 x 4 sums for each thread of a block, and two buffers of both factors, DEPTH numbers deep, in shared memory.
template <typename T, int THREADS>
struct Tile {
    static constexpr int COLUMNS = THREADS / 4, DEPTH = 64 / sizeof(T);
    Pack<T, 4> left[2][DEPTH][ROWS / 4 + 1];                          // one more: rows of 33 packs lie in different banks when written across
    Pack<T, 4> right[2][DEPTH][COLUMNS / 4];

    // sums += the product of the numbers in a buffer, for rows 8 (thread / (COLUMNS / 4)) on, and columns 4 (thread % (COLUMNS / 4)) on
    __device__ __forceinline__ void multiply(int buffer, T (&sums)[8][4]) const
    {
        const int row = threadIdx.x / (COLUMNS / 4) * 2, column = threadIdx.x % (COLUMNS / 4);
#pragma unroll 4
        for (int k = 0; k < DEPTH; k++) {
            const Pack<T, 4> a[2] = {left[buffer][k][row], left[buffer][k][row + 1]}, b = right[buffer][k][column];
#pragma unroll
            for (int i = 0; i < 8; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j] += a[i / 4].v[i % 4] * b.v[j];
            }
        }
    }
};

// totals += sums, sums = 0: done every 128 (double: 64) numbers of K, because one long chain of additions would lose digits.
template <typename T>
__device__ __forceinline__ void collect(T (&totals)[8][4], T (&sums)[8][4])
{
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) totals[i][j] += sums[i][j], sums[i][j] = 0;
    }
}

template <typename T, int N, int COUNT>
__device__ __forceinline__ void put(Pack<T, 4> (&row)[COUNT], int first, const Pack<T, N>& numbers)
{
    if constexpr (N == 4) {
        row[first / 4] = numbers;
    } else {
        row[first / 4].v[first % 4] = numbers.v[0];
    }
}

// Writes the N numbers of a pack that lie before the end of a row of `length`.
template <typename T, int N>
__device__ __forceinline__ void write_row(T* row, int first, int length, const T (&numbers)[4])
{
    if constexpr (N == 4) {
        if (first < length) *reinterpret_cast<Pack<T, 4>*>(row + first) = {numbers[0], numbers[1], numbers[2], numbers[3]};
    } else {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (first + j < length) row[first + j] = numbers[j];
        }
    }
}

// --- y from x (gradient false), dx from dy (gradient true): target (B, h, w, G columns) from source (B, h', w', G depth)

// A row of a tile: where its window begins in the source, the source's image (counted in rows of pixels), and its pixel of the target, -1 for none.
struct alignas(16) Row {
    int top, left, image, pixel;
};

// matrix (G, kh, kw, depth, columns): the weight, so that neighbours are read by neighbours. bias (G columns) or null. Channels of one group: `depth`
// of the source, `columns` of the target; both are multiples of 4 where V is float4.
// instances: conv2d_implicit<float, float4, 64>, conv2d_implicit<float, float4, 128>, conv2d_implicit<float, float4, 256>
// instances: conv2d_implicit<float, float, 256>, conv2d_implicit<double, double, 64>
template <typename T, typename V, int THREADS>
__global__ void __launch_bounds__(THREADS, 512 / THREADS)
conv2d_implicit(const V* __restrict__ source, const V* __restrict__ matrix, const T* __restrict__ bias, T* __restrict__ target, bool gradient,
                int batch, int source_h, int source_w, int target_h, int target_w, int depth, int columns, int groups, int kernel_h, int kernel_w,
                int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w)
{
    using Block = Tile<T, THREADS>;
    constexpr int N = sizeof(V) / sizeof(T), COLUMNS = Block::COLUMNS, DEPTH = Block::DEPTH;
    constexpr int PACKS = DEPTH / N, LEFT = ROWS * PACKS / THREADS, ACROSS = COLUMNS / N, RIGHT = DEPTH * ACROSS / THREADS;
    __shared__ Block tile;
    __shared__ Row places[ROWS];                                      // of the rows of the tile

    const int tiles = (columns + COLUMNS - 1) / COLUMNS, group = blockIdx.y / tiles, first_column = blockIdx.y % tiles * COLUMNS;
    const int phases_w = min(stride_w, target_w);                     // of dx: each phase has blocks of its own
    const Walk down = walk(gradient, blockIdx.z / phases_w, target_h, kernel_h, stride_h, pad_h, dilation_h);
    const Walk across = walk(gradient, blockIdx.z % phases_w, target_w, kernel_w, stride_w, pad_w, dilation_w);

    for (int i = threadIdx.x; i < ROWS; i += THREADS) {
        const long long row = blockIdx.x * (long long)ROWS + i;
        const bool inside = row < (long long)batch * down.count * across.count;
        const int image = row / across.count / down.count, u = row / across.count % down.count, v = row % across.count;
        const int pixel = (image * target_h + down.first + u * down.spacing) * target_w + across.first + v * across.spacing;
        const int outside = -(1 << 30);                               // so far that no tap lies in the image
        places[i] = {inside ? down.base + u * down.scale : outside, across.base + v * across.scale, image * source_h, inside ? pixel : -1};
    }
    __syncthreads();

    // K counts taps, and for each tap the channels. This thread brings in the numbers at `channel` of tap (r, s), for LEFT rows.
    const int all = down.taps * across.taps * depth, lane = threadIdx.x % PACKS * N;
    int r = 0, s = 0, channel = lane;
    Pack<T, N> left_numbers[LEFT], right_numbers[RIGHT];
    auto fetch = [&](int first) {                                     // the numbers [first, first + DEPTH) of K
        if (all > 0) {
            while (channel >= depth) {
                channel -= depth;
                if (++s == across.taps) s = 0, r++;
            }
        }
#pragma unroll
        for (int j = 0; j < LEFT; j++) {
            const Row row = places[threadIdx.x / PACKS + j * (THREADS / PACKS)];
            const int h = row.top + r * down.step, w = row.left + s * across.step;
            const bool inside = first + lane < all && h >= 0 && h < source_h && w >= 0 && w < source_w;
            const long long pixel = ((long long)row.image + h) * source_w + w;
            left_numbers[j] = inside ? packs_of<T>(source)[((pixel * groups + group) * depth + channel) / N] : Pack<T, N>{};
        }
        channel += DEPTH;
#pragma unroll
        for (int j = 0; j < RIGHT; j++) {
            const int i = threadIdx.x + j * THREADS, column = first_column + i % ACROSS * N;
            int k = first + i / ACROSS;
            const bool inside = k < all && column < columns;
            if (inside && (down.taps != kernel_h || across.taps != kernel_w)) {          // some taps only: find this one among all
                const int tap = k / depth;
                k += (((down.tap + tap / across.taps * down.tap_step) * kernel_w + across.tap + tap % across.taps * across.tap_step) - tap) * depth;
            }
            const long long i_matrix = ((long long)group * kernel_h * kernel_w * depth + k) * columns + column;
            right_numbers[j] = inside ? packs_of<T>(matrix)[i_matrix / N] : Pack<T, N>{};
        }
    };
    auto store = [&](int buffer) {
#pragma unroll
        for (int j = 0; j < LEFT; j++) {
            const int row = threadIdx.x / PACKS + j * (THREADS / PACKS);
            for (int k = 0; k < N; k++) tile.left[buffer][lane + k][row / 4].v[row % 4] = left_numbers[j].v[k];
        }
#pragma unroll
        for (int j = 0; j < RIGHT; j++) {
            const int i = threadIdx.x + j * THREADS;
            put<T, N>(tile.right[buffer][i / ACROSS], i % ACROSS * N, right_numbers[j]);
        }
    };

    T sums[8][4] = {}, totals[8][4] = {};
    fetch(0);
    store(0);
    __syncthreads();
    for (int first = 0, step = 0; first < all; first += DEPTH, step++) {
        const bool more = first + DEPTH < all;
        if (more) fetch(first + DEPTH);
        tile.multiply(step % 2, sums);
        if (step % 8 == 7 || !more) collect(totals, sums);
        if (more) store((step + 1) % 2);                              // which everybody read before the last barrier
        __syncthreads();
    }

    const int column = threadIdx.x % (COLUMNS / 4) * 4;
    for (int i = 0; i < 8; i++) {
        const int pixel = places[threadIdx.x / (COLUMNS / 4) * 8 + i].pixel;
        if (pixel < 0) continue;
        if (bias) {
            const T* added = bias + group * columns + first_column + column;
            for (int j = 0; j < 4; j++) totals[i][j] += first_column + column + j < columns ? added[j] : T(0);
        }
        write_row<T, N>(target + ((long long)pixel * groups + group) * columns, first_column + column, columns, totals[i]);
    }
}

// --- dweight: the windows transposed, (K, B Ho Wo), times dy, (B Ho Wo, O / G)

// instances: conv2d_weight_gradient_naive<float>
template <typename T>
__global__ void conv2d_weight_gradient_naive(const T* __restrict__ x, const T* __restrict__ dy, T* __restrict__ dweight, int count, int batch,
                                             int height, int width, int out_height, int out_width, int inputs, int outputs, int groups, int kernel_h,
                                             int kernel_w, int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w)
{
    const int i = blockIdx.x * 128 + threadIdx.x;
    if (i >= count) return;
    const int s = i % kernel_w, r = i / kernel_w % kernel_h, o = i / kernel_w / kernel_h / inputs;
    const int c = o / outputs * inputs + i / kernel_w / kernel_h % inputs;
    T sum = 0;
    for (int row = 0; row < batch * out_height * out_width; row++) {
        const int h = row / out_width % out_height * stride_h - pad_h + r * dilation_h, w = row % out_width * stride_w - pad_w + s * dilation_w;
        if (h < 0 || h >= height || w < 0 || w >= width) continue;
        const long long pixel = ((long long)(row / out_width / out_height) * height + h) * width + w;
        sum += x[pixel * inputs * groups + c] * dy[(long long)row * outputs * groups + o];
    }
    dweight[i] = sum;
}

// For groups of few channels, whose tiles would be empty. Slice s takes every S-th row. partial (S, G, K, O/G).
// instances: conv2d_weight_gradient_direct<float>, conv2d_weight_gradient_direct<double>
template <typename T>
__global__ void __launch_bounds__(256) conv2d_weight_gradient_direct(const T* __restrict__ x, const T* __restrict__ dy, T* __restrict__ partial,
                                                                     int batch, int height, int width, int out_height, int out_width, int inputs,
                                                                     int outputs, int groups, int kernel_h, int kernel_w, int stride_h, int stride_w,
                                                                     int pad_h, int pad_w, int dilation_h, int dilation_w)
{
    const int o = blockIdx.x * 32 + threadIdx.x, k = blockIdx.y * 8 + threadIdx.y, all = kernel_h * kernel_w * inputs, group = o / outputs;
    if (o >= outputs * groups || k >= all) return;
    const int r = k / inputs / kernel_w, s = k / inputs % kernel_w, c = group * inputs + k % inputs;
    Sum<T, 1> sum;
    for (int row = blockIdx.z; row < batch * out_height * out_width; row += gridDim.z) {
        const int h = row / out_width % out_height * stride_h - pad_h + r * dilation_h, w = row % out_width * stride_w - pad_w + s * dilation_w;
        if (h < 0 || h >= height || w < 0 || w >= width) continue;
        const long long pixel = ((long long)(row / out_width / out_height) * height + h) * width + w;
        sum.part.v[0] += x[pixel * inputs * groups + c] * dy[(long long)row * outputs * groups + o];
        sum.added(1);
    }
    partial[(((long long)blockIdx.z * groups + group) * all + k) * outputs + o % outputs] = sum.total().v[0];
}

// Slice blockIdx.z / G takes rows [slice * length, (slice + 1) * length). partial (S, G, K, O/G). inputs and outputs: of one group, multiples of 4
// where V is float4.
// instances: conv2d_weight_gradient<float, float4, 64>, conv2d_weight_gradient<float, float4, 128>, conv2d_weight_gradient<float, float4, 256>
// instances: conv2d_weight_gradient<float, float, 256>, conv2d_weight_gradient<double, double, 64>
template <typename T, typename V, int THREADS>
__global__ void __launch_bounds__(THREADS, 512 / THREADS)
conv2d_weight_gradient(const V* __restrict__ x, const V* __restrict__ dy, T* __restrict__ partial, int length, int batch, int height, int width,
                       int out_height, int out_width, int inputs, int outputs, int groups, int kernel_h, int kernel_w, int stride_h, int stride_w,
                       int pad_h, int pad_w, int dilation_h, int dilation_w)
{
    using Block = Tile<T, THREADS>;
    constexpr int N = sizeof(V) / sizeof(T), COLUMNS = Block::COLUMNS, DEPTH = Block::DEPTH;
    constexpr int PACKS = ROWS / N, WIDE = PACKS < THREADS ? PACKS : THREADS;            // WIDE threads side by side read a row of the tile
    constexpr int EACH = PACKS / WIDE, STEP = THREADS / WIDE, LEFT = DEPTH / STEP;
    constexpr int ACROSS = COLUMNS / N, RIGHT = DEPTH * ACROSS / THREADS;
    __shared__ Block tile;

    const int group = blockIdx.z % groups, first_k = blockIdx.x * ROWS, first_column = blockIdx.y * COLUMNS, all = kernel_h * kernel_w * inputs;
    const int start = blockIdx.z / groups * length, stop = min(start + length, batch * out_height * out_width);

    int down[EACH], across[EACH], channel[EACH];                      // this thread's numbers of K stay the same; its output pixels go on
    for (int e = 0; e < EACH; e++) {
        const int k = first_k + (threadIdx.x % WIDE + e * WIDE) * N, tap = k / inputs;
        down[e] = k < all ? tap / kernel_w * dilation_h - pad_h : -(1 << 30);            // so far that it never lies in the image
        across[e] = tap % kernel_w * dilation_w - pad_w;
        channel[e] = group * inputs + k % inputs;
    }
    int row = start + threadIdx.x / WIDE, ow = row % out_width, oh = row / out_width % out_height, image = row / out_width / out_height;
    Pack<T, N> left_numbers[LEFT][EACH], right_numbers[RIGHT];
    auto fetch = [&](int first) {                                     // rows [first, first + DEPTH)
#pragma unroll
        for (int j = 0; j < LEFT; j++) {
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                const int h = oh * stride_h + down[e], w = ow * stride_w + across[e];
                const bool inside = row < stop && h >= 0 && h < height && w >= 0 && w < width;
                const long long pixel = ((long long)image * height + h) * width + w;
                left_numbers[j][e] = inside ? packs_of<T>(x)[(pixel * inputs * groups + channel[e]) / N] : Pack<T, N>{};
            }
            row += STEP;
            ow += STEP;
            while (ow >= out_width) {
                ow -= out_width;
                if (++oh == out_height) oh = 0, image++;
            }
        }
#pragma unroll
        for (int j = 0; j < RIGHT; j++) {
            const int i = threadIdx.x + j * THREADS, row = first + i / ACROSS, column = first_column + i % ACROSS * N;
            const bool inside = row < stop && column < outputs;
            right_numbers[j] = inside ? packs_of<T>(dy)[(((long long)row * groups + group) * outputs + column) / N] : Pack<T, N>{};
        }
    };
    auto store = [&](int buffer) {
#pragma unroll
        for (int j = 0; j < LEFT; j++) {
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                put<T, N>(tile.left[buffer][threadIdx.x / WIDE + j * STEP], (threadIdx.x % WIDE + e * WIDE) * N, left_numbers[j][e]);
            }
        }
#pragma unroll
        for (int j = 0; j < RIGHT; j++) {
            const int i = threadIdx.x + j * THREADS;
            put<T, N>(tile.right[buffer][i / ACROSS], i % ACROSS * N, right_numbers[j]);
        }
    };

    T sums[8][4] = {}, totals[8][4] = {};
    fetch(start);
    store(0);
    __syncthreads();
    for (int first = start, step = 0; first < stop; first += DEPTH, step++) {
        const bool more = first + DEPTH < stop;
        if (more) fetch(first + DEPTH);
        tile.multiply(step % 2, sums);
        if (step % 8 == 7 || !more) collect(totals, sums);
        if (more) store((step + 1) % 2);                              // which everybody read before the last barrier
        __syncthreads();
    }

    for (int i = 0; i < 8; i++) {
        const int k = first_k + threadIdx.x / (COLUMNS / 4) * 8 + i;
        if (k >= all) return;
        write_row<T, N>(partial + ((long long)blockIdx.z * all + k) * outputs, first_column + threadIdx.x % (COLUMNS / 4) * 4, outputs, totals[i]);
    }
}

// dweight (O, I/G, kh, kw) = sum of partial (S, G, kh kw, I/G, O/G) over S, relaid. A block has 256 / shares weights, and for each as many sums as
// there are shares: share s has slices s, s + shares, ...
// instances: conv2d_weight_gradient_sum<float>, conv2d_weight_gradient_sum<double>
template <typename T>
__global__ void __launch_bounds__(256) conv2d_weight_gradient_sum(const T* __restrict__ partial, T* __restrict__ dweight, int slices, int shares,
                                                                  int count, int taps, int inputs, int outputs)
{
    __shared__ T sums[256];
    const int weights = 256 / shares, share = threadIdx.x / weights;
    const int i = blockIdx.x * weights + threadIdx.x % weights;       // of a slice: the slices are read in order, dweight is written across
    T sum = 0;
    if (i < count) {
#pragma unroll 4
        for (int s = share; s < slices; s += shares) sum += partial[(long long)s * count + i];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (share > 0 || i >= count) return;
    for (int w = 1; w < shares; w++) sum += sums[threadIdx.x + w * weights];
    const int o = i % outputs, c = i / outputs % inputs, tap = i / outputs / inputs % taps, group = i / outputs / inputs / taps;
    dweight[((group * outputs + o) * inputs + c) * taps + tap] = sum;
}
