// The arena that arrays live in, and what is checked when a kernel reads or writes.
//
// The check build is compiled with -fsanitize=thread, which turns every access into a call such as __tsan_read4(address); the library that usually
// answers is not linked, the functions at the end of this file do. Of every byte of arrays and shared memory a State is kept (never allocated,
// allocated, written, freed), of every word who last read and wrote it and when. So three mistakes are found at the access itself:
//   out of bounds   a byte that belongs to no array
//   uninitialised   a read of a byte that nobody wrote
//   data race       two threads, one of them writing, and no barrier between
// The address build has AddressSanitizer check the bounds instead. Read next: undefined.cpp.
#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <ctime>

#define EMULATOR_CORE
#include "core.h"

#ifdef EMULATOR_ADDRESS
#include <sanitizer/asan_interface.h>
#endif

namespace {

// Somebody who read or wrote a word. epoch, warp_epoch: see Now. A reader may stand for several: then lane (or warp and lane) is kSeveral.
struct Access {
    uint32_t epoch, warp_epoch;
    uint32_t pc;                                 // relative to the kernel's library
    uint8_t warp, lane;
    uint8_t bytes;                               // which of the word's four
    bool atomic, other_blocks;                   // other_blocks: blocks before this one, in the same launch, read it too
};

struct Word { Access written, read; };

struct Region {
    const char* name;
    uintptr_t base;
    size_t size;
    uint8_t* states;
    Word* words;
    bool of_a_block;                             // shared memory: every block has its own
};

constexpr size_t kMostShared = 256 * 1024;
constexpr uint8_t kSeveral = 255;

Region arena{"global memory", 0, 0, nullptr, nullptr, false};
Region dynamic_shared{"dynamic shared memory", 0, 0, nullptr, nullptr, true};
Region static_shared{"static shared memory", 0, 0, nullptr, nullptr, true};
const Launch* launch;
uintptr_t library, library_size;
uint64_t accesses;
timespec launched;

void* reserve(size_t bytes)
{
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? nullptr : memory;
}

bool watch(Region& region, void* base, size_t size)
{
    region.base = reinterpret_cast<uintptr_t>(base), region.size = size;
    region.states = static_cast<uint8_t*>(reserve(size));
    region.words = static_cast<Word*>(reserve(size / 4 * sizeof(Word)));
    return base && region.states && region.words;
}

void set_state(Region& region, size_t offset, size_t bytes, uint8_t state)
{
    memset(region.states + offset, state, bytes);
#ifdef EMULATOR_ADDRESS
    void* memory = reinterpret_cast<void*>(region.base + offset);
    if (state == kAllocated || state == kWritten) __asan_unpoison_memory_region(memory, bytes);
    else __asan_poison_memory_region(memory, bytes);
#endif
}

void fill_with_ones(char* memory, size_t bytes)  // floats of these bits are NaN. No memset: AddressSanitizer would check it
{
    for (size_t k = 0; k < bytes; k++) *static_cast<volatile char*>(memory + k) = char(0xFF);
}

}  // namespace

char* emulator_dynamic_shared;

char* emulator_arena(size_t bytes)
{
    if (arena.base) return reinterpret_cast<char*>(arena.base);
    emulator_dynamic_shared = static_cast<char*>(reserve(kMostShared));
    if (!watch(dynamic_shared, emulator_dynamic_shared, kMostShared) || !watch(arena, reserve(bytes), bytes)) return nullptr;
#ifdef EMULATOR_ADDRESS
    __asan_poison_memory_region(reinterpret_cast<void*>(arena.base), bytes);
#endif
    return reinterpret_cast<char*>(arena.base);
}

uint8_t* emulator_states() { return arena.states; }

void emulator_mark(char* address, size_t bytes, int state) { set_state(arena, reinterpret_cast<uintptr_t>(address) - arena.base, bytes, state); }

void memory_begin_launch(const Launch& the_launch)
{
    launch = &the_launch;
    library = reinterpret_cast<uintptr_t>(launch->library->begin), library_size = launch->library->end - launch->library->begin;
    accesses = 0;
    clock_gettime(CLOCK_MONOTONIC, &launched);
    set_state(dynamic_shared, 0, kMostShared, kUnallocated);
    const size_t size = launch->library->shared_end - launch->library->shared_begin;
    static_shared.base = reinterpret_cast<uintptr_t>(launch->library->shared_begin), static_shared.size = size;
    if (size && !static_shared.states) {
        static_shared.states = static_cast<uint8_t*>(reserve(kMostShared));
        static_shared.words = static_cast<Word*>(reserve(kMostShared / 4 * sizeof(Word)));
    }
}

void memory_begin_block()
{
    if (launch->dynamic_bytes) {
        set_state(dynamic_shared, 0, launch->dynamic_bytes, kAllocated);
        fill_with_ones(emulator_dynamic_shared, launch->dynamic_bytes);
    }
    if (static_shared.size) {
        memset(static_shared.states, kAllocated, static_shared.size);   // AddressSanitizer has red zones of its own between these arrays
        fill_with_ones(launch->library->shared_begin, static_shared.size);
    }
}

// --- the check of one access

namespace {

// Whether the earlier access and one by the running thread may happen in either order: no barrier lies between.
inline bool unordered(const Access& earlier, const Region& region)
{
    if (earlier.epoch < (region.of_a_block ? now.block_epoch : now.launch_epoch)) return false;
    if (earlier.epoch < now.block_epoch) return true;                          // another block of this launch
    if (earlier.epoch < now.epoch) return false;                               // a __syncthreads
    if (earlier.warp != now.warp) return true;
    return earlier.lane != now.lane && earlier.warp_epoch >= now.warp_epoch;   // else itself, or a __syncwarp or shuffle
}

[[noreturn]] void race(const Region& region, const Access& earlier, const char* verb, const char* earlier_verb, uintptr_t address, const void* pc)
{
    char who[96];
    if (earlier.epoch < now.block_epoch) snprintf(who, sizeof who, "a thread of another block");
    else if (earlier.lane == kSeveral) snprintf(who, sizeof who, "other threads");
    else snprintf(who, sizeof who, "%s", thread_name(earlier.warp, earlier.lane));
    fault(kRace, pc, reinterpret_cast<const void*>(library + earlier.pc), reinterpret_cast<const void*>(address), "%s a word of %s that %s %s, with no barrier between", verb, region.name, who, earlier_verb);
}

inline void note(Access& last, const Region& region, uint8_t bytes, bool atomic, const void* pc, bool merge)
{
    Access next{now.epoch, now.warp_epoch, uint32_t(reinterpret_cast<uintptr_t>(pc) - library), now.warp, now.lane, bytes, atomic, false};
    if (merge && last.epoch >= now.launch_epoch) {
        next.other_blocks = !region.of_a_block && (last.other_blocks || last.epoch < now.block_epoch);
        if (last.epoch == now.epoch) {
            if (last.warp != now.warp) next.warp = next.lane = kSeveral;
            else if (last.lane != now.lane && last.warp_epoch == now.warp_epoch) next.lane = kSeveral;
            next.bytes |= last.bytes;
            next.atomic &= last.atomic;
        }
    }
    last = next;
}

// Bytes `first` to `first + count` of one word.
inline void check_word(Region& region, size_t word, unsigned first, unsigned count, bool reads, bool writes, bool atomic, uintptr_t address,
                       const void* pc)
{
    uint8_t* states = region.states + word * 4 + first;
    for (unsigned k = 0; k < count; k++) {
        if (states[k] != kAllocated && states[k] != kWritten)
            fault(kOutOfBounds, pc, nullptr, reinterpret_cast<const void*>(address), "%s %s, where no array is%s", writes ? "writes to" : "reads from", region.name,
                  states[k] == kFreed ? " any more: it was freed" : "");
        if (reads && states[k] != kWritten)
            fault(kUninitialised, pc, nullptr, reinterpret_cast<const void*>(address), "reads %s that nobody has written", region.name);
        if (writes) states[k] = kWritten;
    }
    const uint8_t bytes = ((1u << count) - 1) << first;
    Word& last = region.words[word];
    if (last.written.bytes & bytes && !(atomic && last.written.atomic) && unordered(last.written, region))
        race(region, last.written, writes ? "writes" : "reads", "wrote", address, pc);
    if (writes) {
        if (last.read.bytes & bytes && !(atomic && last.read.atomic)) {
            if (unordered(last.read, region)) race(region, last.read, "writes", "read", address, pc);
            if (last.read.other_blocks && last.read.epoch >= now.launch_epoch) {
                Access other = last.read;
                other.epoch = now.launch_epoch;
                race(region, other, "writes", "read", address, pc);
            }
        }
        note(last.written, region, bytes, atomic, pc, false);
    }
    if (reads) note(last.read, region, bytes, atomic, pc, true);
}

void out_of_time(const void* pc)
{
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    const double seconds = t.tv_sec - launched.tv_sec + 1e-9 * (t.tv_nsec - launched.tv_nsec);
    if (seconds > launch->seconds) fault(kTime, pc, nullptr, nullptr, "still runs after %.0f seconds; does it wait for another block?", seconds);
}

inline void check(const volatile void* pointer, size_t size, bool reads, bool writes, bool atomic, const void* pc)
{
    if (!now.active) return;
    const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    Region* region;
    if (address - arena.base < arena.size) region = &arena;
    else if (address - static_shared.base < static_shared.size) region = &static_shared;
    else if (address - dynamic_shared.base < dynamic_shared.size) region = &dynamic_shared;
    else if (on_a_stack(address) || address - library < library_size) return;  // local and constant arrays: undefined.cpp sees their bounds
    else fault(kOutOfBounds, pc, nullptr, const_cast<const void*>(pointer), "%s address %p, where no array is", writes ? "writes to" : "reads from", pointer);
    if ((++accesses & 0xFFFFF) == 0) out_of_time(pc);
    const size_t offset = address - region->base;
    for (size_t at = offset; at < offset + size;) {
        const unsigned first = at % 4, count = offset + size - at < 4 - first ? offset + size - at : 4 - first;
        check_word(*region, at / 4, first, count, reads, writes, atomic, region->base + at, pc);
        at += count;
    }
}

}  // namespace

void emulator_atomic(void* address, unsigned size, const void* pc) { check(address, size, true, true, true, pc); }

// --- the functions that code compiled with -fsanitize=thread calls

#define HERE __builtin_return_address(0)
#define SIZE(n)                                                                                   \
    void __tsan_read##n(void* p) { check(p, n, true, false, false, HERE); }                       \
    void __tsan_write##n(void* p) { check(p, n, false, true, false, HERE); }                      \
    void __tsan_unaligned_read##n(void* p) { check(p, n, true, false, false, HERE); }             \
    void __tsan_unaligned_write##n(void* p) { check(p, n, false, true, false, HERE); }

extern "C" {
SIZE(1) SIZE(2) SIZE(4) SIZE(8) SIZE(16)
void __tsan_read_range(void* p, size_t n) { check(p, n, true, false, false, HERE); }
void __tsan_write_range(void* p, size_t n) { check(p, n, false, true, false, HERE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}

// --- the address build

#ifdef EMULATOR_ADDRESS

namespace {
bool recorded;
const void* recorded_pc;
const void* recorded_address;
char recorded_text[400];

void record(const char*)                    // AddressSanitizer calls this with its report; the kernel goes on until its next barrier or its end
{
    if (recorded) return;
    recorded = true;
    recorded_pc = __asan_get_report_pc(), recorded_address = __asan_get_report_address();
    snprintf(recorded_text, sizeof recorded_text, "%s %zu bytes (AddressSanitizer: %s)", __asan_get_report_access_type() ? "writes" : "reads",
             __asan_get_report_access_size(), __asan_get_report_description());
}
}  // namespace

extern "C" const char* __asan_default_options()
{
    // It comes late, into a running Python, whose own memory is no concern of ours; go on after a report, repeat it, say nothing on the terminal.
    return "verify_asan_link_order=0:detect_leaks=0:halt_on_error=0:suppress_equal_pcs=0:symbolize=0:log_path=/dev/null";
}

__attribute__((constructor)) static void listen() { __asan_set_error_report_callback(record); }

void raise_recorded()
{
    if (!recorded) return;
    recorded = false;
    fault(kOutOfBounds, recorded_pc, nullptr, recorded_address, "%s", recorded_text);
}

#else

void raise_recorded() {}

#endif
