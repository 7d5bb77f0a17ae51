#include "bench/load/content.h"

#include <assert.h>
#include <inttypes.h>

#define LINE_BYTES ((size_t)78) /* with its end */

void content_init(struct content *content, size_t rest_max_bytes)
{
    *content = (struct content){.hole_count = 0};
    buf_init(&content->head, CONTENT_HEAD_MAX);
    buf_init(&content->rest, rest_max_bytes);
}

void content_release(struct content *content)
{
    buf_release(&content->head);
    buf_release(&content->rest);
}

int content_put_text(struct content *content, struct span text)
{
    return buf_append(&content->head, text);
}

int content_put(struct content *content, const char *pattern)
{
    struct span rest = span_of(pattern);
    int rc = 0;
    while (rc == 0 && rest.len > 0) {
        size_t at = span_find(rest, '#');
        bool hole = at < rest.len;
        rc = buf_append(&content->head, span_cut(&rest, '#'));
        if (rc == 0 && hole) {
            ASSERT(content->hole_count < CONTENT_HOLES_MAX);
            content->holes[content->hole_count++] = buf_len(&content->head);
            rc = buf_append(&content->head, SPAN_LIT("0000000000"));
        }
    }
    return rc;
}

/* Words of changing letters: compressing at rest shall gain about what it gains from real mail. */
static char letter(uint64_t *seed)
{
    static const char LETTERS[] = "etaoin shrdlu cmfwyp etaoin shrd";
    static_assert(sizeof(LETTERS) == 33, "five bits choose a letter");
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return LETTERS[*seed >> 59];
}

int content_put_body(struct content *content, size_t size, struct span line_end,
                     size_t line_end_bytes)
{
    uint64_t seed = 4711;
    size_t left = size;
    int rc = 0;
    while (rc == 0 && left > 0) {
        size_t line = left < LINE_BYTES ? left : LINE_BYTES;
        if (left - line > 0 && left - line < line_end_bytes) {
            line -= line_end_bytes; /* so that the last line has room for its end */
        }
        ASSERT(line >= line_end_bytes);
        char *room;
        rc = buf_reserve(&content->rest, line - line_end_bytes, &room);
        if (rc == 0) {
            for (size_t i = 0; i < line - line_end_bytes; i++) {
                room[i] = letter(&seed);
            }
            buf_commit(&content->rest, line - line_end_bytes);
            rc = buf_append(&content->rest, line_end);
        }
        left -= line;
    }
    return rc;
}

struct span content_head(const struct content *content, uint64_t number, char *out)
{
    struct span head = buf_span(&content->head);
    memcpy(out, head.data, head.len);
    for (size_t i = 0; i < content->hole_count; i++) {
        uint64_t left = number;
        for (size_t digit = CONTENT_DIGITS; digit > 0; digit--) {
            out[content->holes[i] + digit - 1] = (char)('0' + left % 10);
            left /= 10;
        }
    }
    return span_make(out, head.len);
}

int content_put_address(struct buf *out, const char *base, uint64_t index, uint64_t count)
{
    struct span domain = span_of(base);
    struct span local = span_cut(&domain, '@');
    if (count == 1) {
        return buf_append(out, span_of(base));
    }
    return buf_printf(out, "%.*s%" PRIu64 "@%.*s", SPAN_FMT(local), index, SPAN_FMT(domain));
}
