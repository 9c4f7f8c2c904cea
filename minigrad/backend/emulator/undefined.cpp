// Undefined behaviour of C++, as code compiled with -fsanitize=undefined finds it: it calls one of the functions below, with a description that the
// compiler has laid down beside the code. The library that usually answers (libubsan) is not linked: it reports every place once in the life of a
// process, and prints; these raise every time.
//
// Source of the names and layouts: compiler-rt/lib/ubsan/ubsan_handlers.h of the LLVM project, whose interface GCC follows.
#include <cstdio>
#include <cstring>

#define EMULATOR_CORE
#include "core.h"

namespace {

struct Location { const char* file; int line, column; };
struct Type { uint16_t kind, info; char name[1]; };          // kind 0: integer, the lowest bit of info says whether it is signed

struct Typed { Location location; const Type* type; };
struct Mismatch { Location location; const Type* type; unsigned char log_alignment, what; };
struct Bounds { Location location; const Type *array, *index; };
struct Shift { Location location; const Type *left, *right; };
struct Cast { Location location; const Type *from, *to; };

long long number(const Type* type, uintptr_t value)           // values of up to 64 bits are passed as they are
{
    const unsigned bits = 1u << (type->info >> 1);
    if (type->kind != 0 || !(type->info & 1) || bits >= 64) return value;
    const unsigned shift = 64 - bits;
    return static_cast<long long>(value << shift) >> shift;
}

#define RAISE_AT(location, ...) fault(kUndefined, {__builtin_return_address(0), {(location).file, (location).line}}, __VA_ARGS__)
#define RAISE(data, ...) RAISE_AT((data)->location, __VA_ARGS__)

}  // namespace

extern "C" {

void __ubsan_handle_type_mismatch_v1(Mismatch* data, uintptr_t pointer)
{
    const uintptr_t alignment = uintptr_t(1) << data->log_alignment;
    if (!pointer) RAISE(data, "uses a null pointer to %s", data->type->name);
    if (pointer % alignment)
        RAISE(data, "uses address %#zx as a %s, which must lie at a multiple of %zu bytes", size_t(pointer), data->type->name, size_t(alignment));
    RAISE(data, "uses memory that is too small for a %s", data->type->name);
}

void __ubsan_handle_out_of_bounds(Bounds* data, uintptr_t index)
{
    RAISE(data, "takes element %lld of an array %s", number(data->index, index), data->array->name);
}

#define OVERFLOW(operation, sign)                                                                                                  \
    void __ubsan_handle_##operation##_overflow(Typed* data, uintptr_t x, uintptr_t y)                                                   \
    {                                                                                                                              \
        RAISE(data, "%lld " sign " %lld does not fit in %s", number(data->type, x), number(data->type, y), data->type->name);      \
    }
OVERFLOW(add, "+")
OVERFLOW(sub, "-")
OVERFLOW(mul, "*")

void __ubsan_handle_negate_overflow(Typed* data, uintptr_t x) { RAISE(data, "-(%lld) does not fit in %s", number(data->type, x), data->type->name); }

void __ubsan_handle_divrem_overflow(Typed* data, uintptr_t x, uintptr_t y)
{
    if (data->type->kind == 0 && y) RAISE(data, "%lld / %lld does not fit in %s", number(data->type, x), number(data->type, y), data->type->name);
    RAISE(data, "divides by zero");
}

void __ubsan_handle_shift_out_of_bounds(Shift* data, uintptr_t x, uintptr_t y)
{
    RAISE(data, "shifts the %s %lld by %lld bits", data->left->name, number(data->left, x), number(data->right, y));
}

void __ubsan_handle_load_invalid_value(Typed* data, uintptr_t value) { RAISE(data, "the value %zu is no %s", size_t(value), data->type->name); }
void __ubsan_handle_pointer_overflow(Location* data, uintptr_t, uintptr_t) { RAISE_AT(*data, "a pointer wraps around"); }
void __ubsan_handle_vla_bound_not_positive(Typed* data, uintptr_t) { RAISE(data, "an array has no positive length"); }
void __ubsan_handle_nonnull_arg(Typed* data) { RAISE(data, "a null pointer is passed where none may be"); }
void __ubsan_handle_float_cast_overflow(Cast* data, uintptr_t) { RAISE(data, "a %s does not fit in %s", data->from->name, data->to->name); }
void __ubsan_handle_builtin_unreachable(Location* data) { RAISE_AT(*data, "reaches what cannot be reached"); }
void __ubsan_handle_missing_return(Location* data) { RAISE_AT(*data, "a function ends without returning its value"); }

}
