// Fibres: several stacks that take turns on one operating-system thread. A CUDA thread that waits at a barrier keeps its place on its own stack.
//
// Switching is an ordinary function call that returns on another stack. On x86-64 it is ten instructions, 30-50 ns; swapcontext, used elsewhere,
// makes a system call and takes ten times as long.
#pragma once
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>

#ifdef EMULATOR_ADDRESS
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)   // the tests ask for the other way
#define EMULATOR_SWITCH
#endif

constexpr size_t kStack = 256 * 1024;

struct Fibre {
    char* stack = nullptr;      // nullptr: the host's own stack
#ifdef EMULATOR_SWITCH
    void* sp = nullptr;
#else
    ucontext_t context;
#endif
    void* fake_stack = nullptr;
};

#ifdef EMULATOR_SWITCH
// Saves the registers that a function must keep, stores the stack pointer in *save, and takes up the other stack where it was left.
extern "C" void emulator_switch(void** save, void* to);
asm(R"(
    .text
    .hidden emulator_switch
    .globl emulator_switch
    .type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#endif

// Make `fibre` start `entry` when it is next switched to. What was on its stack is forgotten.
inline void prepare(Fibre& fibre, void (*entry)())
{
    if (!fibre.stack) {
        void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) abort();
        mprotect(memory, 4096, PROT_NONE);       // an overflow stops the process instead of writing into the neighbour
        fibre.stack = static_cast<char*>(memory);
    }
#ifdef EMULATOR_ADDRESS
    __asan_unpoison_memory_region(fibre.stack, kStack);
#endif
#ifdef EMULATOR_SWITCH
    static unsigned made;                        // tops of stacks at the same place of a page would share one line of the processor's cache
    void** top = reinterpret_cast<void**>(fibre.stack + kStack - made++ % 60 * 1088);
    for (int k = 1; k <= 8; k++) top[-k] = nullptr;   // the six registers, and a return address for `entry`, which never returns
    top[-2] = reinterpret_cast<void*>(entry);
    fibre.sp = top - 8;
#else
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack;
    fibre.context.uc_stack.ss_size = kStack;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, entry, 0);
#endif
}

// AddressSanitizer wants to know which stack is in use.
inline void stack_will_change(Fibre& from, const Fibre& to, bool abandon)
{
#ifdef EMULATOR_ADDRESS
    static const void* host_bottom;
    static size_t host_size;
    if (!host_bottom) {
        pthread_attr_t attributes;
        pthread_getattr_np(pthread_self(), &attributes);
        void* bottom;
        pthread_attr_getstack(&attributes, &bottom, &host_size);
        pthread_attr_destroy(&attributes);
        host_bottom = bottom;
    }
    __sanitizer_start_switch_fiber(abandon ? nullptr : &from.fake_stack, to.stack ? to.stack : host_bottom, to.stack ? kStack : host_size);
#else
    (void)from, (void)to, (void)abandon;
#endif
}

inline void stack_has_changed(Fibre& self)
{
#ifdef EMULATOR_ADDRESS
    __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
#else
    (void)self;
#endif
}

// Leave `from` and go on in `to`; returns when somebody switches back to `from`. With `abandon` nobody will.
inline void switch_fibre(Fibre& from, Fibre& to, bool abandon = false)
{
    stack_will_change(from, to, abandon);
#ifdef EMULATOR_SWITCH
    emulator_switch(&from.sp, to.sp);
#else
    swapcontext(&from.context, &to.context);
#endif
    stack_has_changed(from);
}
