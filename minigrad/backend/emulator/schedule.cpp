// Runs a grid on one processor: block after block, the threads of a block as fibres that take turns where they wait.
//
// A thread runs until it returns or reaches a barrier. Fibres are made lazily: one fibre runs thread after thread, and a second one is needed only
// when a thread has to wait, so a kernel without barriers never switches. Whoever stops calls `hand_over`, which finds who runs next:
//   1. a thread that a barrier has released, 2. a thread that has not started, 3. if there is neither, all wait: the block's barrier opens,
//   or it cannot, and the reason is reported (a thread returned, two places, a lane that never comes).
// Read next: fibres.h, memory.cpp.
#include <pthread.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#define EMULATOR_CORE
#include "core.h"
#include "fibres.h"

extern "C" Place emulator_place;
Place emulator_place;
Now now;

namespace {

enum class Doing { kUnstarted, kRunning, kAtBlockBarrier, kAtWarpBarrier, kReturned };

struct Thread {
    uint3 index;                  // threadIdx
    Doing doing;
    Fibre* fibre;                 // where it waits
    Site site;                    // of the barrier it waits at
    const void* pc;
    // what a lane brings to a warp's barrier, and what it takes away
    int operation;
    unsigned mask;
    int source_lane;
    uint64_t value, result;
};

struct Warp {
    unsigned lanes;               // those that exist: the last warp of a block may be short
    unsigned arrived;             // at a barrier of the warp
    uint32_t epoch;
};

const Launch* launch;
Report* report;
std::vector<Thread> threads;      // of the running block
std::vector<Warp> warps;
std::vector<unsigned> order;      // in which threads start, and leave the block's barrier
std::vector<unsigned> ready;      // threads that a barrier has released, a queue: next_ready is its front
size_t next_ready;
unsigned started, current;
Fibre host;
Fibre* running = &host;
std::vector<Fibre*> fibres;       // all that were ever made
std::vector<Fibre*> idle;         // those that run no thread

void run_threads();

void enter(unsigned thread)
{
    current = thread;
    now.warp = thread / 32, now.lane = thread % 32;
    now.warp_epoch = warps[now.warp].epoch;
    emulator_place.thread = threads[thread].index;
    threads[thread].doing = Doing::kRunning;
}

Fibre* idle_fibre()
{
    if (idle.empty()) {
        fibres.push_back(new Fibre);
        prepare(*fibres.back(), run_threads);
        idle.push_back(fibres.back());
    }
    Fibre* fibre = idle.back();
    idle.pop_back();
    return fibre;
}

bool same(const Site& a, const Site& b) { return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file)); }

// All threads that have not returned wait. Open the block's barrier if they all wait there; report what keeps it shut.
void open_block_barrier()
{
    const Thread *waiting = nullptr, *returned = nullptr;
    for (const Thread& thread : threads) {
        if (thread.doing == Doing::kReturned) returned = &thread;
        if (thread.doing != Doing::kAtWarpBarrier) continue;
        const unsigned number = &thread - threads.data(), warp = number / 32;
        const unsigned missing = __builtin_ctz(thread.mask & ~warps[warp].arrived);
        const Thread& absent = threads[warp * 32 + missing];
        const std::string there = absent.doing == Doing::kReturned ? "has returned" : "waits at line " + std::to_string(absent.site.line);
        emulator_place.thread = thread.index;
        fault(kBarrier, {thread.pc, thread.site}, "waits for lane %u, which its mask 0x%08x names, and that lane %s", missing, thread.mask,
              there.c_str());
    }
    for (const Thread& thread : threads) {
        if (thread.doing != Doing::kAtBlockBarrier) continue;
        emulator_place.thread = thread.index;
        if (returned)
            fault(kBarrier, {thread.pc, thread.site}, "waits at __syncthreads, but thread (%u, %u, %u) has returned", returned->index.x,
                  returned->index.y, returned->index.z);
        if (!waiting) waiting = &thread;
        if (!same(thread.site, waiting->site))
            fault(kBarrier, {thread.pc, thread.site}, "waits at this __syncthreads, but thread (%u, %u, %u) waits at the one of %s:%d",
                  waiting->index.x, waiting->index.y, waiting->index.z, waiting->site.file, waiting->site.line);
    }
    if (!waiting) return;
    now.epoch++;
    ready.assign(order.begin(), order.end());
    next_ready = 0;
}

// Leave `self` and let whoever is next run. Returns when it is the turn of `self` again.
void hand_over(Fibre* self)
{
    Fibre* next = &host;                                          // the block is done
    if (next_ready == ready.size() && started == threads.size()) open_block_barrier();
    if (next_ready < ready.size()) {
        const unsigned thread = ready[next_ready++];
        if (next_ready == ready.size()) ready.clear(), next_ready = 0;
        enter(thread);
        next = threads[thread].fibre;
    } else if (started < threads.size()) {
        next = idle_fibre();
    }
    running = next;
    if (next != self) switch_fibre(*self, *next);
}

// What every fibre does: start threads.
void run_threads()
{
    Fibre* self = running;
    stack_has_changed(*self);
    for (;;) {
        const unsigned thread = order[started++];
        enter(thread);
        threads[thread].fibre = self;
        launch->call(launch->arguments);
        raise_recorded();
        threads[thread].doing = Doing::kReturned;
        if (next_ready == ready.size() && started < threads.size()) continue;
        idle.push_back(self);
        hand_over(self);
    }
}

void wait_as(Doing doing, Site site, const void* pc)
{
    Thread& me = threads[current];
    me.doing = doing, me.site = site, me.pc = pc;
    hand_over(me.fibre);
}

// 0, 1, 2, ... in the order of the launch; the shuffled one is the same in every run.
template <class T>
void put_in_order(std::vector<T>& numbers)
{
    for (size_t k = 0; k < numbers.size(); k++) numbers[k] = launch->order == kDescending ? numbers.size() - 1 - k : k;
    if (launch->order != kShuffled) return;
    uint64_t random = 1;
    for (size_t k = numbers.size(); k > 1; k--) {
        random = random * 6364136223846793005u + 1442695040888963407u;   // Knuth, The Art of Computer Programming, volume 2, section 3.3.4
        std::swap(numbers[k - 1], numbers[(random >> 33) % k]);
    }
}

void run_block()
{
    const unsigned count = threads.size();
    for (unsigned k = 0; k < count; k++) threads[k].doing = Doing::kUnstarted;
    for (unsigned k = 0; k < warps.size(); k++) warps[k] = {count - k * 32 >= 32 ? ~0u : (1u << (count - k * 32)) - 1, 0, 0};
    now.block_epoch = ++now.epoch;
    memory_begin_block();
    started = 0, next_ready = 0;
    ready.clear();
    running = idle_fibre();
    switch_fibre(host, *running);
}

}  // namespace

// --- barriers

void emulator_syncthreads(Site site)
{
    raise_recorded();
    wait_as(Doing::kAtBlockBarrier, site, __builtin_return_address(0));
}

// A barrier of the lanes in `mask`. The lane that comes last hands every lane its result and goes on; the others are ready then.
uint64_t emulator_warp(int operation, Site site, unsigned mask, int source_lane, uint64_t value)
{
    raise_recorded();
    const void* pc = __builtin_return_address(0);
    Thread& me = threads[current];
    Warp& warp = warps[now.warp];
    Thread* lanes = &threads[now.warp * 32];
    mask &= warp.lanes;
    if (!(mask >> now.lane & 1)) fault(kBarrier, {pc, site}, "is lane %u, which its own mask 0x%08x leaves out", now.lane, mask);
    for (unsigned rest = warp.arrived; rest; rest &= rest - 1) {
        const unsigned k = __builtin_ctz(rest);
        const bool meant = lanes[k].mask >> now.lane & 1 || mask >> k & 1;
        if (meant && (lanes[k].mask != mask || lanes[k].operation != operation || !same(lanes[k].site, site)))
            fault(kBarrier, {pc, site}, "is here with mask 0x%08x, while lane %u of its warp waits at %s:%d with mask 0x%08x", mask, k,
                  lanes[k].site.file, lanes[k].site.line, lanes[k].mask);
    }
    me.operation = operation, me.mask = mask, me.source_lane = source_lane, me.value = value;
    warp.arrived |= 1u << now.lane;
    if ((warp.arrived & mask) != mask) {
        wait_as(Doing::kAtWarpBarrier, site, pc);
        return me.result;
    }

    warp.arrived &= ~mask;
    uint64_t votes = 0;
    for (unsigned k = 0; k < 32; k++)
        if (mask >> k & 1) votes |= uint64_t(lanes[k].value != 0) << k;
    for (unsigned k = 0; k < 32; k++) {
        if (!(mask >> k & 1)) continue;
        const unsigned from = lanes[k].source_lane & 31;
        lanes[k].result = operation == kVote ? votes : mask >> from & 1 ? lanes[from].value : ~uint64_t(0);   // undefined: all bits set is NaN
        if (k != now.lane) ready.push_back(now.warp * 32 + k);
    }
    if (mask == warp.lanes) now.warp_epoch = ++warp.epoch;
    return me.result;
}

// --- faults

// Notes the fault for Python and leaves the launch: kernels own nothing, so the stacks of all threads can be forgotten.
void fault(Fault kind, const Where& where, const char* format, ...)
{
    report->fault = kind;
    report->block = emulator_place.block, report->thread = emulator_place.thread;
    report->pc = where.pc, report->other_pc = where.other_pc, report->address = where.address;
    report->line = where.site.line;
    snprintf(report->file, sizeof report->file, "%s", where.site.file ? where.site.file : "");
    va_list values;
    va_start(values, format);
    vsnprintf(report->text, sizeof report->text, format, values);
    va_end(values);
    Fibre abandoned;
    switch_fibre(abandoned, host, true);
    abort();
}

void emulator_assertion(const char* condition, Site site) { fault(kAssertion, {__builtin_return_address(0), site}, "assert(%s) fails", condition); }

const char* thread_name(unsigned warp, unsigned lane)
{
    static char text[64];
    const unsigned thread = warp * 32 + lane;
    if (thread >= threads.size()) return "another thread";
    snprintf(text, sizeof text, "thread (%u, %u, %u)", threads[thread].index.x, threads[thread].index.y, threads[thread].index.z);
    return text;
}

bool on_a_stack(uintptr_t address)
{
    const uintptr_t stack = reinterpret_cast<uintptr_t>(threads[current].fibre->stack);
    return address - stack < kStack;
}

// --- a launch

int emulator_launch(const Launch* the_launch, Report* the_report)
{
    launch = the_launch, report = the_report;
    const uint3 size = launch->block, grid = launch->grid;
    threads.resize(size_t(size.x) * size.y * size.z);
    for (unsigned k = 0; k < threads.size(); k++) threads[k].index = {k % size.x, k / size.x % size.y, k / (size.x * size.y)};
    warps.resize((threads.size() + 31) / 32);
    order.resize(threads.size());
    put_in_order(order);
    std::vector<uint64_t> blocks(uint64_t(grid.x) * grid.y * grid.z);
    put_in_order(blocks);
    emulator_place.block_size = size, emulator_place.grid_size = grid;
    now.launch_epoch = ++now.epoch;
    memory_begin_launch(*launch);
    now.active = true;
    for (const uint64_t block : blocks) {
        emulator_place.block = {unsigned(block % grid.x), unsigned(block / grid.x % grid.y), unsigned(block / (uint64_t(grid.x) * grid.y))};
        run_block();
        if (report->fault) break;
        report->idle_blocks += !memory_was_written();
    }
    now.active = false;
    report->unused_shared = memory_was_watched() ? memory_unused_shared() : 0;
    if (!memory_was_watched()) report->idle_blocks = 0;
    if (report->fault) {                                          // the fibres of the other threads are forgotten where they stood
        idle.clear();
        for (Fibre* fibre : fibres) prepare(*fibre, run_threads), idle.push_back(fibre);
    }
    return report->fault;
}
