// What the parts of the emulator share: the running thread's place, the description of a launch, the report of a fault.
//
// Read next: device.h (what a .cu file sees), schedule.cpp (blocks, threads and barriers), memory.cpp (arrays, and what is checked on every access).
#pragma once
#include <cstddef>
#include <cstdint>

struct uint3 { unsigned x, y, z; };

// A place in the source.
struct Site { const char* file; int line; };

// threadIdx, blockIdx, blockDim, gridDim of the thread that runs.
struct Place { uint3 thread, block, block_size, grid_size; };

enum WarpOperation { kSync, kShuffle, kVote };

// One instance of a kernel: `call` unpacks the arguments; the other two have one entry per parameter (see the end of device.h).
struct Kernel { const char* name; void (*call)(void** arguments); const char* kinds; const int* sizes; };

// What a compiled kernel file consists of: its kernels, up to one without a name; where its code and constants lie.
struct Library { const Kernel* kernels; char *begin, *end; };

// A static __shared__ array. declaration: an address that no other declaration, and no other instance of its template, has.
struct SharedArray { const void* declaration; const char* name; char* address; size_t bytes; };

enum Fault { kNone, kOutOfBounds, kUninitialised, kRace, kBarrier, kUndefined, kAssertion, kTime };
enum Order { kAscending, kDescending, kShuffled };

// Python fills these in and reads them through ctypes: launch.py has the same structures.
struct Launch {
    void (*call)(void**);
    void** arguments;
    uint3 grid, block;
    size_t dynamic_bytes;                        // of dynamic shared memory
    const Library* library;                      // that the kernel is in
    int order;                                   // an Order: in which threads and blocks run
    double seconds;                              // how long it may take; looked at by the check build only
};

struct Report {
    int fault;                                   // a Fault
    uint3 block, thread;                         // who found it
    const void *pc, *other_pc;                   // where in the code; for a race also the earlier access
    const void* address;                         // which memory
    int line;                                    // the place in the source, 0 where it follows from pc alone
    char file[128];
    char text[512];
    uint64_t idle_blocks;                        // in the check build: how many blocks wrote to no array,
    uint64_t unused_shared;                      // and how many bytes at the end of dynamic shared memory no block wrote to
};

extern "C" {
// --- what kernels call, by way of device.h
void emulator_syncthreads(Site site);
uint64_t emulator_warp(int operation, Site site, unsigned mask, int source_lane, uint64_t value);
void emulator_atomic(void* address, unsigned size, const void* pc);
char* emulator_shared_array(const void* declaration, const char* name, size_t bytes, size_t alignment);
[[noreturn]] void emulator_assertion(const char* condition, Site site);

// --- what Python calls
int emulator_launch(const Launch* launch, Report* report);   // the Fault
char* emulator_arena(size_t bytes);                          // reserves the memory that arrays live in, once
uint8_t* emulator_states();                                  // one State per byte of the arena
void emulator_mark(char* address, size_t bytes, int state);  // sets the State of arena memory
const SharedArray* emulator_shared_at(const char* address);  // the last launch's, that begins there or before; or null
}

// What is known of a byte.
enum State : uint8_t { kUnallocated, kAllocated, kWritten, kFreed };

#ifdef EMULATOR_CORE
extern "C" Place emulator_place;
extern "C" char* emulator_dynamic_shared;

// --- schedule.cpp
struct Now {
    uint32_t launch_epoch, block_epoch, epoch;   // the epoch rises at every __syncthreads and every start of a block or launch
    uint32_t warp_epoch;                         // of the running thread's warp: rises at every barrier of all its lanes
    uint8_t warp, lane;
    bool active;                                 // inside a launch
};
extern Now now;
struct Where { const void* pc; Site site{}; const void *address = nullptr, *other_pc = nullptr; };   // as in Report
[[noreturn]] void fault(Fault kind, const Where& where, const char* format, ...);
const char* thread_name(unsigned warp, unsigned lane);      // "thread (5, 0, 0)"
bool on_a_stack(uintptr_t address);

// --- memory.cpp
void memory_begin_launch(const Launch& launch);
void memory_begin_block();
bool memory_was_written();                                  // to an array, by the block that ran last
bool memory_was_watched();                                  // in this launch: it is one of the check build, and there was an access
size_t memory_unused_shared();                              // bytes at the end of dynamic shared memory that were not written in this launch
void raise_recorded();                                      // the address build's: faults if there has been a report
#endif
