/* Bytes: borrowed spans, owned growing buffers, per-transaction arenas, and all allocation.
 *
 * Must not know: protocols, loops, logs. Thread: any; an object belongs to one thread at a time.
 *
 * Offsets of a struct buf:
 *
 *     data            data+start             data+end                data+cap
 *     | consumed      | readable bytes       | reserved, writable    |
 *
 * Every buf has a maximum given at init; growing past it is the ordinary error ERR_LIMIT. */
#ifndef HEAVE_BASE_BUF_H
#define HEAVE_BASE_BUF_H

#include "gateway/base/err.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Borrowed bytes: not owned, not NUL-terminated, valid as long as the lender says. */
struct span {
    const char *data;
    size_t len;
};

/* A span over a string literal or array constant. */
#define SPAN_LIT(literal) ((struct span){.data = ("" literal), .len = sizeof(literal) - 1})

/* For printf("%.*s", SPAN_FMT(s)). */
#define SPAN_FMT(s) (int)(s).len, (s).data

static inline struct span span_of(const char *text)
{
    return (struct span){.data = text, .len = text != NULL ? strlen(text) : 0};
}

static inline struct span span_make(const char *data, size_t len)
{
    return (struct span){.data = data, .len = len};
}

bool span_eq(struct span a, struct span b);
/* ASCII case-insensitive equality; other bytes compare as they are. */
bool span_ieq(struct span a, struct span b);
bool span_starts(struct span s, struct span prefix);
bool span_istarts(struct span s, struct span prefix);
bool span_ends(struct span s, struct span suffix);
bool span_iends(struct span s, struct span suffix);
/* Without leading and trailing space, tab, CR and LF. */
struct span span_trim(struct span s);
/* Index of the first `byte`, or s.len when there is none. */
size_t span_find(struct span s, char byte);
/* Index of the first occurrence of `needle`, or s.len when there is none. */
size_t span_search(struct span s, struct span needle);
/* Cuts `*rest` at the first `byte`: returns what stood before it, leaves what follows. Returns all
 * and leaves an empty span when there is none. */
struct span span_cut(struct span *rest, char byte);
/* Decimal digits only, no sign, at least one. Errors: ERR_INVAL (other bytes, or above `max`). */
MUST_USE int span_to_u64(struct span s, uint64_t max, uint64_t *out_value);

/* Allocation. mem_alloc/mem_zero/mem_dup abort when memory is gone: for sizes we choose. mem_try
 * returns NULL: for sizes a peer chooses. All are freed with mem_free, which accepts NULL. */
void *mem_alloc(size_t size);
void *mem_zero(size_t size);
void *mem_try(size_t size) MUST_USE;
void *mem_realloc_try(void *old, size_t size) MUST_USE;
void mem_free(void *memory);
/* Once, at the start of a process that runs long: makes what large messages needed go back to the
 * system, instead of leaving holes in the heap. */
void mem_setup(void);
/* NUL-terminated copy; aborts without memory. */
char *mem_dup(struct span s);
/* Overwrites in a way the compiler keeps. */
void mem_wipe(void *memory, size_t size);
/* Checked sums and products. Errors: ERR_LIMIT. */
MUST_USE int size_add(size_t a, size_t b, size_t *out_sum);
MUST_USE int size_mul(size_t a, size_t b, size_t *out_product);

struct buf {
    char *data;   /* NULL while nothing was reserved */
    size_t start; /* first readable byte */
    size_t end;   /* first writable byte */
    size_t cap;   /* allocated bytes */
    size_t max;   /* readable bytes may never exceed this */
    bool secret;  /* wipe memory when it is given back */
};

/* `max_bytes` above 0. Allocates nothing. */
void buf_init(struct buf *b, size_t max_bytes);
/* As buf_init; memory is wiped whenever it moves or is released. */
void buf_init_secret(struct buf *b, size_t max_bytes);
/* Gives the memory back; the buf may be used again. */
void buf_release(struct buf *b);
static inline size_t buf_len(const struct buf *b)
{
    return b->end - b->start;
}
static inline struct span buf_span(const struct buf *b)
{
    /* NULL + 0 is undefined in C, so an empty buf needs its own line. */
    return b->data != NULL ? span_make(b->data + b->start, buf_len(b)) : span_make(NULL, 0);
}
/* Makes room for `more` bytes and points `*out_room` at it; commit what was written with
 * buf_commit. Invalidates spans into the buf. Errors: ERR_LIMIT, ERR_NOMEM. */
MUST_USE int buf_reserve(struct buf *b, size_t more, char **out_room);
void buf_commit(struct buf *b, size_t written);
/* Appends. Errors: ERR_LIMIT, ERR_NOMEM; nothing is appended then. */
MUST_USE int buf_append(struct buf *b, struct span s);
MUST_USE int buf_append_byte(struct buf *b, char byte);
MUST_USE int buf_printf(struct buf *b, const char *format, ...) PRINTF_LIKE(2, 3);
MUST_USE int buf_vprintf(struct buf *b, const char *format, va_list args) PRINTF_LIKE(2, 0);
/* Drops the first `count` readable bytes; count <= buf_len(b). */
void buf_consume(struct buf *b, size_t count);
/* Shortens the readable bytes to `len` from the front. */
void buf_truncate(struct buf *b, size_t len);
/* Empty; keeps the memory. */
static inline void buf_reset(struct buf *b)
{
    b->start = 0;
    b->end = 0;
}
/* Appends a NUL that does not count, and returns the text. Errors as NULL: no memory or limit. */
MUST_USE const char *buf_text(struct buf *b);

/* Memory that is freed all at once. Blocks grow; nothing is freed singly. */
struct arena_block;
struct arena {
    struct arena_block *block; /* newest */
    size_t used_bytes;         /* handed out so far, all blocks */
    size_t max_bytes;
};
void arena_init(struct arena *a, size_t max_bytes);
void arena_release(struct arena *a);
/* Zeroed, aligned for any object. NULL when the maximum is reached or memory is gone: handle it
 * where a peer decides the size. */
MUST_USE void *arena_alloc(struct arena *a, size_t size);
/* NUL-terminated copy (the NUL is not in `.len`); `.data` is NULL on failure as above. */
MUST_USE struct span arena_dup(struct arena *a, struct span s);

#endif
