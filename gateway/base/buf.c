#include "gateway/base/buf.h"

#include <limits.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <stdio.h>
#include <stdlib.h>

/* ---- Spans ---- */

static unsigned char fold(unsigned char c)
{
    return c >= 'A' && c <= 'Z' ? (unsigned char)(c + ('a' - 'A')) : c;
}

static bool equal_folded(const char *a, const char *b, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (fold((unsigned char)a[i]) != fold((unsigned char)b[i])) {
            return false;
        }
    }
    return true;
}

/* memcmp wants valid pointers even for no bytes, and an empty span may have none. */
static bool equal_exact(const char *a, const char *b, size_t len)
{
    return len == 0 || memcmp(a, b, len) == 0;
}

bool span_eq(struct span a, struct span b)
{
    return a.len == b.len && equal_exact(a.data, b.data, a.len);
}

bool span_ieq(struct span a, struct span b)
{
    return a.len == b.len && equal_folded(a.data, b.data, a.len);
}

bool span_starts(struct span s, struct span prefix)
{
    return s.len >= prefix.len && equal_exact(s.data, prefix.data, prefix.len);
}

bool span_istarts(struct span s, struct span prefix)
{
    return s.len >= prefix.len && equal_folded(s.data, prefix.data, prefix.len);
}

bool span_ends(struct span s, struct span suffix)
{
    return s.len >= suffix.len &&
           (suffix.len == 0 || equal_exact(s.data + (s.len - suffix.len), suffix.data, suffix.len));
}

bool span_iends(struct span s, struct span suffix)
{
    return s.len >= suffix.len && (suffix.len == 0 || equal_folded(s.data + (s.len - suffix.len),
                                                                   suffix.data, suffix.len));
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

struct span span_trim(struct span s)
{
    while (s.len > 0 && is_blank(s.data[0])) {
        s.data++;
        s.len--;
    }
    while (s.len > 0 && is_blank(s.data[s.len - 1])) {
        s.len--;
    }
    return s;
}

size_t span_find(struct span s, char byte)
{
    if (s.len == 0) {
        return 0;
    }
    const char *hit = memchr(s.data, byte, s.len);
    return hit != NULL ? (size_t)(hit - s.data) : s.len;
}

size_t span_search(struct span s, struct span needle)
{
    if (needle.len == 0) {
        return 0;
    }
    if (needle.len > s.len) {
        return s.len;
    }
    const char *hit = memmem(s.data, s.len, needle.data, needle.len);
    return hit != NULL ? (size_t)(hit - s.data) : s.len;
}

struct span span_cut(struct span *rest, char byte)
{
    size_t at = span_find(*rest, byte);
    struct span head = {.data = rest->data, .len = at};
    size_t skip = at < rest->len ? at + 1 : at;
    if (skip > 0) {
        rest->data += skip;
        rest->len -= skip;
    }
    return head;
}

int span_to_u64(struct span s, uint64_t max, uint64_t *out_value)
{
    if (s.len == 0) {
        return ERR_INVAL;
    }
    uint64_t value = 0;
    for (size_t i = 0; i < s.len; i++) {
        if (s.data[i] < '0' || s.data[i] > '9') {
            return ERR_INVAL;
        }
        uint64_t digit = (uint64_t)(s.data[i] - '0');
        if (value > (UINT64_MAX - digit) / 10) {
            return ERR_INVAL;
        }
        value = value * 10 + digit;
    }
    if (value > max) {
        return ERR_INVAL;
    }
    *out_value = value;
    return ERR_OK;
}

/* ---- Allocation ---- */

/* Above this a block is mapped by itself, so that freeing it frees it. Setting it keeps glibc from
 * raising it to 32 MiB after the first large message, whose holes would then stay in the heap. Much
 * lower costs more than it gives: mapping and unmapping every body of 1 MiB anew doubled the CPU
 * time of such a message. */
#define MAP_FROM_BYTES (4 * 1024 * 1024)
/* How much free memory at the top of a heap is kept for the next burst. */
#define TOP_KEEP_BYTES (16 * 1024 * 1024)

void mem_setup(void)
{
#ifdef __GLIBC__
    /* Neither changes what the program does; a refusal costs memory only. */
    (void)mallopt(M_MMAP_THRESHOLD, MAP_FROM_BYTES);
    (void)mallopt(M_TRIM_THRESHOLD, TOP_KEEP_BYTES);
#endif
}

void *mem_try(size_t size)
{
    return malloc(size > 0 ? size : 1);
}

void *mem_alloc(size_t size)
{
    void *memory = mem_try(size);
    ASSERT(memory != NULL);
    return memory;
}

void *mem_zero(size_t size)
{
    void *memory = calloc(1, size > 0 ? size : 1);
    ASSERT(memory != NULL);
    return memory;
}

void *mem_realloc_try(void *old, size_t size)
{
    return realloc(old, size > 0 ? size : 1);
}

void mem_free(void *memory)
{
    free(memory);
}

char *mem_dup(struct span s)
{
    size_t size = 0;
    ASSERT(size_add(s.len, 1, &size) == ERR_OK);
    char *copy = mem_alloc(size);
    if (s.len > 0) {
        memcpy(copy, s.data, s.len);
    }
    copy[s.len] = '\0';
    return copy;
}

void mem_wipe(void *memory, size_t size)
{
    if (memory != NULL && size > 0) {
        explicit_bzero(memory, size);
    }
}

int size_add(size_t a, size_t b, size_t *out_sum)
{
    if (a > SIZE_MAX - b) {
        return ERR_LIMIT;
    }
    *out_sum = a + b;
    return ERR_OK;
}

int size_mul(size_t a, size_t b, size_t *out_product)
{
    if (b != 0 && a > SIZE_MAX / b) {
        return ERR_LIMIT;
    }
    *out_product = a * b;
    return ERR_OK;
}

/* ---- Buffers ---- */

/* The invariant of every function below: start <= end <= cap, and end - start <= max. The capacity
 * may pass `max` a little: by the NUL of buf_text(), and by the slack that keeps a buf which is
 * consumed and filled in turns from moving its bytes each time. */

#define BUF_FIRST_BYTES ((size_t)64)

void buf_init(struct buf *b, size_t max_bytes)
{
    ASSERT(max_bytes > 0 && max_bytes < SIZE_MAX / 4);
    *b = (struct buf){.max = max_bytes};
}

void buf_init_secret(struct buf *b, size_t max_bytes)
{
    buf_init(b, max_bytes);
    b->secret = true;
}

void buf_release(struct buf *b)
{
    if (b->secret) {
        mem_wipe(b->data, b->cap);
    }
    mem_free(b->data);
    b->data = NULL;
    b->start = 0;
    b->end = 0;
    b->cap = 0;
}

/* Moves the readable bytes into new memory of `cap` bytes. */
static int buf_move(struct buf *b, size_t cap)
{
    if (b->start == 0 && !b->secret) {
        char *grown = mem_realloc_try(b->data, cap);
        if (grown == NULL) {
            return ERR_NOMEM;
        }
        b->data = grown;
        b->cap = cap;
        return ERR_OK;
    }
    char *moved = mem_try(cap);
    if (moved == NULL) {
        return ERR_NOMEM;
    }
    size_t len = buf_len(b);
    if (len > 0) {
        memcpy(moved, b->data + b->start, len);
    }
    if (b->secret) {
        mem_wipe(b->data, b->cap);
    }
    mem_free(b->data);
    b->data = moved;
    b->start = 0;
    b->end = len;
    b->cap = cap;
    return ERR_OK;
}

static void buf_slide(struct buf *b)
{
    size_t len = buf_len(b);
    if (len > 0) {
        memmove(b->data, b->data + b->start, len);
    }
    if (b->secret) {
        mem_wipe(b->data + len, b->end - len);
    }
    b->start = 0;
    b->end = len;
}

/* Room for `more` bytes after `end`; the caller has checked `more` against the maximum. */
static int buf_make_room(struct buf *b, size_t more)
{
    if (b->cap - b->end >= more) {
        return ERR_OK;
    }
    size_t len = buf_len(b);
    /* Sliding costs `len`; it is paid for by the at least half as many bytes consumed before. */
    if (b->cap - len >= more && b->start >= len / 2) {
        buf_slide(b);
        return ERR_OK;
    }
    size_t need = len + more;
    size_t cap = need > b->cap * 2 ? need : b->cap * 2;
    if (cap < BUF_FIRST_BYTES) {
        cap = BUF_FIRST_BYTES;
    }
    size_t most = b->start == 0 ? b->max + 1 : need + need / 2;
    if (cap > most) {
        cap = most > need ? most : need;
    }
    return buf_move(b, cap);
}

int buf_reserve(struct buf *b, size_t more, char **out_room)
{
    if (more > b->max - buf_len(b)) {
        return ERR_LIMIT;
    }
    int rc = buf_make_room(b, more > 0 ? more : 1);
    if (rc != ERR_OK) {
        return rc;
    }
    *out_room = b->data + b->end;
    return ERR_OK;
}

void buf_commit(struct buf *b, size_t written)
{
    ASSERT(written <= b->cap - b->end);
    ASSERT(buf_len(b) + written <= b->max);
    b->end += written;
}

int buf_append(struct buf *b, struct span s)
{
    if (s.len == 0) {
        return ERR_OK;
    }
    char *room = NULL;
    int rc = buf_reserve(b, s.len, &room);
    if (rc != ERR_OK) {
        return rc;
    }
    memcpy(room, s.data, s.len);
    b->end += s.len;
    return ERR_OK;
}

int buf_append_byte(struct buf *b, char byte)
{
    return buf_append(b, (struct span){.data = &byte, .len = 1});
}

int buf_vprintf(struct buf *b, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    /* The room that is there is tried first, so that the common case formats once. */
    size_t have = b->data != NULL ? b->cap - b->end : 0;
    int wanted = vsnprintf(have > 0 ? b->data + b->end : NULL, have, format, args);
    int rc = ERR_OK;
    if (wanted < 0) {
        rc = ERR_INVAL;
    } else if ((size_t)wanted > b->max - buf_len(b)) {
        rc = ERR_LIMIT;
    } else if ((size_t)wanted >= have) {
        rc = buf_make_room(b, (size_t)wanted + 1);
        if (rc == ERR_OK) {
            (void)vsnprintf(b->data + b->end, (size_t)wanted + 1, format, again);
        }
    }
    va_end(again);
    if (rc == ERR_OK) {
        b->end += (size_t)wanted;
    }
    return rc;
}

int buf_printf(struct buf *b, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int rc = buf_vprintf(b, format, args);
    va_end(args);
    return rc;
}

void buf_consume(struct buf *b, size_t count)
{
    ASSERT(count <= buf_len(b));
    b->start += count;
    if (b->start == b->end) {
        b->start = 0;
        b->end = 0;
    }
}

void buf_truncate(struct buf *b, size_t len)
{
    ASSERT(len <= buf_len(b));
    b->end = b->start + len;
}

const char *buf_text(struct buf *b)
{
    if (buf_make_room(b, 1) != ERR_OK) {
        return NULL;
    }
    b->data[b->end] = '\0';
    return b->data + b->start;
}

/* ---- Arenas ---- */

struct arena_block {
    struct arena_block *next; /* older */
    size_t used;
    size_t size;
    max_align_t bytes[];
};

#define ARENA_FIRST_BYTES ((size_t)4096 - sizeof(struct arena_block))
#define ARENA_BLOCK_BYTES ((size_t)65536 - sizeof(struct arena_block))

void arena_init(struct arena *a, size_t max_bytes)
{
    *a = (struct arena){.max_bytes = max_bytes};
}

void arena_release(struct arena *a)
{
    struct arena_block *block = a->block;
    while (block != NULL) {
        struct arena_block *next = block->next;
        mem_free(block);
        block = next;
    }
    a->block = NULL;
    a->used_bytes = 0;
}

/* A new block for at least `size` bytes. A large object gets a block of its own behind the newest,
 * so that the room left in the newest is still used. */
static struct arena_block *arena_add_block(struct arena *a, size_t size)
{
    size_t usual = ARENA_FIRST_BYTES;
    if (a->block != NULL) {
        usual = a->block->size * 2 < ARENA_BLOCK_BYTES ? a->block->size * 2 : ARENA_BLOCK_BYTES;
    }
    bool large = a->block != NULL && size > usual / 2;
    size_t payload = size > usual || large ? size : usual;
    size_t total = 0;
    if (size_add(payload, sizeof(struct arena_block), &total) != ERR_OK) {
        return NULL;
    }
    struct arena_block *block = calloc(1, total);
    if (block == NULL) {
        return NULL;
    }
    block->size = payload;
    if (large) {
        block->next = a->block->next;
        a->block->next = block;
    } else {
        block->next = a->block;
        a->block = block;
    }
    return block;
}

void *arena_alloc(struct arena *a, size_t size)
{
    size_t rounded = 0;
    if (size_add(size > 0 ? size : 1, sizeof(max_align_t) - 1, &rounded) != ERR_OK) {
        return NULL;
    }
    rounded -= rounded % sizeof(max_align_t);
    if (rounded > a->max_bytes - a->used_bytes) {
        return NULL;
    }
    struct arena_block *block = a->block;
    if (block == NULL || block->size - block->used < rounded) {
        block = arena_add_block(a, rounded);
        if (block == NULL) {
            return NULL;
        }
    }
    void *memory = (char *)block->bytes + block->used;
    block->used += rounded;
    a->used_bytes += rounded;
    return memory;
}

struct span arena_dup(struct arena *a, struct span s)
{
    size_t size = 0;
    if (size_add(s.len, 1, &size) != ERR_OK) {
        return (struct span){.data = NULL, .len = 0};
    }
    char *copy = arena_alloc(a, size);
    if (copy == NULL) {
        return (struct span){.data = NULL, .len = 0};
    }
    if (s.len > 0) {
        memcpy(copy, s.data, s.len);
    }
    return (struct span){.data = copy, .len = s.len};
}
