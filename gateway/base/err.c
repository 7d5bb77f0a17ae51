#include "gateway/base/err.h"

#include "gateway/base/log.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* Indexed by the negated code; the order is that of the enum in err.h. */
static const char *const code_names[] = {
    [-ERR_OK] = "ERR_OK",
    [-ERR_NOMEM] = "ERR_NOMEM",
    [-ERR_INVAL] = "ERR_INVAL",
    [-ERR_LIMIT] = "ERR_LIMIT",
    [-ERR_CLOSED] = "ERR_CLOSED",
    [-ERR_BUSY] = "ERR_BUSY",
    [-ERR_TIMEOUT] = "ERR_TIMEOUT",
    [-ERR_IO] = "ERR_IO",
    [-ERR_PROTO] = "ERR_PROTO",
    [-ERR_NOTFOUND] = "ERR_NOTFOUND",
    [-ERR_CONFLICT] = "ERR_CONFLICT",
    [-ERR_UNAVAILABLE] = "ERR_UNAVAILABLE",
    [-ERR_FULL] = "ERR_FULL",
    [-ERR_DENIED] = "ERR_DENIED",
    [-ERR_STALE] = "ERR_STALE",
    [-ERR_UNSUPPORTED] = "ERR_UNSUPPORTED",
    [-ERR_AGAIN] = "ERR_AGAIN",
};
static_assert(sizeof(code_names) / sizeof(code_names[0]) == 17, "every code has a name");

int err_set(struct err *err, int code, const char *format, ...)
{
    if (err == NULL) {
        return code;
    }
    err->code = code;
    va_list args;
    va_start(args, format);
    if (vsnprintf(err->text, sizeof(err->text), format, args) < 0) {
        err->text[0] = '\0';
    }
    va_end(args);
    return code;
}

const char *err_name(int code)
{
    if (code > 0 || code < ERR_AGAIN) {
        return "ERR_UNKNOWN";
    }
    return code_names[-code];
}

void err_abort(const char *file, int line, const char *what)
{
    log_flush(); /* what led to this stands before it */
    (void)fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, what);
    abort();
}
