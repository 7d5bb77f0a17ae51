/* Reading the little of a message the simulators need, and writing JSON strings.
 *
 * Written apart from gateway/mime on purpose. Must not know: sockets, services. Thread: any; no
 * state. */
#ifndef HEAVE_BENCH_SIM_TEXT_H
#define HEAVE_BENCH_SIM_TEXT_H

#include "gateway/base/buf.h"
#include "gateway/base/err.h"

#include <stdbool.h>
#include <stddef.h>

/* Appends `text` as a JSON string with its quotes; bytes that are no UTF-8 become '?'.
 * Errors: ERR_LIMIT, ERR_NOMEM. */
MUST_USE int text_json(struct buf *out, struct span text);

/* The value of the first field `name` in a message's header, folded lines included, outer white
 * space removed. Lines end in LF or CR LF; the search ends at the first empty line. A span with
 * NULL data when there is none. */
struct span text_header(struct span message, const char *name);

/* Cuts the next field off `*rest` (a message's header): its name and its raw value. False at the
 * end of the header. */
bool text_next_field(struct span *rest, struct span *out_name, struct span *out_value);

/* Calls `fn` for each address of an RFC 5322 address list ("Name <a@b>, group: c@d;, e@f").
 * Comments and quoted strings are understood. Stops and returns what `fn` returns when that is not
 * 0. Text without an address in it gives none. */
int text_each_address(struct span list, int (*fn)(void *ctx, struct span address), void *ctx);

/* The first address of such a list, copied into `room`; an empty span when there is none or it does
 * not fit. */
struct span text_first_address(struct span list, char *room, size_t room_bytes);

/* Whether it looks like local@domain: one unquoted '@', both sides not empty, no space or control
 * character. */
bool text_is_address(struct span address);

#endif
