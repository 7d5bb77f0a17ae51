/* The bytes of a message, ready to be sent many times: a head that is copied with the message's
 * number written into it, and a rest that all messages share. Pure; thread: any. */
#ifndef HEAVE_BENCH_LOAD_CONTENT_H
#define HEAVE_BENCH_LOAD_CONTENT_H

#include "gateway/base/buf.h"

#include <stddef.h>
#include <stdint.h>

#define CONTENT_HEAD_MAX ((size_t)4096)
#define CONTENT_HOLES_MAX 4
#define CONTENT_DIGITS 10

struct content {
    struct buf head;
    size_t holes[CONTENT_HOLES_MAX]; /* offsets in the head of CONTENT_DIGITS digits each */
    size_t hole_count;
    struct buf rest;
};

void content_init(struct content *content, size_t rest_max_bytes);
void content_release(struct content *content);
/* Appends to the head; every '#' becomes a hole for the number. So texts of users go through
 * content_put_text instead. Errors: ERR_LIMIT, ERR_NOMEM. */
MUST_USE int content_put(struct content *content, const char *pattern);
MUST_USE int content_put_text(struct content *content, struct span text);
/* Appends `size` bytes of text to the rest: lines of words, each ended by `line_end`, which counts
 * `line_end_bytes` (JSON writes one byte as two). The words are varied, always the same, and start
 * with no dot. Errors: ERR_LIMIT, ERR_NOMEM. */
MUST_USE int content_put_body(struct content *content, size_t size, struct span line_end,
                              size_t line_end_bytes);
/* Copies the head with `number` in its holes to `out`, which has CONTENT_HEAD_MAX bytes. */
struct span content_head(const struct content *content, uint64_t number, char *out);

/* "to@dom" -> "to7@dom"; the address as it is when there is one recipient only.
 * Errors: as the buf. */
MUST_USE int content_put_address(struct buf *out, const char *base, uint64_t index, uint64_t count);

#endif
