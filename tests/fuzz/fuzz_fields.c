/* Fuzzes queue/fields: any bytes as a message and as an address list. */
#include "queue/fields.h"

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_header(struct span message)
{
    static const char *const names[] = {"from", "x-*"};
    struct span header;
    struct span rest;
    fields_split(message, &header, &rest);
    ASSERT(header.len + rest.len == message.len);

    /* The fields cover the header without a gap, and a copy that drops nothing is the header. */
    struct span walk = header;
    struct field field;
    size_t covered = 0;
    struct buf out;
    buf_init(&out, message.len + 1);
    while (fields_next(&walk, &field)) {
        covered += field.whole.len;
        buf_reset(&out);
        ASSERT(fields_unfold(field.value, &out) == 0);
        ASSERT(span_find(buf_span(&out), '\n') == buf_len(&out));
    }
    ASSERT(covered == header.len);
    buf_reset(&out);
    ASSERT(fields_copy_without(header, names, 0, &out) == 0);
    ASSERT(span_eq(buf_span(&out), header));
    buf_reset(&out);
    ASSERT(fields_copy_without(header, names, 2, &out) == 0);
    ASSERT(fields_count(buf_span(&out), SPAN_LIT("From")) == 0);
    buf_release(&out);
}

static void check_list(struct span list)
{
    struct arena arena;
    arena_init(&arena, 1 << 20);
    struct mailbox mailbox;
    while (mailbox_next(&list, &arena, &mailbox)) {
        ASSERT(address_domain(mailbox.address).len > 0);
        (void)address_valid(mailbox.address, true); /* must only not crash */
        ASSERT(address_same(mailbox.address, mailbox.address));
    }
    ASSERT(list.len == 0);
    arena_release(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct span input = span_make((const char *)data, size);
    check_header(input);
    check_list(input);
    struct buf out;
    buf_init(&out, size * 4 + 100);
    ASSERT(fields_encode_text(input, &out) == 0);
    buf_release(&out);
    return 0;
}
