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
#include <initializer_list>
#include <vector>

#define EMULATOR_CORE
#include "core.h"

#ifdef EMULATOR_ADDRESS
#include <sanitizer/asan_interface.h>
#endif

namespace {

enum Use { kRead = 1, kWrite = 2, kAtomic = 4 | kRead | kWrite };

// Somebody who read or wrote a word. epoch, warp_epoch: see Now. A reader may stand for several: then lane (or warp and lane) is kSeveral.
struct Access {
    uint32_t epoch, warp_epoch;
    uint32_t pc;                                 // relative to the kernel's library
    uint8_t warp, lane;
    uint8_t bytes;                               // which of the word's four
    bool atomic, other_blocks;                   // other_blocks: blocks before this one, in the same launch, read it too
};

// Only the last writer is kept: where two threads have written different bytes of a word, a race with the first one is not seen.
struct Word { Access written, read; };

struct Region {
    const char* name;
    uintptr_t base;
    size_t size;
    uint8_t* states;
    Word* words;
    bool of_a_block;                             // shared memory: every block has its own
};

constexpr size_t kMostDynamic = 256 * 1024, kMostStatic = 48 * 1024;     // bytes that a block may have; the first is checked by launch.py
constexpr size_t kGap = 256, kStaticRegion = 256 * 1024;                 // bytes behind a static shared array that belong to none; of them all
constexpr uint8_t kSeveral = 255;

Region arena{"global memory", 0, 0, nullptr, nullptr, false};
Region dynamic_shared{"dynamic shared memory", 0, 0, nullptr, nullptr, true};
Region static_shared{"static shared memory", 0, 0, nullptr, nullptr, true};
const Launch* launch;
uintptr_t library, library_size;
size_t dynamic_used;                             // bytes of dynamic shared memory that this launch has, or the one before
uintptr_t dynamic_written;                       // one past the last of them that has been written
char* static_memory;
std::vector<SharedArray> static_arrays;          // that this launch has come across, in the order of their addresses
size_t static_used, static_bytes;                // of them all, with gaps and without
uint64_t accesses;
bool written;                                    // to global memory, by the running block
timespec launched;

void* reserve(size_t bytes)
{
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? nullptr : memory;
}

bool watch(Region& region, void* base, size_t size)
{
    region.base = reinterpret_cast<uintptr_t>(base), region.size = base ? size : 0;
    region.states = static_cast<uint8_t*>(reserve(size));
    region.words = static_cast<Word*>(reserve(size / 4 * sizeof(Word)));
    return region.states && region.words;
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

void fill_with_ones(char* memory, size_t bytes)  // floats of these bits are NaN
{
#ifdef EMULATOR_ADDRESS
    for (size_t k = 0; k < bytes; k++) *static_cast<volatile char*>(memory + k) = char(0xFF);   // memset would be checked, and stopped by red zones
#else
    memset(memory, 0xFF, bytes);
#endif
}

void make_unwritten(const SharedArray& array)
{
    set_state(static_shared, array.address - static_memory, array.bytes, kAllocated);
    fill_with_ones(array.address, array.bytes);
}

}  // namespace

char* emulator_dynamic_shared;

char* emulator_arena(size_t bytes)
{
    if (arena.base) return reinterpret_cast<char*>(arena.base);
    emulator_dynamic_shared = static_cast<char*>(reserve(kMostDynamic));
    static_memory = static_cast<char*>(reserve(kStaticRegion));
    char* memory = static_cast<char*>(reserve(bytes));
    const bool watched = watch(arena, memory, bytes) && watch(dynamic_shared, emulator_dynamic_shared, kMostDynamic) &&
                         watch(static_shared, static_memory, kStaticRegion);
    if (!memory || !emulator_dynamic_shared || !static_memory || !watched) return nullptr;
#ifdef EMULATOR_ADDRESS
    __asan_poison_memory_region(memory, bytes);
    __asan_poison_memory_region(emulator_dynamic_shared, kMostDynamic);
    __asan_poison_memory_region(static_memory, kStaticRegion);
#endif
    return memory;
}

uint8_t* emulator_states() { return arena.states; }

void emulator_mark(char* address, size_t bytes, int state) { set_state(arena, reinterpret_cast<uintptr_t>(address) - arena.base, bytes, state); }

void memory_begin_launch(const Launch& the_launch)
{
    launch = &the_launch;
    library = reinterpret_cast<uintptr_t>(launch->library->begin), library_size = launch->library->end - launch->library->begin;
    accesses = 0;
    clock_gettime(CLOCK_MONOTONIC, &launched);
    set_state(dynamic_shared, 0, dynamic_used, kUnallocated);
    dynamic_used = launch->dynamic_bytes;
    dynamic_written = dynamic_shared.base;
    set_state(static_shared, 0, static_used, kUnallocated);
    static_arrays.clear();
    static_used = static_bytes = 0;
}

bool memory_was_written() { return written; }

bool memory_was_watched() { return accesses > 0; }

size_t memory_unused_shared() { return dynamic_shared.base + dynamic_used - dynamic_written; }

void memory_begin_block()
{
    written = false;
    if (launch->dynamic_bytes) {
        set_state(dynamic_shared, 0, launch->dynamic_bytes, kAllocated);
        fill_with_ones(emulator_dynamic_shared, launch->dynamic_bytes);
    }
    for (const SharedArray& array : static_arrays) make_unwritten(array);
}

// The array of a declaration, which the first thread that comes there allocates. Not left to the compiler as a static variable: where it puts those of
// templates cannot be told (GCC ignores their section attribute), and between two of them there would be no gap.
char* emulator_shared_array(const void* declaration, const char* name, size_t bytes, size_t alignment)
{
    for (const SharedArray& array : static_arrays)
        if (array.declaration == declaration) return array.address;
    const size_t start = (static_used + alignment - 1) / alignment * alignment;
    static_bytes += bytes;
    if (static_bytes > kMostStatic || start + bytes + kGap > kStaticRegion)
        fault(kOutOfBounds, {__builtin_return_address(0)}, "needs %zu bytes of static shared memory for %s and what comes before; a block may have %zu",
              static_bytes, name, kMostStatic);
    static_arrays.push_back({declaration, name, static_memory + start, bytes});
    static_used = start + bytes + kGap;
    make_unwritten(static_arrays.back());
    return static_arrays.back().address;
}

const SharedArray* emulator_shared_at(const char* address)
{
    if (size_t(address - static_memory) >= kStaticRegion) return nullptr;
    const SharedArray* found = nullptr;
    for (const SharedArray& array : static_arrays)
        if (array.address <= address) found = &array;
    return found;
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

[[noreturn]] void race(const Region& region, const Access& earlier, Use use, const char* earlier_use, uintptr_t address, const void* pc)
{
    const char* who = earlier.epoch < now.block_epoch ? "a thread of another block" : earlier.lane == kSeveral ? "other threads"
                                                                                  : thread_name(earlier.warp, earlier.lane);
    fault(kRace, {pc, {}, reinterpret_cast<const void*>(address), reinterpret_cast<const void*>(library + earlier.pc)},
          "%s a word of %s that %s %s, with no barrier between", use & kWrite ? "writes" : "reads", region.name, who, earlier_use);
}

Access by_me(unsigned bytes, Use use, const void* pc)
{
    const uint32_t place = reinterpret_cast<uintptr_t>(pc) - library;
    return {now.epoch, now.warp_epoch, place, now.warp, now.lane, uint8_t(bytes), use == kAtomic, false};
}

// The running thread has read: it takes the place of the readers before it, or stands for them too.
inline void note_read(Access& readers, const Region& region, Access me)
{
    if (readers.epoch >= now.launch_epoch && !region.of_a_block) me.other_blocks = readers.other_blocks || readers.epoch < now.block_epoch;
    if (readers.epoch == now.epoch) {
        if (readers.warp != me.warp) me.warp = me.lane = kSeveral;
        else if (readers.lane != me.lane && readers.warp_epoch == me.warp_epoch) me.lane = kSeveral;
        me.bytes |= readers.bytes;
        me.atomic &= readers.atomic;
    }
    readers = me;
}

// The running thread has written.
inline void note_write(Access& writer, Access me)
{
    if (writer.epoch == me.epoch && writer.warp == me.warp && writer.lane == me.lane) {
        me.bytes |= writer.bytes;
        if (writer.warp_epoch == me.warp_epoch) me.atomic &= writer.atomic;    // a plain write followed by an atomic one is still unprotected
    }
    writer = me;
}

// The bytes `first` to `first + count` of a word, which lie at `address`.
inline void check_word(Region& region, size_t word, unsigned first, unsigned count, Use use, uintptr_t address, const void* pc)
{
    uint8_t* states = region.states + word * 4 + first;
    const void* pointer = reinterpret_cast<const void*>(address);
    for (unsigned k = 0; k < count; k++) {
        if (states[k] != kAllocated && states[k] != kWritten)
            fault(kOutOfBounds, {pc, {}, pointer}, "%s %s, where no array is%s", use & kWrite ? "writes to" : "reads from", region.name,
                  states[k] == kFreed ? " any more: it was freed" : "");
        if (use & kRead && states[k] != kWritten) fault(kUninitialised, {pc, {}, pointer}, "reads %s that nobody has written", region.name);
        if (use & kWrite) states[k] = kWritten;
    }

    const unsigned bytes = ((1u << count) - 1) << first;
    Access &writer = region.words[word].written, &readers = region.words[word].read;
    if (writer.bytes & bytes && !(use == kAtomic && writer.atomic) && unordered(writer, region)) race(region, writer, use, "wrote", address, pc);
    if (use & kWrite && readers.bytes & bytes && !(use == kAtomic && readers.atomic)) {
        if (unordered(readers, region)) race(region, readers, use, "read", address, pc);
        if (readers.other_blocks && readers.epoch >= now.launch_epoch) {
            readers.epoch = now.launch_epoch;                                  // which is before this block
            race(region, readers, use, "read", address, pc);
        }
    }
    const Access me = by_me(bytes, use, pc);
    if (use & kWrite) note_write(writer, me);
    if (use & kRead) note_read(readers, region, me);
}

void out_of_time(const void* pc)
{
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    const double seconds = t.tv_sec - launched.tv_sec + 1e-9 * (t.tv_nsec - launched.tv_nsec);
    if (seconds > launch->seconds) fault(kTime, {pc}, "still runs after %.0f seconds; does it wait for another block?", seconds);
}

inline void check(const void* pointer, size_t size, Use use, const void* pc)
{
    if (!now.active) return;
    const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    Region* region = nullptr;
    for (Region* candidate : {&arena, &static_shared, &dynamic_shared})
        if (address - candidate->base < candidate->size) region = candidate;
    if (!region) {
        if (on_a_stack(address) || address - library < library_size) return;   // local and constant arrays: undefined.cpp sees their bounds
        fault(kOutOfBounds, {pc, {}, pointer}, "%s address %p, where no array is", use & kWrite ? "writes to" : "reads from", pointer);
    }
    if (use & kWrite) {
        written = written || region == &arena;
        if (region == &dynamic_shared && address + size > dynamic_written) dynamic_written = address + size;
    }
    if ((++accesses & 0xFFFFF) == 0) out_of_time(pc);
    for (size_t at = address - region->base, end = at + size; at < end;) {
        const unsigned first = at % 4, count = end - at < 4 - first ? end - at : 4 - first;
        check_word(*region, at / 4, first, count, use, region->base + at, pc);
        at += count;
    }
}

}  // namespace

void emulator_atomic(void* address, unsigned size, const void* pc) { check(address, size, kAtomic, pc); }

// --- the functions that code compiled with -fsanitize=thread calls

#define HERE __builtin_return_address(0)
#define SIZE(n)                                                              \
    void __tsan_read##n(void* p) { check(p, n, kRead, HERE); }               \
    void __tsan_write##n(void* p) { check(p, n, kWrite, HERE); }             \
    void __tsan_unaligned_read##n(void* p) { check(p, n, kRead, HERE); }     \
    void __tsan_unaligned_write##n(void* p) { check(p, n, kWrite, HERE); }

extern "C" {
SIZE(1) SIZE(2) SIZE(4) SIZE(8) SIZE(16)
void __tsan_read_range(void* p, size_t n) { check(p, n, kRead, HERE); }
void __tsan_write_range(void* p, size_t n) { check(p, n, kWrite, HERE); }
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
    fault(kOutOfBounds, {recorded_pc, {}, recorded_address}, "%s", recorded_text);
}

#else

void raise_recorded() {}

#endif
