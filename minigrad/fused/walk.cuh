// How a launch of a convolution walks over one axis (rows, or columns) of the images: see conv2d.cu.
#pragma once

// Target pixel u of the phase lies at `first + u * spacing`; its tap t reads the source at `base + u * scale + t * step`, and the weight at
// `tap + t * tap_step`.
struct Walk {
    int first, spacing, count, base, scale, step, taps, tap, tap_step;
};

// y from x: y[u] = sum over r of x[u stride + r dilation - pad] weight[r]
__device__ __forceinline__ Walk output_walk(int size, int kernel, int stride, int pad, int dilation)
{
    return {0, 1, size, -pad, stride, dilation, kernel, 0, 1};
}

// dx from dy: dx[h] = sum over r of dy[(h + pad - r dilation) / stride] weight[r], for the r where the division leaves nothing. h = phase + u stride
// has such an r, then another every tap_step.
__device__ __forceinline__ Walk input_walk(int phase, int size, int kernel, int stride, int pad, int dilation)
{
    int tap = 0, tap_step = 1;
    while (tap < kernel && (phase + pad - tap * dilation) % stride != 0) tap++;
    while (tap_step * dilation % stride != 0) tap_step++;
    const int taps = tap < kernel ? (kernel - 1 - tap) / tap_step + 1 : 0;
    const int base = taps ? (phase + pad - tap * dilation) / stride : 0;
    return {phase, stride, (size - 1 - phase) / stride + 1, base, 1, -tap_step * dilation / stride, taps, tap, tap_step};
}

// Either of them.
__device__ __forceinline__ Walk walk(bool gradient, int phase, int size, int kernel, int stride, int pad, int dilation)
{
    return gradient ? input_walk(phase, size, kernel, stride, pad, dilation) : output_walk(size, kernel, stride, pad, dilation);
}
