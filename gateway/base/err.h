/* Error codes, error sentences, assertions: the conventions every other file relies on.
 *
 * Must not know: mail, queues, loops. Thread: any; nothing here has state.
 *
 * A fallible function returns 0 (ERR_OK) or a negative ERR_* code. A step that may wait returns
 * STEP_DONE, STEP_WAIT or a negative code. A function whose failure a person must read also takes
 * `struct err *err` last; it is written on failure only, with a complete sentence. */
#ifndef HEAVE_BASE_ERR_H
#define HEAVE_BASE_ERR_H

#include <stddef.h>

#if defined(__GNUC__)
#define MUST_USE __attribute__((warn_unused_result))
#define PRINTF_LIKE(fmt_index, first_arg) __attribute__((format(printf, fmt_index, first_arg)))
#define NORETURN __attribute__((noreturn))
#define MAYBE_UNUSED __attribute__((unused))
#define FALLTHROUGH __attribute__((fallthrough))
#else
#define MUST_USE
#define PRINTF_LIKE(fmt_index, first_arg)
#define NORETURN
#define MAYBE_UNUSED
#define FALLTHROUGH ((void)0)
#endif

enum {
    ERR_OK = 0,
    ERR_NOMEM = -1,        /* memory whose size a peer decides could not be had */
    ERR_INVAL = -2,        /* malformed input: syntax, encoding, range */
    ERR_LIMIT = -3,        /* a configured maximum was reached */
    ERR_CLOSED = -4,       /* the object was closed, or the peer went away in good order */
    ERR_BUSY = -5,         /* one such call is already waiting */
    ERR_TIMEOUT = -6,      /* the deadline passed */
    ERR_IO = -7,           /* the operating system or the network failed */
    ERR_PROTO = -8,        /* the peer broke its protocol */
    ERR_NOTFOUND = -9,     /* no such thing */
    ERR_CONFLICT = -10,    /* exists already with other content */
    ERR_UNAVAILABLE = -11, /* a needed service is away; trying again later may help */
    ERR_FULL = -12,        /* no room now; trying again later may help */
    ERR_DENIED = -13,      /* not allowed: credentials, policy */
    ERR_STALE = -14,       /* the claim token or version is not the current one */
    ERR_UNSUPPORTED = -15, /* understood, but not something this side does */
    ERR_AGAIN = -16,       /* not now; the same call may succeed soon */
};

enum {
    STEP_DONE = 0, /* finished */
    STEP_WAIT = 1, /* not finished; the callback says when */
};

/* A failure in words. `text` is always NUL-terminated; cut, never overflowed. */
struct err {
    int code;
    char text[500];
};

/* Writes `code` and the formatted sentence into `err` (which may be NULL) and returns `code`,
 * so that a failing function can end in `return err_set(err, ERR_X, "...")`. */
int err_set(struct err *err, int code, const char *format, ...) PRINTF_LIKE(3, 4);

/* The name of a code, such as "ERR_TIMEOUT"; "ERR_UNKNOWN" for a value that is none. Static text.
 */
const char *err_name(int code);

/* Aborts with file, line and condition: for what only our own bug can break. Stays on in release
 * builds. The condition must have no side effects. */
#define ASSERT(condition)                              \
    do {                                               \
        if (!(condition)) {                            \
            err_abort(__FILE__, __LINE__, #condition); \
        }                                              \
    } while (0)

/* Marks a place no correct program reaches. */
#define UNREACHABLE() err_abort(__FILE__, __LINE__, "unreachable code was reached")

/* Prints one line on standard error and calls abort(). */
NORETURN void err_abort(const char *file, int line, const char *what);

#endif
