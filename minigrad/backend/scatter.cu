// Adding numbers at places of an array that may be given more than once, always in the same order; see scatter.py.
//
//   add_at   a thread per number, one of each place works   grid ceil(n / 256)   block 256
//
// `places` is sorted, and `order` says where in `values` the number of each place stands. The first of equal places adds all their numbers: no atomics,
// whose order differs from run to run. A place that is given very often keeps one thread busy; where that mattered, a reduction would be right.

// instances: add_at<float>, add_at<double>
template <typename T>
__global__ void __launch_bounds__(256) add_at(T* __restrict__ array, const T* __restrict__ values, const long long* __restrict__ places,
                                              const long long* __restrict__ order, int count)
{
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= count || (i > 0 && places[i] == places[i - 1])) return;
    const long long place = places[i];
    T sum = array[place];
    for (int j = i; j < count && places[j] == place; j++) sum += values[order[j]];
    array[place] = sum;
}
