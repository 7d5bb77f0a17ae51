/* Fuzzes gateway/mime: any bytes as a message; what could be read must be sane, and what can be
 * composed from it must be readable again with the same parts. */
#include "gateway/base/codec.h"
#include "gateway/mime.h"

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_view(const struct mail_view *view)
{
    ASSERT(codec_utf8_valid(view->subject) && codec_utf8_valid(view->text) &&
           codec_utf8_valid(view->html));
    for (size_t i = 0; i < view->header_count; i++) {
        struct span value = view->headers[i].value;
        ASSERT(!mime_field_reserved(view->headers[i].name));
        ASSERT(codec_utf8_valid(value) && span_find(value, '\n') == value.len &&
               span_find(value, '\r') == value.len);
    }
    for (size_t i = 0; i < view->attachment_count; i++) {
        ASSERT(view->attachments[i].name.len > 0 && view->attachments[i].content_type.len > 0);
    }
}

static void check_circle(const struct mail_view *view, struct arena *arena, size_t room)
{
    struct buf out;
    struct err err;
    struct mail_view again;
    buf_init(&out, room);
    const struct mime_options options = {.boundary = SPAN_LIT("0123456789abcdef")};
    if (mime_compose(view, &options, &out, &err) == 0) {
        struct span rest = buf_span(&out);
        while (rest.len > 0) {
            struct span line = span_cut(&rest, '\n');
            ASSERT(line.len > 0 && line.len <= 999 && line.data[line.len - 1] == '\r');
        }
        ASSERT(mime_read(buf_span(&out), arena, &again, &err) == 0);
        ASSERT(again.attachment_count == view->attachment_count);
        ASSERT(again.header_count == view->header_count);
    }
    buf_release(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena arena;
    struct mail_view view;
    struct err err;
    arena_init(&arena, size * 64 + (1 << 20));
    if (mime_read(span_make((const char *)data, size), &arena, &view, &err) == 0) {
        check_view(&view);
        check_circle(&view, &arena, size * 16 + (1 << 20));
    } else {
        ASSERT(err.text[0] != '\0');
    }
    arena_release(&arena);
    return 0;
}
