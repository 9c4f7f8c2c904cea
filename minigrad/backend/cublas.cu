// Numbers made ready for a matrix product; see cublas.py.
//
// to_bfloat16   a thread per number or four   grid ceil(packs / 256)   block 256   used
//
// Bytes moved: 6 per number, 4 read and 2 written.

// The upper half of a float, rounded to the nearest, to the even one of two as near. Bits that overflow go to the exponent, as they should; a nan must
// not become an infinity so.
__device__ __forceinline__ unsigned short bfloat16(float x)
{
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return (bits >> 16) | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
__device__ __forceinline__ void convert(float x, unsigned short& y) { y = bfloat16(x); }
__device__ __forceinline__ void convert(const float4& x, ushort4& y)
{
    y.x = bfloat16(x.x), y.y = bfloat16(x.y), y.z = bfloat16(x.z), y.w = bfloat16(x.w);
}

// instances: to_bfloat16<float, unsigned short>, to_bfloat16<float4, ushort4>
template <typename V, typename W>
__global__ void __launch_bounds__(256) to_bfloat16(const V* __restrict__ x, W* __restrict__ y, long long packs)
{
    const long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i < packs) convert(x[i], y[i]);
}
