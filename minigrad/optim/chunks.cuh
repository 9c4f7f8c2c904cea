// Many tensors in one launch: every block works on one chunk, at most 4,096 numbers of one tensor. Which one is in two tables in the GPU's memory:
//
//   chunks      (chunks, 4): number of the tensor, number of its parameter group, first element, how many
//   addresses   (columns, tensors): where the tensors are, such as column 0 the parameters, 1 the gradients; 0 where there is none
//
// The host writes addresses anew when they change; see multi_tensor.py.
#pragma once

struct Chunk {
    int tensor, group, count;
    long long first;

    __device__ __forceinline__ explicit Chunk(const long long* chunks)
        : tensor(int(chunks[4 * blockIdx.x])), group(int(chunks[4 * blockIdx.x + 1])), count(int(chunks[4 * blockIdx.x + 3])),
          first(chunks[4 * blockIdx.x + 2])
    {
    }
    // This chunk of the tensor in a column, or null.
    template <typename T>
    __device__ __forceinline__ T* of(const unsigned long long* addresses, int tensors, int column) const
    {
        const unsigned long long address = addresses[(long long)column * tensors + tensor];
        return address ? reinterpret_cast<T*>(address) + first : nullptr;
    }
};

// How many of a chunk's numbers can be moved in packs of four: all whole packs if the arrays lie at multiples of 16 bytes, else none.
template <typename T, typename... Arrays>
__device__ __forceinline__ int whole_packs(int count, const Arrays*... arrays)
{
    return sizeof(T) == 4 && ((reinterpret_cast<unsigned long long>(arrays) | ...) & 15) == 0 ? count / 4 : 0;
}
